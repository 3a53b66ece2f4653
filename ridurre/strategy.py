"""Channel strategies: what to prune, by how much, by which criterion."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras

from ridurre import criteria, schedules
from ridurre.checks import check_choice, check_fraction
from ridurre.costs import COSTS
from ridurre.criteria.base import Spec
from ridurre.errors import RequestError
from ridurre.graph.select import Selector
from ridurre.plan import PruningPlan
from ridurre.selection import SCOPES, Limits
from ridurre.shrinking import Bins, Settings, Shrinking
from ridurre.targets import Target, check_targets
from ridurre.values import Strategy, check_data, check_recover, check_steps


@keras.saving.register_keras_serializable(package="ridurre")
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ChannelPrune(Strategy):
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

    amount: float | Mapping[Any, float] | Bins | None = None
    _: dataclasses.KW_ONLY
    target: Target | Sequence[Target] | None = None
    criterion: Spec | None = None
    scope: str = "local"
    cost: str | None = None
    data: Any = dataclasses.field(default=None, repr=False)
    loss: Any = None
    recover: str | Sequence[str] | Mapping[str, Any] | None = None
    steps: int = 1
    schedule: str | schedules.Schedule = "linear"
    streams: str = "rank"
    min_channels: int = 1
    min_fraction: float = 0.0
    round_to: int = 1
    layers: Selector | None = None
    protect: Selector | None = None
    seed: int | None = 0
    settings: Settings = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the arguments."""
        settings = Settings(
            amount=_check_amount(self.amount, self.scope),
            targets=_check_targets(self.target, self.amount),
            criterion=None if self.criterion is None else criteria.get(self.criterion),
            scope=check_choice("scope", self.scope, SCOPES),
            cost=_check_cost(self.cost),
            data=check_data(self.data),
            loss=self.loss,
            recover=check_recover(self.recover),
            steps=check_steps(self.steps),
            schedule=schedules.get(self.schedule),
            limits=Limits(self.min_channels, self.min_fraction, self.round_to, None, self.streams),
            layers=self.layers,
            protect=self.protect,
            seed=self.seed,
        )
        object.__setattr__(self, "settings", settings)
        _check_together(settings)

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


def _check_cost(cost: Any) -> str | None:
    return None if cost is None else check_choice("cost", cost, [*COSTS, "latency"])


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
