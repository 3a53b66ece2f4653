"""Points measured in several processes, on this machine or on a cluster."""

from __future__ import annotations

import abc
import contextlib
import os
import pickle
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras

from ridurre.data import Batch
from ridurre.errors import RequestError
from ridurre.optional import load
from ridurre.progress import shown
from ridurre.sensitivities.bench import Bench, Gauge
from ridurre.sensitivities.probe import Change, Probe

#: value, how much went, seconds.
Measured = tuple[float | None, int | None, float]
#: Measures as many cuts as there are workers, at the same time.
Round = Callable[[Sequence[Change]], Sequence[Measured]]
_BACKEND = "KERAS_BACKEND"


def get(workers: int | str) -> Workers:
    """The workers that are meant: so many processes here, or ``"ray"``.

    Raises:
        RequestError: what they need is not installed, or a cluster cannot be reached.
    """
    return RayCluster() if workers == "ray" else Processes(int(workers))


class Worker:
    """One process's bench.

    Args:
        model: the content of a ``.keras`` file.
        data, gauge, batch_size: see `Bench`.
    """

    def __init__(self, model: bytes, data: Batch | None, gauge: Gauge, batch_size: int) -> None:
        self._bench = Bench(_loaded(model), data, gauge, batch_size)

    def measure(self, change: Change) -> Measured:
        """One point."""
        start = time.monotonic()
        with shown(0):  # the bar is in the process that counts the points
            value, removed = change.measure(self._bench)
        return value, removed, time.monotonic() - start


class Workers(abc.ABC):
    """Processes that each have the model.

    Attributes:
        count: how many there are.
    """

    count: int

    def measure(
        self, todo: Sequence[Probe], bench: Bench, budget: Any
    ) -> Iterator[tuple[Probe, Measured]]:
        """Probes with their results, as long as the budget lasts.

        Raises:
            RequestError: the model cannot be loaded from a file.
        """
        model = _saved(bench.model)
        _loaded(model)  # here first, where errors are easily read
        with self._started(model, bench.data, bench.gauge, bench.batch_size) as measure_round:
            for start in range(0, len(todo), self.count):
                if not budget.enough:
                    return
                part = todo[start : start + self.count]
                results = measure_round([probe.make() for probe in part])
                for probe, result in zip(part, results, strict=True):
                    budget.longest = max(budget.longest, result[2])
                    yield probe, result

    @abc.abstractmethod
    def _started(self, *worker: Any) -> contextlib.AbstractContextManager[Round]:
        """Workers, each made of these arguments of `Worker`, that end with the context."""


class Processes(Workers):
    """So many processes on this machine, through joblib."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._joblib = load("joblib", "Several workers", "workers=1 does without.")

    @contextlib.contextmanager
    def _started(self, *worker: Any) -> Iterator[Round]:
        several = self._joblib.Parallel(self.count, batch_size=1)
        one = self._joblib.delayed(_measured)
        model, *rest = worker
        # So that lambdas can be sent.
        rest = self._joblib.wrap_non_picklable_objects(tuple(rest), keep_wrapper=False)
        with tempfile.TemporaryDirectory() as folder, _same_backend(), several as parallel:
            Path(folder, "worker.pkl").write_bytes(pickle.dumps((model, rest)))
            yield lambda changes: parallel(one(folder, change) for change in changes)


class RayCluster(Workers):
    """One process for every processor of a Ray cluster.

    It is the cluster that this process is connected to, else the one that ``RAY_ADDRESS`` names,
    else one on this machine.
    """

    def __init__(self) -> None:
        self._ray = load("ray", "Workers on a cluster", "workers=2, say, does without.")
        if not self._ray.is_initialized():
            self._connect()
        self.count = max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def _connect(self) -> None:
        try:
            self._ray.init(log_to_driver=False, include_dashboard=False)
        except Exception as error:
            raise RequestError(
                f"Ray cannot be started or reached: {error}. RAY_ADDRESS was "
                f"{os.environ.get('RAY_ADDRESS')!r}; call ray.init() yourself to see what is wrong."
            ) from error

    @contextlib.contextmanager
    def _started(self, *worker: Any) -> Iterator[Round]:
        ray = self._ray
        environment = {"env_vars": {_BACKEND: keras.backend.backend()}}
        remote = ray.remote(num_cpus=1, runtime_env=environment)(Worker)
        shared = [ray.put(part) for part in worker]
        actors = [remote.remote(*shared) for _ in range(self.count)]
        try:
            yield lambda changes: self._results(
                [actor.measure.remote(c) for actor, c in zip(actors, changes, strict=False)]
            )
        finally:
            for actor in actors:
                ray.kill(actor)

    def _results(self, coming: list[Any]) -> list[Measured]:
        try:
            return self._ray.get(coming)
        except self._ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from error


#: In a process of joblib's: its worker, by the folder that it was made from.
_WORKERS: dict[str, Worker] = {}


def _measured(folder: str, change: Change) -> Measured:
    """In a process of joblib's: one point."""
    if folder not in _WORKERS:
        _WORKERS.clear()
        model, rest = pickle.loads(Path(folder, "worker.pkl").read_bytes())
        _WORKERS[folder] = Worker(model, *rest)
    return _WORKERS[folder].measure(change)


def _saved(model: keras.Model) -> bytes:
    """The content of a file of a model."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of lambdas, which loading refuses
        path = Path(folder, "model.keras")
        model.save(path)
        return path.read_bytes()


def _loaded(content: bytes) -> keras.Model:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        path.write_bytes(content)
        try:
            return keras.saving.load_model(path)
        except Exception as error:
            raise RequestError(
                f"The model cannot be loaded from a file, as every worker has to: {error}\n"
                "Register classes and functions of your own with "
                "@keras.saving.register_keras_serializable() in a module that they are imported "
                "from, or use workers=1."
            ) from error


@contextlib.contextmanager
def _same_backend() -> Iterator[None]:
    """Processes that are started inside use the back end of this one."""
    before = os.environ.get(_BACKEND)
    os.environ[_BACKEND] = keras.backend.backend()
    try:
        yield
    finally:
        if before is None:
            del os.environ[_BACKEND]
        else:
            os.environ[_BACKEND] = before
