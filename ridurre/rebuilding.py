"""Builds the smaller model: every layer and nested model once, called as the original was."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import keras
import numpy as np

from ridurre.backend import (
    FunctionalGraph,
    all_layers,
    functional_graph,
    has_graph,
    input_source,
    is_functional_like,
    own_variables,
    to_numpy,
    view_of,
)
from ridurre.backend.inner import returning, tensors_in
from ridurre.backend.making import recreate
from ridurre.backend.state import copy_hidden_state
from ridurre.backend.training import compile_like, optimizer_slots
from ridurre.errors import ModelError, RequestError, RuleError
from ridurre.forms import made_otherwise
from ridurre.graph import ChannelGraph, Labels
from ridurre.graph.labels import varying
from ridurre.graph.rules import Call, rule_for
from ridurre.smaller import NoSmallerForm, Smaller

logger = logging.getLogger("ridurre")


class Alive:
    """What is left, in the terms that rules ask in (`ridurre.graph.rules.Kept`)."""

    def __init__(self, graph: ChannelGraph, alive: np.ndarray) -> None:
        space = graph.trace.space
        self._labels = {key: w.labels for key, w in space.weights.items()} | space.states
        self._alive = alive
        self._layers: dict[int, tuple[keras.Operation, keras.Operation]] = {}

    def positions(self, labels: Labels, axis: int) -> np.ndarray:
        """Which positions along an axis of a tensor with these labels are left."""
        others = tuple(a for a in range(labels.ndim) if a != axis % labels.ndim)
        return self._alive[labels].any(axis=others)

    def count(self, labels: Labels, axis: int) -> int:
        """How many positions along an axis of a tensor with these labels are left."""
        return int(self.positions(labels, axis).sum())

    def size(self, variable: keras.Variable, axis: int) -> int:
        """How many positions of a weight's axis are left."""
        kept = self.kept(variable, axis)
        return variable.shape[axis] if kept is None else int(kept.sum())

    def kept(self, variable: keras.Variable, axis: int) -> np.ndarray | None:
        """Which positions of a weight's axis are left; None for all."""
        axis %= len(variable.shape)
        labels = self._labels.get((id(variable), axis))
        return None if labels is None else self._alive[labels].any(axis=1)

    def renew(self, call: Call) -> keras.Operation:
        """The smaller copy of a call's layer, made at first and remembered, or of its operation."""
        old = call.operation
        if id(old) in self._layers:
            return self._layers[id(old)][1]
        changes = rule_for(old).config(call, self)
        try:
            new = recreate(old, changes)
        except ModelError:
            if changes or not call.holders:
                raise
            new = made_otherwise(old, call.holders)
        if isinstance(old, keras.Layer):
            self._layers[id(old)] = (old, new)
        return new


