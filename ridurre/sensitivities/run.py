"""Measure cut after cut: coarse to fine, within a budget, on disk, in several processes."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from ridurre.criteria.base import Spec
from ridurre.data import Batch, Batches
from ridurre.errors import RequestError
from ridurre.graph.select import Selector
from ridurre.progress import Bar, shown
from ridurre.recipes import Recipe
from ridurre.sensitivities import workers as engines
from ridurre.sensitivities.arguments import (
    as_data,
    check_amounts,
    check_arguments,
    gathered,
)
from ridurre.sensitivities.bench import Bench, Evaluate, Gauge
from ridurre.sensitivities.journal import Journal, Key, Result, data_digest, model_digest
from ridurre.sensitivities.probe import (
    Asked,
    Probe,
    Probes,
    channel_probes,
    network_probes,
    recipe_probes,
    weight_probes,
)
from ridurre.sensitivities.record import Point, Sensitivity
from ridurre.surgery import duplicate

logger = logging.getLogger("ridurre")
AMOUNTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def sensitivity(
    model: keras.Model,
    data: Any = None,
    *,
    criterion: Spec | None = None,
    amounts: Sequence[float] = AMOUNTS,
    grain: str = "channels",
    evaluate_fn: Evaluate | None = None,
    metric: str | None = None,
    higher_is_better: bool | None = None,
    loss: Any = None,
    strategy: Callable[[float], Recipe] | None = None,
    layers: Selector | None = None,
    samples: int | None = None,
    batch_size: int = 128,
    max_seconds: float | None = None,
    workers: int | str = 1,
    folder: str | os.PathLike[str] | None = None,
    seed: int | None = 0,
    verbose: int = 1,
) -> Sensitivity:
    """What cutting each part of a model alone costs, at each amount, without retraining.

    Example::

        found = ridurre.sensitivity(model, (x_val, y_val))
        print(found)
        smaller = ridurre.prune(
            ridurre.ChannelPrune(found.suggest(0.01), criterion=found.criterion()), model
        )

    Scores are computed once, on the whole model. Channels are not cut but set to zero, slices of
    every weight, which gives the same numbers; where it does not (statistics across channels), a
    smaller model is built. All groups are measured at the middle amount first, then at finer steps.

    Args:
        model: is not changed.
        data: what `model.fit` takes, with labels unless `evaluate_fn` is given; all samples are
            kept in memory.
        criterion: what goes first. For channels by default that of `ridurre.ChannelPrune` with
            these data: squared gate Taylor of the loss, or of the outputs where there are no
            labels or no loss; L1 without data. For weights the magnitude.
        amounts: fractions to remove, each in (0, 1).
        grain: ``"channels"``: every group of the dependency graph alone; ``"weights"``: every
            kernel alone; ``"network"``: the whole model by one global ranking of channels.
        evaluate_fn: ``fn(model) -> number``. The model has zeros where it is cut, so that its
            sizes say nothing; it must not be trained.
        metric: the compiled metric that counts, or "loss"; by default an accuracy, else the first
            metric, else the loss.
        higher_is_better: by default from the metric's name; True for `evaluate_fn`.
        loss: measured where the model has no metric, and used by criteria from gradients; the
            compiled model's by default.
        strategy: for the grain "network" what to do instead, ``fn(amount)`` -> what
            `ridurre.prune` takes.
        layers: which layers are meant (see `ridurre.DependencyGraph`); None for all.
        samples: at most that many samples; of arrays, random ones.
        batch_size: samples that are evaluated at a time.
        max_seconds: stop in time for this and return what is there; the baseline is always
            measured.
        workers: number of processes on this machine, which needs joblib; ``"ray"`` for a process on
            every processor of a Ray cluster: the one that this process is connected to, else that
            of ``RAY_ADDRESS``, else one on this machine. Results are the same.
        folder: where finished points are kept; the same call again goes on where it was.
        seed: of all random choices.
        verbose: 1 shows progress bars, 0 none.

    Returns:
        The record, which prints as a table. What there was no time for is None and has no
        `seconds`; what came out as no finite number is None and has.

    Raises:
        RequestError: arguments that make no sense, alone or together, or nothing says how good a
            model is.
        NothingToPruneError: there is nothing to cut.
        CheckpointError: the folder holds another run, or is damaged.
    """
    start = time.monotonic()
    amounts = check_amounts(amounts)
    check_arguments(grain, evaluate_fn, strategy, max_seconds, workers, samples, batch_size)
    batch = gathered(data, samples, seed)
    gauge = Gauge(evaluate_fn, metric, loss)
    gauge.check(model, batch)
    again = None if batch is None else Batches(as_data(batch))
    asked = Asked(criterion, again, loss, layers, seed)
    probes = _probes(model, amounts, grain, strategy, asked)
    bench = Bench(duplicate(model, keep_compiled=True), batch, gauge, batch_size)
    budget = Budget(start, math.inf if max_seconds is None else max_seconds)
    with budget.timed():
        baseline = bench.value(bench.model)
    if baseline is None:
        raise RequestError(
            "The whole model gives no finite value. Expected a number before anything is cut; "
            "check the data, the loss and the weights."
        )
    journal = None
    if folder is not None:
        journal = Journal(folder, _run(model, batch, bench.gauge, probes, grain, amounts, asked))
    with shown(verbose):
        done = _measure(probes.probes, bench, budget, journal, workers)
    if higher_is_better is None:
        higher_is_better = bench.gauge.higher_is_better
    return Sensitivity(
        grain=grain,
        measured=bench.gauge.label,
        higher_is_better=higher_is_better,
        baseline=baseline,
        criterion_name=probes.criterion,
        points=_points(probes.probes, done, baseline),
        names=probes.names,
    )


@dataclass
class Budget:
    """Seconds that there are, and the longest that one point took."""

    start: float
    seconds: float
    longest: float = 0.0

    def timed(self) -> _Timed:
        """A context that counts towards the longest."""
        return _Timed(self)

    @property
    def enough(self) -> bool:
        """Whether another point should be done in time."""
        return time.monotonic() - self.start + self.longest <= self.seconds


class _Timed:
    def __init__(self, budget: Budget) -> None:
        self._budget, self._start = budget, time.monotonic()

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self._budget.longest = max(self._budget.longest, time.monotonic() - self._start)


def _measure(
    probes: list[Probe],
    bench: Bench,
    budget: Budget,
    journal: Journal | None,
    workers: int | str,
) -> dict[Key, Result]:
    """Results of all points that there is time for, by key."""
    order = {p.key: p for p in coarse_to_fine(probes) if p.removed != 0}
    done = {} if journal is None else {k: r for k, r in journal.done.items() if k in order}
    todo = [p for key, p in order.items() if key not in done]
    if done:
        logger.info("%d of %d points are on disk.", len(done), len(order))
    measure = _one_by_one if workers == 1 or len(todo) < 2 else engines.get(workers).measure
    with Bar("Sensitivity", len(order), unit="point", done=len(done), patience=0) as bar:
        for probe, result in measure(todo, bench, budget):
            done[probe.key] = result
            if journal is not None:
                journal.add(probe.key, result)
            bar.advance()
    if len(done) < len(order):
        logger.info("Time is up: %d of %d points were measured.", len(done), len(order))
    return done


def _one_by_one(todo: Sequence[Probe], bench: Bench, budget: Any) -> Iterator[tuple[Probe, Result]]:
    for probe in todo:
        if not budget.enough:
            return
        start = time.monotonic()
        with budget.timed():
            value, removed = probe.make().measure(bench)
        yield probe, (value, removed, time.monotonic() - start)


def coarse_to_fine(probes: Iterable[Probe]) -> list[Probe]:
    """All names at the middle amount, then in the middle of what is left, and so on."""
    probes = list(probes)
    amounts = sorted({p.amount for p in probes})
    place = {amounts[i]: rank for rank, i in enumerate(_bisected(len(amounts)))}
    return sorted(probes, key=lambda p: place[p.amount])


def _bisected(count: int) -> list[int]:
    """Whole numbers below a count: the middle one, the middles of both halves, ….

    For nine 4, 1, 6, 0, 2, 5, 7, 3, 8.
    """
    found, spans = [], [(0, count)]
    while spans:
        low, high = spans.pop(0)
        if low < high:
            middle = (low + high - 1) // 2
            found.append(middle)
            spans += [(low, middle), (middle + 1, high)]
    return found


def _points(probes: list[Probe], done: dict[Key, Result], baseline: float) -> tuple[Point, ...]:
    points, counted = [], set()
    for p in probes:
        value, removed, seconds = None, p.removed, None
        if p.removed == 0:
            value, seconds = baseline, 0.0
        elif p.key in done:
            value, more, seconds = done[p.key]
            removed = more if p.removed is None else p.removed
            seconds = 0.0 if p.key in counted else seconds  # evaluated once, for several amounts
            counted.add(p.key)
        points.append(Point(p.name, p.amount, removed, value, seconds))
    return tuple(points)


def _probes(
    model: keras.Model,
    amounts: Sequence[float],
    grain: str,
    strategy: Callable[[float], Recipe] | None,
    asked: Asked,
) -> Probes:
    if strategy is not None:
        return recipe_probes(strategy, amounts)
    make = {"channels": channel_probes, "weights": weight_probes, "network": network_probes}
    return make[grain](model, amounts, asked)


def _run(
    model: keras.Model,
    batch: Batch | None,
    gauge: Gauge,
    probes: Probes,
    grain: str,
    amounts: Sequence[float],
    asked: Asked,
) -> dict[str, Any]:
    """What has to be the same for points on disk to count."""
    loss = asked.loss if isinstance(asked.loss, str | None) else _label(asked.loss)
    return {
        "model": model_digest(model),
        "samples": None if batch is None else len(batch),
        "data": data_digest(batch),
        "grain": grain,
        "amounts": list(amounts),
        "criterion": probes.criterion,
        "measured": gauge.label,
        "loss": loss,
        "names": list(probes.names),
        "seed": asked.seed,
    }


def _label(value: Any) -> str:
    return getattr(value, "__name__", type(value).__name__)
