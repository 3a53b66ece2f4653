"""A layer of a user's own class in another size than its configuration says.

Where the configuration of a class can name the smaller size, the smaller layer is made from that
and needs nothing of this. Where it cannot, the smaller layer is one of a class derived from the
user's, which is put together anew when a ``.keras`` file is loaded: the layer of the full size is
made, and then what is smaller takes the place of what is not.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any

import keras

from ridurre.backend.state import (
    builds_itself,
    children_of,
    recount,
    reshape_variable,
    take_over,
    weights_made_by,
)

#: The way to a layer inside another one: its number among the layers held, at every depth.
Way = tuple[int, ...]
#: How many numbers of a configuration are changed in all combinations; of more, one or two or all.
MANY = 6
#: How many times a size a number may be.
FACTORS = (2, 3, 4)
#: What a configuration says about other things than sizes.
NO_SIZES = frozenset({"name", "dtype", "trainable", "activity_regularizer", "built", "seed"})


@dataclass(frozen=True)
class Sizes:
    """What is smaller in a layer than its configuration says.

    Attributes:
        layers: smaller layers, built, by the way to those whose place they take.
        shapes: of the layer's own variables, by their number.
        attributes: numbers that the layer's code reads from ``self``.
        build: what the original was built with (``get_build_config``).
        held: whether the class does not say how it is made, so that only the layer that holds it
            can make one of the full size.
        made_with: the arguments of the class's constructor, if it does not say them itself.
    """

    layers: Mapping[Way, keras.Layer]
    shapes: Mapping[int, tuple[int, ...]]
    attributes: Mapping[str, Any]
    build: Mapping[str, Any] | None
    held: bool = False
    made_with: Mapping[str, Any] | None = None

    def and_then(self, later: Sizes) -> Sizes:
        """These, and what became smaller still."""
        return Sizes(
            {**self.layers, **later.layers},
            {**self.shapes, **later.shapes},
            {**self.attributes, **later.attributes},
            self.build or later.build,
            later.held,
            self.made_with if later.made_with is None else later.made_with,
        )


class _Resized:
    """What a class derived from a user's adds: another way through a ``.keras`` file."""

    _ridurre_sizes: Sizes
    #: The configuration of the full size, as it was before the layer's numbers changed.
    _ridurre_whole: dict[str, Any]

    def get_config(self) -> dict[str, Any]:
        """The layer of the full size, and what is smaller."""
        sizes, original = self._ridurre_sizes, type(self).__mro__[2]
        whole: dict[str, Any] = {
            "module": original.__module__,
            "class_name": original.__name__,
            "registered_name": keras.saving.get_registered_name(original),
        }
        if sizes.made_with is None:
            now = {"name": self.name, "trainable": self.trainable}  # type: ignore[attr-defined]
            before = self._ridurre_whole
            whole["config"] = before | {k: v for k, v in now.items() if k in before}
        else:
            whole["arguments"] = keras.saving.serialize_keras_object(dict(sizes.made_with))
        return {"full_size": whole, **_as_config(sizes)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """The layer of the full size, made smaller."""
        load = functools.partial(
            keras.saving.deserialize_keras_object, custom_objects=custom_objects
        )
        whole, made_with = config["full_size"], None
        if "arguments" in whole:
            made_with = load(whole["arguments"])
            layer = _named_class(whole, custom_objects)(**made_with)
        else:
            layer = load(whole)
        return _resize_as(config, layer, load, made_with=made_with)

    def get_build_config(self) -> dict[str, Any] | None:
        """Only models, and layers that their class makes as they are, wait to be built."""
        sizes = self._ridurre_sizes
        resized = sizes.layers or sizes.shapes or sizes.attributes
        if resized and not isinstance(self, keras.Model):
            return None
        return super().get_build_config()  # type: ignore[misc]

    def build_from_config(self, config: Mapping[str, Any]) -> None:
        """Shapes are tuples again, which a file makes lists of."""
        super().build_from_config(_with_tuples(config))  # type: ignore[misc]


keras.saving.register_keras_serializable(package="ridurre", name="Resized")(_Resized)


def _as_config(sizes: Sizes) -> dict[str, Any]:
    """What is smaller; parts that only their holder can make become so in their places."""
    inner = {way: vars(layer).get("_ridurre_sizes") for way, layer in sizes.layers.items()}
    held = {way: its for way, its in inner.items() if its is not None and its.held}
    return {
        "smaller_layers": [
            [list(way), keras.saving.serialize_keras_object(layer)]
            for way, layer in sizes.layers.items()
            if way not in held
        ],
        "smaller_in_place": [[list(way), _as_config(its)] for way, its in held.items()],
        "smaller_shapes": [[number, list(shape)] for number, shape in sizes.shapes.items()],
        "other_attributes": dict(sizes.attributes),
        "built_for": keras.saving.serialize_keras_object(sizes.build),
    }


def _named_class(whole: dict[str, Any], custom_objects: Any) -> Any:
    """The class of a layer, found where Keras looks for it."""
    name, module = whole["registered_name"], whole["module"]
    found = keras.saving.get_registered_object(name, custom_objects=custom_objects)
    if found is None and module.partition(".")[0] in ("keras", "keras_hub"):
        found = getattr(importlib.import_module(module), whole["class_name"], None)
    if not (isinstance(found, type) and issubclass(found, keras.Layer)):
        raise ValueError(
            f"The file holds a layer of class {whole['class_name']!r} of {module!r}, which Keras "
            "does not know. Register it with @keras.saving.register_keras_serializable(), or give "
            "it among `custom_objects`."
        )
    return found


def _resize_as(config: dict[str, Any], layer: Any, load: Callable[[Any], Any], **how: Any) -> Any:
    """Make a layer smaller as a configuration says; `how` it was made is told again."""
    build = load(config["built_for"])
    build_as(layer, build)
    layers = {tuple(way): load(smaller) for way, smaller in config["smaller_layers"]}
    for way, inner in config["smaller_in_place"]:
        layers[tuple(way)] = _resize_as(inner, part_at(layer, tuple(way)), load, held=True)
    shapes = {number: tuple(shape) for number, shape in config["smaller_shapes"]}
    attributes = {
        name: tuple(value) if isinstance(vars(layer).get(name), tuple) else value
        for name, value in config["other_attributes"].items()
    }
    return resize(layer, Sizes(layers, shapes, attributes, build, **how))


def build_as(layer: Any, build: Mapping[str, Any] | None) -> None:
    """Build a layer for what another one was built for (its ``get_build_config``)."""
    if not layer.built and build and builds_itself(layer):
        layer.build_from_config(_with_tuples(build))


def _with_tuples(build: Any) -> Any:
    if isinstance(build, Mapping):
        return {name: _with_tuples(x) for name, x in build.items()}
    if not isinstance(build, list):
        return build
    shape = all(n is None or isinstance(n, int) for n in build)
    return tuple(build) if shape else [_with_tuples(x) for x in build]


@functools.cache
def resized_class(cls: type) -> type:
    """The class of smaller layers of a user's class."""
    derived = type(cls.__name__, (_Resized, cls), {"__module__": cls.__module__})
    # All of them are put together in the same way, so that they may share a name in files.
    return keras.saving.register_keras_serializable(package="ridurre", name="Resized")(derived)


def resize(layer: Any, sizes: Sizes) -> keras.Layer:
    """Make a new layer, not called yet, smaller in place.

    Args:
        layer: just made from its configuration, in the full size.
        sizes: what is smaller.

    Returns:
        The same object, of a class derived from its own.
    """
    says_itself = not sizes.held and sizes.made_with is None
    if says_itself and not isinstance(layer, _Resized):
        vars(layer)["_ridurre_whole"] = layer.get_config()
    build_as(layer, sizes.build)
    places = {way: part_at(layer, way) for way in sizes.layers}
    for way, smaller in sizes.layers.items():
        if places[way] is not smaller:
            take_over(places[way], smaller)
    own = weights_made_by(layer)
    for number, shape in sizes.shapes.items():
        reshape_variable(own[number], shape)
    layer.__class__ = resized_class(_original(type(layer)))
    vars(layer).update(sizes.attributes)
    before = vars(layer).get("_ridurre_sizes")
    vars(layer)["_ridurre_sizes"] = sizes if before is None else before.and_then(sizes)
    recount(layer)
    return layer


def _original(cls: type) -> type:
    return cls.__mro__[2] if issubclass(cls, _Resized) else cls


def way_to(layer: keras.Layer, wanted: keras.Layer) -> Way | None:
    """Where in a layer another one is; None if it is not among those that Keras knows of."""
    for number, child in enumerate(children_of(layer)):
        if child is wanted:
            return (number,)
        further = way_to(child, wanted)
        if further is not None:
            return (number, *further)
    return None


def part_at(layer: keras.Layer, way: Way) -> keras.Layer:
    """The layer that a way leads to."""
    for number in way:
        layer = children_of(layer)[number]
    return layer


def alternatives(
    values: Mapping[str, Any], changes: Mapping[int, set[int]]
) -> Iterator[dict[str, Any]]:
    """What to set differently among named numbers, given which numbers changed; least first.

    At last come numbers that are a multiple of a size: of two halves of a gate, say.

    Args:
        values: numbers, and lists of numbers, by name.
        changes: sizes that changed, to what.
    """
    numbers = [
        (name, index, number)
        for name, value in values.items()
        if name not in NO_SIZES
        for index, number in _numbers(value)
    ]
    equal, multiple = (
        [
            (name, index, times * new)
            for name, index, number in numbers
            for times in factors
            if number % times == 0
            for new in sorted(changes.get(number // times, ()))
        ]
        for factors in ((1,), FACTORS)
    )
    yield from _combined(values, equal)
    for place in multiple:
        yield _changed(values, [place])


def _combined(values: Mapping[str, Any], places: list[Any]) -> Iterator[dict[str, Any]]:
    count = len(places)
    sizes = range(count + 1) if count <= MANY else (0, 1, 2, count)
    for chosen in chain.from_iterable(combinations(places, n) for n in sizes):
        if len({place[:2] for place in chosen}) == len(chosen):
            yield _changed(values, chosen)


def _numbers(value: Any) -> Iterator[tuple[int | None, int]]:
    if isinstance(value, int) and not isinstance(value, bool):
        yield None, value
    elif type(value) in (list, tuple):
        for index, one in enumerate(value):
            if isinstance(one, int) and not isinstance(one, bool):
                yield index, one


def _changed(values: Mapping[str, Any], chosen: Any) -> dict[str, Any]:
    new: dict[str, Any] = {}
    for name, index, number in chosen:
        if index is None:
            new[name] = number
        else:
            whole = list(new.get(name, values[name]))
            whole[index] = number
            new[name] = type(values[name])(whole)
    return new
