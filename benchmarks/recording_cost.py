"""What recording costs: seconds per epoch with `ridurre.Recorder` and without, size of its files.

    python benchmarks/recording_cost.py

Two copies of a model are trained in turns, an epoch at a time; one is recorded. Then films are
made.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import here_and_now, say, table, write
from masking_cost import mlp
from resnet_cifar import resnet

import keras  # isort: skip - `common` quietens it
import ridurre
from ridurre.snapshots import Snapshot

#: A model, its inputs, and the training steps of an epoch.
ROWS: dict[str, tuple[Callable[[], keras.Model], tuple[int, ...], int]] = {
    "ResNet-20, epochs of 10 steps": (lambda: resnet(20), (32, 32, 3), 10),
    "MLP 784-512-512-10, epochs of 200 steps": (mlp, (784,), 200),
}
BATCH = 128


def ready(build: Callable[[], keras.Model], level: float) -> keras.Model:
    model = ridurre.prune(ridurre.LevelPrune(level), build())
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def epoch_times(
    build: Callable[[], keras.Model],
    shape: tuple[int, ...],
    steps: int,
    epochs: int,
    folder: Path,
) -> tuple[list[float], list[float]]:
    """Seconds of epochs, plain and recorded ones in turns."""
    rng = np.random.default_rng(0)
    count = BATCH * steps
    x, y = rng.normal(size=(count, *shape)).astype("float32"), rng.integers(0, 10, count)
    models = [ready(build, 0.8), ready(build, 0.8)]
    times: tuple[list[float], list[float]] = ([], [])
    with ridurre.keep_zeros(models[0]), ridurre.keep_zeros(models[1]):  # what is compiled stays
        for epoch in range(epochs + 1):
            for model, found, kept in zip(models, times, (False, True), strict=True):
                clock = Clock()
                callbacks = [ridurre.Recorder(folder), clock] if kept else [clock]
                model.fit(
                    x, y, batch_size=BATCH, initial_epoch=epoch, epochs=epoch + 1, verbose=0,
                    callbacks=callbacks,
                )  # fmt: skip
                if epoch:  # the first one compiles
                    found.append(clock.seconds)
    return times


class Clock(keras.callbacks.Callback):
    """Seconds from the begin of the last epoch to its end, other callbacks' ends included."""

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds = time.perf_counter() - self.start


def record_row(name: str, model: keras.Model, repeats: int = 5) -> list[str]:
    """Size and time of one record of a model."""
    weights = sum(w.size for w in ridurre.weights.weights_of(model))
    with tempfile.TemporaryDirectory() as folder:
        path, times = Path(folder) / "record.npz", []
        for _ in range(repeats):
            start = time.perf_counter()
            Snapshot.of(model).save(path)
            times.append(time.perf_counter() - start)
        size = path.stat().st_size
    row = [name, f"{weights:,}", f"{1000 * statistics.median(times):.0f}", f"{size / 1000:.0f}"]
    say(" | ".join(row))
    return row


def film_rows(folder: Path) -> list[list[str]]:
    """Seconds and sizes of films of 20 frames."""
    rows = []
    for what in ("masks", "weights"):
        for ending in ("gif", "mp4"):
            recording, path = ridurre.Recording(folder), folder / f"film.{ending}"
            start = time.perf_counter()
            try:
                recording.animate(path, what)
            except ridurre.errors.RequestError:
                continue  # no ffmpeg
            elapsed = time.perf_counter() - start
            rows.append(
                [f"{what}.{ending}", len(recording), f"{elapsed:.1f}", path.stat().st_size // 1000]
            )
            say(" | ".join(map(str, rows[-1])))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6, help="timed epochs of each kind")
    options = parser.parse_args()
    epochs, films = [], []
    for name, (build, shape, steps) in ROWS.items():
        with tempfile.TemporaryDirectory() as folder:
            plain, recorded = epoch_times(build, shape, steps, options.epochs, Path(folder))
        extra = statistics.median(b - a for a, b in zip(plain, recorded, strict=True))
        seconds = [f"{statistics.median(t):.3f}" for t in (plain, recorded)]
        epochs.append([name, *seconds, f"{1000 * extra:.0f}"])
        say(" | ".join(map(str, epochs[-1])))
    sizes = [
        record_row("ResNet-20, 80 % zero", ready(lambda: resnet(20), 0.8)),
        record_row("MLP 784-512-512-10, 80 % zero", ready(mlp, 0.8)),
        record_row("ResNet-50, nothing zero", keras.applications.ResNet50(weights=None)),
        record_row(
            "ResNet-50, 80 % zero",
            ridurre.prune(ridurre.LevelPrune(0.8), keras.applications.ResNet50(weights=None)),
        ),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(20):
            model = ridurre.prune(ridurre.LevelPrune(number / 20), resnet(20))
            snapshot = Snapshot.of(model)
            Snapshot(snapshot.parts, number).save(Path(folder) / f"record_{number:06d}.npz")
        films = film_rows(Path(folder))
    write(
        "recording_cost",
        "What recording a training run costs",
        here_and_now(("keras", keras.backend.backend(), "numpy", "matplotlib")),
        f"{keras.backend.backend()}, adam, batch {BATCH}, "
        f"{options.epochs} epochs of each kind in turns; medians, and the median difference of "
        "neighbours. These epochs are short; the extra time is that of one record however long an "
        "epoch is, and on a busy machine less than epochs differ by themselves.",
        table(("", "plain [s]", "recorded [s]", "extra [ms]"), epochs),
        "One record, made and written to disk:",
        table(("", "weights", "time [ms]", "file [kB]"), sizes),
        "Films of a ResNet-20 (22 kernels), at 4 frames a second:",
        table(("", "frames", "time [s]", "file [kB]"), films),
    )


if __name__ == "__main__":
    main()
