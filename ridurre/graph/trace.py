"""Run a model once on channel labels."""

from __future__ import annotations

import collections
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from ridurre.backend import FunctionalGraph, functional_graph, has_graph, match_inputs
from ridurre.backend.models import graph_of
from ridurre.backend.opening import Opened, can_open, open_call
from ridurre.errors import OpeningError, RuleError
from ridurre.graph.labels import Labels, LabelSpace, Parameter, Reason, Value
from ridurre.graph.rules import Call, Rule, rule_for

NO_LABELS = np.zeros((), int)


def unlabelled(tensor: keras.KerasTensor) -> Value:
    """A tensor of which nothing can be removed."""
    return Value(tuple(tensor.shape), np.zeros((1,) * len(tensor.shape), int))


class Trace:
    """What happened when a model was run on labels.

    Nested models are inlined; each of their calls is run by itself. So are layers that no rule
    describes, where their code can be looked into (`ridurre.backend.opening`).

    Args:
        model: the model; it is only read.
        free_outputs: whether the model's outputs may lose channels.

    Attributes:
        model: the model.
        space: everything the rules reported.
        inputs, outputs: the model's.
        calls: all calls of layers and operations, in running order.
        first: the first call (and the first labels) of every symbolic tensor, by its id.
        layers: every layer by its name behind the names of the nested models it stands in.
        opened: calls of layers whose code was looked into, outer ones first.
        aliases: weights as operands, by the tensors with labels that stand for them.
        masks: the Keras masks that a layer's code is given, by the tensors that they come with.
        closed: why a layer's code could not be looked into, by the name of the layer.
        forms: how smaller forms of such layers were come by (see `ridurre.smaller`).
    """

    def __init__(self, model: keras.Model, *, free_outputs: bool = False) -> None:
        self.model = model
        self._free_outputs = free_outputs
        self._shut: dict[int, str] = {}
        self.forms: set[tuple[Any, ...]] = set()
        while not self._run_all():
            pass

    def calls_by_shape(self, layer: keras.Operation) -> list[Call]:
        """The first calls of a layer on tensors of every shape that it is called on."""
        found: dict[Any, Call] = {}
        for call in self.by_layer[id(layer)]:
            found.setdefault(tuple(v.shape for v in call.inputs), call)
        return list(found.values())

    def _run_all(self) -> bool:
        """Run the model; False if more layers are to be left closed than were known before."""
        self.space = LabelSpace()
        self.calls: list[Call] = []
        self.opened: list[Call] = []
        self.aliases: dict[Value, Value] = {}
        self.masks: dict[Value, Value] = {}
        self.first_call: dict[int, Call] = {}
        self.first_value: dict[int, Value] = {}
        self.layers: dict[str, keras.Layer] = {}
        self.closed: dict[str, str] = {}
        self.by_layer: dict[int, list[Call]] = collections.defaultdict(list)
        self._nested_ends: dict[int, list[Value]] = {}
        self._inside: tuple[Call, ...] = ()
        self._places: dict[int, tuple[Call, ...]] = {}
        known = len(self._shut)
        graph = graph_of(self.model)
        self.inputs = [unlabelled(t) for t in graph.inputs]
        self.outputs = self._run(graph, self._given(graph, self.inputs), "")
        self._keep_what_barriers_hold()
        self.space.at(self.model.name, type(self.model).__name__)
        for value in () if self._free_outputs else self.outputs:
            self.space.freeze(value.labels, Reason.OUTPUT)
        return len(self._shut) == known

    def _keep_what_barriers_hold(self) -> None:
        """Weights of a layer that no rule describes stay whole, whoever else uses them."""
        for call in self.calls:
            if call.known or not isinstance(call.operation, keras.Layer):
                continue
            self.space.at(call.name, call.kind)
            for variable in call.operation.variables:
                for axis in range(len(variable.shape)):
                    if known := self.space.weights.get((id(variable), axis)):
                        self.space.freeze(known.labels, Reason.NO_RULE)

    @staticmethod
    def _given(graph: FunctionalGraph, inputs: list[Value]) -> dict[int, Value]:
        return {id(t): v for t, v in zip(graph.inputs, inputs, strict=True)}

    def _run(
        self,
        graph: FunctionalGraph,
        values: dict[int, Value],
        scope: str,
        inside: Call | None = None,
    ) -> list[Value]:
        for index, node in enumerate(graph.nodes):
            args, kwargs = fill(node.args, values), fill(node.kwargs, values)
            name = scope + _name(node.operation, None if inside is None else index)
            if has_graph(node.operation):
                tensors = match_inputs(node.operation, args, kwargs)
                inner = functional_graph(node.operation)
                tensors = [_of_rank(v, t) for v, t in zip(tensors, inner.inputs, strict=True)]
                results = self._run(inner, self._given(inner, tensors), name + "/")
                self._tie_nested(node.operation, tensors + results, name)
            else:
                call = Call(
                    node.operation, name, args, kwargs, _tensors(args, kwargs),
                    [unlabelled(t) for t in node.outputs],
                )  # fmt: skip
                call.place = None if inside is None else (inside, index)
                call.opened = self._look_into(node, call)
                results = self._enter(call) if call.opened else self._interpret(call)
                self.first_call.setdefault(id(node.outputs[0]), call)
            values |= {id(t): v for t, v in zip(node.outputs, results, strict=True)}
        for key, value in values.items():
            self.first_value.setdefault(key, value)
        return [values[id(t)] for t in graph.outputs]

    def _look_into(self, node: Any, call: Call) -> Opened | None:
        """What a layer without a rule does, if its code shows it."""
        if not rule_for(node.operation).barrier or not can_open(node.operation):
            return None
        try:
            if id(node.operation) in self._shut:
                raise OpeningError(self._shut[id(node.operation)])
            if not all(map(_knows_sizes, keras_tensors((node.args, node.kwargs)), call.inputs)):
                raise OpeningError("channels lie along axes whose sizes Keras does not know")
            opened = open_call(node.operation, node.args, node.kwargs)
            if len(opened.graph.outputs) != len(node.outputs):
                raise OpeningError("it returns other tensors than it says")
            return opened
        except OpeningError as error:
            self.closed[call.name] = str(error)
            return None

    def _enter(self, call: Call) -> list[Value]:
        """Run what a layer's code does; its own weights are operands."""
        opened: Any = call.opened
        layer: Any = call.operation
        own = [v for _, v in opened.parameters]
        self.space.belongs(own, call.name, call.kind)
        self.layers.setdefault(call.name, layer)
        values = self._given(opened.graph, call.inputs)
        for tensor, mask in opened.masks:
            values[id(mask)] = unlabelled(mask)
            self.masks[values[id(mask)]] = values[id(tensor)]
        values |= {id(t): unlabelled(t) for t, _ in opened.constants}
        values |= {
            id(t): Parameter(tuple(t.shape), NO_LABELS, v, tuple(range(len(t.shape))))
            for t, v in opened.parameters
        }
        self._find_place(layer, call.name)
        self.opened.append(call)
        start, outside = len(self.calls), self._inside
        self._inside = (*outside, call)
        scope = "" if layer is self.model else call.name + "/"
        results = [self._plain(v) for v in self._run(opened.graph, values, scope, call)]
        call.outputs, call.inner = results, self.calls[start:]
        self._inside = outside
        self._tie_nested(layer, call.inputs + results, call.name)
        self.by_layer[id(layer)].append(call)
        return results

    def _find_place(self, layer: Any, name: str) -> None:
        """A layer that is called in several others' code would become several layers."""
        first = self._places.setdefault(id(layer), self._inside)
        here, there = ({id(c.operation): c for c in calls} for calls in (self._inside, first))
        for key in here.keys() ^ there.keys():
            self._shut[key] = f"its code calls {name!r}, which is called elsewhere too"

    def _plain(self, value: Value) -> Value:
        if not isinstance(value, Parameter):
            return value
        plain = self.space.as_value(value)
        self.aliases[plain] = value
        return plain

    def _interpret(self, call: Call) -> list[Value]:
        """Let the operation's rule say what happens to labels, and hold it to its word."""
        self.calls.append(call)
        self.space.at(call.name, call.kind)
        if isinstance(call.operation, keras.Layer):
            self.layers.setdefault(call.name, call.operation)
            self._find_place(call.operation, call.name)
        rule = rule_for(call.operation)
        call.known = not rule.barrier
        if not rule.reads_weights and any(isinstance(v, Parameter) for v in call.inputs):
            self._label_weights(call)
        self._tie_calls(rule, call)
        flow = rule.flow(call, self.space)
        if isinstance(flow, Parameter):
            call.outputs = [flow]
        else:
            labels = flow if isinstance(flow, list) else [flow]
            _check_flow(rule, call, labels)
            pairs = zip(call.outputs, labels, strict=True)
            call.outputs = [Value(v.shape, x) for v, x in pairs]
            if rule.vanishes(call):
                call.outputs = [replace(v, vanishing=True) for v in call.outputs]
        for value in call.outputs:
            if value.labels.size == 1:
                self.space.freeze(value.labels, Reason.ONLY)
        self.by_layer[id(call.operation)].append(call)
        return call.outputs

    def _label_weights(self, call: Call) -> None:
        """Weights among the operands become tensors with labels (see `Rule.reads_weights`)."""
        plain = {id(v): self._plain(v) for v in call.inputs}
        call.args, call.kwargs = keras.tree.map_structure(
            lambda x: plain.get(id(x), x) if isinstance(x, Value) else x, (call.args, call.kwargs)
        )
        call.inputs = [plain[id(v)] for v in call.inputs]

    def _tie_calls(self, rule: Rule, call: Call) -> None:
        """A shared layer has one configuration, so all its calls must lose the same."""
        earlier = self.by_layer.get(id(call.operation))
        if earlier and rule.sized_by_input:
            self._tie_values(earlier[0].inputs, call.inputs)

    def _tie_nested(self, model: keras.Layer, ends: list[Value], name: str) -> None:
        """A shared model is rebuilt once, so the inputs and outputs of all calls must agree.

        One without weights may be called on tensors of several sizes (positions are turned in the
        queries' heads and in the keys'), and goes on to be.
        """
        self.space.at(name, type(model).__name__)
        first = self._nested_ends.setdefault(id(model), ends)
        if model.variables or [v.shape for v in first] == [v.shape for v in ends]:
            self._tie_values(first, ends)

    def _tie_values(self, a: list[Value], b: list[Value]) -> None:
        if [v.labels.shape for v in a] == [v.labels.shape for v in b]:
            for x, y in zip(a, b, strict=True):
                self.space.tie(x.labels, y.labels)
        else:
            for value in (*a, *b):
                self.space.freeze(value.labels, Reason.SHAPE)


