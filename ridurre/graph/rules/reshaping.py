"""Reshape, flatten, transpose, repeat, broadcast: labels do what numbers do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from ridurre.graph.labels import Labels, LabelSpace, Parameter, Reason, Value, compact
from ridurre.graph.rules.base import Call, Flow, Kept, Rule, as_tensor, fixed, register_rule

L = keras.layers
Shape = Sequence[int | None]


def segments(before: Shape, after: Shape) -> list[tuple[list[int], list[int]]] | None:
    """Match the axes of a reshape: smallest runs of axes with equal products, from the right.

    What lies left of the last dynamic axis is one run. None if the shapes cannot be matched.
    """
    runs: list[tuple[list[int], list[int]]] = []
    i, j = len(before), len(after)
    while i > 0 and j > 0 and before[i - 1] is not None and after[j - 1] is not None:
        ins, outs = [i - 1], [j - 1]
        m, n = before[i - 1] or 0, after[j - 1] or 0
        while m != n:
            if m < n and (k := ins[0] - 1) >= 0 and before[k] is not None:
                ins.insert(0, k)
                m *= before[k] or 0
            elif n < m and (k := outs[0] - 1) >= 0 and after[k] is not None:
                outs.insert(0, k)
                n *= after[k] or 0
            else:
                break
        if m != n:
            break
        runs.insert(0, (ins, outs))
        i, j = ins[0], outs[0]
    if i or j:
        runs.insert(0, (list(range(i)), list(range(j))))
    return runs


def reshape(x: Value, after: Shape, space: LabelSpace) -> Labels:
    """Labels after a reshape."""
    source, middle, target = list(x.labels.shape), [], []
    for ins, outs in segments(x.shape, after) or []:
        varies = any(source[a] > 1 for a in ins)
        dims = [x.shape[a] for a in ins]
        if varies and (None in dims or any(after[a] is None for a in outs)):
            space.freeze(x.labels, Reason.SHAPE)
            return np.zeros((1,) * len(after), int)
        middle += [n or 1 if varies else 1 for n in dims]
        target += [after[a] or 1 if varies else 1 for a in outs]
    return compact(np.broadcast_to(x.labels, middle).reshape(target))


def resized(shape: Shape, labels: Labels, kept: Kept) -> tuple[int | None, ...]:
    """A shape argument (-1 stays -1) with what is kept along every axis that labels vary on."""
    first = labels.ndim - len(shape)
    return tuple(
        kept.count(labels, first + a) if n not in (None, -1) and labels.shape[first + a] > 1 else n
        for a, n in enumerate(shape)
    )


def _resized_weight(shape: Shape, weight: Parameter, kept: Kept) -> tuple[int | None, ...]:
    """A shape argument (-1 stays -1) with what is kept along every axis of a weight."""
    return tuple(
        n if n == -1 or own is None else kept.size(weight.variable, own)
        for n, own in zip(shape, weight.axes, strict=True)
    )


def rearranged(x: Parameter, move: Callable[[np.ndarray], np.ndarray]) -> Parameter:
    """A weight after an operation that moves its axes or adds new ones of size 1."""
    sizes = np.empty(range(2, len(x.shape) + 2))  # told apart by their sizes
    return x.with_axes([n - 2 if n > 1 else None for n in move(sizes).shape])


@register_rule(L.Flatten)
class FlattenRule(Rule):
    """All positions of a sample in one row; channels first means that they are moved last."""

    keeps_zero = True

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        x = call.x
        if call.operation.data_format == "channels_first":
            last = [0, *range(2, len(x.shape)), 1]
            x = Value(tuple(x.shape[a] for a in last), x.labels.transpose(last))
        return reshape(x, call.outputs[0].shape, space)


@register_rule(L.Reshape, "Reshape", "Ravel")
class ReshapeRule(Rule):
    """Labels are reshaped; the target shape follows what is kept."""

    sized_by_input = True
    reads_weights = True
    keeps_zero = True

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        x, shape = call.x, call.outputs[0].shape
        if isinstance(x, Parameter):
            wide = [a for a, n in enumerate(x.shape) if n != 1]
            if [x.shape[a] for a in wide] == [n for n in shape if n != 1]:
                left = iter(wide)
                return x.with_axes([None if n == 1 else next(left) for n in shape])
            x = as_tensor(x, space)
        return reshape(x, shape, space)

    def config(self, call: Call, kept: Kept) -> dict[str, Any]:
        for name in ("target_shape", "newshape"):
            shape = getattr(call.operation, name, None)
            if shape is not None:
                shape = (shape,) if isinstance(shape, int) else shape
                result = call.outputs[0]
                if isinstance(result, Parameter):
                    return {name: _resized_weight(shape, result, kept)}
                return {name: resized(shape, result.labels, kept)}
        return {}


@register_rule(L.Permute, "Transpose", "Swapaxes", "Moveaxis")
class TransposeRule(Rule):
    """Labels are transposed, and so are weights."""

    reads_weights = True
    keeps_zero = True

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        if isinstance(call.x, Parameter):
            return rearranged(call.x, lambda x: self._transposed(call, x))
        return self._transposed(call, call.x.labels)

    @staticmethod
    def _transposed(call: Call, labels: np.ndarray) -> np.ndarray:
        op = call.operation
        match call.kind:
            case "Permute":
                return labels.transpose((0, *op.dims))
            case "Transpose":
                return labels.transpose(op.axes)
            case "Swapaxes":
                return labels.swapaxes(op.axis1, op.axis2)
        return np.moveaxis(labels, op.source, op.destination)


@register_rule(L.RepeatVector)
class RepeatVectorRule(Rule):
    """A new axis of positions."""

    keeps_zero = True

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        return call.x.labels[:, None]


@register_rule("ExpandDims")
class ExpandDimsRule(Rule):
    """A new axis of size 1, of a weight too."""

    reads_weights = True
    keeps_zero = True

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        axis = call.operation.axis
        if isinstance(call.x, Parameter):
            return rearranged(call.x, lambda x: np.expand_dims(x, axis))
        return np.expand_dims(call.x.labels, axis)


@register_rule("Flip")
class FlipRule(Rule):
    """An axis is read backwards."""

    keeps_zero = True

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        return np.flip(call.x.labels, call.operation.axis)


@register_rule("Squeeze")
class SqueezeRule(Rule):
    """Axes of size 1 go; those that become so only by pruning stay."""

    reads_weights = True
    keeps_zero = True

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        axes = self._axes(call)
        if isinstance(call.x, Parameter):
            rank = len(call.x.shape)
            gone = [a % rank for a in axes]
            return call.x.with_axes([a for a in range(rank) if a not in gone])
        return np.squeeze(call.x.labels, axes)

    def config(self, call: Call, kept: Kept) -> dict[str, Any]:
        return {"axis": self._axes(call)}

    @staticmethod
    def _axes(call: Call) -> tuple[int, ...]:
        axis = call.operation.axis
        if axis is None:
            return tuple(a for a, n in enumerate(call.x.shape) if n == 1)
        return (axis,) if isinstance(axis, int) else tuple(axis)


@register_rule("Repeat", "Tile")
class RepeatRule(Rule):
    """The same positions several times, one after the other or all over again."""

    keeps_zero = True

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        op, x = call.operation, call.x
        repeats = np.atleast_1d(op.repeats)
        rank = len(call.outputs[0].shape)
        if call.kind == "Tile":
            labels = np.expand_dims(x.labels, tuple(range(rank - x.labels.ndim)))
            times = [1] * (rank - len(repeats)) + repeats.tolist()
            spread = [t if n > 1 else 1 for t, n in zip(times, labels.shape, strict=True)]
            return np.tile(labels, spread)
        if op.axis is None or (x.labels.shape[op.axis] > 1 and len(repeats) > 1):
            space.freeze(x.labels, Reason.SHAPE)
            return fixed(call.outputs[0])
        return np.repeat(x.labels, repeats[0] if x.labels.shape[op.axis] > 1 else 1, op.axis)


@register_rule("BroadcastTo")
class BroadcastToRule(Rule):
    """Labels stay; the target shape follows what is kept."""

    keeps_zero = True

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        rank = len(call.outputs[0].shape)
        return np.expand_dims(call.x.labels, tuple(range(rank - call.x.labels.ndim)))

    def config(self, call: Call, kept: Kept) -> dict[str, Any]:
        return {"shape": resized(call.operation.shape, call.outputs[0].labels, kept)}
