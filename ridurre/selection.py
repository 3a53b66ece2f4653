"""How many channels go, and from where: scores, an amount and limits make a request for a plan.

Every way of selecting is one ranking of all units: they are put into classes, ordered by score in
each class, and a unit's place is the fraction of its class that is gone with it. A class per group
removes the same fraction everywhere ("local"), one class for all ranks globally, and a class per
kind of group ranks like with like ("isomorphic").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ridurre.checks import check_choice, check_count, check_fraction
from ridurre.costs import Cost
from ridurre.criteria.base import Scores
from ridurre.errors import RequestError
from ridurre.graph import ChannelGraph, Group
from ridurre.plan import Planner
from ridurre.progress import Bar

SCOPES = ("local", "global", "isomorphic", "knapsack")
STREAMS = ("rank", "leave", "apart")
#: Additions make residual streams: channels that several layers write into.
_ADDITIONS = {"Add", "Subtract", "Average", "Maximum", "Minimum"}

Request = dict[Group, np.ndarray]
Key = tuple[tuple[str, str, int, str], ...]


@dataclass(frozen=True)
class Limits:
    """What a selection has to respect.

    Attributes:
        min_channels: units that stay in every group.
        min_fraction: the same as a fraction of the group's original size.
        round_to: the number of channels that stay is a multiple of this, wherever some go.
        layers: names of layers whose groups may lose channels; None for all.
        streams: what happens to residual streams: ``"rank"`` them with the rest, ``"leave"`` them
            alone, or rank them ``"apart"``.
    """

    min_channels: int = 1
    min_fraction: float = 0.0
    round_to: int = 1
    layers: frozenset[str] | None = None
    streams: str = "rank"

    def __post_init__(self) -> None:
        check_count("min_channels", self.min_channels)
        check_fraction("min_fraction", self.min_fraction)
        check_count("round_to", self.round_to)
        check_choice("streams", self.streams, STREAMS)
        if self.min_channels < 1 or self.round_to < 1:
            raise RequestError(
                "Expected min_channels and round_to from 1. Received: "
                f"min_channels={self.min_channels}, round_to={self.round_to}."
            )


def key_of(group: Group) -> Key:
    """What a group is known by in every smaller copy of the model."""
    return tuple(m.weight.key for m in group.members)


def streams_of(graph: ChannelGraph) -> set[int]:
    """Indices of the groups that are residual streams: tied through an addition."""
    owner = graph.solution.owners(graph.groups)
    found: set[int] = set()
    for call in graph.trace.calls:
        if call.kind in _ADDITIONS:
            carrying = [v for v in call.inputs if v.labels.size > 1]
            if len(carrying) > 1:
                found |= {int(i) for v in carrying for i in np.unique(owner[v.labels])}
    return found - {-1}


def topology(group: Group) -> Hashable:
    """Groups are isomorphic if the same kinds of layers read, make and pass their channels.

    And do it along the same axes: the heads of an attention layer are not the size of a head.
    """
    return tuple(sorted((m.weight.kind, m.weight.role, m.weight.axis) for m in group.members))


class Origin:
    """Sizes and classes of all groups of a model before anything was removed.

    Args:
        graph: of the original.
        scope: one of `SCOPES`.
        streams: see `Limits`.
    """

    def __init__(self, graph: ChannelGraph, scope: str, streams: str = "rank") -> None:
        check_choice("scope", scope, SCOPES)
        added = streams_of(graph)
        self.sizes = {key_of(g): g.size for g in graph.groups}
        self.streams = {key_of(g) for g in graph.groups if g.index in added}
        self.classes: dict[Key, Hashable] = {}
        for group in graph.groups:
            key = key_of(group)
            own: dict[str, Hashable] = {"local": key, "isomorphic": topology(group)}
            apart = streams == "apart" and key in self.streams
            self.classes[key] = (own.get(scope, ""), apart)
        self.totals: dict[Hashable, int] = {}
        for key, name in self.classes.items():
            self.totals[name] = self.totals.get(name, 0) + self.sizes[key]

    def size(self, group: Group) -> int:
        """How many units a group had at first."""
        return self.sizes.get(key_of(group), group.size)


class Ranking:
    """All units that may go, in the order in which they go.

    Args:
        graph: of the model as it is now.
        scores: of all units (see `ridurre.criteria`); infinity keeps a unit.
        origin: of the model before the first step.
        limits: what has to stay.
        cost: scores are divided by what a unit saves of this, again and again as its neighbours
            shrink.

    Attributes:
        order: the groups' indices in the order in which they lose their weakest unit.
        places: for every entry the fraction of its class that is gone with it.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        scores: Scores,
        origin: Origin,
        limits: Limits,
        cost: Cost | None = None,
    ) -> None:
        self.groups = graph.groups
        self.planner = Planner(graph)
        self._weakest = {g.index: np.argsort(scores[g], kind="stable") for g in graph.groups}
        self._scores = {g.index: scores[g][self._weakest[g.index]] for g in graph.groups}
        self._origin = origin
        self._limits = limits
        self.most = np.array([self._may_lose(g) for g in graph.groups], int)
        self._wide = np.array([_channels_per_unit(g) for g in graph.groups])
        self.order = self._rank(cost)
        self.places = self._place(self.order)

    def request(self, entries: int) -> Request:
        """What goes when so many entries of the ranking go, rounded as the limits say."""
        lost = np.bincount(self.order[:entries], minlength=len(self.groups))
        return self.weakest(lost)

    def weakest(self, lost: np.ndarray) -> Request:
        """The weakest units, so many of each group, ``(groups,)``; rounded and limited."""
        counts = [
            self._rounded(g, min(int(lost[g.index]), self.most[g.index])) for g in self.groups
        ]
        return {
            g: np.sort(self._weakest[g.index][:n])
            for g, n in zip(self.groups, counts, strict=True)
            if n
        }

    def alive(self, request: Request) -> np.ndarray:
        """For every label whether it stays."""
        if not request:
            return np.ones(self.planner.space.size, bool)
        chosen: Any = request
        return self.planner.alive(chosen)

    def errors(self, group: int) -> np.ndarray:
        """Sum of the scores of a group's weakest units, by their number from 0."""
        return np.concatenate([[0.0], np.cumsum(self._scores[group][: self.most[group]])])

    def by_amount(self, amount: float) -> Request:
        """What goes when this fraction of every class's original units is to be gone."""
        return self.request(int(np.searchsorted(self.places, amount + 1e-9, side="right")))

    def by_amounts(self, amounts: Sequence[float]) -> Request:
        """What goes when these fractions of the groups' original sizes are to be gone."""
        lost = np.zeros(len(self.groups), int)
        for group, amount in zip(self.groups, amounts, strict=True):
            size = self._origin.size(group)
            lost[group.index] = max(0, math.floor(round(amount * size, 9)) - (size - group.size))
        return self.weakest(lost)

    def fit(
        self, reached: Callable[[Request], bool], describe: Callable[[Request], str]
    ) -> Request:
        """The shortest piece of the ranking that is enough.

        Args:
            reached: whether a request is enough; true for all longer ones once it is true.
            describe: what a request comes to, for the error message.

        Raises:
            RequestError: even the whole ranking is not enough.
        """
        low, high = 0, len(self.order)
        if reached({}):
            return {}
        if not reached(self.request(high)):
            raise RequestError(
                "The target cannot be reached. When everything that may go is gone, "
                f"{describe(self.request(high))} remain. Expected a larger target, or looser "
                "limits (min_channels, min_fraction, round_to, layers, protect, streams)."
            )
        with Bar("Searching", (high - 1).bit_length(), unit="try") as bar:
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if reached(self.request(middle)) else (middle, high)
                bar.advance()
        return self.request(high)

    def give_back(self, request: Request, reached: Callable[[Request], bool]) -> Request:
        """Spare what need not go: the most important units first, while the rest is enough."""
        lost = np.zeros(len(self.groups), int)
        for group, units in request.items():
            lost[group.index] = len(units)
        tight: set[int] = set()  # groups that cannot spare one more, and so never will
        while last := [i for i, n in enumerate(lost) if n and i not in tight]:
            index = max(last, key=lambda i: self._scores[i][lost[i] - 1])
            fewer = lost.copy()
            fewer[index] -= 1
            if reached(smaller := self.weakest(fewer)):
                lost, request = fewer, smaller
            else:
                tight.add(index)
        return request

    def _may_lose(self, group: Group) -> int:
        limits, key = self._limits, key_of(group)
        if limits.layers is not None and not limits.layers & set(group.producers):
            return 0
        if limits.streams == "leave" and key in self._origin.streams:
            return 0
        size = self._origin.size(group)
        stay = max(
            group.least, limits.min_channels, math.ceil(round(size * limits.min_fraction, 9))
        )
        finite = int(np.isfinite(self._scores[group.index]).sum())
        return max(0, min(group.size - stay, finite))

    def _rounded(self, group: Group, lost: int) -> int:
        """Fewer, so that a round number of channels stays."""
        step, wide = self._limits.round_to, self._wide[group.index]
        if not lost or step == 1:
            return lost
        channels = math.ceil((group.size - lost) * wide / step - 1e-9) * step
        return max(0, group.size - math.ceil(channels / wide - 1e-9))

    def _rank(self, cost: Cost | None) -> np.ndarray:
        """Class by class; merged by place afterwards."""
        if cost is None:
            nothing = np.zeros(len(self.groups), int)
            return self._merge(self._ordered(self._scores, nothing, self.most))
        return self._merge(self._rank_by_cost(cost))

    def _rank_by_cost(self, cost: Cost, rounds: int = 50) -> np.ndarray:
        """In rounds, between which the savings are computed anew."""
        taken = np.zeros(len(self.groups), int)
        found: list[np.ndarray] = []
        share = np.array([self._total(g) for g in self.groups]) / rounds
        names = [self._class(g) for g in self.groups]
        while (taken < self.most).any():
            alive = self.alive(self._plain(taken))
            savings = np.maximum(cost.savings(alive), 1e-12)
            keys = {g.index: self._scores[g.index] / savings[g.index] for g in self.groups}
            order = self._ordered(keys, taken, self.most)
            quota: dict[Hashable, int] = {}
            chosen = []
            for index in order:
                name = names[index]
                quota[name] = quota.get(name, 0) + 1
                if quota[name] <= max(1, round(share[index])):
                    chosen.append(index)
            found.append(np.array(chosen, int))
            taken += np.bincount(found[-1], minlength=len(self.groups))
        return np.concatenate(found) if found else np.zeros(0, int)

    def _plain(self, taken: np.ndarray) -> Request:
        return {g: self._weakest[g.index][: taken[g.index]] for g in self.groups if taken[g.index]}

    def _ordered(
        self, keys: Mapping[int, np.ndarray], start: np.ndarray, end: np.ndarray
    ) -> np.ndarray:
        """Groups' indices by the keys of their units from `start` to `end`, lowest first."""
        parts = [keys[g.index][start[g.index] : end[g.index]] for g in self.groups]
        index = np.repeat([g.index for g in self.groups], [len(p) for p in parts]).astype(int)
        values = np.concatenate([np.zeros(0), *parts])
        return index[np.argsort(values, kind="stable")]

    def _merge(self, order: np.ndarray) -> np.ndarray:
        """All classes side by side: the same fraction of each is gone at any time."""
        return order[np.argsort(self._place(order), kind="stable")]

    def _place(self, order: np.ndarray) -> np.ndarray:
        now: dict[Hashable, int] = {}
        for group in self.groups:
            now[self._class(group)] = now.get(self._class(group), 0) + group.size
        names = [self._class(g) for g in self.groups]
        totals = [self._total(g) for g in self.groups]
        gone = {name: self._origin.totals.get(name, n) - n for name, n in now.items()}
        places = np.zeros(len(order))
        for i, index in enumerate(order):
            gone[names[index]] += 1
            places[i] = gone[names[index]] / totals[index]
        return places

    def _class(self, group: Group) -> Hashable:
        return self._origin.classes.get(key_of(group), "")

    def _total(self, group: Group) -> int:
        return self._origin.totals.get(self._class(group), group.size)


def _channels_per_unit(group: Group) -> float:
    made = [m for m in group.members if m.weight.role == "out"] or list(group.members)
    positions = (made[0].units >= 0).sum() / made[0].weight.blocks
    return max(1.0, float(positions / group.size))
