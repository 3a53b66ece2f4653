"""A folder that remembers how a network's weights looked while it was trained."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ridurre.backend.training import attach_state
from ridurre.checks import check_choice, check_count
from ridurre.errors import CheckpointError, RidurreWarning
from ridurre.snapshots import PATTERN, Snapshot


class Recorder(keras.callbacks.Callback):
    """Writes down how the kernels look while ``fit`` runs; `ridurre.Recording` makes pictures.

    A record holds which weights are exactly zero (one bit each), a histogram of the others, the
    epoch and its logs. There is one of the model before training, one every `every` epochs or
    steps, and one of the end unless it would repeat the last. Each is a file that is written whole,
    so that a run that is killed leaves all records before.

    Example::

        recorder = ridurre.Recorder("recording")
        model.fit(x, y, epochs=20, callbacks=[pruning, recorder])
        ridurre.Recording("recording").animate("masks.gif")

    A further ``fit`` into the same folder adds to it. The model may have lost channels since, as
    between the rounds of `ridurre.BasePruning`: give a recorder of the same folder to every ``fit``
    there. Another model is refused. Behind the callbacks that prune, an epoch is recorded as they
    leave it.

    Args:
        folder: is made if need be.
        every: how many epochs or steps there are from one record to the next.
        unit: ``"epoch"`` or ``"step"``.

    Raises:
        RequestError: arguments that make no sense.
        CheckpointError: when training begins: the folder holds records of another model, or cannot
            be used. A record that cannot be written later is left out with a warning.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, every: int = 1, unit: str = "epoch"
    ) -> None:
        super().__init__()
        check_count("every", every, 1)
        self.folder = Path(folder)
        self._every, self._unit = every, check_choice("unit", unit, ("epoch", "step"))
        self._last: Snapshot | None = None
        self._start: Snapshot | None = None
        self._logs: Mapping[str, Any] = {}
        self._steps = self._steps_before = 0  # of training in this fit, and before this epoch
        self._number = self._epoch = 0
        if unit == "step":  # Keras waits for the end of every step that a callback asks for
            self.on_train_batch_end = self._count_step

    def on_train_begin(self, logs: Any = None) -> None:
        """Look at the model and the folder; the first epoch tells when this is."""
        self._begin()
        start = self._start = self._look()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            paths = sorted(self.folder.glob(PATTERN))
        except OSError as error:
            raise CheckpointError(
                f"{str(self.folder)!r} cannot be used: {error}. Expected a folder to write to."
            ) from error
        if paths:
            _check_same_model(Snapshot.load(paths[0]), start, self.folder)
            self._last = Snapshot.load(paths[-1])
            self._number = int(paths[-1].stem.rpartition("_")[2]) + 1

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Record the model before training."""
        self._epoch = epoch
        if self._start is not None:
            self._add_if_new(self._start, {})
            self._start = None

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Record, if epochs are counted and one is due."""
        self._epoch, self._steps_before, self._logs = epoch + 1, self._steps, logs or {}
        if self._unit == "epoch" and self._epoch % self._every == 0:
            self._add(self._look(), logs, self._epoch)

    def on_train_end(self, logs: Any = None) -> None:
        """Record what training has left."""
        self._add_if_new(self._look(), self._logs)

    def _begin(self) -> None:
        """Forget the training before."""
        self._number = self._epoch = 0
        self._steps = self._steps_before = 0
        self._last = self._start = None
        self._logs = {}

    def _count_step(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Record, if one is due."""
        before, self._steps = self._steps, self._steps_before + batch + 1
        if self._steps // self._every > before // self._every:
            length = (self.params or {}).get("steps")
            part = (batch + 1) / length if length else 0.0
            self._add(self._look(), logs, self._epoch + part)

    def _look(self) -> Snapshot:
        attach_state(self.model)
        return Snapshot.of(self.model)

    def _add_if_new(self, snapshot: Snapshot, logs: Mapping[str, Any] | None) -> None:
        if self._last is None or not snapshot.looks_like(self._last):
            self._add(snapshot, logs, self._epoch)

    def _add(self, snapshot: Snapshot, logs: Mapping[str, Any] | None, epoch: float) -> None:
        numbers = {k: float(v) for k, v in (logs or {}).items() if np.ndim(v) == 0}
        snapshot = dataclasses.replace(snapshot, epoch=epoch, logs=numbers)
        path = self.folder / f"record_{self._number:06d}.npz"
        try:
            snapshot.save(path)
        except OSError as error:
            warnings.warn(
                f"{str(path)!r} could not be written and is left out of the recording: {error}",
                RidurreWarning,
                stacklevel=2,
            )
            return
        self._last, self._number = snapshot, self._number + 1


def _check_same_model(first: Snapshot, now: Snapshot, folder: Path) -> None:
    """The same kernels, with as many channels or fewer."""
    shapes = {path: part.shape for path, part in first.parts.items()}
    for path in sorted(first.parts.keys() | now.parts.keys()):
        then, own = shapes.get(path), now.parts[path].shape if path in now.parts else None
        if then is None or own is None or not _fits(own, then):
            raise CheckpointError(
                f"The folder {str(folder)!r} holds records of another model: expected the "
                f"kernel {path!r} to be {then or 'missing'}, or smaller. Received: "
                f"{own or 'no such kernel'}. Use another folder for this model."
            )


def _fits(shape: tuple[int, ...], first: tuple[int, ...]) -> bool:
    return len(shape) == len(first) and all(n <= m for n, m in zip(shape, first, strict=True))
