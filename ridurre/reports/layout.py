"""Where the nodes of a network stand in its picture.

igraph draws the network from top to bottom; so that deep ones stay readable the drawing is then
folded like the columns of a newspaper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ridurre.optional import load
from ridurre.reports.facts import Node

#: Levels in one column.
LEVELS = 30
_LEFT, _WIDE = 0.14, 0.72


@dataclass(frozen=True)
class Place:
    """Where a node stands.

    Attributes:
        x: in columns.
        y: level in the column, from 0 at the top.
        room: for its label, in columns.
    """

    x: float
    y: int
    room: float

    @property
    def column(self) -> int:
        """The column that it is in."""
        return int(self.x)


def places(nodes: Sequence[Node]) -> list[Place]:
    """A place for every node; raises `RequestError` if igraph is not installed."""
    igraph = load("igraph", "HTML reports", "pip install ridurre[report] brings all.")
    levels = _levels(nodes)
    edges = [(source, target) for target, node in enumerate(nodes) for source in node.inputs]
    graph = igraph.Graph(len(nodes), edges, directed=True)
    across = [point[0] for point in graph.layout_sugiyama(layers=levels)][: len(nodes)]
    low = min(across, default=0.0)
    span = max(across, default=0.0) - low
    local = [(x - low) / span * _WIDE if span else 0.0 for x in across]
    rooms = _rooms(levels, local)
    return [
        Place(level // LEVELS + _LEFT + x, level % LEVELS, room)
        for level, x, room in zip(levels, local, rooms, strict=True)
    ]


def path(start: Place, end: Place) -> list[tuple[float, float]]:
    """Points of the line between two places; a long one goes around what lies between."""
    if start.column != end.column or end.y - start.y <= 1:
        return [(start.x, start.y), (end.x, end.y)]
    left = max(start.column + 0.02, min(start.x, end.x) - 0.04 - 0.004 * (end.y - start.y))
    return [
        (start.x, start.y),
        (left, start.y + 0.8),
        (left, end.y - 0.8),
        (end.x, end.y),
    ]


def _levels(nodes: Sequence[Node]) -> list[int]:
    """For every node the longest way from an input; nodes come in running order."""
    found: list[int] = []
    for node in nodes:
        found.append(1 + max((found[i] for i in node.inputs), default=-1))
    return found


def _rooms(levels: Sequence[int], across: Sequence[float]) -> list[float]:
    rooms = [1 - _LEFT - x for x in across]
    order = sorted(range(len(levels)), key=lambda i: (levels[i], across[i]))
    for i, j in zip(order, order[1:], strict=False):
        if levels[i] == levels[j]:
            rooms[i] = across[j] - across[i]
    return rooms
