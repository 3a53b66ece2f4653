"""The forms that a layer of a user's class may have in a smaller size, to be tried one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import keras

from ridurre.backend import all_layers
from ridurre.backend.making import arguments_of, names_read_by, recreate, remake
from ridurre.backend.state import weights_made_by
from ridurre.errors import ModelError
from ridurre.resizing import (
    Sizes,
    Way,
    alternatives,
    build_as,
    part_at,
    resize,
    way_to,
)

#: Attributes that every layer has.
_BY_KERAS = frozenset(vars(keras.layers.Layer())) | {"_build_shapes_dict"}


class Candidate(NamedTuple):
    """A form that a layer may have.

    Attributes:
        what: how it is come by.
        make: makes it, not built yet.
    """

    what: tuple[Any, ...]
    make: Callable[[], Any]


class Maker(NamedTuple):
    """How a layer of a class is made anew.

    Attributes:
        make: makes it, given the layer and other numbers.
        numbers: those that it is made with.
        held: whether it comes out of the layer that holds it.
        arguments: all that its class is called with, if the class does not say so itself.
    """

    make: Callable[[Any, Any], Any]
    numbers: Mapping[str, Any]
    held: bool = False
    arguments: Mapping[str, Any] | None = None


def forms(
    layer: Any,
    changes: Mapping[int, set[int]],
    ways: Sequence[Mapping[Way, keras.Layer]],
    shape_of: Callable[[keras.Variable], tuple[int, ...]],
    holders: Sequence[Any] = (),
) -> list[Candidate]:
    """All forms that a layer may have, the simplest first.

    Args:
        layer: the original.
        changes: sizes that change in it, to what.
        ways: its smaller sub-layers, by where they go: those that have to, and more.
        shape_of: the smaller shape of a weight.
        holders: the layer that it is a part of, the one that that is a part of, and so on.
    """
    maker = _maker(layer, holders)
    found = [*_from_configuration(layer, changes, maker)]
    for number, some in enumerate(ways):
        if some not in ways[:number]:
            found += _from_parts(layer, changes, some, shape_of, maker)
    return found


def _from_configuration(
    layer: Any, changes: Mapping[int, set[int]], maker: Maker
) -> Iterator[Candidate]:
    """The class's own smaller forms: other numbers for its constructor."""
    for numbers in alternatives(maker.numbers, changes):
        what = (type(layer), "configuration", *sorted(numbers))
        yield Candidate(what, partial(_of_numbers, layer, maker, numbers))


def _from_parts(
    layer: Any,
    changes: Mapping[int, set[int]],
    ways: Mapping[Way, keras.Layer],
    shape_of: Callable[[keras.Variable], tuple[int, ...]],
    maker: Maker,
) -> Iterator[Candidate]:
    """The layer of the full size with smaller parts, and other numbers on ``self``."""
    own = weights_made_by(layer)
    shapes = {i: shape_of(v) for i, v in enumerate(own) if shape_of(v) != tuple(v.shape)}
    numbers = {k: v for k, v in vars(layer).items() if k not in _BY_KERAS}
    read = names_read_by(layer)
    likely = {k: v for k, v in numbers.items() if k in read}
    for attributes in _each_once(alternatives(likely, changes), alternatives(numbers, changes)):
        build = layer.get_build_config()
        sizes = Sizes(ways, shapes, attributes, build, maker.held, maker.arguments)
        what = (type(layer), "parts", len(ways), *sorted(attributes))
        yield Candidate(what, partial(_of_parts, layer, maker, sizes))


def _each_once(*several: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for one in chain.from_iterable(several):
        if repr(sorted(one.items())) not in seen:
            seen.add(repr(sorted(one.items())))
            yield one


def _of_numbers(layer: Any, maker: Maker, numbers: Mapping[str, Any]) -> keras.Layer:
    new: keras.Layer = anew(layer, maker.make, numbers)
    if maker.arguments is None and _says(new, numbers):
        return new
    made_with = {**maker.numbers, **numbers}
    return resize(new, Sizes({}, {}, {}, None, made_with=made_with))


def _says(layer: keras.Layer, numbers: Mapping[str, Any]) -> bool:
    """Whether a configuration has these numbers: Keras notes none of what it makes models with."""
    config = layer.get_config() if numbers else {}
    return all(name in config and config[name] == number for name, number in numbers.items())


def _of_parts(layer: Any, maker: Maker, sizes: Sizes) -> keras.Layer:
    return resize(anew(layer, maker.make, {}), sizes)


def anew(layer: Any, make: Callable[..., Any], changes: Mapping[str, Any]) -> Any:
    """A new layer, nothing of which is the user's.

    Raises:
        ModelError: the class cannot be made again, or would share layers with the original.
    """
    new = make(layer, changes)
    if {id(x) for x in all_layers(layer)} & {id(x) for x in all_layers(new)}:
        raise ModelError(
            f"The layer {layer.name!r} ({type(layer).__name__}) is given layers, and its "
            "configuration holds these themselves: a copy would share them."
        )
    before, after = _plain(layer), _plain(new)
    if not changes and any(before[k] != after[k] for k in before.keys() & after.keys()):
        raise ModelError(
            f"The layer {layer.name!r} ({type(layer).__name__}) made anew has other attributes: "
            "they are not what its constructor is given. Give the class a `get_config`."
        )
    return new


def _plain(layer: Any) -> dict[str, Any]:
    """The numbers and texts that a layer's code may read."""
    kinds = (bool, int, float, str)
    own = {k: v for k, v in vars(layer).items() if k not in _BY_KERAS}
    return {k: v for k, v in own.items() if isinstance(v, kinds)}


def made_otherwise(layer: Any, holders: Sequence[Any]) -> Any:
    """A new layer of a class without a working configuration, in the full size.

    Raises:
        ModelError: neither its attributes nor the layers that hold it make one.
    """
    return anew(layer, _maker(layer, holders).make, {})


def _maker(layer: Any, holders: Sequence[Any]) -> Maker:
    """How the class is made anew: by its configuration, its attributes, or by who holds it."""
    try:
        anew(layer, recreate, {})
        return Maker(recreate, layer.get_config())
    except ModelError:
        arguments = arguments_of(layer)
        by_attributes = Maker(remake, arguments, arguments=arguments)
    if not holders:
        return by_attributes
    try:
        anew(layer, remake, {})
        return by_attributes
    except ModelError:
        return Maker(partial(_out_of_holder, holders), {}, held=True)


def _out_of_holder(holders: Sequence[Any], layer: Any, changes: Mapping[str, Any]) -> Any:
    """A new layer as the one that holds it makes it, in the full size."""
    del changes
    holder, *further = holders
    way = way_to(holder, layer)
    new = anew(holder, _maker(holder, further).make, {})
    build_as(new, holder.get_build_config())
    try:
        if way is None:
            raise LookupError(f"Keras does not know it as a part of {holder.name!r}")
        part = part_at(new, way)
        if type(part) is not type(layer):
            raise LookupError(f"in its place is a {type(part).__name__}")
    except LookupError as error:
        raise ModelError(
            f"The layer {layer.name!r} ({type(layer).__name__}) cannot be re-created, neither from "
            f"its configuration nor by {holder.name!r} ({type(holder).__name__}), which holds it: "
            f"{error}"
        ) from error
    return part
