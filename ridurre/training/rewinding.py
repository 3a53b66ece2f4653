"""Learning-rate rewinding: prune, set the learning rate back, train as long as before, repeat."""

from __future__ import annotations

import logging
from typing import Any

import keras
import numpy as np

from ridurre.backend import to_numpy
from ridurre.backend.training import optimizer_of, parts_of, rate_schedule
from ridurre.checks import check_choice, check_count, check_finite, check_fraction
from ridurre.errors import RequestError
from ridurre.graph.select import Selector
from ridurre.masking import retrace
from ridurre.sparsity import LevelPrune
from ridurre.training.masked import MaskedTraining

logger = logging.getLogger("ridurre")


class RewindPruning(MaskedTraining):
    """Prunes more whenever the model has recovered, and then replays the learning rates.

    The target is the best monitored value of the epochs before `epoch_threshold`. At the begin of
    that epoch and of every later one: if the last epoch's value is within `eps` of the target, the
    smallest weights go, `threshold` of all the first time and `threshold_step` more each further
    time (until all have gone), and learning rates start again, while weights and the optimizer's
    state (momentum, …) stay. (Learning-rate rewinding: Renda, Frankle & Carbin, "Comparing
    Rewinding and Fine-tuning in Neural Network Pruning", ICLR 2020.)

    A schedule object in the optimizer starts again at its own first rate: it gets the steps since
    the rewinding, and everything else that depends on the optimizer's steps (Adam's correction of
    its bias) goes on. The user's schedule is back when training ends. A plain number becomes
    `initial_learning_rate` again. Where a callback sets the rate by the epoch, let it use `epoch`
    of this one, and put it behind this one::

        rewind = ridurre.RewindPruning(0.2, 0.2, 10, 0.1, 0.01)
        rates = keras.callbacks.LearningRateScheduler(lambda _: 0.1 * 0.9**rewind.epoch)
        model.fit(x, y, epochs=60, callbacks=[rewind, rates])

    Training that goes on in another ``fit`` with `initial_epoch` needs the same callback object,
    which knows what came before. A model saved in the middle of training (not after it) whose
    optimizer has a schedule loads where ridurre is imported.

    Args:
        threshold: fraction of the weights that goes the first time, in [0, 1].
        threshold_step: how much more goes each further time.
        epoch_threshold: the first epoch at whose begin weights may be pruned, from 1.
        initial_learning_rate: what a learning rate that is a number is set back to.
        eps: how far below the target is good enough.
        monitor: what is monitored, a name in the logs of an epoch.
        mode: whether more of it is better: ``"max"``, ``"min"``, or ``"auto"``: less is better of
            what has "loss" or "error" in its name.
        scope: see `ridurre.LevelPrune`.
        layers: which layers are meant (see `ridurre.DependencyGraph`); None for all.

    Attributes:
        epoch: epochs since the last rewinding, or since training began.
        amount: fraction of the weights that has gone.

    Raises:
        RequestError: arguments that make no sense; in training, nothing of this name is monitored.
    """

    def __init__(
        self,
        threshold: float,
        threshold_step: float,
        epoch_threshold: int,
        initial_learning_rate: float,
        eps: float,
        monitor: str = "accuracy",
        *,
        mode: str = "auto",
        scope: str = "local",
        layers: Selector | None = None,
    ) -> None:
        super().__init__(layers)
        self.threshold = check_fraction("threshold", threshold)
        self.threshold_step = check_fraction("threshold_step", threshold_step)
        self.initial_learning_rate = check_finite("initial_learning_rate", initial_learning_rate)
        self.eps, self.monitor, self.scope = check_finite("eps", eps), monitor, scope
        check_count("epoch_threshold", epoch_threshold)
        if epoch_threshold == 0:
            raise RequestError(
                "Expected epoch_threshold from 1: what is monitored in the epochs before it is the "
                "target. Received: 0."
            )
        self.epoch_threshold = epoch_threshold
        check_choice("mode", mode, ("auto", "max", "min"))
        less = any(word in monitor for word in ("loss", "error")) if mode == "auto" else None
        self._sign = -1.0 if less or mode == "min" else 1.0
        LevelPrune(threshold, scope=scope, layers=layers)  # is checked now
        self._replays: list[Replay] = []
        self._begun = False
        self._forget()

    def on_train_begin(self, logs: Any = None) -> None:
        """Wait for the first epoch, which tells whether training goes on or is another one."""
        super().on_train_begin(logs)
        self._begun = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Prune and rewind, if the model is good enough."""
        if not self._begun:
            self._begin(epoch)
        self.epoch = epoch - self._start
        if epoch >= self.epoch_threshold and self._more() > self.amount and self._recovered(epoch):
            self._rewind(epoch)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Remember what is monitored."""
        logs = logs or {}
        if self.monitor not in logs:
            raise RequestError(
                f"Expected {self.monitor!r} among what is logged every epoch: {sorted(logs)}. "
                "Compile the model with that metric, or give monitor=…."
            )
        self._values[epoch] = self._sign * float(np.asarray(logs[self.monitor]))

    def remove(self) -> None:
        """No longer enforce the masks; the optimizer has its own schedule again."""
        super().remove()
        for replay in self._replays:
            replay.take_back()
        if self._replays:
            retrace(self._replays[0].model)
        self._replays = []

    def _forget(self) -> None:
        self._values: dict[int, float] = {}
        self._start, self._start_step, self.epoch = 0, 0, 0
        self.amount = 0.0
        self._pruned = False

    def _begin(self, epoch: int) -> None:
        """The first epoch of a ``fit``."""
        self._begun = True
        if epoch - 1 not in self._values:
            self._forget()
        self._values = {e: v for e, v in self._values.items() if e < epoch}
        if self._pruned:
            self._prune_now()
            self._replay()

    def _recovered(self, epoch: int) -> bool:
        before = [v for e, v in self._values.items() if e < self.epoch_threshold]
        if not before or epoch - 1 not in self._values:
            raise RequestError(
                f"Expected epochs before epoch_threshold={self.epoch_threshold}, whose best "
                f"{self.monitor!r} is the target. Received: training that begins at epoch {epoch}. "
                "Begin earlier, or go on with the callback of the training before."
            )
        return self._values[epoch - 1] >= max(before) - self.eps

    def _more(self) -> float:
        """What has gone in all after the next time."""
        step = self.threshold_step if self._pruned else 0.0
        return min(1.0, round((self.amount if self._pruned else self.threshold) + step, 12))

    def _rewind(self, epoch: int) -> None:
        self.amount, self._pruned = self._more(), True
        self._prune_now()
        self._start, self.epoch = epoch, 0
        optimizers = parts_of(optimizer_of(self.model))
        self._start_step = int(to_numpy(optimizers[0].iterations))
        for optimizer in optimizers:
            if isinstance(rate_schedule(optimizer), keras.Variable):
                optimizer.learning_rate = self.initial_learning_rate
        self._replay()
        logger.info("Epoch %d: pruned to %.3f, learning rates start again.", epoch, self.amount)

    def _prune_now(self) -> None:
        strategy = LevelPrune(self.amount, scope=self.scope, layers=self._layers)
        self._prune(strategy, 0, 1)

    def _replay(self) -> None:
        """Schedules count from the last rewinding on."""
        for old in self._replays:
            old.take_back()
        schedules = [o for o in parts_of(optimizer_of(self.model)) if not _is_number(o)]
        self._replays = [Replay(self.model, o, self._start_step) for o in schedules]
        if schedules:
            retrace(self.model)


