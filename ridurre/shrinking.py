"""Carry out a channel strategy: score, select, cut, repair, step by step."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from ridurre import criteria, schedules
from ridurre.allocation import allocate
from ridurre.backend.training import loss_of
from ridurre.checks import check_fraction
from ridurre.costs import Cost, cost_of, cost_of_latency, latency_rates
from ridurre.criteria import Criterion
from ridurre.criteria.base import Scores
from ridurre.data import Batches
from ridurre.dependency import DependencyGraph
from ridurre.errors import RequestError
from ridurre.graph import ChannelGraph, Group
from ridurre.graph.select import Selector
from ridurre.measure import call_latencies
from ridurre.plan import PruningPlan
from ridurre.progress import track
from ridurre.recovery import recover
from ridurre.selection import Key, Limits, Origin, Ranking, Request, key_of
from ridurre.targets import Measure, Target
from ridurre.trail import Trail

logger = logging.getLogger("ridurre")


@keras.saving.register_keras_serializable(package="ridurre")
@dataclasses.dataclass(frozen=True)
class Bins:
    """Amounts by the width of a group: the classic ``define_prune_bins``.

    A group of n units, ``bounds[i] <= n < bounds[i + 1]``, loses ``amounts[i]`` of them; one
    outside all bins loses nothing.

    Args:
        bounds: increasing numbers of channels, one more than amounts.
        amounts: fractions to remove.

    Raises:
        RequestError: not one bound more than amounts, or bounds that do not increase.
    """

    bounds: tuple[float, ...]
    amounts: tuple[float, ...]

    def __post_init__(self) -> None:
        for amount in self.amounts:
            check_fraction("amount", amount, below_one=True)
        increasing = all(a < b for a, b in itertools.pairwise(self.bounds))
        if len(self.bounds) != len(self.amounts) + 1 or not increasing:
            raise RequestError(
                "Expected increasing bounds, one more than amounts. Received: "
                f"bounds={self.bounds}, amounts={self.amounts}."
            )

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {"bounds": self.bounds, "amounts": self.amounts}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Bins:
        """The bins that have this configuration."""
        return cls(tuple(config["bounds"]), tuple(config["amounts"]))

    def amount(self, size: int) -> float:
        """The amount for a group of this size."""
        bins = zip(self.bounds, self.bounds[1:], self.amounts, strict=False)
        return next((a for low, high, a in bins if low <= size < high), 0.0)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a channel strategy is made of, checked; see `ridurre.ChannelPrune`."""

    amount: float | Mapping[Any, float] | Bins | None
    targets: tuple[Target, ...]
    criterion: Criterion | None
    scope: str
    cost: str | None
    data: Batches | None
    loss: Any
    recover: Mapping[str, Any] | None
    steps: int
    schedule: schedules.Schedule
    limits: Limits
    layers: Selector | None
    protect: Selector | None
    seed: int | None

    @property
    def used_criterion(self) -> Criterion:
        """The criterion that is given, or the default for the data that are given."""
        if self.criterion is not None:
            return self.criterion
        if self.data is None:
            return criteria.get("l1")
        return criteria.get("gate_taylor" if self.data.labelled else "output_taylor")


