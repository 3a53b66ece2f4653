"""What is cut to see what it costs: a list of cuts, each small enough to be sent to a worker."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from ridurre import criteria
from ridurre.criteria import Criterion
from ridurre.criteria.base import CRITERIA, Scores, Spec, WeightScores
from ridurre.data import Batches
from ridurre.dependency import DependencyGraph
from ridurre.errors import NothingToPruneError
from ridurre.graph.select import Selector
from ridurre.levels import select
from ridurre.measure import model_complexity
from ridurre.plan import PruningPlan
from ridurre.recipes import Recipe, prune
from ridurre.selection import Limits, Origin, Ranking, Request
from ridurre.sensitivities.bench import Bench
from ridurre.sensitivities.ranking import group_names
from ridurre.sensitivities.record import Names
from ridurre.sparsity import sizes_of, zeros_first
from ridurre.surgery import apply
from ridurre.weights import Weight, weights_of


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the cuts follow from; see `ridurre.sensitivity`."""

    criterion: Spec | None
    data: Batches | None
    loss: Any
    layers: Selector | None
    seed: int | None

    def channel_criterion(self, model: keras.Model) -> Criterion:
        """As in `ridurre.ChannelPrune`; without a loss, that of the outputs."""
        if self.criterion is not None:
            return criteria.get(self.criterion)
        if self.data is None:
            return criteria.get("l1")
        known = self.loss is not None or (model.compiled and model.loss is not None)
        return criteria.get("gate_taylor" if known and self.data.labelled else "output_taylor")


class Change(abc.ABC):
    """One cut, by names that mean the same in every copy of the model."""

    @abc.abstractmethod
    def measure(self, bench: Bench) -> tuple[float | None, int | None]:
        """The value with the cut made, and how much went if only now that is known."""


@dataclasses.dataclass(frozen=True)
class ChannelCut(Change):
    """Channels that go. Zeros give what cutting gives, unless statistics run across channels."""

    plan: PruningPlan

    def measure(self, bench: Bench) -> tuple[float | None, int | None]:
        """Without building a smaller model wherever that is exact."""
        if self.plan.exact:
            with bench.without(self.plan.removed):
                if bench.sound(frozenset(self.plan.removed)):
                    return bench.value(bench.model), None
        smaller = apply(bench.model, self.plan, keep_compiled=bench.model.compiled)
        return bench.value(smaller), None


@dataclasses.dataclass(frozen=True)
class WeightCut(Change):
    """Single numbers of a weight, by its place among all, that go: what stays of it."""

    index: int
    keep: np.ndarray

    def measure(self, bench: Bench) -> tuple[float | None, int | None]:
        """With zeros in their place."""
        with bench.masked(self.index, self.keep):
            return bench.value(bench.model), None


@dataclasses.dataclass(frozen=True)
class RecipeCut(Change):
    """Whatever a strategy does."""

    recipe: Recipe

    def measure(self, bench: Bench) -> tuple[float | None, int | None]:
        """On a model that is made for it."""
        pruned = prune(self.recipe, bench.model)
        before, after = (model_complexity(m).nonzero for m in (bench.model, pruned))
        return bench.value(pruned), before - after


@dataclasses.dataclass(frozen=True)
class Probe:
    """A cut of which only the size is known yet; None if not even that."""

    name: str
    amount: float
    removed: int | None
    make: Callable[[], Change] = dataclasses.field(repr=False)

    @property
    def key(self) -> tuple[str, float]:
        """Probes of the same key are the same cut."""
        return self.name, self.amount if self.removed is None else self.removed


@dataclasses.dataclass(frozen=True)
class Probes:
    """All cuts that are asked for.

    Attributes:
        names: what the names stand for.
        criterion: decided what goes first.
        probes: one per name and amount.
    """

    names: dict[str, Names]
    criterion: str
    probes: list[Probe]


