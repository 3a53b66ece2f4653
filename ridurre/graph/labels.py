"""Channel labels: what is tied to what, what is fixed, and which weight positions are whose.

Every channel that a layer produces gets an integer label; 0 means *fixed*. A tensor is represented
by an array of labels of its rank, of size 1 along every axis on which the labels do not vary.
Rules (see `ridurre.graph.rules`) carry labels through operations and report to a `LabelSpace`:
which labels live or die together (`tie`), which cannot go (`freeze`), and which positions of which
weights they index (`own`, `produce`).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import keras
import numpy as np

from ridurre.backend import shape_of

Labels = np.ndarray
FIXED = 0


class Reason(enum.Enum):
    """Why a channel cannot be removed."""

    INPUT = "they come from an input of the model"
    OUTPUT = "they are an output of the model"
    NO_RULE = "no rule says what this layer does with channels"
    MIXED = "this operation mixes all of them into one value, so none can be left out"
    BROADCAST = "they are broadcast over other channels"
    FIXED = "they are combined element by element with values that cannot be removed"
    SHAPE = "the operation's shape cannot follow"
    ONLY = "nothing would be left of this tensor"
    CODE = "the layer's code does not follow when their number changes"
    UNMADE = "no smaller model can be made, for want of a `get_config` that makes a layer anew"
    PROTECTED = "the user protected them"


@dataclass(frozen=True, eq=False, slots=True)
class Value:
    """A tensor as the analysis sees it: its static shape and its labels.

    `vanishing` says whether it is zero wherever channels were removed, once the removed slices of
    all weights are set to zero. Most tensors need not be (a sigmoid makes 0.5 of it), since those
    who read them do it with a weight; but where two tensors are multiplied and summed, one has to.
    """

    shape: tuple[int | None, ...]
    labels: Labels
    vanishing: bool = field(default=False, kw_only=True)


@dataclass(frozen=True, eq=False, slots=True)
class Parameter(Value):
    """A layer's own weight, where it is an operand of an operation of ``keras.ops``.

    Its axes are labelled independently of each other, which one array of labels cannot say; so it
    carries none, and the rules that read weights (`Rule.reads_weights`) ask for those of an axis.

    Attributes:
        variable: the weight.
        axes: for every axis of this tensor the axis of the weight that it is, or None for a new
            one of size 1. A transposed weight has them in another order.
    """

    variable: keras.Variable
    axes: tuple[int | None, ...]
    vanishing: bool = field(default=True, kw_only=True)

    def with_axes(self, order: Sequence[int | None]) -> Parameter:
        """The same weight with these axes of this tensor; None is a new one of size 1."""
        shape = tuple(1 if a is None else self.shape[a] for a in order)
        axes = tuple(None if a is None else self.axes[a] for a in order)
        return replace(self, shape=shape, labels=np.zeros((1,) * len(order), int), axes=axes)


def parameter(variable: keras.Variable) -> Parameter:
    """A weight as an operand, its axes as they are."""
    shape = shape_of(variable)
    rank = len(shape)
    return Parameter(shape, np.zeros((1,) * rank, int), variable, tuple(range(rank)))


class Frozen(NamedTuple):
    """Where and why labels were frozen."""

    reason: Reason
    name: str
    kind: str


@dataclass(frozen=True)
class WeightAxis:
    """One axis of one weight and the labels that index it.

    Attributes:
        labels: ``(size, k)``; a position goes when all of its k labels go.
        role: ``"out"`` (the layer makes these channels), ``"in"`` (it reads them),
            ``"recurrent"`` (it makes them and reads them at its next step) or ``"channel"`` (one
            value per channel that passes through).
        blocks: how often the same labels stand along the axis, one behind the other: once for each
            gate of a recurrent layer.
    """

    variable: keras.Variable
    axis: int
    labels: Labels
    role: str
    layer: str
    kind: str
    blocks: int = 1

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What it is known by in every smaller copy of the model.

        Layers inside a layer have weights of one name; the part in front tells them apart.
        """
        return self.layer, "/".join(self.variable.path.split("/")[-2:]), self.axis, self.role

    @property
    def channels(self) -> int:
        """How many channels stand along the axis."""
        return len(self.labels) // self.blocks


@dataclass(frozen=True)
class Box:
    """A matrix of labels of which only whole rows and whole columns may be removed.

    `prefer` is the direction in which channels are grouped by default: 0 for rows (whole groups),
    1 for columns (the same position in every group), None for whichever gives more choices.
    """

    labels: Labels
    prefer: int | None