class Rebuilder:
    """Builds every layer and nested model once, and calls it where the original was called."""

    def __init__(self, graph: ChannelGraph, alive: np.ndarray) -> None:
        self.trace = graph.trace
        self.kept = Alive(graph, alive)
        self.new: dict[int, tuple[Any, Any]] = {}
        self._known = graph.trace.forms
        self._depth = 0  # how many layers whose code was looked into this is inside of

    def check_sharding(self) -> None:
        """Refuse to leave a number of channels that cannot be shared out among devices."""
        distribution = keras.distribution.distribution()
        for weight in [] if distribution is None else self.trace.space.weights.values():
            layout = distribution.get_variable_layout(weight.variable)
            name = None if layout is None else layout.axes[weight.axis]
            if name is None:
                continue
            devices = dict(
                zip(layout.device_mesh.axis_names, layout.device_mesh.shape, strict=True)
            )
            size = self.kept.size(weight.variable, weight.axis)
            if size % devices[name]:
                raise RequestError(
                    f"This would leave {size} channels along axis {weight.axis} of "
                    f"{weight.variable.path!r}, which is sharded over {devices[name]} devices. "
                    f"Expected a multiple of {devices[name]}; remove another number of channels."
                )

    def whole(self, model: keras.Model) -> Any:
        """The smaller copy of the model that was traced."""
        if has_graph(model):
            return self.model(model)
        (call,) = self.trace.by_layer[id(model)]
        self.new[id(model)] = (model, self.smaller(call))
        return self.new[id(model)][1]

    def model(self, model: keras.Model) -> keras.Model:
        """The smaller copy of a model, made at first and remembered."""
        if id(model) not in self.new:
            build = (
                self._as_sequential if isinstance(model, keras.Sequential) else self._as_functional
            )
            self.new[id(model)] = (model, build(model, functional_graph(model)))
        return self.new[id(model)][1]

    def _as_functional(self, model: keras.Model, graph: FunctionalGraph) -> keras.Model:
        tensors = {id(t): self._input(t) for t in graph.inputs}
        self.walk(graph, tensors)
        inputs, outputs = _replace((model.input, model.output), tensors)
        cls = _class_of(model, keras.Model)
        return cls(inputs=inputs, outputs=outputs, name=model.name)

    def walk(self, graph: FunctionalGraph, tensors: dict[int, Any]) -> list[Any]:
        """Build and call the smaller form of everything in a graph.

        Args:
            graph: of the original model, or of what a layer's code does.
            tensors: the smaller form of its inputs, by the original's id; the rest is added.

        Returns:
            The smaller form of its outputs.
        """
        for node in graph.nodes:
            args, kwargs = _replace((node.args, node.kwargs), tensors)
            outputs = keras.tree.flatten(self._call(node, args, kwargs))
            if len(outputs) != len(node.outputs):  # a layer may return None beside tensors
                outputs = tensors_in(outputs)
            tensors |= {id(t): new for t, new in zip(node.outputs, outputs, strict=True)}
        return [tensors[id(t)] for t in graph.outputs]

    def _as_sequential(self, model: keras.Model, graph: FunctionalGraph) -> keras.Model:
        layers = [layer for node in graph.nodes for layer in self._chain(node)]
        inputs = self._input(graph.inputs[0])
        return _class_of(model, keras.Sequential)([inputs, *layers], name=model.name)

    def _chain(self, node: Any) -> list[Any]:
        """What stands in a Sequential model in a layer's place."""
        inner = has_graph(node.operation)
        return [self.model(node.operation) if inner else self._operation(node)]

    def _input(self, tensor: keras.KerasTensor) -> keras.KerasTensor:
        labels = self.trace.first_value[id(tensor)].labels
        shape = [
            self.kept.count(labels, a) if labels.shape[a] > 1 else n
            for a, n in enumerate(tensor.shape)
        ]
        source = input_source(tensor)
        return keras.Input(
            batch_shape=shape,
            dtype=tensor.dtype,
            sparse=tensor.sparse,
            ragged=tensor.ragged,
            name=source.name,
            optional=source.optional,
        )

    def _call(self, node: Any, args: Any, kwargs: Any) -> Any:
        if has_graph(node.operation):
            return self.model(node.operation)(*args, **kwargs)
        call = self._first(node)
        new = self._operation(node)
        if call.opened and self._depth:  # shapes are known, which saves running the code
            with returning(new, self._smaller_outputs(call)):
                outputs = new(*args, **kwargs)
        elif call.opened:
            outputs = new(*args, **kwargs)
        else:
            outputs = rule_for(node.operation).replay(call, self.kept, new, args, kwargs)
        self._check_outputs(call, tensors_in(outputs))
        return outputs

    def _check_outputs(self, call: Call, outputs: list[keras.KerasTensor]) -> None:
        """A rule that promised other sizes is named here, and not the layers that read them."""
        for value, output in zip(call.outputs, outputs, strict=True):
            for axis in varying(value.labels):
                size = self.kept.count(value.labels, axis)
                if output.shape[axis] not in (None, size):
                    raise RuleError(
                        f"{type(rule_for(call.operation)).__name__} is wrong about {call.name!r} "
                        f"({call.kind}): by its `flow`, {size} positions of axis {axis} of the "
                        f"output should be left; the rebuilt one has {output.shape[axis]}."
                    )

    def _first(self, node: Any) -> Call:
        return self.trace.first_call[id(node.outputs[0])]

    def _operation(self, node: Any) -> keras.Operation:
        """The new layer (one for all calls) or operation (one per call)."""
        call = self._first(node)
        operation = node.operation
        if not call.opened:
            new: Any = self.kept.renew(call)
        elif id(operation) in self.new:
            return self.new[id(operation)][1]
        else:
            new = self.smaller(call)
        self.new[id(operation)] = (operation, new)
        return new

    def smaller_forms(self, call: Call) -> list[Smaller]:
        """Find the smaller form of a layer whose code was looked into, for each of its sizes."""
        calls = self.trace.calls_by_shape(call.operation)
        return [Smaller(c, self.kept, self.walk, self.new, self._known) for c in calls]

    def _smaller_outputs(self, call: Call) -> Any:
        opened: Any = call.opened
        shapes = [
            [
                self.kept.count(v.labels, a) if v.labels.shape[a] > 1 else n
                for a, n in enumerate(t.shape)
            ]
            for v, t in zip(call.outputs, opened.graph.outputs, strict=True)
        ]
        tensors = iter(
            keras.KerasTensor(shape, dtype=t.dtype)
            for shape, t in zip(shapes, opened.graph.outputs, strict=True)
        )
        return keras.tree.map_structure(
            lambda t: None if t is None else next(tensors), opened.structure
        )

    def smaller(self, call: Call) -> keras.Layer:
        """The smaller form of a layer whose code was looked into.

        Raises:
            RuleError: the class cannot be brought to it.
        """
        outside = set(self.new)
        try:
            self._depth += 1
            first, *others = self.smaller_forms(call)
            layer = first.layer_of_less()
            for other in others:
                self._forget_parts(outside)
                other.accept(layer)
            return layer
        except NoSmallerForm as error:
            raise RuleError(f"{error}.") from error
        finally:
            self._depth -= 1
            self._forget_parts(outside)

    def _forget_parts(self, outside: set[int]) -> None:
        """The parts of a layer are in it."""
        for key in self.new.keys() - outside:
            del self.new[key]

    def copy_state(self) -> None:
        """Cut weights to what is kept, and carry trainable flags over, outermost first."""
        pairs = [(a, b) for a, b in self.new.values() if isinstance(a, keras.Layer)]
        layers = [(a, b) for a, b in pairs if not has_graph(a)]
        for a, b in layers:
            self._copy_weights(a, b)
        # A model's flag is handed down to its layers: outer models first, layers last.
        models = [(a, b) for a, b in reversed(pairs) if has_graph(a)]
        inside = [zip(all_layers(a), all_layers(b), strict=True) for a, b in layers]
        for a, b in itertools.chain(models, layers, *inside):
            if a.trainable != b.trainable:
                b.trainable = a.trainable

    def _copy_weights(self, old: keras.Layer, new: keras.Layer) -> None:
        before, after = own_variables(old), own_variables(new)
        speakers = _speakers(self.trace.by_layer[id(old)][0])
        values = [
            rule_for(c.operation).weights(c, self.kept, v, self._cut(v))
            for v in before
            for c in [speakers[id(v)]]
        ]
        shapes = [tuple(v.shape) for v in after]
        if [v.shape for v in values] != shapes:
            raise RuleError(
                f"{type(rule_for(old)).__name__} is wrong about {old.name!r} "
                f"({type(old).__name__}): what is kept of its weights has the shapes "
                f"{[v.shape for v in values]}; the layer rebuilt from its `config` has {shapes}."
            )
        if [v.shape for v in values] == [tuple(v.shape) for v in before]:
            copy_hidden_state(old, new)  # a class may compute weights anew as it loads others
        for variable, value in zip(after, values, strict=True):
            variable.assign(value)

    def copy_training(self, old: keras.Model, new: keras.Model) -> None:
        """Compile like the original; the optimizer's state is cut like the weights it is of."""
        optimizer = compile_like(new, old)
        if optimizer is None or not old.optimizer.built:
            return
        slots = optimizer_slots(old.optimizer)
        for state, target in zip(old.optimizer.variables, optimizer.variables, strict=True):
            value = to_numpy(state)
            if id(state) in slots:
                index, lacking = slots[id(state)]
                value = self._cut_state(old.trainable_variables[index], value, lacking)
            if value.shape == tuple(target.shape):
                target.assign(value)
            else:
                logger.warning("Optimizer state %s starts anew: its shape changed.", state.path)

    def _cut_state(
        self, weight: keras.Variable, value: np.ndarray, lacking: int | None
    ) -> np.ndarray:
        """What is kept of an optimizer's state for a weight (that may lack one of its axes)."""
        if lacking is None:
            return self._cut(weight, value)
        full = np.broadcast_to(np.expand_dims(value, lacking), weight.shape)
        return self._cut(weight, full).take(0, axis=lacking)

    def _cut(self, variable: keras.Variable, value: np.ndarray | None = None) -> np.ndarray:
        """What is kept of a weight, or of an array of its shape."""
        value = view_of(variable) if value is None else value
        for axis in range(value.ndim):
            kept = self.kept.kept(variable, axis)
            if kept is not None and not kept.all():
                value = np.compress(kept, value, axis)
        return value


def _speakers(call: Call) -> dict[int, Call]:
    """For every weight of a layer the call, of it or of a layer in it, whose rule is about it."""
    own = own_variables(call.operation) if isinstance(call.operation, keras.Layer) else []
    found = {id(v): call for v in own}
    for inner in call.inner:
        found |= _speakers(inner)
    return found


def _class_of(model: keras.Model, plain: type) -> type:
    """The model's own class if it is built like the plain one, else the plain one."""
    if type(model) is plain or (plain is keras.Model and is_functional_like(type(model))):
        return type(model)
    logger.warning(
        "%s has a constructor of its own; its smaller copy is a plain %s.",
        type(model).__name__,
        plain.__name__,
    )
    return plain


def _replace(structure: Any, tensors: dict[int, Any]) -> Any:
    """A structure with every symbolic tensor replaced."""

    def one(x: Any) -> Any:
        return tensors[id(x)] if isinstance(x, keras.KerasTensor) else x

    return keras.tree.map_structure(one, structure)
