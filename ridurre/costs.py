"""What a cut would save, known before anything is built.

Parameters, MACs, filters and activation memory of a model are sums of products of sizes (input
channels × output channels × …), and a cut changes the sizes. `Cost` holds such a sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import keras
import numpy as np

from ridurre.backend import bytes_per_number, parameters_of
from ridurre.checks import check_choice
from ridurre.graph import ChannelGraph, Labels, Value, along
from ridurre.graph.labels import varying
from ridurre.graph.rules import Call, Work, rule_for


@dataclass(frozen=True)
class Product:
    """A number times the sizes of some axes; ``(size, k)`` labels say which positions are left."""

    times: float
    axes: tuple[Labels, ...]


class Cost:
    """A sum of products of sizes, exact for every cut.

    Args:
        graph: of the model.
        products: the sum.
    """

    def __init__(self, graph: ChannelGraph, products: Iterable[Product]) -> None:
        products = [p for p in products if p.times]
        self._axes: list[Labels] = []
        known: dict[tuple[tuple[int, ...], bytes], int] = {}
        rows = [[self._number(a, known) for a in p.axes] for p in products]
        width = max(map(len, rows), default=0)
        # Shorter products end in a place that always counts 1.
        self._index = np.array([r + [-1] * (width - len(r)) for r in rows], int)
        self._index = self._index.reshape(len(rows), width)
        self._times = np.array([p.times for p in products], "float64")
        self._owned = self._positions(graph)

    def total(self, alive: np.ndarray) -> float:
        """The sum, for what a plan leaves of the labels (see `Planner.alive`)."""
        return float(self._sum(self._counts(alive)))

    def savings(self, alive: np.ndarray) -> np.ndarray:
        """By how much the sum falls with one more unit of each group, ``(groups,)``."""
        counts = self._counts(alive)
        return self._sum(counts) - self._sum(np.maximum(counts - self._owned, 0))

    def after(self, alive: np.ndarray, group: int, units: np.ndarray) -> np.ndarray:
        """The sum when so many more units of one group go, ``(len(units),)``."""
        fewer = self._counts(alive) - np.outer(units, self._owned[group])
        return self._sum(np.maximum(fewer, 0))

    def _number(self, axis: Labels, known: dict[tuple[tuple[int, ...], bytes], int]) -> int:
        key = (axis.shape, axis.tobytes())
        if key not in known:
            known[key] = len(self._axes)
            self._axes.append(axis)
        return known[key]

    def _counts(self, alive: np.ndarray) -> np.ndarray:
        counts = [np.count_nonzero(alive[a].any(axis=1)) for a in self._axes]
        return np.array([*counts, 1], "float64")

    def _sum(self, counts: np.ndarray) -> np.ndarray:
        return counts[..., self._index].prod(axis=-1) @ self._times

    def _positions(self, graph: ChannelGraph) -> np.ndarray:
        """How many positions of every axis one unit of every group owns, ``(groups, axes + 1)``."""
        owner = graph.solution.owners(graph.groups)
        sizes = np.array([g.size for g in graph.groups])
        owned = np.zeros((len(sizes), len(self._axes) + 1))
        solved = graph.solution.soft
        for i, axis in enumerate(self._axes):
            # What several units share is left as long as one of them is.
            alone = (solved[axis] == solved[axis[:, :1]]).all(axis=1)
            mine = np.where(alone, owner[axis[:, 0]], -1)
            owned[:, i] = np.bincount(mine[mine >= 0], minlength=len(sizes)) / sizes
        return owned


def cost_of(graph: ChannelGraph, kind: str) -> Cost:
    """One of `COSTS` by name, for the model of a graph."""
    return Cost(graph, COSTS[check_choice("cost", kind, COSTS)](graph))


def latency_rates(graph: ChannelGraph, seconds: Sequence[float]) -> list[float]:
    """Seconds per multiply-accumulate (or per output element, where there are none) of each call.

    Args:
        graph: of a model.
        seconds: of every call, in running order (see `ridurre.measure.call_latencies`).
    """
    everything = np.ones(graph.trace.space.size, bool)
    amounts = [Cost(graph, p).total(everything) for p in _by_call(graph)]
    return [s / n if n else 0.0 for s, n in zip(seconds, amounts, strict=True)]


def cost_of_latency(graph: ChannelGraph, rates: Sequence[float]) -> Cost:
    """Seconds of a prediction, if every call took its rate times its size.

    Args:
        graph: of the model that the rates were measured on, or of a smaller copy.
        rates: see `latency_rates`.
    """
    scaled = zip(_by_call(graph), rates, strict=True)
    return Cost(graph, [Product(p.times * r, p.axes) for parts, r in scaled for p in parts])


def _by_call(graph: ChannelGraph) -> list[list[Product]]:
    return [
        work_of(graph, call) or [elements(graph, v, 1) for v in call.outputs]
        for call in graph.trace.calls
    ]


def elements(graph: ChannelGraph, operand: keras.Variable | Value, times: int) -> Product:
    """`times` the number of elements of a weight, or of a tensor without its batch axis."""
    return _product(graph, Work(operand, times))


def _product(graph: ChannelGraph, work: Work) -> Product:
    operand, sizes = work.operand, work.sizes
    if isinstance(operand, Value):
        axes = {a: along(operand.labels, a) for a in varying(operand.labels) if a in sizes}
    else:
        weights = ((a, graph.trace.space.weights.get((id(operand), a))) for a in sizes)
        axes = {a: w.labels for a, w in weights if w is not None}
    constant = math.prod(n for a, n in sizes.items() if a not in axes)
    return Product(work.times * constant, tuple(axes.values()))


def work_of(graph: ChannelGraph, call: Call) -> list[Product]:
    """The multiply-accumulates of one call for one sample."""
    return [_product(graph, w) for w in rule_for(call.operation).work(call)]


def _macs(graph: ChannelGraph) -> list[Product]:
    return [p for call in graph.trace.calls for p in work_of(graph, call)]


def _parameters(graph: ChannelGraph) -> list[Product]:
    layers = {id(x): x for x in graph.layers.values()}.values()
    counted = set().union(*(parameters_of(x) for x in layers))
    variables = {id(v): v for x in layers for v in x.variables if id(v) in counted}
    return [elements(graph, v, 1) for v in variables.values()]


def _filters(graph: ChannelGraph) -> list[Product]:
    made = (graph.filters(layer) for layer in {id(x): x for x in graph.layers.values()}.values())
    return [Product(1, (labels.reshape(-1, 1),)) for labels in made if labels is not None]


def _memory(graph: ChannelGraph) -> list[Product]:
    return [
        elements(graph, value, bytes_per_number(call.operation))
        for call in graph.trace.calls
        for value in call.outputs
    ]


def _bytes(graph: ChannelGraph) -> list[Product]:
    """Of all variables, as a file holds them."""
    variables = {id(v): v for x in graph.layers.values() for v in x.variables}
    return [elements(graph, v, np.dtype(_stored(v)).itemsize) for v in variables.values()]


def _stored(variable: keras.Variable) -> str:
    dtype = str(variable.dtype)
    return "float16" if dtype == "bfloat16" else dtype


#: Names that `cost=` takes and the products of each.
COSTS: dict[str, Callable[[ChannelGraph], list[Product]]] = {
    "macs": _macs,
    "parameters": _parameters,
    "filters": _filters,
    "memory": _memory,
    "file": _bytes,
}