def _is_number(optimizer: keras.optimizers.Optimizer) -> bool:
    rate = rate_schedule(optimizer)
    schedule = keras.optimizers.schedules.LearningRateSchedule
    if not isinstance(rate, keras.Variable | schedule):
        raise RequestError(
            "Expected a learning rate that is a number or a keras.optimizers.schedules object, "
            f"which can be replayed. Received an optimizer with {rate!r}."
        )
    return isinstance(rate, keras.Variable)


class Replay:
    """An optimizer's schedule that starts again, until it is taken back."""

    def __init__(self, model: keras.Model, optimizer: Any, start: int) -> None:
        self.model, self._optimizer, self._own = model, optimizer, rate_schedule(optimizer)
        if isinstance(self._own, ReplayedSchedule):  # of a model saved while it was trained
            self._own = self._own.schedule
        self._replayed = ReplayedSchedule(self._own, start)
        optimizer.learning_rate = self._replayed

    def take_back(self) -> None:
        """The schedule before, unless somebody has set another rate."""
        if rate_schedule(self._optimizer) is self._replayed:
            self._optimizer.learning_rate = self._own


@keras.saving.register_keras_serializable(package="ridurre")
class ReplayedSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A learning-rate schedule that starts at a later step.

    Args:
        schedule: a Keras schedule.
        start: the step at which it starts.
    """

    def __init__(self, schedule: Any, start: int) -> None:
        super().__init__()
        if isinstance(schedule, dict):
            schedule = keras.optimizers.schedules.deserialize(schedule)
        self.schedule, self.start = schedule, int(start)

    def __call__(self, step: Any) -> Any:
        """The rate at a step of the optimizer."""
        return self.schedule(step - self.start)

    def get_config(self) -> dict[str, Any]:
        """What the constructor takes."""
        schedule = keras.optimizers.schedules.serialize(self.schedule)
        return {"schedule": schedule, "start": self.start}
