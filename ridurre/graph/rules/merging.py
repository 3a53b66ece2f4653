"""Operations on several tensors: element by element, and concatenation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from ridurre.backend import to_numpy
from ridurre.graph.labels import (
    Labels,
    LabelSpace,
    Parameter,
    Reason,
    Value,
    along,
    compact,
    varying,
)
from ridurre.graph.rules.base import Call, Flow, Kept, Rule, fixed, register_rule

L = keras.layers


def combine(values: Sequence[Value], space: LabelSpace) -> Labels:
    """Tie tensors of one rank element by element, with broadcasting.

    A tensor of size 1 wherever labels vary (a mask over positions, say) goes with none of them. An
    outer product has positions that go with either factor, which labels cannot say: all stay.
    """
    shape = np.broadcast_shapes(*(v.labels.shape for v in values))
    varied = [a for a, n in enumerate(shape) if n > 1]
    if not any(all(v.shape[a] != 1 for a in varied) for v in values):
        for value in values:
            space.freeze(value.labels, Reason.BROADCAST)
        return np.zeros((1,) * len(shape), int)
    parts = []
    for value in values:
        if varied and all(value.shape[a] == 1 for a in varied):
            space.freeze(value.labels, Reason.BROADCAST)
        else:
            parts.append(value.labels)
    if not parts:
        return np.zeros((1,) * len(shape), int)
    first = np.broadcast_to(parts[0], shape)
    for other in parts[1:]:
        space.tie(first, other)
    return first


def elevate(value: Value, rank: int, at: int) -> Value:
    """Insert axes of size 1 until the tensor has this rank."""
    missing = rank - len(value.shape)
    shape = (*value.shape[:at], *(1,) * missing, *value.shape[at:])
    labels = np.expand_dims(value.labels, tuple(range(at, at + missing)))
    return replace(value, shape=shape, labels=labels)


@register_rule(L.Add, L.Subtract, L.Multiply, L.Average, L.Maximum, L.Minimum)
class MergeRule(Rule):
    """Merge layers; those of lower rank get new axes behind the batch axis, as Keras does."""

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        return combine(self._operands(call), space)

    def vanishes(self, call: Call) -> bool:
        return combination_vanishes(call, self._operands(call))

    @staticmethod
    def _operands(call: Call) -> list[Value]:
        rank = max(len(v.shape) for v in call.inputs)
        return [elevate(v, rank, 1) for v in call.inputs]


@register_rule(
    *"""Add Subtract Multiply Divide DivideNoNan TrueDivide FloorDivide Maximum Minimum
    Fmax Fmin Power Mod Fmod Arctan2 Hypot Logaddexp Logaddexp2 Greater GreaterEqual Less LessEqual
    Equal NotEqual LogicalAnd LogicalOr LogicalXor Where Heaviside""".split()
)
class ElementwiseOperationRule(Rule):
    """Element-wise operations of ``keras.ops``, arrays and weights among the operands included.

    A weight has the labels of the result; on its own (plus one, say) it stays a weight.
    """

    reads_weights = True
    by_number = True

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        weights = [v for v in call.inputs if isinstance(v, Parameter)]
        rank = max(len(v.shape) for v in call.inputs)
        if len(weights) == len(call.inputs):
            return self._weights_alone(call, weights, space)
        values = [elevate(v, rank, 0) for v in call.inputs if not isinstance(v, Parameter)]
        labels = combine(values, space)
        for weight in weights:
            own_elementwise(weight, labels, space)
            if call.kind == "Add" and not _safe_bias(weight, labels, space):
                return space.block(labels, Reason.SHAPE)
        if call.kind == "Add" and misread_bias(*call.args[:2]):
            return space.block(labels, Reason.SHAPE)
        if len(call.outputs[0].shape) > rank:  # by a constant array of higher rank
            space.freeze(labels, Reason.SHAPE)
            return fixed(call.outputs[0])
        return labels

    def vanishes(self, call: Call) -> bool:
        rank = max(len(v.shape) for v in call.inputs)
        return combination_vanishes(call, [elevate(v, rank, 0) for v in call.inputs])

    def _weights_alone(
        self, call: Call, weights: list[Parameter], space: LabelSpace
    ) -> Parameter | Labels:
        shape = call.outputs[0].shape
        first = weights[0]
        constants = [x for x in (*call.args, *call.kwargs.values()) if is_array(x)]
        if len(weights) == 1 and first.shape == shape and not constants:
            return replace(first, vanishing=call.kind == "Multiply" and first.vanishing)
        for weight in weights:
            space.keep_whole(weight)
        return fixed(call.outputs[0])

    def replay(
        self,
        call: Call,
        kept: Kept,
        operation: keras.Operation,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        labels = call.outputs[0].labels

        def cut(arg: Any) -> Any:
            return cut_constant(to_numpy(arg), labels, kept) if is_array(arg) else arg

        args = tuple(map(cut, args))
        if call.kind == "Add" and misread_bias(*args[:2]):
            args = args[::-1]
        return operation(*args, **{k: cut(v) for k, v in kwargs.items()})


def own_elementwise(weight: Parameter, labels: Labels, space: LabelSpace) -> None:
    """The positions of a weight go with those of the tensor that it is combined with."""
    rank = len(weight.shape)
    for axis, size in enumerate(weight.shape):
        at = labels.ndim - rank + axis
        if size == 1:
            continue
        found = along(labels, at) if at >= 0 and labels.shape[at] > 1 else np.zeros(1, int)
        space.own_axis(weight, axis, found, "channel")


def _safe_bias(weight: Parameter, labels: Labels, space: LabelSpace) -> bool:
    """Whether a weight that is added is one whatever is left of it; see `own_bias`."""
    wide = [a for a, n in enumerate(weight.shape) if n != 1]
    last = len(weight.shape) - 1
    if len(wide) > 1 and last in wide and labels.ndim and labels.shape[-1] > 1:
        space.keep_some(along(labels, -1), 2)
    return not wide or last in wide


def combination_vanishes(call: Call, operands: Sequence[Value]) -> bool:
    """Whether an element-wise combination is zero where channels were removed.

    An operand that does not carry these channels is any number there.
    """
    result = call.outputs[0].labels
    zero = [v.vanishing and all(_carries(v, a) for a in varying(result)) for v in operands]
    if call.kind == "Multiply":
        return any(zero)
    if call.kind in ("Divide", "TrueDivide", "DivideNoNan"):
        return zero == [True] and isinstance((*call.args, None)[0], Value)
    with_constant = len(operands) < 2 and call.kind != "Where"
    return call.kind in _ZERO_OF_ZEROS and all(zero) and not with_constant


def _carries(operand: Value, axis: int) -> bool:
    """Whether an operand has a position of its own for every one of the result along an axis."""
    sizes = operand.shape if isinstance(operand, Parameter) else operand.labels.shape
    return sizes[axis] != 1


_ZERO_OF_ZEROS = {"Add", "Subtract", "Average", "Maximum", "Minimum"}


def misread_bias(x: Any = None, bias: Any = None) -> bool:
    """Whether Keras' TensorFlow back end adds a constant along another axis than it belongs to.

    Keras 3.15 takes a constant with a single axis for a bias of channels, if it has the size of
    the last axis or of the first behind the batch. The other way round, constant first, it adds
    what is meant.
    """
    if keras.backend.backend() != "tensorflow" or not is_array(bias) or is_array(x):
        return False
    shape = np.shape(bias)
    wide = [a for a in range(-len(shape), 0) if shape[a] != 1]
    if len(wide) != 1 or wide == [-1]:
        return False
    size, at = shape[wide[0]], len(x.shape) + wide[0]
    return x.shape[-1] == size or (at != 1 and x.shape[1] in (None, size))


def is_array(arg: Any) -> bool:
    """Whether a call's argument is a constant array (of NumPy or of the backend)."""
    if arg is None or isinstance(arg, Value | keras.KerasTensor | str):
        return False
    return bool(np.shape(arg)) if isinstance(arg, list | tuple) else bool(getattr(arg, "shape", ()))


