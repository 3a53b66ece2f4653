"""Recurrent layers: their cells, one step at a time, and the layers that run them.

A unit of a cell owns one column for each gate, in the kernel, the recurrent kernel and the bias,
and the row of the recurrent kernel that reads it at the next step.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from ridurre.backend import ConvLSTMCell, shape_of
from ridurre.graph.labels import Labels, LabelSpace, Reason, Value
from ridurre.graph.rules.activation import activate
from ridurre.graph.rules.base import Call, Flow, Kept, Rule, Work, register_rule
from ridurre.graph.rules.convolution import channel_axis, channels_of, on_axis, spatial
from ridurre.graph.rules.wrapping import (
    enter,
    one_step,
    steps,
    tensors,
    unlabelled,
    work_inside,
)

L = keras.layers


@register_rule(L.SimpleRNNCell, L.GRUCell)
class CellRule(Rule):
    """One step of a cell: reads the input and its own state, makes an output and the next state.

    The rule of a cell of your own returns the labels of its output and of all its states, in
    order. The layer that runs it ties them to the states that it starts with.
    """

    #: How many states of the units' size there are.
    states = 1

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        cell, rank = call.operation, len(call.x.shape)
        axis, gates = channel_axis(cell, rank), gates_of(cell)
        space.own(cell.kernel, -2, channels_of(call.x, axis, space), "in")
        units = space.produce(cell.kernel, -1, blocks=gates)
        space.own(cell.recurrent_kernel, -2, units, "recurrent")
        space.own(cell.recurrent_kernel, -1, units, "out", gates)
        space.own(cell.bias, -1, units, "out", gates)
        labels = on_axis(units, axis, rank)
        for name in ("recurrent_activation", "activation"):
            labels = activate(getattr(cell, name, None), labels, space)
        return [labels] * (1 + self.states)

    def config(self, call: Call, kept: Kept) -> dict[str, Any]:
        size = "filters" if isinstance(call.operation, ConvLSTMCell) else "units"
        return {size: kept.size(call.operation.recurrent_kernel, -2)}

    def work(self, call: Call) -> list[Work]:
        cell = call.operation
        positions = spatial(call.outputs[0], channel_axis(cell, len(call.x.shape)))
        return [Work(k, positions) for k in (cell.kernel, cell.recurrent_kernel)]


@register_rule(L.LSTMCell, ConvLSTMCell)
class LSTMCellRule(CellRule):
    """A cell with a carry besides its output."""

    states = 2


def gates_of(cell: Any) -> int:
    """How many blocks of units stand side by side in a cell's weights."""
    units, columns = shape_of(cell.recurrent_kernel)[-2:]
    return columns // units


@register_rule(L.StackedRNNCells)
class StackedCellsRule(Rule):
    """Cells on top of each other, each with units of its own."""

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        x, given, states = call.x, call.inputs[1:], list[Labels]()
        for cell in call.operation.cells:
            made = cell_outputs(cell, x)
            count = len(made) - 1
            labels, *new = enter(call, cell, [x, *given[:count]], made, space)
            x, given, states = Value(made[0].shape, labels), given[count:], [*states, *new]
        return [x.labels, *states]

    def config(self, call: Call, kept: Kept) -> dict[str, Any]:
        return {"cells": [kept.renew(inner) for inner in call.inner]}

    def work(self, call: Call) -> list[Work]:
        return work_inside(call, 1)


def cell_outputs(cell: Any, x: Value) -> list[Value]:
    """Shapes of a cell's output and of its states, for one step of input."""
    if isinstance(cell, ConvLSTMCell):
        output, states = cell.compute_output_shape(x.shape)
        return [unlabelled(shape) for shape in (output, *states)]
    sizes = keras.tree.flatten(cell.state_size)
    output = getattr(cell, "output_size", None) or sizes[0]
    return [unlabelled((x.shape[0], n)) for n in (output, *sizes)]


@register_rule(L.RNN)
class RNNRule(Rule):
    """Runs a cell over a sequence; states that are given from outside are tied to its own."""

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        layer = call.operation
        sequences, initial, mask = (
            call.argument(name) for name in ("sequences", "initial_state", "mask")
        )
        for value in tensors(mask):
            space.freeze(value.labels, Reason.BROADCAST)
        step, given = one_step(sequences, space), tensors(initial)
        made = cell_outputs(layer.cell, step)
        output, *states = enter(call, layer.cell, [step, *given], made, space)
        for value, labels in zip(given, states, strict=False):
            _tie_state(value.labels, labels, space)
        for variable, labels in zip(keras.tree.flatten(layer.states or []), states, strict=False):
            space.carry(variable, labels)
        outputs = [np.expand_dims(output, 1) if layer.return_sequences else output]
        return [*outputs, *states] if layer.return_state else outputs

    def config(self, call: Call, kept: Kept) -> dict[str, Any]:
        return {"cell": kept.renew(call.inner[0])}

    def work(self, call: Call) -> list[Work]:
        return work_inside(call, steps(call.argument("sequences")))


@register_rule(L.SimpleRNN, L.GRU, L.LSTM, L.ConvLSTM1D, L.ConvLSTM2D, L.ConvLSTM3D)
class OwnCellRule(RNNRule):
    """A layer that makes its cell itself, from a configuration that is the cell's too."""

    def config(self, call: Call, kept: Kept) -> dict[str, Any]:
        layer, changes = call.operation, CellRule().config(call.inner[0], kept)
        if isinstance(layer, L.LSTM | L.GRU):  # which do not list this in their configuration
            changes["use_cudnn"] = layer.use_cudnn
        return changes


def _tie_state(given: Labels, own: Labels, space: LabelSpace) -> None:
    """What a state starts as lives and dies with what it becomes."""
    if any(n not in (1, m) for n, m in zip(given.shape, own.shape, strict=True)):
        space.freeze(given, Reason.SHAPE)
        space.freeze(own, Reason.SHAPE)
    else:
        space.tie(given, own)