class Shrinking:
    """One strategy on one model.

    Args:
        settings: the strategy's.
        model: is not changed.
        before: the model whose sizes amounts and targets refer to; by default this one.

    Attributes:
        model: the smaller model so far.
    """

    def __init__(
        self, settings: Settings, model: keras.Model, before: keras.Model | None = None
    ) -> None:
        self.settings = settings
        self.original = self.model = model
        self.first = self._graph(model)
        if not self.first.groups:
            raise self.first.nothing_to_prune(
                f"The model {model.name!r} has no channels that can be pruned. Channels tied to "
                "its inputs or outputs, protected ones and those that flow into layers without a "
                "rule have to stay."
            )
        self._criterion = settings.used_criterion
        if self._criterion.needs == "labels":
            loss_of(model, settings.loss)  # a missing loss is noticed before any work
        chosen = None if settings.layers is None else frozenset(self.first.select(settings.layers))
        self._limits = dataclasses.replace(settings.limits, layers=chosen)
        same = before is None or before is model
        origin = self.first if same else self._graph(before)
        self._origin = Origin(origin, settings.scope, settings.limits.streams)
        self._amounts = self._amounts_by_layer()
        self._trail = Trail(self.first)
        self._measures = [t.against(origin.model) for t in settings.targets]
        self._before = [self._first_number(i, origin.model) for i in range(len(self._measures))]
        self._rates: list[float] = []
        if settings.cost == "latency":
            self._rates = latency_rates(self.first, call_latencies(self.first.trace))

    def all_steps(self) -> Iterator[tuple[keras.Model, PruningPlan]]:
        """The smaller model and its plan, after every step."""
        for step in track(range(self.settings.steps), "Pruning"):
            self._step(step)
            plan = self.plan()
            if self.model is self.original:  # nothing was removed; a new model comes all the same
                self.model = plan.exec(keep_compiled=self.original.compiled)
            yield self.model, plan

    def plan(self) -> PruningPlan:
        """All that was removed so far, as a plan for the original."""
        return self.first.complete(self._trail.removed)

    def request(self, graph: DependencyGraph, step: int = 0) -> Request:
        """What goes from the model as it is now."""
        scores, cost = self._scores(graph, step), self._cost(graph)
        ranking = Ranking(graph, scores, self._origin, self._limits, cost)
        return self._select(graph, ranking, step)

    def touched(self) -> list[Key]:
        """The groups that amounts by layer mean."""
        return [key_of(g) for g in self.first.groups if self._amounts.keys() & set(g.producers)]

    def one_step(self, model: keras.Model, step: int) -> keras.Model:
        """What a step makes of a model that has gone through the earlier ones, and training maybe.

        The repair looks at this model, and not at the original, which training has left behind.
        """
        graph = self._graph(model)
        request = self.request(graph, step)
        if not request:
            return graph.complete({}).exec()
        plan = graph.get_pruning_plan(request)
        return self._repaired(plan.exec(), model, plan)

    def _step(self, step: int) -> None:
        graph = self._graph(self.model) if step else self.first
        request = self.request(graph, step)
        if not request:
            return
        plan = graph.get_pruning_plan(request)
        logger.info("Step %d of %d: %s", step + 1, self.settings.steps, plan)
        smaller = plan.exec(keep_compiled=self.original.compiled)
        self._trail.add(graph, plan)
        self.model = self._repaired(smaller, self.original, self.plan())

    def _repaired(
        self, smaller: keras.Model, before: keras.Model, plan: PruningPlan
    ) -> keras.Model:
        how = self.settings.recover
        return smaller if how is None else recover(smaller, before, plan, self.settings.data, **how)

    def _graph(self, model: keras.Model) -> DependencyGraph:
        return DependencyGraph(model, protect=self.settings.protect)

    def _scores(self, graph: ChannelGraph, step: int) -> Scores:
        s = self.settings
        seed = None if s.seed is None else s.seed + step
        return self._criterion.score(graph, s.data, loss=s.loss, seed=seed)

    def _cost(self, graph: ChannelGraph) -> Cost | None:
        kind = self.settings.cost
        if kind == "latency":
            return cost_of_latency(graph, self._rates)
        return None if kind is None else cost_of(graph, kind)

    def _select(self, graph: DependencyGraph, ranking: Ranking, step: int) -> Request:
        s = self.settings
        if s.targets:
            goals = self._goals(step)
            reached = _Reached(graph, ranking, s.targets, self._measures, goals)
            if s.scope == "knapsack":
                return allocate(ranking, *reached.costs[0])
            request = ranking.fit(reached, reached.describe)
            return ranking.give_back(request, reached) if reached.computed else request
        if isinstance(s.amount, float):
            return ranking.by_amount(self._so_far(s.amount, step))
        return ranking.by_amounts([self._so_far(self._amount(g), step) for g in ranking.groups])

    def _first_number(self, place: int, model: keras.Model) -> float:
        """The number that a target is about; there has to be something to come down from."""
        target, number = self.settings.targets[place], self._measures[place](model)
        if not number:
            raise RequestError(
                f"The model {model.name!r} has no {target.unit}, so that {target!r} says nothing. "
                "Expected a target of something that it has."
            )
        return number

    def _so_far(self, amount: float, step: int) -> float:
        return schedules.amount_at(self.settings.schedule, step, self.settings.steps, amount)

    def _goals(self, step: int) -> list[float]:
        """What should remain after a step; the way from the original to the goal is the amount."""
        goals = []
        for target, before in zip(self.settings.targets, self._before, strict=True):
            amount = max(0.0, 1 - target.goal(before) / before)
            goals.append(before * (1 - self._so_far(amount, step)))
        return goals

    def _amounts_by_layer(self) -> dict[str, float]:
        """A mapping's amounts by full names of layers; of two that mean a layer, the later one."""
        if not isinstance(self.settings.amount, Mapping):
            return {}
        chosen = self.settings.amount.items()
        return {name: a for key, a in chosen for name in self.first.select(key)}

    def _amount(self, group: Group) -> float:
        """Layers that are tied lose what the most cautious of them may."""
        amount = self.settings.amount
        if isinstance(amount, Bins):
            return amount.amount(self._origin.size(group))
        amounts = [self._amounts[n] for n in group.producers if n in self._amounts]
        return min(amounts, default=0.0)