def cut_constant(constant: np.ndarray, labels: Labels, kept: Kept) -> np.ndarray:
    """A constant operand without the positions that the result has lost."""
    for axis in range(-1, -constant.ndim - 1, -1):
        if constant.shape[axis] > 1 and labels.shape[axis] > 1:
            constant = np.compress(kept.positions(labels, labels.ndim + axis), constant, axis)
    return constant


def join(values: Sequence[Value], axis: int, space: LabelSpace) -> Labels:
    """Labels of a concatenation: side by side on its axis, tied on all others."""
    rank = len(values[0].shape)
    axis %= rank
    if not any(v.labels.any() for v in values):
        return np.zeros((1,) * rank, int)
    if all(v.labels.shape[axis] == 1 for v in values) and any(v.shape[axis] != 1 for v in values):
        return combine(values, space)
    shapes = [[1 if a == axis else n for a, n in enumerate(v.labels.shape)] for v in values]
    common = list(np.broadcast_shapes(*map(tuple, shapes)))
    parts = []
    for value in values:
        size = value.shape[axis]
        common[axis] = 1 if size is None else size
        parts.append(np.broadcast_to(value.labels, common))
    return np.concatenate(parts, axis)


@register_rule(L.Concatenate, "Concatenate")
class ConcatenateRule(Rule):
    """Channels side by side, or positions side by side (then their channels are tied)."""

    keeps_zero = True

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        return join(call.inputs, call.operation.axis, space)


@register_rule("Stack")
class StackRule(Rule):
    """Tensors side by side on a new axis: their channels are tied."""

    keeps_zero = True

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        axis = call.operation.axis % (len(call.x.shape) + 1)
        return compact(np.expand_dims(combine(call.inputs, space), axis))
