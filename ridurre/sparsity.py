"""Weight strategies: which single weights to set to zero, by how much, by which criterion."""

from __future__ import annotations

import abc
import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from ridurre import criteria, schedules
from ridurre.backend.training import loss_of
from ridurre.checks import check_choice, check_finite
from ridurre.criteria import Criterion, scores_weights
from ridurre.criteria.base import Spec, WeightScores
from ridurre.data import Batches
from ridurre.errors import RequestError
from ridurre.graph.select import Selector, select_layers
from ridurre.levels import SCOPES, Sizes, select, threshold
from ridurre.masks import Masks
from ridurre.patterns import parse, select_blocks
from ridurre.progress import track
from ridurre.recovery import recover
from ridurre.surgery import duplicate
from ridurre.values import (
    Strategy,
    check_block,
    check_data,
    check_level,
    check_recover,
    check_steps,
)
from ridurre.weights import Weight, Which, layers_of, weights_of

logger = logging.getLogger("ridurre")
_serializable = keras.saving.register_keras_serializable(package="ridurre")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a weight strategy is made of, checked; see `LevelPrune`."""

    criterion: Criterion
    data: Batches | None
    recover: Mapping[str, Any] | None
    steps: int
    schedule: schedules.Schedule


@dataclasses.dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class WeightPrune(Strategy, abc.ABC):
    """What `LevelPrune` and `ThresholdPrune` share; their arguments are described there."""

    criterion: Spec = "l1"
    data: Any = dataclasses.field(default=None, repr=False)
    loss: Any = None
    recover: str | Sequence[str] | Mapping[str, Any] | None = None
    steps: int = 1
    schedule: str | schedules.Schedule = "linear"
    layers: Selector | None = None
    weights: Which = "kernels"
    seed: int | None = 0
    settings: Settings = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the arguments."""
        criterion = criteria.get(self.criterion)
        if not scores_weights(criterion):
            criterion.refuse_weights()
        if criterion.needs != "weights" and self.data is None:
            raise RequestError(
                f"The criterion {type(criterion).__name__} needs data. Expected data=…, what "
                "model.fit takes."
            )
        settings = Settings(
            criterion,
            check_data(self.data),
            check_recover(self.recover),
            check_steps(self.steps),
            schedules.get(self.schedule),
        )
        object.__setattr__(self, "settings", settings)

    def masks(self, model: keras.Model) -> Masks:
        """What this strategy leaves of a model's weights, without changing it.

        With several steps or a repair in between, the masks are found by carrying it out on a copy.
        """
        if self.settings.steps == 1:
            return self.masks_at(model, 0, 1, sizes_of(model))
        return self.run(model)[1]

    def run(
        self, model: keras.Model, original: keras.Model | None = None
    ) -> tuple[keras.Model, Masks]:
        """The pruned model, compiled like the original if that is compiled, and its masks.

        Args:
            model: is not changed.
            original: the model whose sizes levels refer to, where channels were cut since.

        Raises:
            NothingToPruneError: the model has no weights to prune.
            RequestError: the criterion, the data or the loss do not fit.
        """
        *_, last = self.each_step(model, original)
        return last

    def each_step(
        self, model: keras.Model, original: keras.Model | None = None
    ) -> Iterator[tuple[keras.Model, Masks]]:
        """The same step by step: the model after each, and the masks of all that is zero by then.

        Every step scores anew.
        """
        sizes, s = sizes_of(model if original is None else original), self.settings
        own = self.by_name(model)
        pruned = duplicate(model, keep_compiled=True)
        for step in track(range(s.steps), "Pruning"):
            masks = own.masks_at(pruned, step, s.steps, sizes)
            masks.assign(pruned)
            logger.info("Step %d of %d: %r", step + 1, s.steps, masks)
            if s.recover is not None:
                pruned = recover(pruned, model, masks, s.data, **s.recover)
            yield pruned, masks

    def masks_at(self, model: keras.Model, step: int, steps: int, sizes: Sizes) -> Masks:
        """The masks after one of several steps, for a model that has gone through the earlier ones.

        Args:
            model: is not changed.
            step: from 0.
            steps: how many there are.
            sizes: by path how many numbers weights had at first; levels refer to these.
        """
        chosen = weights_of(model, self.layers, self.weights)
        seed = None if self.seed is None else self.seed + step
        data, criterion = self.settings.data, self.settings.criterion
        if criterion.needs == "labels":
            loss_of(model, self.loss)  # a missing loss is noticed before any work
        scores = criterion.score_weights(model, chosen, data, loss=self.loss, seed=seed)
        return self.select(chosen, scores, step, steps, sizes)

    def by_name(self, model: keras.Model) -> WeightPrune:
        """This strategy with layers by their full names: a copy of the model has other objects."""
        if self.layers is None:
            return self
        names = select_layers(model, layers_of(model), self.layers)
        layers = [re.compile(f"^{re.escape(name)}$") for name in names]
        return dataclasses.replace(self, layers=layers, data=self.settings.data)

    @abc.abstractmethod
    def select(
        self, weights: list[Weight], scores: WeightScores, step: int, steps: int, sizes: Sizes
    ) -> Masks:
        """The masks after one of several steps, given all scores."""

    def _part(self, step: int, steps: int, whole: float) -> float:
        return schedules.amount_at(self.settings.schedule, step, steps, whole)


