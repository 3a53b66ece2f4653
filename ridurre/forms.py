"""The forms that a layer of a user's class may have in a smaller size, to be tried one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import keras

from ridurre.backend import all_layers
from ridurre.backend.making import arguments_of, recreate, remake
from ridurre.backend.state import weights_made_by
from ridurre.errors import ModelError
from ridurre.resizing import Sizes, Way, alternatives, resize

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


def forms(
    layer: Any,
    changes: Mapping[int, set[int]],
    ways: Sequence[Mapping[Way, keras.Layer]],
    shape_of: Callable[[keras.Variable], tuple[int, ...]],
) -> list[Candidate]:
    """All forms that a layer may have, the simplest first.

    Args:
        layer: the original.
        changes: sizes that change in it, to what.
        ways: its smaller sub-layers, by where they go: those that have to, and more.
        shape_of: the smaller shape of a weight.
    """
    found = [*_from_configuration(layer, changes)]
    for number, some in enumerate(ways):
        if some not in ways[:number]:
            found += _from_parts(layer, changes, some, shape_of)
    return found


def _from_configuration(layer: Any, changes: Mapping[int, set[int]]) -> Iterator[Candidate]:
    """The class's own smaller forms: other numbers for its constructor."""
    make, config = _maker(layer)
    for numbers in alternatives(config, changes):
        what = (type(layer), "configuration", *sorted(numbers))
        yield Candidate(what, partial(anew, layer, make, numbers))


def _from_parts(
    layer: Any,
    changes: Mapping[int, set[int]],
    ways: Mapping[Way, keras.Layer],
    shape_of: Callable[[keras.Variable], tuple[int, ...]],
) -> Iterator[Candidate]:
    """The layer of the full size with smaller parts, and other numbers on ``self``."""
    own = weights_made_by(layer)
    shapes = {i: shape_of(v) for i, v in enumerate(own) if shape_of(v) != tuple(v.shape)}
    numbers = {k: v for k, v in vars(layer).items() if k not in _BY_KERAS}
    for attributes in alternatives(numbers, changes):
        sizes = Sizes(ways, shapes, attributes, layer.get_build_config())
        what = (type(layer), "parts", len(ways), *sorted(attributes))
        yield Candidate(what, partial(_of_parts, layer, sizes))


def _of_parts(layer: Any, sizes: Sizes) -> keras.Layer:
    return resize(anew(layer, _maker(layer)[0], {}), sizes)


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


def _maker(layer: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    """How the class is made anew, and the numbers that it is made with."""
    try:
        anew(layer, recreate, {})
        return recreate, layer.get_config()
    except ModelError:
        return remake, arguments_of(layer)
