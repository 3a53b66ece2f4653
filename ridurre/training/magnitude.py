"""Pruning by magnitude while training, in the words of prunpy."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from ridurre.checks import check_choice, check_count, check_finite, check_fraction
from ridurre.criteria.base import WeightScores
from ridurre.errors import RequestError
from ridurre.graph.select import Selector
from ridurre.levels import Sizes
from ridurre.masks import Masks
from ridurre.sparsity import LevelPrune, ThresholdPrune
from ridurre.training.masked import PruneDuringTraining
from ridurre.weights import Weight

#: When and how often masks are worked out.
FUNCTIONS = ("one_shot", "one_shot_static", "gradual")


class MagnitudePercentage(PruneDuringTraining):
    """From some epoch on, a fraction of the weights is zero: those with the smallest magnitude.

    Example::

        gradual = ridurre.MagnitudePercentage(
            0.8, function="gradual", epoch_threshold=2, converge_over=3
        )
        model.fit(x, y, epochs=8, callbacks=[gradual])  # 26.7 %, 53.3 %, 80 % from epochs 2, 3, 4

    Args:
        threshold: the fraction of the weights that goes, in [0, 1].
        function: ``"one_shot"``: the mask is worked out anew at every epoch from `epoch_threshold`
            on; ``"one_shot_static"``: only at that one; ``"gradual"``: the fraction rises linearly
            from 0, to ``threshold · (i + 1) / converge_over`` at the epoch ``epoch_threshold + i``,
            and then the mask is fixed.
        epoch_threshold: the epoch at whose begin weights are pruned first, from 0.
        converge_over: number of epochs in which the whole fraction is reached; with ``"gradual"``.
        scope: ``"local"``: the same fraction in every kernel; ``"global"``, …: see
            `ridurre.LevelPrune`.
        layers: which layers are meant (see `ridurre.DependencyGraph`); None for all.

    Raises:
        RequestError: arguments that make no sense.
    """

    def __init__(
        self,
        threshold: float,
        function: str = "one_shot",
        epoch_threshold: int = 0,
        converge_over: int | None = None,
        scope: str = "local",
        layers: Selector | None = None,
    ) -> None:
        strategy = LevelPrune(check_fraction("threshold", threshold), scope=scope, layers=layers)
        super().__init__(strategy, **_timing(function, epoch_threshold, converge_over))


class MagnitudeThreshold(PruneDuringTraining):
    """From some epoch on, weights are zero whose magnitude is not above a threshold.

    Args:
        threshold: what goes is ``|w| <= threshold``.
        function: see `MagnitudePercentage`; with ``"gradual"`` it is the threshold that rises.
        epoch_threshold: the epoch at whose begin weights are pruned first, from 0.
        converge_over: number of epochs in which the threshold is reached; with ``"gradual"``.
        layers: which layers are meant (see `ridurre.DependencyGraph`); None for all.

    Raises:
        RequestError: arguments that make no sense.
    """

    def __init__(
        self,
        threshold: float,
        function: str = "one_shot",
        epoch_threshold: int = 0,
        converge_over: int | None = None,
        layers: Selector | None = None,
    ) -> None:
        strategy = PruneUpTo(check_finite("threshold", threshold), layers=layers)
        super().__init__(strategy, **_timing(function, epoch_threshold, converge_over))


@keras.saving.register_keras_serializable(package="ridurre")
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PruneUpTo(ThresholdPrune):
    """Like `ridurre.ThresholdPrune`, but what equals the threshold goes as well."""

    def select(
        self, weights: list[Weight], scores: WeightScores, step: int, steps: int, sizes: Sizes
    ) -> Masks:
        """The masks that leave out every score up to the threshold."""
        limit = self._part(step, steps, 1.0) * self.threshold
        # As the weights are rounded: a weight of 0.1 is above the number 0.1 in single precision.
        return Masks({w.path: scores[w.path] > limit_like(w, limit) for w in weights})


def limit_like(weight: Weight, limit: float) -> float:
    """A number as the type of a weight rounds it."""
    return float(weight.value.dtype.type(limit))


def _timing(function: str, epoch_threshold: int, converge_over: int | None) -> dict[str, Any]:
    """The ancestor's words as arguments of `PruneDuringTraining`."""
    check_choice("function", function, FUNCTIONS)
    check_count("epoch_threshold", epoch_threshold)
    if function != "gradual":
        return {"begin": epoch_threshold, "static": function == "one_shot_static"}
    if not isinstance(converge_over, int) or converge_over < 1:
        raise RequestError(
            "Expected converge_over, the number of epochs in which function='gradual' reaches the "
            f"threshold, from 1. Received: {converge_over!r}."
        )
    end = epoch_threshold + converge_over - 1
    return {"begin": epoch_threshold, "end": end, "schedule": "linear"}
