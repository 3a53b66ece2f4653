"""Operations that take a part of a tensor or add to it: slice, take, split, pad."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from ridurre.graph.labels import LabelSpace, Reason, Value, compact, varying
from ridurre.graph.rules.base import Call, Flow, Kept, Rule, argument_of, fixed, register_rule


@register_rule("Split", "ArraySplit")
class SplitRule(Rule):
    """Labels are split; the split points follow what is kept."""

    keeps_zero = True

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        labels, axis = call.x.labels, call.operation.axis
        if labels.shape[axis] == 1:
            return [labels] * len(call.outputs)
        parts = np.split(labels, self._points(call), axis)
        for part in parts:
            space.keep_one(part)
        return [compact(part) for part in parts]

    def replay(
        self,
        call: Call,
        kept: Kept,
        operation: keras.Operation,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        labels, axis = call.x.labels, call.operation.axis
        if labels.shape[axis] == 1:
            return operation(*args, **kwargs)
        alive = kept.positions(labels, axis)
        points = [int(alive[:p].sum()) for p in self._points(call)]
        return keras.ops.split(argument_of(operation, "x", args, kwargs), points, axis)

    @staticmethod
    def _points(call: Call) -> np.ndarray:
        return np.cumsum([v.shape[call.operation.axis] for v in call.outputs])[:-1]


@register_rule("Unstack")
class UnstackRule(Rule):
    """Every position of the axis becomes a tensor of its own, so none can be left out."""

    keeps_zero = True

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        axis = call.operation.axis
        labels = call.x.labels
        if labels.shape[axis] > 1:
            space.freeze(labels, Reason.SHAPE)
            return [fixed(v) for v in call.outputs]
        return [np.squeeze(labels, axis)] * len(call.outputs)


def full_key(key: Any, rank: int) -> list[Any] | None:
    """An indexing key with one entry per axis (and None for new axes); None if it is dynamic."""
    parts = list(key) if isinstance(key, tuple | list) else [key]
    for part in parts:
        static = (part.start, part.stop, part.step) if isinstance(part, slice) else (part,)
        if not all(p is None or p is Ellipsis or isinstance(p, int) for p in static):
            return None
    missing = rank - sum(p is not None and p is not Ellipsis for p in parts)
    at = parts.index(Ellipsis) if Ellipsis in parts else len(parts)
    return parts[:at] + [slice(None)] * missing + parts[at + 1 :]


@register_rule("GetItem")
class GetItemRule(Rule):
    """``x[key]``: slices of labels; the bounds follow what is kept."""

    keeps_zero = True

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        labels, key = call.x.labels, self._key(call)
        if key is None:
            space.freeze(labels, Reason.SHAPE)
            return fixed(call.outputs[0])
        sizes = iter(labels.shape)
        part = np.asarray(labels[tuple(p if p is None else _on_size(p, next(sizes)) for p in key)])
        space.keep_one(part)
        return compact(part)

    def replay(
        self,
        call: Call,
        kept: Kept,
        operation: keras.Operation,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        key, labels = self._key(call), call.x.labels
        x = argument_of(operation, "x", args, kwargs)
        if key is None:
            return operation(*args, **kwargs)
        axis = 0
        for index, part in enumerate(key):
            if part is None:
                continue
            size = labels.shape[axis]
            if size > 1:
                chosen = follow(np.arange(size)[part], kept.positions(labels, axis))
                key[index] = as_slice(chosen) if isinstance(part, slice) else int(chosen)
                if key[index] is None:  # an uneven selection, which no slice can make
                    x, key[index] = keras.ops.take(x, chosen.tolist(), axis=axis), slice(None)
            axis += 1
        return operation(x, tuple(key))

    @staticmethod
    def _key(call: Call) -> list[Any] | None:
        return full_key(call.argument("key"), len(call.x.shape))


def _on_size(part: int | slice, size: int) -> int | slice:
    """An entry of a key for an axis along which labels may not vary."""
    if size > 1:
        return part
    return 0 if isinstance(part, int) else slice(None)


def follow(chosen: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Where chosen positions stand once only the kept ones are left."""
    new = np.cumsum(kept) - 1
    return new[chosen[kept[chosen]] if chosen.ndim else chosen]


def as_slice(chosen: np.ndarray) -> slice | None:
    """Positions as a slice, or None if they are no arithmetic progression."""
    if not chosen.size:
        return slice(0, 0)
    steps = set(np.diff(chosen).tolist()) or {1}
    if len(steps) > 1 or 0 in steps:
        return None
    (step,) = steps
    stop = int(chosen[-1]) + step
    return slice(int(chosen[0]), stop if stop >= 0 else None, step)


