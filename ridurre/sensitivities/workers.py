"""Points measured in several processes on one machine."""

from __future__ import annotations

import contextlib
import os
import pickle
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras

from ridurre.errors import RequestError
from ridurre.optional import load
from ridurre.progress import shown
from ridurre.sensitivities.bench import Bench
from ridurre.sensitivities.probe import Change, Probe

#: In a worker: its bench, by the folder that it was loaded from.
_BENCHES: dict[str, Bench] = {}


class Workers:
    """So many processes, each with the model loaded from a file.

    Args:
        count: how many.

    Raises:
        RequestError: joblib is not installed.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._joblib = load("joblib", "Several workers", "workers=1 does without.")

    def measure(
        self, todo: Sequence[Probe], bench: Bench, budget: Any
    ) -> Iterator[tuple[Probe, Any]]:
        """Probes with their results, as long as the budget lasts.

        Raises:
            RequestError: the model cannot be loaded from a file.
        """
        several = self._joblib.Parallel(self._count, batch_size=1, return_as="generator")
        one = self._joblib.delayed(_measured)
        with tempfile.TemporaryDirectory() as folder, _same_backend(), several as parallel:
            self._save(bench, Path(folder))
            for start in range(0, len(todo), self._count):
                if not budget.enough:
                    return
                part = todo[start : start + self._count]
                results = parallel(one(folder, probe.make()) for probe in part)
                for probe, result in zip(part, results, strict=True):
                    budget.longest = max(budget.longest, result[2])
                    yield probe, result

    def _save(self, bench: Bench, folder: Path) -> None:
        """What workers need; the model is loaded here first, where errors are easily read."""
        with warnings.catch_warnings():  # of lambdas, which loading refuses
            warnings.simplefilter("ignore")
            bench.model.save(folder / "model.keras")
        _loaded_model(folder)
        rest = (bench.data, bench.gauge, bench.batch_size)
        wrapped = self._joblib.wrap_non_picklable_objects(rest, keep_wrapper=False)  # lambdas, say
        (folder / "bench.pkl").write_bytes(pickle.dumps(wrapped))


def _measured(folder: str, change: Change) -> tuple[float | None, int | None, float]:
    """In a worker: one point."""
    if folder not in _BENCHES:
        _BENCHES.clear()
        data, gauge, batch_size = pickle.loads((Path(folder) / "bench.pkl").read_bytes())
        _BENCHES[folder] = Bench(_loaded_model(Path(folder)), data, gauge, batch_size)
    start = time.monotonic()
    with shown(0):  # the bar is in the process that counts the points
        value, removed = change.measure(_BENCHES[folder])
    return value, removed, time.monotonic() - start


def _loaded_model(folder: Path) -> keras.Model:
    try:
        return keras.saving.load_model(folder / "model.keras")
    except Exception as error:
        raise RequestError(
            f"The model cannot be loaded from a file, as every worker has to: {error}\nRegister "
            "classes and functions of your own with @keras.saving.register_keras_serializable() in "
            "a module that they are imported from, or use workers=1."
        ) from error


@contextlib.contextmanager
def _same_backend() -> Iterator[None]:
    """Processes that are started inside use the back end of this one."""
    before = os.environ.get("KERAS_BACKEND")
    os.environ["KERAS_BACKEND"] = keras.backend.backend()
    try:
        yield
    finally:
        if before is None:
            del os.environ["KERAS_BACKEND"]
        else:
            os.environ["KERAS_BACKEND"] = before
