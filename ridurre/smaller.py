"""The smaller form of a layer whose code was looked into.

What it has to compute is known from the rules: the graph that the code left, every operation and
every sub-layer made smaller. What the class can be brought to is tried: first what its
configuration can say, then the layer of the full size with smaller parts in their places (see
`ridurre.resizing`). A form is taken only if it computes what it should, with random weights on
random inputs; code that says a size in so many words never does.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from ridurre.backend import FunctionalGraph, all_layers, infer, own_variables, to_numpy
from ridurre.backend.inner import Constants, answering_by_code, tensors_in
from ridurre.backend.opening import Opened, forgetting_calls, graph_between, open_call, stand_in
from ridurre.backend.state import build_on, says_shapes, with_masks
from ridurre.errors import ModelError
from ridurre.forms import Candidate, forms
from ridurre.graph.labels import Value, varying
from ridurre.graph.rules import Call, Kept
from ridurre.likeness import alike, config_of, nameless
from ridurre.resizing import Way, way_to

#: Builds the smaller form of a graph on smaller tensors, by their ids; returns its outputs.
Walk = Callable[[FunctionalGraph, dict[int, Any]], list[Any]]
TOLERANCE = 1e-4

logger = logging.getLogger("ridurre")


class NoSmallerForm(Exception):
    """The class cannot be brought to compute what it should."""


class Expected(NamedTuple):
    """What the smaller layer has to compute.

    Attributes:
        graph: its inputs are those of the layer (each once), their masks and the layer's own
            weights.
        small: the inputs of the layer, as many as the call has.
        shapes: of all variables of the layer, in their order.
        parts: smaller sub-layers, by the ids of the original ones.
    """

    graph: FunctionalGraph
    small: list[keras.KerasTensor]
    shapes: list[tuple[int, ...]]
    parts: dict[int, keras.Layer]


class Smaller:
    """Finds the smaller form of one layer.

    Args:
        call: the first call of the layer.
        kept: what is left.
        walk: makes the smaller form of what its code does.
        parts: every smaller layer that `walk` has made, by the id of the original.
        known: ways that were right before and are tried first; is added to.
    """

    def __init__(
        self,
        call: Call,
        kept: Kept,
        walk: Walk,
        parts: dict[int, tuple[Any, Any]],
        known: set[tuple[Any, ...]],
    ) -> None:
        if call.opened is None:
            raise ValueError("The layer's code was not looked into.")
        self.call, self.kept, self._walk, self._parts = call, kept, walk, parts
        self.layer: Any = call.operation
        self.opened: Opened = call.opened
        self._known = known
        self._rng = np.random.default_rng(0)
        self._problem: Exception | None = None

    def layer_of_less(self) -> keras.Layer:
        """The smaller layer, with weights of no meaning yet.

        Raises:
            NoSmallerForm: nothing that was tried computes what it should.
            ModelError: the same of a layer in which nothing goes.
        """
        expected = self._expected()
        ways = [self._ways(expected), self._ways(expected, all_parts=True)]
        candidates = forms(self.layer, self.changes(), ways, self._shape, self.call.holders)
        candidates.sort(key=lambda c: c.what not in self._known)
        for candidate in candidates:
            layer = self._fitting(candidate, expected)
            if layer is not None:
                self._known.add(candidate.what)
                self._name_like_the_original(layer)
                return layer
        if not self.changes():
            raise ModelError(
                f"The layer {self.call.name!r} ({self.call.kind}) cannot be re-created from its "
                f"configuration: {self._problem or 'the copy computes something else'}\nGive the "
                "class a `get_config` that returns every argument of its constructor, and "
                "register its custom objects with @keras.saving.register_keras_serializable()."
            )
        raise NoSmallerForm(
            f"The code of {self.call.name!r} ({self.call.kind}) does not follow when channels in "
            "it go: a size stands in it that neither the arguments of its constructor nor its "
            "attributes change, or a copy of the layer computes something else"
        )

    def accept(self, layer: keras.Layer) -> None:
        """Refuse a smaller layer that was made for another call, unless it fits this one too.

        Raises:
            NoSmallerForm: it does not compute what it should here.
        """
        if self._fitting(Candidate(("as before",), lambda: layer), self._expected()) is None:
            raise NoSmallerForm(
                f"The code of {self.call.name!r} ({self.call.kind}), which is called on tensors of "
                "several sizes, does not follow in all of them when channels go"
            )

    def _name_like_the_original(self, layer: keras.Layer) -> None:
        """Layers that Keras names get other numbers in every copy."""
        pairs = [all_layers(self.layer), all_layers(layer)]
        if [type(x) for x in pairs[0]] == [type(x) for x in pairs[1]]:
            for old, new in zip(*pairs, strict=True):
                new.name = old.name

    def _fitting(self, candidate: Candidate, expected: Expected) -> keras.Layer | None:
        """A candidate, if it computes what it should."""
        try:
            layer = candidate.make()
            self._build(layer)
            if [tuple(v.shape) for v in own_variables(layer)] != expected.shapes:
                return None
            fits = self._looks_right(layer, expected) or self._computes(layer, expected)
            fits = fits and self._announces(layer, expected)
        except Exception as error:  # whatever a user's code says to a size it does not like
            logger.debug("%s as %s: %s", self.call.name, candidate.what, error)
            self._problem = self._problem or error
            return None
        return layer if fits else None

    def _looks_right(self, layer: Any, expected: Expected) -> bool:
        """Whether what the layer does can be seen to be what it should do."""
        args, kwargs = self._on(expected.small)
        opened = open_call(layer, args, kwargs)
        inputs = list({id(t): t for t in opened.graph.inputs}.values())
        masks = [mask for _, mask in opened.masks]
        if not _equal(opened.constants, self.opened.constants):
            return False
        masks += [constant for constant, _ in opened.constants]
        own, parameters = own_variables(layer), {id(v): t for t, v in opened.parameters}
        number = self._numbers()
        theirs = [parameters[id(own[number[id(v)]])] for _, v in self.opened.parameters]
        same = list(zip(expected.graph.inputs, [*inputs, *masks, *theirs], strict=True))
        places = dict(self._part_numbers(expected))
        return alike(
            expected.graph, opened.graph, same, (places, {id(v): i for i, v in enumerate(own)})
        )

    def _announces(self, layer: Any, expected: Expected) -> bool:
        """Whether Keras is told the right shapes, if the class tells them itself."""
        if not says_shapes(self.layer) or not self._announced(
            self.layer, self.opened.graph.inputs, self.opened.graph.outputs
        ):
            return True
        return self._announced(layer, expected.small, expected.graph.outputs)

    def _announced(self, layer: Any, inputs: list[Any], outputs: list[Any]) -> bool:
        args, kwargs = self._on(inputs)
        try:
            said = tensors_in(layer.compute_output_spec(*args, **kwargs))
        except Exception:  # whatever a user's code raises
            return False
        return len(said) == len(outputs) and all(
            len(a.shape) == len(b.shape)
            and all(m in (None, n) for m, n in zip(a.shape, b.shape, strict=True))
            for a, b in zip(said, outputs, strict=True)
        )

    def _numbers(self) -> dict[int, int]:
        return {id(v): i for i, v in enumerate(own_variables(self.layer))}

    def _part_numbers(self, expected: Expected) -> Iterator[tuple[int, int]]:
        """For the variables of the smaller parts the numbers of the original ones."""
        number = self._numbers()
        for key, new in expected.parts.items():
            old = self._parts[key][0]
            if isinstance(old, keras.Layer):
                for v, smaller in zip(own_variables(old), own_variables(new), strict=True):
                    yield id(smaller), number[id(v)]

    def _computes(self, layer: keras.Layer, expected: Expected) -> bool:
        """Whether it returns what it should, with random weights on random inputs."""
        arrays = [self._random(t.shape, t.dtype, "input") for t in expected.graph.inputs]
        constants = {id(t): value for t, value in self.opened.constants}
        for index, (tensor, _) in enumerate(self._pairs()):
            arrays[index] = constants.get(id(tensor), arrays[index])
        values = [
            self._random(s, v.dtype, v.name) if s else to_numpy(v)
            for s, v in zip(expected.shapes, own_variables(self.layer), strict=True)
        ]
        self._assign(layer, values)
        return _close(self._run(layer, arrays), self._wanted(expected, arrays, values))

    def key(self) -> str:
        """What the answer depends on: like layers that lose alike come in like forms."""
        shapes = [self._shape(v) for v in own_variables(self.layer)]
        config = nameless(config_of(self.layer))
        inputs = [new.shape for _, new in self._pairs()]
        outputs = [
            [self.kept.count(v.labels, a) for a in varying(v.labels)]
            for c in self.call.inner
            for v in c.outputs
        ]
        return repr((type(self.layer), config, inputs, shapes, outputs))

    def _build(self, layer: keras.Layer) -> None:
        """Build a layer as the original was built, on smaller tensors."""
        tensors = [
            keras.KerasTensor(self._shape_of(value), dtype=t.dtype)
            for t, value in zip(self.opened.graph.inputs, self.call.inputs, strict=True)
        ]
        args, kwargs = self._on(tensors)
        with forgetting_calls([layer]):
            build_on(layer, args, kwargs)

    def _on(self, tensors: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call's arguments with these tensors, as many as the inputs of the call."""
        by_value = {id(v): t for v, t in zip(self.call.inputs, tensors, strict=True)}
        filled = self._filled((self.call.args, self.call.kwargs), by_value)
        return filled[0], filled[1]

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

    def changes(self) -> dict[int, set[int]]:
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

    def _pairs(self) -> list[tuple[keras.KerasTensor, keras.KerasTensor]]:
        """Inputs, masks and constants as they were opened with, each once, and smaller."""
        pairs: dict[int, tuple[keras.KerasTensor, keras.KerasTensor]] = {}
        for tensor, value in zip(self.opened.graph.inputs, self.call.inputs, strict=True):
            shape = self._shape_of(value, tensor.shape)
            pairs[id(tensor)] = (tensor, keras.KerasTensor(shape, dtype=tensor.dtype))
        for _, mask in self.opened.masks:
            pairs[id(mask)] = (mask, keras.KerasTensor(mask.shape, dtype=mask.dtype))
        for constant, _ in self.opened.constants:
            pairs[id(constant)] = (
                constant,
                keras.KerasTensor(constant.shape, dtype=constant.dtype),
            )
        return list(pairs.values())

    def _expected(self) -> Expected:
        pairs = self._pairs()
        for tensor, variable in self.opened.parameters:
            shape = self._shape(variable)
            pairs.append((tensor, keras.KerasTensor(shape, dtype=tensor.dtype)))
        known = set(self._parts)
        tensors = {id(old): new for old, new in pairs}
        small = [tensors[id(t)] for t in self.opened.graph.inputs]
        for tensor, mask in self.opened.masks:
            with_masks([tensors[id(tensor)]], {0: tensors[id(mask)]})
        with keras.name_scope(self.layer.name), answering_by_code(stand_in):
            outputs = self._walk(self.opened.graph, tensors)
        parts = {k: new for k, (_, new) in self._parts.items() if k not in known}
        shapes = [self._shape(v) for v in own_variables(self.layer)]
        graph = graph_between([new for _, new in pairs], outputs)
        return Expected(graph, small, shapes, parts)

    def _shape(self, variable: keras.Variable) -> tuple[int, ...]:
        return tuple(self.kept.size(variable, a) for a in range(len(variable.shape)))

    def _wanted(
        self, expected: Expected, arrays: list[np.ndarray], values: list[np.ndarray]
    ) -> list[np.ndarray]:
        """What the smaller layer has to return for these inputs, with these weights."""
        by_id = {id(v): x for v, x in zip(own_variables(self.layer), values, strict=True)}
        targets = {
            id(v): v
            for new in expected.parts.values()
            if isinstance(new, keras.Layer)
            for v in own_variables(new)
        }
        for key, number in self._part_numbers(expected):
            targets[key].assign(values[number])
        count = len(self._pairs())
        for index, (_, variable) in enumerate(self.opened.parameters):
            arrays[count + index] = by_id[id(variable)]
        tensors = [
            keras.ops.convert_to_tensor(a, dtype=t.dtype)
            for a, t in zip(arrays, expected.graph.inputs, strict=True)
        ]
        function = keras.Function(expected.graph.inputs, expected.graph.outputs)
        return [to_numpy(y) for y in tensors_in(infer(function, (tensors,), {}))]

    def _run(self, layer: keras.Layer, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """What a layer returns for these inputs."""
        pairs = self._pairs()
        tensors = {
            id(old): keras.ops.convert_to_tensor(a, dtype=old.dtype)
            for (old, _), a in zip(pairs, arrays, strict=False)
        }
        for tensor, mask in self.opened.masks:
            with_masks([tensors[id(tensor)]], {0: tensors[id(mask)]})
        args, kwargs = self._on([tensors[id(t)] for t in self.opened.graph.inputs])
        return [to_numpy(y) for y in tensors_in(infer(layer, args, kwargs))]

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

    def _ways(self, expected: Expected, all_parts: bool = False) -> dict[Way, keras.Layer]:
        """The smaller sub-layers by where they go: those that differ from the original, or all."""
        ways = {}
        for node in self.opened.graph.nodes:
            old, new = node.operation, expected.parts.get(id(node.operation))
            if new is None or not isinstance(old, keras.Layer):
                continue
            if not all_parts and _alike(old, new):
                continue
            way = way_to(self.layer, old)
            if way is None and not old.variables:  # the code makes it, at every call
                continue
            if way is None:
                raise NoSmallerForm(
                    f"{self.call.name!r} ({self.call.kind}) calls {old.name!r} and Keras does not "
                    "know it as a part of it"
                )
            ways[way] = new
        return ways


def _alike(old: keras.Layer, new: keras.Layer) -> bool:
    shapes = [[tuple(v.shape) for v in own_variables(x)] for x in (old, new)]
    return shapes[0] == shapes[1] and config_of(old) == config_of(new)


def _equal(a: Constants, b: Constants) -> bool:
    return len(a) == len(b) and all(
        np.array_equal(x, y) for (_, x), (_, y) in zip(a, b, strict=True)
    )


def _close(found: list[np.ndarray], wanted: list[np.ndarray]) -> bool:
    if [a.shape for a in found] != [a.shape for a in wanted]:
        return False
    return all(
        np.allclose(
            a, b, rtol=TOLERANCE, atol=TOLERANCE * max(1.0, float(np.abs(b).max(initial=0)))
        )
        for a, b in zip(found, wanted, strict=True)
    )
