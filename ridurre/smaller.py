"""The smaller form of a layer whose code was looked into.

What it has to compute is known from the rules: the graph that the code left, every operation and
every sub-layer made smaller. What the class can be brought to is tried: first what its
configuration can say, then the layer of the full size with smaller parts in their places (see
`ridurre.resizing`). A form is taken only if it computes what it should, with random weights on
random inputs; code that says a size in so many words never does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from ridurre.backend import FunctionalGraph, infer, own_variables, recreate, to_numpy
from ridurre.backend.opening import Opened, weights_made_by, with_masks
from ridurre.graph.labels import Value, varying
from ridurre.graph.rules import Call, Kept
from ridurre.resizing import Sizes, Way, alternatives, resize, way_to

#: Builds the smaller form of a graph on smaller tensors, by their ids; returns its outputs.
Walk = Callable[[FunctionalGraph, dict[int, Any]], list[Any]]
TOLERANCE = 1e-4


class NoSmallerForm(Exception):
    """The class cannot be brought to compute what it should."""


class Expected(NamedTuple):
    """What the smaller layer has to compute.

    Attributes:
        function: of the inputs, their masks and the layer's own weights.
        inputs: symbolic ones, in the order of the function's arguments.
        shapes: of all variables of the layer, in their order.
        parts: smaller sub-layers, by the ids of the original ones.
    """

    function: keras.Function
    inputs: list[keras.KerasTensor]
    shapes: list[tuple[int, ...]]
    parts: dict[int, keras.Layer]


class Smaller:
    """Finds the smaller form of one layer.

    Args:
        call: the first call of the layer.
        kept: what is left.
        walk: makes the smaller form of what its code does.
        parts: every smaller layer that `walk` has made, by the id of the original.
    """

    def __init__(
        self, call: Call, kept: Kept, walk: Walk, parts: dict[int, tuple[Any, Any]]
    ) -> None:
        if call.opened is None:
            raise ValueError("The layer's code was not looked into.")
        self.call, self.kept, self._walk, self._parts = call, kept, walk, parts
        self.layer: Any = call.operation
        self.opened: Opened = call.opened
        self._rng = np.random.default_rng(0)

    def layer_of_less(self) -> keras.Layer:
        """The smaller layer, with weights of no meaning yet.

        Raises:
            NoSmallerForm: nothing that was tried computes what it should.
        """
        if not self._changes():
            return self._same()
        expected = self._expected()
        arrays = [self._random(t.shape, t.dtype, "input") for t in expected.inputs]
        values = [
            self._random(s, v.dtype, v.name) if s else to_numpy(v)
            for s, v in zip(expected.shapes, own_variables(self.layer), strict=True)
        ]
        wanted = self._wanted(expected, arrays, values)
        for candidate in (*self._from_configuration(), *self._from_parts(expected)):
            try:
                layer = candidate()
                self._build(layer)
                shapes = [tuple(v.shape) for v in own_variables(layer)]
                if shapes == expected.shapes:
                    self._assign(layer, values)
                    found = self._run(layer, arrays)
                    if _close(found, wanted):
                        return layer
            except Exception:  # noqa: S112 - whatever a user's code says to a size it does not like
                continue
        raise NoSmallerForm(
            f"The code of {self.call.name!r} ({self.call.kind}) does not follow when channels in "
            "it go: a size stands in it that neither the arguments of its constructor nor its "
            "attributes change"
        )

    def key(self) -> str:
        """What the answer depends on: like layers that lose alike come in like forms."""
        shapes = [self._shape(v) for v in own_variables(self.layer)]
        config = _nameless(self.layer.get_config()) if self._changes() else None
        inputs = [new.shape for _, new in self._pairs()]
        outputs = [
            [self.kept.count(v.labels, a) for a in varying(v.labels)]
            for c in self.call.inner
            for v in c.outputs
        ]
        return repr((type(self.layer), config, inputs, shapes, outputs))

    def _same(self) -> keras.Layer:
        """The layer anew, where nothing in it goes."""
        layer = recreate(self.layer, {})
        self._build(layer)
        return layer

    def _build(self, layer: keras.Layer) -> None:
        """Call a layer as the original was called, on smaller tensors without numbers."""
        tensors = {
            id(value): keras.KerasTensor(self._shape_of(value), dtype=t.dtype)
            for t, value in zip(self.opened.graph.inputs, self.call.inputs, strict=True)
        }
        layer(*self._filled(self.call.args, tensors), **self._filled(self.call.kwargs, tensors))

    @staticmethod
    def _filled(arguments: Any, tensors: dict[int, Any]) -> Any:
        def fill(x: Any) -> Any:
            return tensors[id(x)] if isinstance(x, Value) else x

        return keras.tree.map_structure(fill, arguments)

    def _shape_of(self, value: Value, known: Sequence[int | None] = ()) -> list[int | None]:
        """The smaller shape of a tensor, given its own shape where that is known better."""
        return [
            self.kept.count(value.labels, a) if value.labels.shape[a] > 1 else n
            for a, n in enumerate(known or value.shape)
        ]

    def _changes(self) -> dict[int, set[int]]:
        """Sizes of what is in the layer that change, to what."""
        changes: dict[int, set[int]] = defaultdict(set)
        for variable in own_variables(self.layer):
            for axis, size in enumerate(variable.shape):
                changes[size].add(self.kept.size(variable, axis))
        for call in [self.call, *self.call.inner]:
            for value in [*call.inputs, *call.outputs]:
                for axis in varying(value.labels):
                    size = value.labels.shape[axis]
                    changes[size].add(self.kept.count(value.labels, axis))
        found = {size: new - {size} for size, new in changes.items()}
        return {size: new for size, new in found.items() if new}

    def _tensors(self) -> list[keras.KerasTensor]:
        """The inputs and masks in their smaller sizes."""
        return [small for _, small in self._pairs()]

    def _pairs(self) -> list[tuple[keras.KerasTensor, keras.KerasTensor]]:
        """Inputs and masks as they were opened with, each once, and their smaller forms."""
        pairs: dict[int, tuple[keras.KerasTensor, keras.KerasTensor]] = {}
        for tensor, value in zip(self.opened.graph.inputs, self.call.inputs, strict=True):
            shape = self._shape_of(value, tensor.shape)
            pairs[id(tensor)] = (tensor, keras.KerasTensor(shape, dtype=tensor.dtype))
        for _, mask in self.opened.masks:
            pairs[id(mask)] = (mask, keras.KerasTensor(mask.shape, dtype=mask.dtype))
        return list(pairs.values())

    def _expected(self) -> Expected:
        pairs = self._pairs()
        for tensor, variable in self.opened.parameters:
            shape = self._shape(variable)
            pairs.append((tensor, keras.KerasTensor(shape, dtype=tensor.dtype)))
        known = set(self._parts)
        tensors = {id(old): new for old, new in pairs}
        with keras.name_scope(self.layer.name):
            outputs = self._walk(self.opened.graph, tensors)
        parts = {k: new for k, (_, new) in self._parts.items() if k not in known}
        inputs = [new for _, new in pairs]
        shapes = [self._shape(v) for v in own_variables(self.layer)]
        return Expected(keras.Function(inputs, outputs), inputs, shapes, parts)

    def _shape(self, variable: keras.Variable) -> tuple[int, ...]:
        return tuple(self.kept.size(variable, a) for a in range(len(variable.shape)))

    def _wanted(
        self, expected: Expected, arrays: list[np.ndarray], values: list[np.ndarray]
    ) -> list[np.ndarray]:
        """What the smaller layer has to return for these inputs, with these weights."""
        by_id = {id(v): x for v, x in zip(own_variables(self.layer), values, strict=True)}
        for key, new in expected.parts.items():
            old = self._parts[key][0]
            if isinstance(old, keras.Layer):
                for v, target in zip(own_variables(old), own_variables(new), strict=True):
                    target.assign(by_id[id(v)])
        count = len(self._tensors())
        for index, (_, variable) in enumerate(self.opened.parameters):
            arrays[count + index] = by_id[id(variable)]
        tensors = [
            keras.ops.convert_to_tensor(a, dtype=t.dtype)
            for a, t in zip(arrays, expected.inputs, strict=True)
        ]
        return [to_numpy(y) for y in keras.tree.flatten(expected.function(tensors))]

    def _run(self, layer: keras.Layer, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """What a layer returns for these inputs."""
        pairs = self._pairs()
        tensors = {
            id(old): keras.ops.convert_to_tensor(a, dtype=old.dtype)
            for (old, _), a in zip(pairs, arrays, strict=False)
        }
        for tensor, mask in self.opened.masks:
            with_masks([tensors[id(tensor)]], {0: tensors[id(mask)]})
        by_value = {
            id(value): tensors[id(t)]
            for t, value in zip(self.opened.graph.inputs, self.call.inputs, strict=True)
        }
        args, kwargs = self._filled((self.call.args, self.call.kwargs), by_value)
        return [to_numpy(y) for y in keras.tree.flatten(infer(layer, args, kwargs))]

    def _random(self, shape: Any, dtype: str, name: str) -> np.ndarray:
        """Random numbers that hide no mistake: neither zeros nor ones, variances positive."""
        if "float" not in dtype:
            values = self._rng.integers(0, 2, shape)
            return values.astype(dtype) if dtype != "bool" else values.astype(bool)
        values = 0.5 * self._rng.normal(size=shape)
        return np.abs(values) + 0.5 if "variance" in name else values

    @staticmethod
    def _assign(layer: keras.Layer, values: list[np.ndarray]) -> None:
        for variable, value in zip(own_variables(layer), values, strict=True):
            variable.assign(value)

    def _from_configuration(self) -> Iterator[Callable[[], Any]]:
        """The class's own smaller forms: other numbers for its constructor."""
        for changes in alternatives(self.layer.get_config(), self._changes()):
            yield lambda changes=changes: recreate(self.layer, changes)

    def _from_parts(self, expected: Expected) -> Iterator[Callable[[], Any]]:
        """The layer of the full size with smaller parts, and other numbers on ``self``."""
        ways = self._ways(expected)
        shapes = {
            number: self._shape(v)
            for number, v in enumerate(weights_made_by(self.layer))
            if self._shape(v) != tuple(v.shape)
        }
        numbers = {k: v for k, v in vars(self.layer).items() if k not in _BY_KERAS}
        for attributes in alternatives(numbers, self._changes()):
            sizes = Sizes(ways, shapes, attributes, self.layer.get_build_config())
            yield lambda sizes=sizes: resize(recreate(self.layer, {}), sizes)

    def _ways(self, expected: Expected) -> dict[Way, keras.Layer]:
        """The smaller sub-layers by where they go."""
        ways = {}
        for node in self.opened.graph.nodes:
            old, new = node.operation, expected.parts.get(id(node.operation))
            if new is None or not isinstance(old, keras.Layer) or _alike(old, new):
                continue
            way = way_to(self.layer, old)
            if way is None:
                raise NoSmallerForm(
                    f"{self.call.name!r} ({self.call.kind}) calls {old.name!r} and Keras does not "
                    "know it as a part of it"
                )
            ways[way] = new
        return ways


#: Attributes that every layer has.
_BY_KERAS = frozenset(vars(keras.layers.Layer())) | {"_build_shapes_dict"}


def _nameless(config: Any) -> Any:
    """A configuration without the names, which Keras counts up."""
    if isinstance(config, dict):
        return {k: _nameless(v) for k, v in config.items() if k != "name"}
    if isinstance(config, list | tuple):
        return [_nameless(v) for v in config]
    return config


def _alike(old: keras.Layer, new: keras.Layer) -> bool:
    shapes = [[tuple(v.shape) for v in own_variables(x)] for x in (old, new)]
    return shapes[0] == shapes[1] and old.get_config() == new.get_config()


def _close(found: list[np.ndarray], wanted: list[np.ndarray]) -> bool:
    if [a.shape for a in found] != [a.shape for a in wanted]:
        return False
    return all(
        np.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE * max(1.0, float(np.abs(b).max(initial=0))))
        for a, b in zip(found, wanted, strict=True)
    )
