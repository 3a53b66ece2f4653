"""Callbacks that prune single weights while `model.fit` runs, and keep what is pruned at zero."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from typing import Any, Self

import keras

from ridurre import schedules
from ridurre.backend.training import attach_state
from ridurre.checks import check_choice, check_count, check_optional
from ridurre.errors import RequestError, RidurreWarning
from ridurre.graph.select import Selector
from ridurre.masking import ZerosKept, zero_somewhere
from ridurre.masks import Masks
from ridurre.sparsity import WeightPrune, sizes_of
from ridurre.weights import Weight, Which, weights_of

logger = logging.getLogger("ridurre")


class MaskedTraining(keras.callbacks.Callback):
    """Keeps zeros of some weights at zero while a model is trained, and lets go of them at the end.

    ``fit`` does not tell its callbacks when it is interrupted by an exception. Then masks stay
    enforced until this callback is used again or its `remove` is called; as a context manager it
    lets go in any case::

        with ridurre.KeepZeros() as zeros:
            model.fit(x, y, epochs=20, callbacks=[zeros])

    Args:
        layers: which layers are meant; None for all.
        weights: ``"kernels"``, ``"all"`` or a predicate of a variable.
    """

    def __init__(self, layers: Selector | None = None, weights: Which = "kernels") -> None:
        super().__init__()
        self._layers, self._weights = layers, weights
        self._kept: ZerosKept | None = None

    @property
    def masks(self) -> Masks:
        """The masks as they are now: what is not zero stays.

        Raises:
            RequestError: the callback has not been used by ``fit`` yet.
        """
        chosen = self._chosen()
        attach_state(self.model)
        return Masks({w.path: w.value != 0 for w in chosen})

    def on_train_begin(self, logs: Any = None) -> None:
        """Forget what was left by training that was interrupted."""
        self.remove()
        self._chosen()  # a callback without fit, or layers that are not there

    def on_train_end(self, logs: Any = None) -> None:
        """Let go of the masks; the zeros stay."""
        self.remove()

    def remove(self) -> None:
        """No longer enforce the masks, if they are enforced."""
        if self._kept is not None:
            self._kept.remove()
        self._kept = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _chosen(self) -> list[Weight]:
        """The weights that are meant."""
        if self.model is None:
            raise RequestError(
                f"{type(self).__name__} is a callback of model.fit and has no model of its own. "
                f"Expected model.fit(…, callbacks=[callback]). To prune without training, see "
                "ridurre.prune."
            )
        return weights_of(self.model, self._layers, self._weights)

    def _prune(self, strategy: WeightPrune, step: int, steps: int) -> None:
        """Set to zero what a strategy says, and keep it there from now on."""
        attach_state(self.model)
        masks = strategy.masks_at(self.model, step, steps, sizes_of(self.model))
        if self._kept is None:
            _warn_of_blank(masks, self.model)
        masks.assign(self.model)
        if self._kept is None:
            self._kept = ZerosKept(self.model, [w.variable for w in self._chosen()])
        logger.info("Pruned while training, step %d of %d: %r", step + 1, steps, masks)


class KeepZeros(MaskedTraining):
    """Training with ``fit`` leaves weights alone that are exactly zero when it begins.

    A pruned model, also one that was saved and loaded, is trained on with its masks enforced after
    every optimizer step. Nothing is left of it in the model when training ends.

    Example::

        sparse = ridurre.prune(ridurre.LevelPrune(0.8), model)
        sparse.fit(x, y, epochs=5, callbacks=[ridurre.KeepZeros()])

    For `train_on_batch` and loops of your own there is `ridurre.keep_zeros`. Callbacks that put
    back earlier weights (as `keras.callbacks.EarlyStopping` does) put back their zeros, no others.

    Args:
        weights: which zeros count: those of ``"kernels"``, ``"all"``, or a predicate of a variable.
        layers: which layers are meant (see `ridurre.DependencyGraph`); None for all.
    """

    def __init__(self, weights: Which = "kernels", layers: Selector | None = None) -> None:
        super().__init__(layers, weights)

    def on_train_begin(self, logs: Any = None) -> None:
        """Enforce the masks from now on."""
        super().on_train_begin(logs)
        self._kept = ZerosKept(self.model, zero_somewhere(self._chosen()))


class PruneDuringTraining(MaskedTraining):
    """Prunes single weights while ``fit`` runs: any strategy, any schedule, by epochs or by steps.

    At the begin of the epoch `begin` (or before the training step `begin`), and then every `every`
    epochs (steps) until `end`, the masks are worked out anew for the level that the schedule has
    reached, n-th of ``N = 1 + (end − begin) // every`` times; between that and to the end of
    training they are enforced after every optimizer step. What is zero stays zero and goes first
    next time. (Zhu & Gupta, "To prune, or not to prune", 2017, with their schedule "cubic".)

    Example::

        gradual = ridurre.PruneDuringTraining(
            ridurre.LevelPrune(0.9, scope="global"), begin=2, end=10, schedule="cubic"
        )
        model.fit(x, y, epochs=15, callbacks=[gradual])

    Epochs and steps are counted as ``fit`` does, from 0; with `initial_epoch` training goes on
    where it was, and catches up on what is due. Where data have no known length, steps are counted
    from the begin of this ``fit``. With ``steps_per_execution`` above 1, what is due within an
    execution comes before the next one.

    Args:
        strategy: `ridurre.LevelPrune` or `ridurre.ThresholdPrune`, with data of its own where its
            criterion needs any.
        begin: when weights are pruned for the first time.
        end: when the strategy is reached in full; None for `begin`: all at once.
        every: how many epochs or steps there are from one time to the next.
        unit: ``"epoch"`` or ``"step"``.
        schedule: ``"one_shot"``, ``"linear"``, ``"geometric"``, ``"cubic"`` or
            ``fn(step, steps, level)``; None for the strategy's own.
        static: the masks do not change after `end`. Otherwise they are worked out anew every
            `every` epochs (steps) to the end of training; as zeros stay zero, this makes a
            difference where the number of weights that go depends on their values, as with
            `ridurre.ThresholdPrune`.

    Raises:
        RequestError: arguments that make no sense, or a strategy with steps or repair of its own.
    """

    def __init__(
        self,
        strategy: WeightPrune,
        *,
        begin: int = 0,
        end: int | None = None,
        every: int = 1,
        unit: str = "epoch",
        schedule: str | schedules.Schedule | None = None,
        static: bool = True,
    ) -> None:
        self.strategy = check_strategy(strategy, schedule)
        super().__init__(strategy.layers, strategy.weights)
        check_count("begin", begin)
        check_optional("end", end, check_count)
        check_count("every", every)
        self.begin, self.end, self.every = begin, begin if end is None else end, every
        if every == 0 or self.end < begin:
            raise RequestError(
                "Expected every from 1, and an end that does not come before begin. Received: "
                f"begin={begin}, end={end}, every={every}."
            )
        self.unit = check_choice("unit", unit, ("epoch", "step"))
        self.static = static
        self._times = 1 + (self.end - begin) // every
        self._done, self._first, self._next = -1, 0, 0

    def on_train_begin(self, logs: Any = None) -> None:
        """Begin to count."""
        super().on_train_begin(logs)
        self._done, self._first, self._next = -1, 0, 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Prune, if that is due."""
        if self.unit == "epoch":
            self._prune_at(epoch)
        else:
            steps = (self.params or {}).get("steps")
            self._first = epoch * steps if steps else self._next

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Prune, if that is due."""
        if self.unit == "step":
            self._next = self._first + batch + 1
            self._prune_at(self._first + batch)

    def _prune_at(self, now: int) -> None:
        number = (now - self.begin) // self.every
        last = self._times - 1
        if self.static:
            number = min(number, last)
        if number > self._done:
            self._done = number
            self._prune(self.strategy, min(number, last), self._times)


def check_strategy(strategy: Any, schedule: str | schedules.Schedule | None = None) -> WeightPrune:
    """A strategy for single weights whose steps and training are somebody else's.

    Args:
        strategy: to be checked.
        schedule: to have instead of its own, unless None.

    Raises:
        RequestError: another kind of strategy, or one with steps or repair.
    """
    if not isinstance(strategy, WeightPrune):
        raise RequestError(
            "Expected a strategy for single weights, ridurre.LevelPrune or ridurre.ThresholdPrune. "
            f"Received: {strategy!r}. Channels are removed between two trainings, see "
            "ridurre.prune."
        )
    if strategy.settings.steps > 1 or strategy.settings.recover is not None:
        raise RequestError(
            "Expected a strategy without steps and repair of its own: training takes their place, "
            f"and the schedule says how the level is reached. Received: {strategy!r}."
        )
    if schedule is None:
        return strategy
    return dataclasses.replace(strategy, schedule=schedule, data=strategy.settings.data)


def _warn_of_blank(masks: Masks, model: keras.Model) -> None:
    """A kernel that starts at zero would count as pruned."""
    blank = [w.path for w, keep in masks.pairs(model) if keep.any() and not w.value.any()]
    if blank:
        warnings.warn(
            f"All weights of {blank} are exactly zero. Zeros count as pruned and stay zero from "
            "now on. Initialise them otherwise, or let pruning begin later.",
            RidurreWarning,
            stacklevel=2,
        )