def merged_requests(
    strategies: Sequence[Settings], graph: DependencyGraph, before: keras.Model | None = None
) -> Request:
    """What several strategies remove together; where two meet, the more cautious one counts."""
    found: dict[Key, np.ndarray] = {}
    for settings in strategies:
        part = Shrinking(settings, graph.model, before)
        wanted = {key_of(g): units for g, units in part.request(part.first).items()}
        for key in part.touched():
            units = wanted.get(key, np.zeros(0, int))
            if key not in found or len(units) < len(found[key]):
                found[key] = units
    requests = {g: found.get(key_of(g), np.zeros(0, int)) for g in graph.groups}
    return {g: units for g, units in requests.items() if len(units)}


class _Reached:
    """Whether a request is enough for all targets.

    Numbers that are sums of products (see `ridurre.costs`) are computed, others are measured on the
    model that the request leads to.
    """

    def __init__(
        self,
        graph: DependencyGraph,
        ranking: Ranking,
        targets: Sequence[Target],
        measures: Sequence[Measure],
        goals: Sequence[float],
    ) -> None:
        self._graph, self._ranking = graph, ranking
        self._targets, self._measures, self._goals = targets, measures, goals
        everything = np.ones(graph.trace.space.size, bool)
        self.costs: list[tuple[Cost, float]] = []
        self._measured: list[tuple[Measure, float]] = []
        for target, measure, goal in zip(targets, measures, goals, strict=True):
            if target.cost is None or getattr(target, "input_shape", None) is not None:
                self._measured.append((measure, goal))
            else:
                cost = cost_of(graph, target.cost)
                # What a file holds besides weights, say, stays as it is.
                rest = target.measure(graph.model) - cost.total(everything)
                self.costs.append((cost, goal - rest))

    @property
    def computed(self) -> bool:
        """Whether nothing has to be built to know."""
        return not self._measured

    def __call__(self, request: Request) -> bool:
        alive = self._ranking.alive(request)
        if any(cost.total(alive) > goal for cost, goal in self.costs):
            return False
        if not self._measured:
            return True
        model = self._model(request)
        return all(measure(model) <= goal for measure, goal in self._measured)

    def describe(self, request: Request) -> str:
        """What a request comes to, and what it should come to."""
        model = self._model(request)
        return " and ".join(
            f"{measure(model):g} {t.unit} (goal: {goal:g})"
            for t, measure, goal in zip(self._targets, self._measures, self._goals, strict=True)
        )

    def _model(self, request: Request) -> keras.Model:
        return self._graph.get_pruning_plan(request).exec() if request else self._graph.model
