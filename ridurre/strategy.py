"""Strategies as values: what to prune, by how much, by which criterion; and `prune`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras

from ridurre import criteria, schedules
from ridurre.checks import check_choice, check_count, check_fraction
from ridurre.costs import COSTS
from ridurre.criteria.base import Spec
from ridurre.data import Batches
from ridurre.dependency import DependencyGraph
from ridurre.errors import RequestError
from ridurre.graph import ChannelGraph
from ridurre.graph.select import Selector
from ridurre.plan import PruningPlan
from ridurre.selection import SCOPES, Limits
from ridurre.shrinking import Bins, Settings, Shrinking, merged_requests
from ridurre.targets import Target, check_targets


class ChannelPrune:
    """Remove channels, coupled ones together, physically.

    Example::

        smaller = ridurre.prune(ridurre.ChannelPrune(0.3), model)  # 30 % of every group

        half = ridurre.ChannelPrune(
            target=ridurre.MACs(0.5), scope="global", cost="macs", data=(x, y), steps=5,
            recover="least_squares",
        )
        smaller = ridurre.prune(half, model)

    Args:
        amount: fraction of channels to **remove**, in [0, 1); with scope "local" also a mapping
            from layers (name, regular expression) to fractions, or `Bins`.
        target: what should remain instead: a target (``ridurre.MACs(0.5)``) or several, which then
            all have to hold.
        criterion: what matters: a name, an instance or ``fn(graph, group)``. By default L1 without
            data, squared gate Taylor with it: of the loss, or of the outputs without labels.
        scope: ``"local"``: the same fraction of every group; ``"global"``: one ranking of all;
            ``"isomorphic"``: one ranking, and the same fraction, for each kind of group (Fang et
            al., ECCV 2024); ``"knapsack"``: the least sum of scores for one target, by dynamic
            programming.
        cost: divide scores by what removing the channel saves: "macs", "parameters", "memory",
            "filters", "file" or "latency" (measured layer by layer); None: do not.
        data: what `model.fit` takes, for criteria and recovery.
        loss: for criteria from gradients; the compiled model's by default.
        recover: repair after every step, see `ridurre.recover`: a name, several, or a dictionary of
            its arguments; None for no repair.
        steps: in how many steps channels go; scores are computed anew before each.
        schedule: how the amount is spread over the steps: "linear", "geometric", "cubic",
            "one_shot" or ``fn(step, steps, amount)``.
        streams: residual streams (channels tied through additions): ``"rank"`` them with the rest,
            ``"leave"`` them alone, or rank them ``"apart"``.
        min_channels: channels that stay in every group.
        min_fraction: the same as a fraction of the group.
        round_to: what stays of a cut group is a multiple of this.
        layers: which layers may lose channels (see `ridurre.DependencyGraph`); None for all.
        protect: layers whose channels must stay.
        seed: of all random choices.

    Raises:
        RequestError: arguments that make no sense, alone or together.
    """

    def __init__(
        self,
        amount: float | Mapping[Any, float] | Bins | None = None,
        *,
        target: Target | Sequence[Target] | None = None,
        criterion: Spec | None = None,
        scope: str = "local",
        cost: str | None = None,
        data: Any = None,
        loss: Any = None,
        recover: str | Sequence[str] | Mapping[str, Any] | None = None,
        steps: int = 1,
        schedule: str | schedules.Schedule = "linear",
        streams: str = "rank",
        min_channels: int = 1,
        min_fraction: float = 0.0,
        round_to: int = 1,
        layers: Selector | None = None,
        protect: Selector | None = None,
        seed: int | None = 0,
    ) -> None:
        check_count("steps", steps)
        self.settings = Settings(
            amount=_check_amount(amount, scope),
            targets=_check_targets(target, amount),
            criterion=None if criterion is None else criteria.get(criterion),
            scope=check_choice("scope", scope, SCOPES),
            cost=None if cost is None else check_choice("cost", cost, [*COSTS, "latency"]),
            data=None if data is None else Batches(data),
            loss=loss,
            recover=_check_recover(recover),
            steps=max(1, steps),
            schedule=schedules.get(schedule),
            limits=Limits(min_channels, min_fraction, round_to, None, streams),
            layers=layers,
            protect=protect,
            seed=seed,
        )
        self._given = amount if amount is not None else target
        _check_together(self.settings)

    def plan(self, model: keras.Model) -> PruningPlan:
        """What this strategy removes from a model, without executing it.

        With several steps or a repair in between, the plan is found by carrying it out on a copy.
        """
        return self.run(model)[1]

    def run(self, model: keras.Model) -> tuple[keras.Model, PruningPlan]:
        """The smaller model, compiled like the original if that is compiled, and its plan.

        Raises:
            NothingToPruneError: no channel of the model can be removed.
            RequestError: the target cannot be reached, or the data do not fit.
        """
        *_, last = self.each_step(model)
        return last

    def each_step(self, model: keras.Model) -> Iterator[tuple[keras.Model, PruningPlan]]:
        """The same step by step: the model after each, and the plan of all that is gone by then."""
        return Shrinking(self.settings, model).all_steps()

    def describe(self) -> dict[str, str]:
        """All settings but the data as text, to tell strategies apart."""
        fields = dataclasses.fields(self.settings)
        values = {f.name: getattr(self.settings, f.name) for f in fields if f.name != "data"}
        return {k: getattr(v, "__name__", repr(v)) for k, v in values.items()}

    def __repr__(self) -> str:
        what = "" if self.settings.targets == () else "target="
        return f"ChannelPrune({what}{self._given!r}, scope={self.settings.scope!r})"


def prune(
    strategy: ChannelPrune | Sequence[ChannelPrune | None] | Mapping[Any, ChannelPrune],
    model: keras.Model,
) -> keras.Model:
    """A smaller model by a strategy; the original is not touched.

    Args:
        strategy: one for the whole model; a list, one per layer with weights of its own channels
            (convolutions and dense layers in order, the last one included; None leaves a layer
            alone); or a dictionary from names or regular expressions of layers to strategies.
        model: a built Functional or Sequential model.

    Returns:
        The new model, compiled like the original if that is compiled.

    Raises:
        RequestError: something else than strategies, or a list of another length.
        NothingToPruneError: no channel of the model can be removed.
    """
    if isinstance(strategy, ChannelPrune):
        return strategy.run(model)[0]
    graph = DependencyGraph(model)
    request = merged_requests(_families(_pairs(strategy, graph)), graph)
    if not request:
        return graph.complete({}).exec(keep_compiled=model.compiled)
    return graph.get_pruning_plan(request).exec(keep_compiled=model.compiled)


def _pairs(strategy: Any, graph: ChannelGraph) -> list[tuple[Any, ChannelPrune]]:
    """Layers and what happens to them."""
    pairs: list[tuple[Any, Any]] = [("", strategy)]
    if isinstance(strategy, Mapping):
        pairs = list(strategy.items())
    elif isinstance(strategy, Sequence) and not isinstance(strategy, str):
        layers = prunable_layers(graph)
        if len(layers) != len(strategy):
            raise RequestError(
                f"Expected one strategy per layer, {len(layers)} in all: {layers}. Received: "
                f"{len(strategy)}. None leaves a layer alone; a dictionary names layers."
            )
        named = zip(layers, strategy, strict=True)
        pairs = [(re.compile(f"^{re.escape(n)}$"), s) for n, s in named if s is not None]
    for _, one in pairs:
        _check_single(one)
    return pairs


def _check_single(strategy: Any) -> None:
    """Whether a strategy can be one of several."""
    if not isinstance(strategy, ChannelPrune):
        raise RequestError(
            "Expected a strategy such as ridurre.ChannelPrune(0.3), a list of them or a "
            f"dictionary. Received: {strategy!r}."
        )
    s = strategy.settings
    if not isinstance(s.amount, float) or s.scope != "local" or s.steps > 1 or s.recover:
        raise RequestError(
            "A strategy for single layers has an amount, the scope 'local', one step and no repair "
            "(see ridurre.recover for that). Targets, rankings and steps are for the whole model. "
            f"Received: {strategy!r}."
        )


def _families(pairs: list[tuple[Any, ChannelPrune]]) -> list[Settings]:
    """Strategies that differ in nothing but layers and amounts, as one with amounts by layer."""
    families: list[tuple[Settings, dict[Any, Any]]] = []
    for layers, one in pairs:
        rest = dataclasses.replace(one.settings, amount=None)
        amounts = next((found for known, found in families if known == rest), None)
        if amounts is None:
            families.append((rest, amounts := {}))
        amounts[layers] = one.settings.amount
    return [dataclasses.replace(rest, amount=amounts) for rest, amounts in families]


def prunable_layers(graph: ChannelGraph) -> list[str]:
    """Names of the layers that make channels of their own: convolutions, dense layers and such."""
    return list(
        dict.fromkeys(w.layer for w in graph.trace.space.weights.values() if w.role == "out")
    )


def _check_amount(amount: Any, scope: str) -> float | Mapping[Any, float] | Bins | None:
    if amount is None:
        return None
    if isinstance(amount, Mapping | Bins):
        if scope != "local":
            raise RequestError(
                f"Amounts by layer need the scope 'local'. Received: scope={scope!r}."
            )
        if isinstance(amount, Bins):
            return amount
        return {k: check_fraction("amount", a, below_one=True) for k, a in amount.items()}
    return check_fraction("amount", amount, below_one=True)


def _check_targets(target: Any, amount: Any) -> tuple[Target, ...]:
    targets = check_targets(target)
    if (amount is None) != bool(targets):
        raise RequestError(
            "Expected an amount to remove, ChannelPrune(0.3), or a target that remains, "
            f"ChannelPrune(target=ridurre.MACs(0.5)). Received: amount={amount!r}, "
            f"target={target!r}."
        )
    return targets


def _check_recover(how: Any) -> Mapping[str, Any] | None:
    if how is None or isinstance(how, Mapping):
        return how
    return {"how": how}


def _check_together(settings: Settings) -> None:
    targets, data = settings.targets, settings.data
    if settings.scope == "knapsack" and (len(targets) != 1 or targets[0].cost is None):
        raise RequestError(
            "The scope 'knapsack' allocates for one target of MACs, Params, Filters, "
            f"ActivationMemory or FileSize. Received: {targets}."
        )
    if settings.criterion is not None and settings.criterion.needs != "weights" and data is None:
        raise RequestError(
            f"The criterion {type(settings.criterion).__name__} needs data. Expected data=…, what "
            "model.fit takes."
        )
