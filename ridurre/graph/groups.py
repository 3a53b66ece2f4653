"""Solve what the rules reported: components of tied labels, and groups of like components."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ridurre.graph.labels import FIXED, Frozen, Labels, Reason, WeightAxis, along, varying
from ridurre.graph.trace import Trace


def components(size: int, ties: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Component of every label, ``(size,)``."""
    if not ties:
        return np.arange(size)
    a, b = (np.concatenate([x.ravel() for x in side]) for side in zip(*ties, strict=True))
    graph = coo_array((np.ones(len(a), bool), (a, b)), shape=(size, size))
    return connected_components(graph, directed=False)[1]


def is_box(alive: np.ndarray) -> bool:
    """Whether what is left of an array is whole slices only."""
    whole = np.ones((1,) * alive.ndim, bool)
    for axis in range(alive.ndim):
        others = tuple(a for a in range(alive.ndim) if a != axis)
        whole = whole & alive.any(axis=others, keepdims=True)
    return bool((whole == alive).all())


class Merged:
    """Components that are merged bit by bit; each goes by the smallest name of its parts.

    Attributes:
        frozen: for every name whether one of its parts is frozen.
    """

    def __init__(self, frozen: np.ndarray) -> None:
        self.frozen = frozen.copy()
        self._parent = np.arange(len(frozen))

    def names(self, parts: np.ndarray) -> np.ndarray:
        """What the components are called now."""
        while True:
            above = self._parent[parts]
            if (above == parts).all():
                return parts
            parts = above

    def tie_rows(self, rows: np.ndarray) -> None:
        """All that stands in one row becomes one."""
        names = np.unique(rows)
        index = np.searchsorted(names, rows)
        together = components(len(names), [(index[:, :1].repeat(rows.shape[1], 1), index)])
        first = np.full(together.max() + 1, len(self._parent))
        np.minimum.at(first, together, names)
        self._parent[names] = first[together]
        np.logical_or.at(self.frozen, first[together], self.frozen[names])


@dataclass(frozen=True)
class Member:
    """One axis of one weight in a group.

    Attributes:
        weight: the weight, its layer, the axis and the role the axis plays.
        units: ``(size,)``, for every position the unit it belongs to, or -1.
    """

    weight: WeightAxis
    units: np.ndarray


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that are pruned alike: unit i of every member lives or dies together.

    Attributes:
        index: the group's place in `DependencyGraph.groups`.
        size: number of units (sets of coupled channels).
        members: every weight axis that the units own positions of.
        least: number of units that have to stay, mostly one.
    """

    index: int
    size: int
    members: tuple[Member, ...]
    components: np.ndarray
    least: int = 1

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of all layers that change with this group."""
        return tuple(dict.fromkeys(m.weight.layer for m in self.members))

    @property
    def producers(self) -> tuple[str, ...]:
        """Names of the layers that make these channels."""
        return tuple(dict.fromkeys(m.weight.layer for m in self.members if m.weight.role == "out"))

    def __repr__(self) -> str:
        made = ", ".join(self.producers) or "padding"
        return f"<Group {self.index}: {self.size} channels of {made}>"