def _name(operation: keras.Operation, index: int | None) -> str:
    """Keras counts the operations that a layer's code makes up, anew in every copy."""
    if index is None or isinstance(operation, keras.Layer):
        return operation.name
    return f"{type(operation).__name__.lower()}_{index}"


def _of_rank(value: Value, tensor: keras.KerasTensor) -> Value:
    """What a model makes of an input that has an axis of size 1 too few or too many at the end."""
    missing = len(tensor.shape) - len(value.shape)
    if missing == 1:
        return replace(value, shape=(*value.shape, 1), labels=value.labels[..., None])
    if missing == -1:
        return replace(value, shape=value.shape[:-1], labels=value.labels[..., 0])
    return value


def keras_tensors(arguments: Any) -> list[keras.KerasTensor]:
    """The symbolic tensors among a call's arguments, in order."""
    return [t for t in keras.tree.flatten(arguments) if isinstance(t, keras.KerasTensor)]


def _knows_sizes(tensor: keras.KerasTensor, value: Value) -> bool:
    """Whether the sizes of all axes on which labels vary are known."""
    if len(tensor.shape) != value.labels.ndim:  # some layer before says another shape than it makes
        return False
    sizes = zip(tensor.shape, value.labels.shape, strict=True)
    return all(n is not None or labelled == 1 for n, labelled in sizes)


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Value]:
    if not kwargs and len(args) == 1 and isinstance(args[0], Value):
        return [args[0]]
    return [v for v in keras.tree.flatten((args, kwargs)) if isinstance(v, Value)]