@_serializable
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LevelPrune(WeightPrune):
    """Set a fraction of the weights to zero, by magnitude unless told otherwise.

    Example::

        sparse = ridurre.prune(ridurre.LevelPrune(0.7), model)  # 70 % of every kernel

        ranked = ridurre.LevelPrune(0.9, criterion="lamp", scope="global")
        repaired = ridurre.LevelPrune(
            0.8, criterion="obs", data=x, steps=4, recover="least_squares"
        )
        halves = ridurre.LevelPrune(pattern="2:4")

    Args:
        level: the fraction that goes, in [0, 1], of the weight's size in the original model; what
            is zero already goes first. Exact to one weight; of equal scores those that come first
            go.
        scope: ``"local"``: the same level in every kernel; ``"global"``: one ranking of all;
            ``"output"``: the same level for every output; ``"erk"``: Erdős–Rényi-kernel densities;
            ``"uniform+"``: the same everywhere but in the first kernel, which stays whole, and the
            last, which keeps a fifth.
        pattern: n of every m inputs stay, as in ``"2:4"``; there is no level then. Kernels whose
            inputs are no multiple of m are left alone.
        block: (inputs, outputs) of blocks that live or die together.
        criterion: what matters: a name, an instance or ``fn(value) -> scores``.
        data: what `model.fit` takes, for criteria and recovery.
        loss: for criteria from gradients; the compiled model's by default.
        recover: repair after every step, see `ridurre.recover`.
        steps: in how many steps weights go; scores are computed anew before each.
        schedule: how the level is spread over the steps: "linear", "geometric", "cubic", "one_shot"
            or ``fn(step, steps, level)``.
        layers: which layers are meant (see `ridurre.DependencyGraph`); None for all.
        weights: ``"kernels"``, ``"all"`` or a predicate of a variable.
        seed: of all random choices.

    Raises:
        RequestError: arguments that make no sense, alone or together.
    """

    level: float | None = None
    _: dataclasses.KW_ONLY
    scope: str = "local"
    pattern: str | None = None
    block: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        check_level(self.level)
        check_choice("scope", self.scope, SCOPES)
        object.__setattr__(self, "block", check_block(self.block))
        parse(self.pattern)
        if (self.level is None) == (self.pattern is None) or (self.pattern and self.block):
            raise RequestError(
                "Expected a level, LevelPrune(0.7), with or without a block, or a pattern, "
                f"LevelPrune(pattern='2:4'). Received: {self!r}."
            )

    def select(
        self, weights: list[Weight], scores: WeightScores, step: int, steps: int, sizes: Sizes
    ) -> Masks:
        """The masks that leave out the lowest scores; what is zero comes first."""
        scores = {w.path: zeros_first(scores[w.path], w) for w in weights}
        pattern = parse(self.pattern)
        if pattern is not None:
            return pattern.masks(weights, scores)
        level = self._part(step, steps, float(self.level or 0))
        if self.block is not None:
            return select_blocks(weights, scores, level, self.scope, sizes, self.block)
        return select(weights, scores, level, self.scope, sizes)


@_serializable
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ThresholdPrune(WeightPrune):
    """Set all weights below a threshold to zero, by magnitude unless told otherwise.

    Example::

        sparse = ridurre.prune(ridurre.ThresholdPrune(0.5), model)  # |w| < 0.5 goes

    Args:
        threshold: scores below it go. Over several steps it rises by the schedule.
        criterion: what matters: a name, an instance or ``fn(value) -> scores``.
        data: see `LevelPrune`, as all that follow.
        loss: of criteria from gradients.
        recover: repair after every step.
        steps: how many.
        schedule: of the threshold.
        layers: which layers are meant.
        weights: ``"kernels"``, ``"all"`` or a predicate of a variable.
        seed: of all random choices.

    Raises:
        RequestError: arguments that make no sense.
    """

    threshold: float

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        if check_finite("threshold", self.threshold) < 0:
            raise RequestError(
                f"Expected a threshold from 0 up: it is compared with scores such as |w|. "
                f"Received: {self.threshold!r}."
            )

    def select(
        self, weights: list[Weight], scores: WeightScores, step: int, steps: int, sizes: Sizes
    ) -> Masks:
        """The masks that leave out every score below the threshold."""
        return threshold(weights, scores, self._part(step, steps, 1.0) * self.threshold)


def sizes_of(model: keras.Model) -> Sizes:
    """By path, how many numbers the model's weights have."""
    return {w.path: w.size for w in weights_of(model, None, "all")}


def zeros_first(scores: np.ndarray, weight: Weight) -> np.ndarray:
    """Scores, minus infinity where the weight is zero already."""
    zero = weight.value == 0
    return np.where(zero, -np.inf, scores) if zero.any() else scores