class Solution:
    """Which labels live or die together.

    Attributes:
        hard: component of every label by what the rules tied.
        soft: the same with more ties, so that any set of components leaves whole slices of every
            box; `Group` units are these.
    """

    def __init__(self, trace: Trace) -> None:
        self.space = trace.space
        self.boxes = [(b.labels, b.prefer) for b in trace.space.boxes]
        self.boxes += [(labels, None) for labels in _many_axes(trace)]
        self.hard = components(self.space.size, self.space.ties)
        self.soft = self._solve_boxes()

    def _solve_boxes(self) -> np.ndarray:
        merged = Merged(self.hard_frozen)
        for labels, prefer in self.boxes:
            solved = merged.names(self.hard[labels])
            choices = {a: _choices(solved, a, merged.frozen) for a in varying(labels)}
            if choices:
                axis = max(choices, key=lambda a: (choices[a] > 1 and a == prefer, choices[a], a))
                merged.tie_rows(along(solved, axis))
        return merged.names(np.arange(len(self.hard_frozen)))[self.hard]

    def frozen(self, solved: np.ndarray) -> np.ndarray:
        """For every component of a solution whether it is frozen."""
        mask = np.zeros(solved.max() + 1, bool)
        mask[solved[FIXED]] = True
        for labels, _ in self.space.frozen:
            mask[solved[labels]] = True
        return mask

    @cached_property
    def hard_frozen(self) -> np.ndarray:
        """For every hard component whether it is frozen."""
        return self.frozen(self.hard)

    @cached_property
    def soft_frozen(self) -> np.ndarray:
        """For every soft component whether it is frozen."""
        return self.frozen(self.soft)

    def reason(self, label: int) -> Frozen:
        """Why a label cannot go."""
        for solved in (self.hard, self.soft):
            for labels, why in self.space.frozen:
                if (solved[labels] == solved[label]).any():
                    return why
        return Frozen(Reason.INPUT, "", "")

    def groups(self) -> list[Group]:
        """All prunable groups, in the order in which the model makes their channels.

        Units of one group own positions of the same weight axes and run through the same slices.
        """
        weights = list(self.space.weights.values())
        kind, unit, counts = self._kinds(
            [*(w.labels for w in weights), *(p.labels for p in self.space.parts)]
        )
        members: dict[int, list[Member]] = {k: [] for k, n in enumerate(counts) if n > 1}
        for weight in weights:
            kinds = kind[self.soft[weight.labels]]
            for k in np.unique(kinds):
                if k in members:
                    units = np.where(kinds == k, unit[self.soft[weight.labels]], -1).max(axis=1)
                    members[int(k)].append(Member(weight, units))
        return [
            Group(
                index,
                int(counts[k]),
                tuple(members[k]),
                np.flatnonzero(kind == k),
                self._least(kind == k),
            )
            for index, k in enumerate(members)
        ]

    def _least(self, mine: np.ndarray) -> int:
        """How many units of a group have to stay, for enough of their positions to be left."""
        least = 1
        for labels, count in self.space.parts:
            solved = self.soft[labels.reshape(len(labels), -1)[:, 0]]
            units, positions = np.unique(solved[mine[solved]], return_counts=True)
            if units.size:
                least = max(least, min(math.ceil(count / positions.min()), len(units)))
        return least

    def owners(self, groups: list[Group]) -> np.ndarray:
        """For every label the index of its group, or -1, ``(labels,)``."""
        owner = np.full(self.soft.max() + 1, -1)
        for group in groups:
            owner[group.components] = group.index
        return owner[self.soft]

    def _kinds(self, sets: list[Labels]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sort components by the sets that they occur in.

        Returns:
            For every component its kind (-1: in no set, or frozen) and its number among its kind;
            and the size of every kind. Kinds come in the order of their first component.
        """
        # The sum of one random 64-bit number per set tells apart in which sets a component is.
        keys = np.random.default_rng(0).integers(1, 2**63, len(sets), dtype=np.uint64)
        signature = np.zeros(len(self.soft_frozen), np.uint64)
        for key, labels in zip(keys, sets, strict=True):
            signature[np.unique(self.soft[labels])] += key
        signature[self.soft_frozen] = 0
        names, first, kind, counts = np.unique(
            signature, return_index=True, return_inverse=True, return_counts=True
        )
        order = np.argsort(np.where(names == 0, -1, first))
        rank = np.argsort(order) - 1
        kind = rank[kind]
        unit = np.zeros(len(kind), int)
        by_kind = np.argsort(kind, kind="stable")
        starts = np.cumsum(counts[order]) - counts[order]
        unit[by_kind] = np.arange(len(kind)) - starts[kind[by_kind] + 1]
        return kind, unit, counts[order][1:]


def _many_axes(trace: Trace) -> list[Labels]:
    """Tensors that carry labels on several axes at once."""
    found = {id(v.labels): v.labels for call in trace.calls for v in call.outputs}
    return [labels for labels in found.values() if len(varying(labels)) > 1]


def _choices(solved: np.ndarray, axis: int, frozen: np.ndarray) -> int:
    """How many sets could be removed one by one if every slice along `axis` were tied."""
    rows = along(solved, axis)
    n, comps = len(rows), np.unique(rows)
    index = np.searchsorted(comps, rows)
    a = np.repeat(np.arange(n), rows.shape[1])
    merged = components(n + len(comps), [(a, index.ravel() + n)])
    stuck = np.unique(merged[n:][frozen[comps]])
    free = np.setdiff1d(np.unique(merged), stuck)
    return len(free) if len(free) > 1 or len(stuck) else 0
