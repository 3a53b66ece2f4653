"""What keeping masks costs: time of a training step with `ridurre.KeepZeros` and without.

    python benchmarks/masking_cost.py

Two copies of a sparse model are trained in turns: a plain one, and one whose zeros are enforced
after every step. Goal: under 10 %.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from common import here_and_now, ratio, say, table, write
from resnet_cifar import resnet

import keras  # isort: skip - `common` quietens it
import ridurre

L = keras.layers


def mlp() -> keras.Model:
    inputs = keras.Input((784,))
    x = L.Dense(512, activation="relu")(inputs)
    x = L.Dense(512, activation="relu")(x)
    return keras.Model(inputs, L.Dense(10)(x), name="mlp")


ROWS: dict[str, tuple[Callable[[], keras.Model], tuple[int, ...], int]] = {
    "ResNet-20, batch 128": (lambda: resnet(20), (32, 32, 3), 128),
    "ResNet-20, batch 32": (lambda: resnet(20), (32, 32, 3), 32),
    "MLP 784-512-512-10, batch 128": (mlp, (784,), 128),
    "MLP 784-512-512-10, batch 32": (mlp, (784,), 32),
}


def sparse(build: Callable[[], keras.Model], optimizer: str) -> keras.Model:
    model = ridurre.prune(ridurre.LevelPrune(0.8), build())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.get(optimizer), loss)
    return model


def step_times(
    build: Callable[[], keras.Model],
    shape: tuple[int, ...],
    batch: int,
    optimizer: str,
    turns: int,
    seconds: float,
) -> tuple[list[float], list[float]]:
    """Medians of every turn, plain and masked."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(batch, *shape)).astype("float32"), rng.integers(0, 10, batch)
    models = [sparse(build, optimizer), sparse(build, optimizer)]
    with ridurre.keep_zeros(models[1]):  # as KeepZeros, but what is compiled stays for all turns
        for model in models:
            model.train_on_batch(x, y)
        start = time.perf_counter()
        for _ in range(3):
            models[0].train_on_batch(x, y)
        steps = max(3, round(3 * seconds / (time.perf_counter() - start) / turns))
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(turns + 1):
            for model, found in zip(models, times, strict=True):
                found.append(statistics.median(_timed(model, x, y, steps)))
        return times[0][1:], times[1][1:]


def _timed(model: keras.Model, x: np.ndarray, y: np.ndarray, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        start = time.perf_counter()
        model.train_on_batch(x, y)
        found.append(time.perf_counter() - start)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each of the two, per row")
    parser.add_argument("--optimizer", default="adam")
    options = parser.parse_args()
    rows = []
    for name, (build, shape, batch) in ROWS.items():
        plain, masked = step_times(
            build, shape, batch, options.optimizer, options.turns, options.seconds
        )
        cost = 100 * (ratio(masked, plain) - 1)
        both = [f"{1000 * statistics.median(t):.2f}" for t in (plain, masked)]
        rows.append([name, *both, f"{cost:+.1f} %"])
        say(" | ".join(rows[-1]))
    results = table(("", "plain [ms]", "masks kept [ms]", "cost"), rows)
    print(results)
    write(
        "masking_cost",
        "What keeping masks costs in a training step",
        here_and_now(),
        f"{keras.backend.backend()}, {options.optimizer}, a sparsity of 80 % in every kernel. "
        "Milliseconds per `train_on_batch`, medians of turns; the cost is the median of the ratios "
        "of neighbouring turns. The mechanism is that of `ridurre.KeepZeros` and "
        "`ridurre.keep_zeros` alike. Goal: under 10 %.",
        results,
    )


if __name__ == "__main__":
    main()