class Part(NamedTuple):
    """Labels of which some must stay: `least` positions along the first axis."""

    labels: Labels
    least: int


class LabelSpace:
    """Collects what the rules say about labels; `ridurre.graph.groups` solves it."""

    def __init__(self) -> None:
        self.size = 1
        self.ties: list[tuple[Labels, Labels]] = []
        self.frozen: list[tuple[Labels, Frozen]] = []
        self.boxes: list[Box] = []
        self.weights: dict[tuple[int, int], WeightAxis] = {}
        self.statistics: list[tuple[Labels, str]] = []
        self.parts: list[Part] = []
        self.states: dict[tuple[int, int], Labels] = {}
        self._produced: dict[tuple[int, tuple[int, ...], tuple[int, ...]], Labels] = {}
        self._owners: dict[int, tuple[str, str]] = {}
        self._where = ("", "")

    def at(self, name: str, kind: str) -> None:
        """Say which layer speaks from now on; its name stands in every message."""
        self._where = (name, kind)

    def belongs(self, variables: Sequence[keras.Variable], name: str, kind: str) -> None:
        """These weights are those of this layer, whichever operation speaks of them."""
        self._owners |= dict.fromkeys(map(id, variables), (name, kind))

    def fresh(self, count: int) -> Labels:
        """`count` new labels, tied to nothing."""
        self.size += count
        return np.arange(self.size - count, self.size)

    def tie(self, a: Labels, b: Labels) -> None:
        """Labels at the same position live or die together; tied to a fixed one, they are fixed."""
        a, b = (x.ravel() for x in np.broadcast_arrays(a, b))
        free = (a != FIXED) & (b != FIXED)
        if not free.all():
            self.freeze(np.concatenate([a[~free], b[~free]]), Reason.FIXED)
        differ = free & (a != b)
        if differ.any():
            self.ties.append((a[differ], b[differ]))

    def freeze(self, labels: Labels, reason: Reason) -> None:
        """These labels cannot be removed."""
        labels = np.unique(labels[labels != FIXED])
        if labels.size:
            self.frozen.append((labels, Frozen(reason, *self._where)))

    def block(self, labels: Labels, reason: Reason) -> Labels:
        """Freeze labels and return fixed ones in their place."""
        self.freeze(labels, reason)
        return np.zeros((1,) * labels.ndim, int)

    def merge(self, labels: Labels, axes: Sequence[int], reason: Reason = Reason.MIXED) -> Labels:
        """The labels after an operation that mixes positions along `axes`.

        What varies along those axes only cannot be removed piecewise and is frozen; what varies
        along another axis too is tied, so that it goes as a whole.
        """
        axes = [a % labels.ndim for a in axes]
        if all(labels.shape[a] == 1 for a in axes):
            return labels
        first = labels[tuple(slice(0, 1) if i in axes else slice(None) for i in range(labels.ndim))]
        if first.size == 1:
            return self.block(labels, reason)
        self.tie(labels, np.broadcast_to(first, labels.shape))
        return first

    def box(self, matrix: Labels, prefer: int | None = None) -> None:
        """Only whole rows and whole columns of this matrix may go."""
        self.boxes.append(Box(matrix, prefer))

    def keep_one(self, labels: Labels) -> None:
        """At least one of these must stay: they become a tensor of their own."""
        self.keep_some(labels, 1)

    def keep_some(self, labels: Labels, least: int) -> None:
        """At least so many positions along the first axis must stay."""
        if labels.size and labels.ndim:
            self.parts.append(Part(labels, least))

    def normalise(self, matrix: Labels) -> None:
        """Each row shares statistics: removing a part of it changes what remains."""
        self.statistics.append((matrix, self._where[0]))

    def produce(self, variable: keras.Variable, *axes: int, blocks: int = 1) -> Labels:
        """Labels of the channels that a weight makes: new at first, then the same.

        Along several axes there is a channel for every combination of positions, ``(n, m, …)``;
        whole slices of them can go (see `box`).

        Args:
            variable: the weight.
            axes: of the weight.
            blocks: see `WeightAxis`; there are ``size / blocks`` channels along an axis.
        """
        shape = shape_of(variable)
        axes = tuple(a % len(shape) for a in axes)
        labels = self.made(variable, axes, tuple(shape[a] // blocks for a in axes))
        for index, axis in enumerate(axes):
            self.own(variable, axis, along(labels, index), "out", blocks)
        if len(varying(labels)) > 1:
            self.box(labels)
        return labels

    def made(
        self, variable: keras.Variable, axes: tuple[int, ...], shape: tuple[int, ...]
    ) -> Labels:
        """Labels of this shape that a weight makes with these axes: new at first, then the same."""
        key = (id(variable), axes, shape)
        if key not in self._produced:
            self._produced[key] = self.fresh(math.prod(shape)).reshape(shape)
        return self._produced[key]

    def produced_by(self, layer: keras.Operation) -> list[Labels]:
        """Labels of the channels that a layer makes.

        None of them if it makes none itself, several sets for recurrent cells on top of each other.
        """
        own = {id(v) for v in layer.weights} if isinstance(layer, keras.Layer) else set()
        return [labels.ravel() for (key, *_), labels in self._produced.items() if key in own]

    def carry(self, variable: keras.Variable, labels: Labels) -> None:
        """These labels index a state that a layer keeps between calls, an array of their rank.

        A state is no weight: no plan names it, but a smaller copy goes on from what is left of it.
        """
        for axis in varying(labels):
            self.states[id(variable), axis] = along(labels, axis)

    def own(
        self,
        variable: keras.Variable | None,
        axis: int,
        labels: Labels,
        role: str,
        blocks: int = 1,
    ) -> None:
        """These labels index this axis of this weight.

        Args:
            variable: nothing happens if it is None (a layer without bias, say).
            axis: the axis of the weight.
            labels: ``(size / blocks,)``, or ``(size / blocks, k)`` where k channels share a
                position.
            role: see `WeightAxis`.
            blocks: see `WeightAxis`.
        """
        if variable is None:
            return
        shape = shape_of(variable)
        axis %= len(shape)
        size = shape[axis]
        if labels.ndim != 2:
            labels = labels.reshape(len(labels), -1)
        if blocks > 1:
            labels = np.tile(labels, (blocks, 1))
        if len(labels) != size:
            labels = np.broadcast_to(labels, (size, labels.shape[1]))
        known = self.weights.get((id(variable), axis))
        if known is None:
            where = self._owners.get(id(variable), self._where)
            entry = WeightAxis(variable, axis, labels, role, *where, blocks)
            self.weights[id(variable), axis] = entry
        elif known.labels.shape == labels.shape:
            self.tie(known.labels, labels)
        else:
            self.freeze(known.labels, Reason.SHAPE)
            self.freeze(labels, Reason.SHAPE)

    def as_value(self, weight: Parameter) -> Value:
        """An operand as a tensor with the labels of its last axis; all others stay whole."""
        *whole, last = [a for a, n in enumerate(weight.shape) if n != 1] or [0]
        labels = np.zeros((1,) * len(weight.shape), int)
        self.keep_whole(weight, whole)
        if weight.shape and (own := weight.axes[last]) is not None:
            shape = [-1 if a == last else 1 for a in range(labels.ndim)]
            labels = self.produce(weight.variable, own).reshape(shape)
        return Value(weight.shape, labels)

    def own_axis(self, weight: Parameter, axis: int, labels: Labels, role: str) -> None:
        """`own`, by an axis of an operand; one of size 1 that the weight lacks is nobody's."""
        own = weight.axes[axis]
        if own is not None:
            self.own(weight.variable, own, labels, role)

    def keep_whole(self, weight: Parameter, axes: Iterable[int] | None = None) -> None:
        """These axes of an operand (or all) stay as they are."""
        for axis in range(len(weight.axes)) if axes is None else axes:
            self.own_axis(weight, axis, np.zeros(1, int), "channel")


def along(labels: Labels, axis: int) -> Labels:
    """Labels by position of one axis: ``(size, k)``."""
    if labels.size == labels.shape[axis]:
        return labels.reshape(-1, 1)
    moved = np.moveaxis(labels, axis, 0)
    return moved.reshape(moved.shape[0], -1)


def varying(labels: Labels) -> list[int]:
    """The axes on which labels vary."""
    return [a for a, n in enumerate(labels.shape) if n > 1]


def compact(labels: Labels) -> Labels:
    """Shrink to size 1 every axis along which nothing varies."""
    for axis in varying(labels):
        first = np.take(labels, [0], axis)
        if (labels == first).all():
            labels = first
    return labels