def channel_probes(model: keras.Model, amounts: Sequence[float], asked: Asked) -> Probes:
    """Every group alone, at every amount."""
    graph, criterion, scores, ranking = _ranked(model, asked, "local")
    names, probes = {}, []
    for name, group in group_names(graph).items():
        if not ranking.most[group.index]:
            continue
        order = np.argsort(scores[group], kind="stable").tolist()  # as `Ranking` has it
        names[name] = Names(group.producers, group.size, tuple(order))
        for amount in amounts:
            alone = np.where(np.arange(len(graph.groups)) == group.index, amount, 0.0)
            request = ranking.by_amounts(alone.tolist())
            probes.append(_channel_probe(graph, name, amount, request))
    return Probes(names, _name(asked, criterion), probes)


def network_probes(model: keras.Model, amounts: Sequence[float], asked: Asked) -> Probes:
    """One global ranking of all channels."""
    graph, criterion, _, ranking = _ranked(model, asked, "global")
    probes = [_channel_probe(graph, "network", a, ranking.by_amount(a)) for a in amounts]
    channels = int(sum(g.size for g in graph.groups))
    return Probes({"network": Names(("network",), channels)}, _name(asked, criterion), probes)


def recipe_probes(strategy: Callable[[float], Recipe], amounts: Sequence[float]) -> Probes:
    """What a strategy of the user's makes of the model."""
    recipes = [(a, strategy(a)) for a in amounts]
    probes = [Probe("network", a, None, functools.partial(RecipeCut, r)) for a, r in recipes]
    name = getattr(strategy, "__qualname__", type(strategy).__name__)
    return Probes({"network": Names(("network",), 0)}, name, probes)


def weight_probes(model: keras.Model, amounts: Sequence[float], asked: Asked) -> Probes:
    """Every kernel alone, at every level."""
    weights = weights_of(model, asked.layers)
    criterion = criteria.get(asked.criterion or "l1")
    raw = criterion.score_weights(model, weights, asked.data, loss=asked.loss, seed=asked.seed)
    scores = {w.path: zeros_first(raw[w.path], w) for w in weights}
    places = {w.path: i for i, w in enumerate(weights_of(model, None, "all"))}
    sizes = sizes_of(model)
    probes = [
        _weight_probe(w, places[w.path], scores, amount, sizes)
        for w in weights
        for amount in amounts
    ]
    names = {w.path: Names((w.layer,), w.size) for w in weights}
    return Probes(names, _name(asked, criterion), probes)


def _ranked(
    model: keras.Model, asked: Asked, scope: str
) -> tuple[DependencyGraph, Criterion, Scores, Ranking]:
    graph = DependencyGraph(model)
    criterion = asked.channel_criterion(model)
    chosen = None if asked.layers is None else frozenset(graph.select(asked.layers))
    if not graph.groups or (chosen and not any(chosen & set(g.producers) for g in graph.groups)):
        where = "" if chosen is None else f" in {sorted(chosen)}"
        raise NothingToPruneError(
            f"The model {model.name!r} has no channels that can be pruned{where}. Channels tied to "
            "its inputs or outputs and those that flow into layers without a rule have to stay."
        )
    scores = criterion.score(graph, asked.data, loss=asked.loss, seed=asked.seed)
    ranking = Ranking(graph, scores, Origin(graph, scope), Limits(layers=chosen))
    return graph, criterion, scores, ranking


def _channel_probe(graph: DependencyGraph, name: str, amount: float, request: Request) -> Probe:
    def make() -> Change:
        plan = graph.get_pruning_plan(request)
        return ChannelCut(PruningPlan(plan.removed, (), {}, plan.inexact))  # without the model

    return Probe(name, amount, sum(len(units) for units in request.values()), make)


def _weight_probe(
    weight: Weight, place: int, scores: WeightScores, amount: float, sizes: Any
) -> Probe:
    def keep() -> np.ndarray:
        return select([weight], scores, amount, "local", sizes)[weight.path]

    removed = weight.size - int(np.count_nonzero(keep()))
    return Probe(weight.path, amount, removed, lambda: WeightCut(place, keep()))


def _name(asked: Asked, criterion: Criterion) -> str:
    """What tells criteria apart in records: their name, or their class and arguments."""
    if isinstance(asked.criterion, str):
        return asked.criterion
    for name, make in CRITERIA.items():
        if make() == criterion:
            return name
    function = getattr(criterion, "function", None)
    return getattr(function, "__qualname__", None) or repr(criterion)