def fill(arguments: Any, values: dict[int, Any]) -> Any:
    """Arguments of a call with every symbolic tensor replaced by its value."""
    kind = type(arguments)  # the plain containers are by far the most common case
    if kind is tuple or kind is list:
        return kind([fill(x, values) for x in arguments])
    if kind is dict:
        return {k: fill(x, values) for k, x in arguments.items()}
    if isinstance(arguments, keras.KerasTensor):
        return values[id(arguments)]
    if arguments is None or kind in (bool, int, float, str):
        return arguments

    def one(x: Any) -> Any:
        return values[id(x)] if isinstance(x, keras.KerasTensor) else x

    return keras.tree.map_structure(one, arguments)


def _fits(labels: Any, shape: tuple[int | None, ...]) -> bool:
    """Whether labels broadcast to a shape."""
    if not isinstance(labels, np.ndarray) or labels.ndim != len(shape):
        return False
    for n, m in zip(labels.shape, shape, strict=True):
        if n not in (1, m):
            return False
    return True


def _check_flow(rule: Rule, call: Call, labels: list[Labels]) -> None:
    """A rule that lies is found before anything is cut."""
    shapes = [v.shape for v in call.outputs]
    if len(labels) != len(shapes) or not all(map(_fits, labels, shapes)):
        raise RuleError(
            f"{type(rule).__name__}.flow returned labels that do not fit the outputs of "
            f"{call.name!r} ({call.kind}). Expected arrays that broadcast to {shapes}. "
            f"Received: {[getattr(x, 'shape', x) for x in labels]}."
        )
