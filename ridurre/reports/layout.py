"""Where everything stands in the picture of a network.

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
#: Where a column's drawing begins, how wide it may be, and the widest gap between neighbours.
_LEFT, _WIDE, _GAP = 0.05, 0.7, 0.26

#: Horizontal place in columns, and level in the column.
Point = tuple[float, float]


@dataclass(frozen=True)
class Place:
    """Where a node stands: `x` in columns, `y` in levels from the top, `room` for its name."""

    x: float
    y: float
    room: float


@dataclass(frozen=True)
class Layout:
    """A drawing.

    Attributes:
        places: of the nodes.
        lines: for every connection its pieces, one in each column that it runs through.
        columns: how many there are.
    """

    places: tuple[Place, ...]
    lines: tuple[tuple[Point, ...], ...]
    columns: int


def draw(nodes: Sequence[Node]) -> Layout:
    """Place the nodes and route their connections.

    Raises:
        RequestError: igraph is not installed.
    """
    igraph = load(
        "igraph", "HTML reports", "pip install ridurre[report] brings all that they need."
    )
    levels = _levels(nodes)
    edges = [(source, target) for target, node in enumerate(nodes) for source in node.inputs]
    graph = igraph.Graph(len(nodes), edges, directed=True)
    found = graph.layout_sugiyama(layers=levels)
    points = [(x, float(level)) for (x, _), level in zip(found.coords, levels, strict=True)]
    routes = [
        [points[source], *map(tuple, found.edge_routing[i]), points[target]]
        for i, (source, target) in enumerate(edges)
    ]
    across = [x for x, _ in points] + [x for route in routes for x, _ in route]
    low, span = min(across, default=0.0), max(across, default=0.0) - min(across, default=0.0)
    scale = min(_GAP, _WIDE / span) if span else 0.0

    def place(point: Point) -> Point:
        return _LEFT + (point[0] - low) * scale, point[1]

    points = [place(p) for p in points]
    pieces = [piece for route in routes for piece in _folded([place(p) for p in route])]
    places = [
        Place(level // LEVELS + x, level % LEVELS, room)
        for (x, _), level, room in zip(points, levels, _rooms(points), strict=True)
    ]
    return Layout(tuple(places), tuple(pieces), 1 + max(levels, default=0) // LEVELS)


def _levels(nodes: Sequence[Node]) -> list[int]:
    """For every node the longest way from an input; nodes come in running order."""
    found: list[int] = []
    for node in nodes:
        found.append(1 + max((found[i] for i in node.inputs), default=-1))
    return found


def _folded(route: Sequence[Point]) -> list[tuple[Point, ...]]:
    """A line from top to bottom as one line per column, each running out of its column."""
    pieces: list[list[Point]] = [[]]
    column = int(route[0][1]) // LEVELS
    for x, level in route:
        while level >= (column + 1) * LEVELS:
            last = pieces[-1][-1][0] if pieces[-1] else column + x
            pieces[-1].append((last, LEVELS - 0.45))
            column += 1
            pieces.append([(column + x, -0.55)])
        pieces[-1].append((column + x, level - column * LEVELS))
    return [tuple(piece) for piece in pieces]


def _rooms(points: Sequence[Point]) -> list[float]:
    """How far it is from every node to the next on its level, or to the next column."""
    rooms = [1 - x for x, _ in points]
    order = sorted(range(len(points)), key=lambda i: (points[i][1], points[i][0]))
    for i, j in zip(order, order[1:], strict=False):
        if points[i][1] == points[j][1]:
            rooms[i] = points[j][0] - points[i][0]
    return rooms