@register_rule("Slice")
class SliceRule(Rule):
    """``keras.ops.slice``: a window of fixed size; how wide it is follows what is kept."""

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        labels, starts, sizes = call.x.labels, self._starts(call), call.operation.shape
        for axis in varying(labels):
            whole = sizes[axis] in (-1, labels.shape[axis])
            if starts is None and not whole:
                return space.block(labels, Reason.SHAPE)
            if not whole and starts is not None:
                window = slice(starts[axis], starts[axis] + sizes[axis])
                labels = labels[(slice(None),) * axis + (window,)]
        space.keep_one(labels)
        return compact(labels)

    def config(self, call: Call, kept: Kept) -> dict[str, Any]:
        labels, out = call.x.labels, call.outputs[0].labels
        shape = [
            n if n == -1 or labels.shape[a] == 1 else kept.count(out, a)
            for a, n in enumerate(call.operation.shape)
        ]
        return {"shape": tuple(shape)}

    def replay(
        self,
        call: Call,
        kept: Kept,
        operation: keras.Operation,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        starts, labels = self._starts(call), call.x.labels
        if starts is None:
            return operation(*args, **kwargs)
        moved = [
            int(kept.positions(labels, a)[:n].sum()) if labels.shape[a] > 1 else n
            for a, n in enumerate(starts)
        ]
        return operation(argument_of(operation, "inputs", args, kwargs), moved)

    @staticmethod
    def _starts(call: Call) -> list[int] | None:
        starts = call.argument("start_indices")
        known = not any(isinstance(x, Value) for x in keras.tree.flatten(starts))
        return [int(n) for n in np.asarray(starts)] if known else None


@register_rule("Take")
class TakeRule(Rule):
    """Positions along an axis, by a table of numbers."""

    keeps_zero = True

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        indices, axis, labels = self._indices(call), call.operation.axis, call.x.labels
        if axis is not None and labels.shape[axis] == 1:  # positions
            added = len(call.outputs[0].shape) - labels.ndim + 1
            return np.take(labels, np.zeros((1,) * added, int), axis)
        if indices is None or axis is None or indices.ndim != 1:
            space.freeze(labels, Reason.SHAPE)
            return fixed(call.outputs[0])
        part = np.take(labels, indices, axis)
        space.keep_one(part)
        return compact(part)

    def replay(
        self,
        call: Call,
        kept: Kept,
        operation: keras.Operation,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        indices, axis, labels = self._indices(call), call.operation.axis, call.x.labels
        if indices is None or axis is None or indices.ndim != 1 or labels.shape[axis] == 1:
            return operation(*args, **kwargs)
        chosen = follow(np.arange(labels.shape[axis])[indices], kept.positions(labels, axis))
        return operation(argument_of(operation, "x", args, kwargs), chosen.tolist())

    @staticmethod
    def _indices(call: Call) -> np.ndarray | None:
        indices = call.argument("indices")
        return None if isinstance(indices, Value) else np.asarray(indices)


@register_rule("TakeAlongAxis")
class TakeAlongAxisRule(Rule):
    """Positions by a tensor of numbers, the same ones in all channels."""

    keeps_zero = True

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        labels, axis = call.x.labels, call.operation.axis
        indices = call.argument("indices")
        sizes = indices.shape if isinstance(indices, Value) else np.shape(indices)
        if axis is None or labels.shape[axis] > 1 or any(sizes[a] != 1 for a in varying(labels)):
            space.freeze(labels, Reason.SHAPE)
            return fixed(call.outputs[0])
        return labels


@register_rule("Pad")
class PadRule(Rule):
    """Padded channels are constants that may be dropped; the pad widths follow."""

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        labels = call.x.labels
        for axis, (before, after) in enumerate(self._widths(call)):
            if labels.shape[axis] == 1 or not before + after:
                continue
            if call.operation.mode != "constant":
                return space.block(labels, Reason.SHAPE)
            edges = [self._constants(n, axis, labels, space) for n in (before, after)]
            labels = np.concatenate([edges[0], labels, edges[1]], axis)
        return labels

    def config(self, call: Call, kept: Kept) -> dict[str, Any]:
        labels = call.outputs[0].labels
        widths = []
        for axis, (before, after) in enumerate(self._widths(call)):
            if labels.shape[axis] > 1:
                alive = kept.positions(labels, axis)
                before, after = alive[:before].sum(), alive[len(alive) - after :].sum()
            widths.append((int(before), int(after)))
        return {"pad_width": widths}

    @staticmethod
    def _constants(count: int, axis: int, labels: Any, space: LabelSpace) -> Any:
        shape = [count if a == axis else n for a, n in enumerate(labels.shape)]
        return space.fresh(int(np.prod(shape))).reshape(shape)

    @staticmethod
    def _widths(call: Call) -> list[tuple[int, int]]:
        widths = [tuple(w) for w in call.operation.pad_width]
        return widths * len(call.x.shape) if len(widths) == 1 else widths
