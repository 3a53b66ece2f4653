"""Facts by group: how many units went, and how important they were."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ridurre.graph import ChannelGraph, Group
from ridurre.plan import Planner, PruningPlan
from ridurre.reports.facts import GroupFacts, Histogram
from ridurre.selection import key_of

_BINS = 20


class Survivors:
    """Which units of the original's groups went, or at least how many.

    Args:
        before: graph of the original; None if it has none.
        after: graph of the pruned model; None if it has none.
        plan: what made the one from the other, if it is known.

    Raises:
        PlanMismatchError: the plan does not fit the original.
    """

    def __init__(
        self, before: ChannelGraph | None, after: ChannelGraph | None, plan: PruningPlan | None
    ) -> None:
        self._sizes = {} if after is None else {key_of(g): g.size for g in after.groups}
        self._widths = {} if after is None else _widths(after)
        self._stays: np.ndarray | None = None
        if plan is not None and before is not None:
            solution = before.solution
            alive = Planner(before).labels_of(plan)
            self._stays = np.bincount(solution.soft, alive) > 0

    def gone(self, group: Group) -> np.ndarray | None:
        """For every unit whether it went; None where no plan says so."""
        return None if self._stays is None else ~self._stays[group.components]

    def removed(self, group: Group) -> int | None:
        """How many units went; None where the two models do not say, or there are more now."""
        gone = self.gone(group)
        if gone is not None:
            return int(gone.sum())
        left = self._left(group)
        return None if left is None or left > group.size else group.size - left

    def _left(self, group: Group) -> int | None:
        if key_of(group) in self._sizes:
            return self._sizes[key_of(group)]
        # A group of which one unit is left is none any more; its weights still tell.
        for member in group.members:
            weight = member.weight
            width = self._widths.get(weight.key)
            if width is not None and (member.units >= 0).all():
                return round(group.size * width / len(member.units))
        return None


def group_facts(
    graph: ChannelGraph | None, survivors: Survivors, scores: Mapping[int, np.ndarray]
) -> tuple[GroupFacts, ...]:
    """All groups of the original, with histograms of their scores where there are some."""
    if graph is None:
        return ()
    found = []
    for group in graph.groups:
        removed, values = survivors.removed(group), scores.get(group.index)
        histogram = None if values is None else _histogram(values, survivors.gone(group), removed)
        found.append(GroupFacts(group.producers, group.size, removed, histogram))
    return tuple(found)


def _histogram(scores: np.ndarray, gone: np.ndarray | None, removed: int | None) -> Histogram:
    finite = np.isfinite(scores)
    gone = np.zeros(len(scores), bool) if gone is None else gone
    edges = np.histogram_bin_edges(scores[finite], min(_BINS, max(1, len(scores))))
    counts = [np.histogram(scores[finite & part], edges)[0] for part in (~gone, gone)]
    kept, lost = (tuple(c.tolist()) for c in counts)
    return Histogram(
        tuple(edges.tolist()), kept, lost, _cut(np.sort(scores), removed), int((~finite).sum())
    )


def _cut(rising: np.ndarray, removed: int | None) -> float | None:
    """Half-way between the most important unit that so many would take and the next."""
    if not removed or removed >= len(rising) or not np.isfinite(rising[removed]):
        return None
    return float((rising[removed - 1] + rising[removed]) / 2)


def _widths(graph: ChannelGraph) -> dict[tuple[str, str, int, str], int]:
    return {w.key: len(w.labels) for w in graph.trace.space.weights.values()}
