"""ResNet-56 on CIFAR-10, pruned without and with a little training: accuracy against MACs.

    python benchmarks/resnet56_cifar10.py                                    # no fine-tuning
    python benchmarks/resnet56_cifar10.py --epochs 1 --points 2.1 --methods ridurre
    python benchmarks/resnet56_cifar10.py --epochs 5 --points 2.1 4.0 --methods ridurre

Starts from the published checkpoint (``--checkpoints``, ``--images``: see resnet_cifar.py).
Scoring, repair and training read training images only; the test images are read once per row,
by the model of the last epoch. Every seed chooses other calibration images.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import numpy as np
import resnet_cifar as rc
from common import here_and_now, say, table, write

import keras  # isort: skip - `common` quietens it
import ridurre
from ridurre.criteria import OutputTaylor

#: Where the way from the whole network to the smallest stops to score anew, in times fewer MACs.
STOPS = (1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.25, 2.57, 3.0, 3.5)
NO_TRAINING = (1.2, 1.5, 2.0, 2.57)
GOALS = {
    0: {1.2: 93.3, 1.5: 92.8, 2.0: 91.6, 2.57: 89.5},
    1: {2.1: 92.3},
    5: {2.1: 93.0, 4.0: 91.0},
    100: {2.11: 93.8, 2.57: 93.7, 4.1: 93.2},
}
METHODS = {
    "ridurre": "squared gate Taylor of the outputs per MAC, re-scored at every stop, least squares",
    "l1": "L1, the same fraction of all inner channels, residual streams left alone, least squares",
    "random": "random inner channels, residual streams left alone, least squares",
    "l1 raw": "as l1, nothing repaired",
}

Found = Iterator[tuple[float, keras.Model, ridurre.PruningPlan]]


def schedule_of(stops: list[float]) -> Any:
    """A schedule that ends its steps at these numbers of times fewer MACs."""
    return lambda step, steps, amount: 1 - 1 / stops[step]


def by_ridurre(model: keras.Model, data: Any, points: list[float], seed: int) -> Found:
    stops = sorted({s for s in STOPS if s < max(points)} | set(points))
    strategy = ridurre.ChannelPrune(
        target=ridurre.MACs(1 / stops[-1]),
        criterion=OutputTaylor(batches=32),
        scope="global",
        cost="macs",
        data=data,
        steps=len(stops),
        schedule=schedule_of(stops),
        recover={"how": "least_squares", "samples": 512, "max_rows": 16384, "rounds": 1},
        min_fraction=0.1,
        seed=seed,
    )
    for stop, (smaller, plan) in zip(stops, strategy.each_step(model), strict=True):
        say(f"  at {stop} ×")
        if stop in points:
            yield stop, smaller, plan


def by_control(criterion: str, model: keras.Model, points: list[float], seed: int) -> Found:
    for point in points:
        strategy = ridurre.ChannelPrune(
            target=ridurre.MACs(1 / point), criterion=criterion, streams="leave", seed=seed
        )
        yield point, *strategy.run(model)


def repaired(
    smaller: keras.Model, model: keras.Model, plan: ridurre.PruningPlan, images: np.ndarray
) -> keras.Model:
    """The last repair, with all calibration images."""
    return ridurre.recover(smaller, model, plan, images, samples=len(images), max_rows=49152)


def train(
    model: keras.Model, teacher: keras.Model, images: rc.Images, options: Any, seed: int
) -> float:
    """Fine-tune with distillation; the learning rate reaches zero at the end."""
    keras.utils.set_random_seed(seed)
    x, y = images.x_train[: options.train_limit], images.y_train[: options.train_limit]
    steps = -(-len(x) // options.batch_size)
    rng = np.random.default_rng(seed)
    rate = ridurre.LinearToZero(options.rate, steps * options.epochs)
    optimizer = keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])

    def epochs() -> Iterator[Any]:
        while True:
            yield from rc.augmented_batches(x, y, options.batch_size, rng)

    tune = ridurre.Distillation(teacher, epochs(), steps_per_epoch=steps, verbose=2)
    tune(model, 0, options.epochs)
    return rc.correct(model, images.x_test, images.y_test)


def one_seed(method: str, images: rc.Images, options: Any, seed: int) -> dict[float, list[float]]:
    """Accuracy on the test images, MACs (× fewer) and seconds, by point."""
    model = rc.load(56, options.checkpoints)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = ridurre.model_complexity(model)
    order = np.random.default_rng(seed).permutation(len(images.x_train))[: options.calibration]
    x, y = rc.normalise(images.x_train[order]), images.y_train[order]
    start = time.perf_counter()
    if method == "ridurre":
        found = by_ridurre(model, (x, y), options.points, seed)
    else:
        found = by_control(method.split(maxsplit=1)[0], model, options.points, seed)
    results = {}
    for point, smaller, plan in found:
        if method != "l1 raw":
            smaller = repaired(smaller, model, plan, x[: options.repair])
        seconds = time.perf_counter() - start
        after = ridurre.model_complexity(smaller)
        if options.epochs:
            accuracy = train(smaller, model, images, options, seed)
        else:
            accuracy = rc.correct(smaller, images.x_test, images.y_test)
        fewer = before.macs / after.macs
        results[point] = [accuracy, fewer, 1 - after.parameters / before.parameters, seconds]
        say(f"{method}, seed {seed}: {fewer:.3f} × fewer MACs, {accuracy:.2f} %, {seconds:.0f} s")
    return results


def row(method: str, point: float, runs: list[dict[float, list[float]]], epochs: int) -> list[Any]:
    accuracy = [r[point][0] for r in runs]
    fewer, parameters, seconds = (mean(r[point][i] for r in runs) for i in (1, 2, 3))
    spread = f" ± {pstdev(accuracy):.2f}" if len(runs) > 1 else ""
    return [
        f"{method}, {point} ×",
        f"{fewer:.2f}",
        f"{100 * parameters:.0f} %",
        f"{mean(accuracy):.2f}{spread}",
        GOALS.get(epochs, {}).get(point, ""),
        f"{seconds:.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=float, nargs="+", default=list(NO_TRAINING))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--rate", type=float, default=0.02, help="highest learning rate")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--train-limit", type=int, default=None, help="training images used")
    parser.add_argument("--calibration", type=int, default=4096, help="images to score on")
    parser.add_argument("--repair", type=int, default=2048, help="images for the last repair")
    parser.add_argument("--checkpoints", type=Path, default=rc.CHECKPOINTS)
    parser.add_argument("--images", type=Path, default=rc.IMAGES)
    parser.add_argument("--name", default="resnet56_cifar10", help="of the page of results")
    options = parser.parse_args()
    images = rc.load_images(options.images)
    rows = []
    for method in options.methods:
        runs = [one_seed(method, images, options, seed) for seed in options.seeds]
        rows += [row(method, p, runs, options.epochs) for p in sorted(options.points)]
    head = ("method", "× fewer MACs", "parameters gone", "accuracy %", "goal", "seconds to prune")
    results = table(head, rows)
    print(results)
    training = "No training." if not options.epochs else (
        f"{options.epochs} epoch(s) of fine-tuning: SGD, momentum 0.9, batches of "
        f"{options.batch_size}, learning rate from {options.rate} linearly to zero, "
        "distillation from the unpruned network; the last epoch counts."
    )  # fmt: skip
    write(
        options.name,
        "ResNet-56 on CIFAR-10",
        here_and_now(),
        f"Unpruned: 93.39 % of the 10000 test images. {training} {options.calibration} training "
        f"images are there to score on, {options.repair} of them without their labels for the last "
        f"repair. Mean ± standard deviation over the seeds {options.seeds}; seconds until the "
        "point, smaller points included.",
        results,
        "\n".join(f"- *{name}*: {text}" for name, text in METHODS.items()),
    )


if __name__ == "__main__":
    main()
