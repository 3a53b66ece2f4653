"""Run a model once on channel labels."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import keras
import numpy as np

from ridurre.backend import functional_graph, has_graph, match_inputs
from ridurre.errors import RuleError
from ridurre.graph.labels import Labels, LabelSpace, Parameter, Reason, Value
from ridurre.graph.rules import Call, Rule, rule_for

T = TypeVar("T")


def unlabelled(tensor: keras.KerasTensor) -> Value:
    """A tensor of which nothing can be removed."""
    return Value(tuple(tensor.shape), np.zeros((1,) * len(tensor.shape), int))


class Trace:
    """What happened when a model was run on labels.

    Nested models are inlined; each of their calls is run by itself.

    Attributes:
        model: the model.
        space: everything the rules reported.
        inputs, outputs: the model's.
        calls: all calls of layers and operations, in running order.
        first: the first call (and the first labels) of every symbolic tensor, by its id.
        layers: every layer by its name behind the names of the nested models it stands in.
    """

    def __init__(self, model: keras.Model) -> None:
        self.space = LabelSpace()
        self.calls: list[Call] = []
        self.first_call: dict[int, Call] = {}
        self.first_value: dict[int, Value] = {}
        self.layers: dict[str, keras.Layer] = {}
        self.by_layer: dict[int, list[Call]] = collections.defaultdict(list)
        self._nested_ends: dict[int, list[Value]] = {}
        self.model = model
        self.inputs = [unlabelled(t) for t in functional_graph(model).inputs]
        self.outputs = self._run(model, self.inputs, "")
        self.space.at(model.name, type(model).__name__)
        for value in self.outputs:
            self.space.freeze(value.labels, Reason.OUTPUT)

    def _run(self, model: keras.Model, inputs: list[Value], scope: str) -> list[Value]:
        graph = functional_graph(model)
        values = {id(t): v for t, v in zip(graph.inputs, inputs, strict=True)}
        for node in graph.nodes:
            outputs = [unlabelled(t) for t in node.outputs]
            args, kwargs = fill(node.args, values), fill(node.kwargs, values)
            name = scope + node.operation.name
            if has_graph(node.operation):
                tensors = match_inputs(node.operation, args, kwargs)
                results = self._run(node.operation, tensors, name + "/")
                self._tie_nested(node.operation, tensors + results, name)
            else:
                if not kwargs and len(args) == 1 and isinstance(args[0], Value):
                    tensors = list(args)
                else:
                    leaves = keras.tree.flatten((args, kwargs))
                    tensors = [v for v in leaves if isinstance(v, Value)]
                call = Call(node.operation, name, args, kwargs, tensors, outputs)
                results = self._interpret(call)
                self.first_call.setdefault(id(node.outputs[0]), call)
            values |= {id(t): v for t, v in zip(node.outputs, results, strict=True)}
        for key, value in values.items():
            self.first_value.setdefault(key, value)
        return [values[id(t)] for t in graph.outputs]

    def _interpret(self, call: Call) -> list[Value]:
        """Let the operation's rule say what happens to labels, and hold it to its word."""
        self.calls.append(call)
        self.space.at(call.name, call.kind)
        if isinstance(call.operation, keras.Layer):
            self.layers.setdefault(call.name, call.operation)
        rule = rule_for(call.operation)
        call.known = not rule.barrier
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

    def _tie_calls(self, rule: Rule, call: Call) -> None:
        """A shared layer has one configuration, so all its calls must lose the same."""
        earlier = self.by_layer.get(id(call.operation))
        if earlier and rule.sized_by_input:
            self._tie_values(earlier[0].inputs, call.inputs)

    def _tie_nested(self, model: keras.Model, ends: list[Value], name: str) -> None:
        """A shared model is rebuilt once, so the inputs and outputs of all calls must agree."""
        self.space.at(name, type(model).__name__)
        self._tie_values(self._nested_ends.setdefault(id(model), ends), ends)

    def _tie_values(self, a: list[Value], b: list[Value]) -> None:
        for x, y in zip(a, b, strict=True):
            if x.labels.shape == y.labels.shape:
                self.space.tie(x.labels, y.labels)
            else:
                self.space.freeze(x.labels, Reason.SHAPE)
                self.space.freeze(y.labels, Reason.SHAPE)


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


def variable_paths(layers: dict[str, keras.Layer]) -> dict[int, str]:
    """A unique name for every variable, by its id.

    It is the variable's Keras path; where several layers of nested models share one, the names of
    the models stand in front.
    """
    scopes = {id(v): name.rpartition("/")[0] for name, x in layers.items() for v in x.variables}
    variables = {id(v): v for x in layers.values() for v in x.variables}
    count = collections.Counter(v.path for v in variables.values())
    return {
        key: v.path if count[v.path] == 1 else f"{scopes[key]}/{v.path}".lstrip("/")
        for key, v in variables.items()
    }


def by_own_paths(by_path: Mapping[str, T], layers: dict[str, keras.Layer]) -> dict[str, T]:
    """What is known by the paths of one copy of a model, by those of another.

    Keras puts a Sequential model's name in front of its variables or not, depending on how the
    model came about; saving and loading changes that. A path that is not there stands for the one
    variable that it names but for such a first part; if there is none, it is given back as it is.

    Args:
        by_path: anything, by `variable_paths` of the one copy.
        layers: of the other.
    """
    here = variable_paths(layers)
    known = set(here.values())
    tails: dict[str, set[str]] = {}
    for name, layer in layers.items():
        for variable in layer.variables:
            tail = _from_layer(variable.path, name.rpartition("/")[2])
            tails.setdefault(tail, set()).add(here[id(variable)])

    def own(path: str) -> str:
        if path in known:
            return path
        candidates = tails.get(path, set()) | tails.get(path.partition("/")[2], set())
        return candidates.pop() if len(candidates) == 1 else path

    return {own(path): value for path, value in by_path.items()}


def _from_layer(path: str, layer: str) -> str:
    """The part of a variable's path that begins with its layer, if the layer is in it."""
    parts = path.split("/")
    return "/".join(parts[parts.index(layer) :]) if layer in parts else path


def named_layers(model: keras.Model, scope: str = "") -> dict[str, keras.Layer]:
    """Every layer of a model by its name behind the names of the models it stands in."""
    found: dict[str, keras.Layer] = {}
    for node in functional_graph(model).nodes:
        name = scope + node.operation.name
        if has_graph(node.operation):
            found |= named_layers(node.operation, name + "/")
        elif isinstance(node.operation, keras.Layer):
            found.setdefault(name, node.operation)
    return found
