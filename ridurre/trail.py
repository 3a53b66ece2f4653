"""Several plans, one after the other, as one plan."""

from __future__ import annotations

import numpy as np

from ridurre.graph import ChannelGraph
from ridurre.plan import PruningPlan, Removed


class Trail:
    """Plans that follow each other on ever smaller models, as one removal from the first.

    Args:
        graph: of the first model. Weights are known by layer and number, which all copies share.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        self._paths = {number: path for path, number in _numbers(graph).items()}
        self._left: dict[tuple[tuple[str, int], int], np.ndarray] = {}
        self._gone: dict[tuple[tuple[str, int], int], list[np.ndarray]] = {}
        numbers = _numbers(graph)
        self._sizes = {
            (numbers[graph.paths[key]], axis): len(weight.labels)
            for (key, axis), weight in graph.trace.space.weights.items()
        }

    def add(self, graph: ChannelGraph, plan: PruningPlan) -> None:
        """Take note of a plan for the latest copy, whose graph is given."""
        numbers = _numbers(graph)
        for path, axes in plan.removed.items():
            for axis, indices in axes.items():
                key = (numbers[path], axis)
                left = self._left.get(key, np.arange(self._sizes[key]))
                self._gone.setdefault(key, []).append(left[indices])
                self._left[key] = np.delete(left, indices)

    @property
    def removed(self) -> Removed:
        """Everything that is gone, in positions of the first model."""
        removed: Removed = {}
        for (number, axis), parts in self._gone.items():
            removed.setdefault(self._paths[number], {})[axis] = np.sort(np.concatenate(parts))
        return removed


def _numbers(graph: ChannelGraph) -> dict[str, tuple[str, int]]:
    """Layer and number of every variable by its path; the first layer counts, if it is shared."""
    found: dict[str, tuple[str, int]] = {}
    for name, layer in graph.layers.items():
        for i, variable in enumerate(layer.variables):
            found.setdefault(graph.paths[id(variable)], (name, i))
    return found
