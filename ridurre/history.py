"""What a run of pruning did, step by step, as plain data."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Step:
    """What one round of pruning did; ``dataclasses.asdict`` makes it plain data that fits JSON.

    Attributes:
        step: number of the round, from 0.
        factor: the pruning factor of this round.
        filters, parameters, macs: of the model after the round (`macs` is None where the model
            leaves its input size open).
        pruned_fraction: fraction of the original's filters that are gone.
        epochs: epochs trained so far.
        seconds: duration of the round, fine-tuning included.
        amount: fraction of the filters before this round that went in it.
        layers: for every convolution its number of filters before and after the round.
        accuracy_before_finetuning, accuracy: what the evaluation gave; None without one.
        phases: seconds spent on ``"cut"``, ``"compile"``, ``"finetune"`` and ``"evaluate"``.
        accepted: whether the accuracy is at least `minimum_accuracy`; the run returns the model of
            the last round that was.
        stopped: why the run ended after this round; None if it went on (see `BasePruning`).
    """

    step: int
    factor: float
    filters: int
    parameters: int
    macs: int | None
    pruned_fraction: float
    epochs: int
    seconds: float
    amount: float = 0.0
    layers: dict[str, list[int]] = field(default_factory=dict)
    accuracy_before_finetuning: float | None = None
    accuracy: float | None = None
    phases: dict[str, float] = field(default_factory=dict)
    accepted: bool = True
    stopped: str | None = None


class Stopwatch:
    """Seconds since it was made, and by phase."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._start

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time spent inside for a phase."""
        start = time.perf_counter()
        yield
        self.phases[name] = self.phases.get(name, 0.0) + time.perf_counter() - start
