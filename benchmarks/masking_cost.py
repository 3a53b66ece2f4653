"""What keeping masks costs: time of a training step with `ridurre.KeepZeros` and without.

    python benchmarks/masking_cost.py
    KERAS_BACKEND=torch python benchmarks/masking_cost.py       # a page of its own

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
    "ResNet-20, batch 128": (lambda: resnet(20, dot="_"), (32, 32, 3), 128),
    "ResNet-20, batch 32": (lambda: resnet(20, dot="_"), (32, 32, 3), 32),
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
    seconds: float,
) -> tuple[list[float], list[float]]:
    """Seconds of single steps, plain and masked ones in turns."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(batch, *shape)).astype("float32"), rng.integers(0, 10, batch)
    models = [sparse(build, optimizer), sparse(build, optimizer)]
    times: tuple[list[float], list[float]] = ([], [])
    with ridurre.keep_zeros(models[1]):  # as KeepZeros, and what is compiled stays
        for model in models * 2:
            model.train_on_batch(x, y)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(times[0]) < 10:
            for model, found in zip(models, times, strict=True):
                start = time.perf_counter()
                model.train_on_batch(x, y)
                found.append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="for every row")
    parser.add_argument("--optimizer", default="adam")
    options = parser.parse_args()
    rows = []
    for name, (build, shape, batch) in ROWS.items():
        plain, masked = step_times(build, shape, batch, options.optimizer, options.seconds)
        cost = 100 * (ratio(masked, plain) - 1)
        both = [f"{1000 * statistics.median(t):.2f}" for t in (plain, masked)]
        rows.append([name, len(plain), *both, f"{cost:+.1f} %"])
        say(" | ".join(map(str, rows[-1])))
    backend = keras.backend.backend()
    results = table(("", "pairs", "plain [ms]", "masks kept [ms]", "cost"), rows)
    print(results)
    write(
        "masking_cost" if backend == "tensorflow" else f"masking_cost_{backend}",
        f"What keeping masks costs in a training step, {backend}",
        here_and_now(("keras", backend, "numpy")),
        f"Optimizer: {options.optimizer}. A sparsity of 80 % in every kernel. "
        "Milliseconds per `train_on_batch`, medians; the cost is the median of the ratios of "
        "neighbouring steps. The mechanism is that of `ridurre.KeepZeros` and "
        "`ridurre.keep_zeros` alike. Goal: under 10 %.",
        results,
    )


if __name__ == "__main__":
    main()
