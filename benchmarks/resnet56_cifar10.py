r"""ResNet-56 on CIFAR-10, pruned without and with a little training: accuracy against MACs.

    python benchmarks/resnet56_cifar10.py                             # no fine-tuning, controls
    python benchmarks/resnet56_cifar10.py --methods ridurre --rows \
        0:1.2 0:1.5 0:2 0:2.57 1:2.1 5:2.1 5:4                        # and with one and five epochs
    python benchmarks/resnet56_cifar10.py --methods l1 "l1 raw" random --resume     # add controls

A row is ``epochs:times fewer MACs``. Starts from the published checkpoint (``--checkpoints``,
``--images``: see resnet_cifar.py). Scoring, repair and training read training images only; the test
images are read once per row, by the model of the last epoch. Every seed chooses other calibration
images. The page of results is written anew after every seed; with ``--resume``, what a run before
has found (results/resnet56_cifar10.json) is not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import numpy as np
import resnet_cifar as rc
from common import RESULTS, here_and_now, say, table, write

import keras  # isort: skip - `common` quietens it
import ridurre
from ridurre.criteria import OutputTaylor

#: Where the way from the whole network to the smallest stops to score anew, in times fewer MACs.
STOPS = (1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.25, 2.57, 3.0, 3.5)
#: Accuracy to beat by epochs and times fewer MACs; without training there are controls.
GOALS = {
    (0, 1.2): 93.3, (0, 1.5): 92.8, (0, 2.0): 91.6, (0, 2.57): 89.5,
    (1, 2.1): 92.3, (5, 2.1): 93.0, (5, 4.0): 91.0,
    (100, 2.11): 93.8, (100, 2.57): 93.7, (100, 4.1): 93.2,
}  # fmt: skip
#: Highest learning rate by epochs of training; what is not listed takes the last.
RATES = {1: 0.005, 5: 0.01, 100: 0.05}
NO_TRAINING = ("0:1.2", "0:1.5", "0:2", "0:2.57")
Row = tuple[int, float]
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


def by_ridurre(
    model: keras.Model, data: Any, points: list[float], seed: int, **other: Any
) -> Found:
    """Smaller and smaller networks; `other` takes the place of the strategy's arguments here."""
    stops = sorted({s for s in STOPS if s < max(points)} | set(points))
    arguments = {
        "criterion": OutputTaylor(batches=32),
        "scope": "global",
        "cost": "macs",
        "data": data,
        "steps": len(stops),
        "schedule": schedule_of(stops),
        "recover": {"how": "least_squares", "samples": 512, "max_rows": 16384, "rounds": 1},
        "min_fraction": 0.1,
        "seed": seed,
    }
    strategy = ridurre.ChannelPrune(target=ridurre.MACs(1 / stops[-1]), **{**arguments, **other})
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


def ready(
    smaller: keras.Model, model: keras.Model, plan: ridurre.PruningPlan, images: np.ndarray
) -> keras.Model:
    """A copy to train: batch norms by the statistics that augmented images have now."""
    augmented = rc.normalise(rc.augment(images, np.random.default_rng(0)))
    return ridurre.recover(smaller, model, plan, augmented, "renormalise", samples=2048)


def one_seed(
    method: str, images: rc.Images, rows: list[Row], options: Any, seed: int
) -> dict[Row, list[float]]:
    """Accuracy on the test images, MACs (× fewer), parameters gone and seconds to prune, by row."""
    model = rc.load(56, options.checkpoints)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = ridurre.model_complexity(model)
    order = np.random.default_rng(seed).permutation(len(images.x_train))[: options.calibration]
    x, y = rc.normalise(images.x_train[order]), images.y_train[order]
    points, trained = sorted({point for _, point in rows}), 0.0
    start = time.perf_counter()
    if method == "ridurre":
        found = by_ridurre(model, (x, y), points, seed)
    else:
        found = by_control(method.split(maxsplit=1)[0], model, points, seed)
    results: dict[Row, list[float]] = {}
    for point, smaller, plan in found:
        if method != "l1 raw":
            smaller = repaired(smaller, model, plan, x[: options.repair])
        seconds = time.perf_counter() - start - trained
        after = ridurre.model_complexity(smaller)
        fewer, gone = before.macs / after.macs, 1 - after.parameters / before.parameters
        begin = time.perf_counter()
        for epochs in sorted(e for e, p in rows if p == point):
            tuned = ready(smaller, model, plan, images.x_train[order]) if epochs else smaller
            if epochs:
                rc.fine_tune(
                    tuned, images, epochs, seed, rate=RATES.get(epochs, 0.05),
                    batch_size=options.batch_size, limit=options.train_limit, teacher=model,
                )  # fmt: skip
            accuracy = rc.correct(tuned, images.x_test, images.y_test)
            results[epochs, point] = [accuracy, fewer, gone, seconds]
            say(
                f"{method}, seed {seed}, {epochs} epochs: {fewer:.3f} × fewer MACs, "
                f"{accuracy:.2f} %, {seconds:.0f} s"
            )
        trained += time.perf_counter() - begin
    return results


#: By method, epochs and point, and seed: what `one_seed` found.
FoundRows = dict[str, dict[str, list[float]]]


def line(name: str, runs: dict[str, list[float]]) -> list[Any]:
    """One line of the table."""
    method, epochs, point = name.split("|")
    accuracy = [run[0] for run in runs.values()]
    fewer, gone, seconds = (mean(run[i] for run in runs.values()) for i in (1, 2, 3))
    spread = f" ± {pstdev(accuracy):.2f}" if len(runs) > 1 else ""
    return [
        method,
        epochs,
        f"{fewer:.2f}",
        f"{100 * gone:.0f} %",
        f"{mean(accuracy):.2f}{spread}",
        GOALS.get((int(epochs), float(point)), ""),
        " ".join(sorted(runs)),
        f"{seconds:.0f}",
    ]


def page(found: FoundRows, options: Any) -> None:
    """Write and print the table of all that was found so far."""
    order = {method: i for i, method in enumerate(METHODS)}
    names = sorted(found, key=lambda n: (order[n.split("|")[0]], *map(float, n.split("|")[1:])))
    head = ("method", "epochs", "× fewer MACs", "parameters gone", "accuracy %", "goal", "seeds",
            "seconds to prune")  # fmt: skip
    results = table(head, [line(name, found[name]) for name in names])
    print(results)
    (RESULTS / f"{options.name}.json").write_text(json.dumps(found, indent=1) + "\n")
    write(
        options.name,
        "ResNet-56 on CIFAR-10",
        here_and_now(),
        "Unpruned: 93.39 % of the 10000 test images. "
        f"{options.calibration} training images are there to score on, {options.repair} of them "
        "without their labels for the last repair. Training: SGD, momentum 0.9, batches of "
        f"{options.batch_size}, learning rate linearly to zero from {RATES} by epochs, "
        "distillation from the unpruned network on mixed images, no labels; the last epoch counts; "
        "it starts from batch norms made ready for it with ``renormalise``. Rates and mixing were "
        "chosen at 2.1 × by how well the outputs for 5000 held-out training images agree with "
        "the unpruned network's. (Adam with frozen batch norm, which that preferred later, gave "
        "91.65, 92.46 and 89.28 % with seed 0 and was taken back.) Mean ± standard deviation over "
        "the seeds; rows of several runs with ``--resume`` stand together. Seconds until the row's "
        "model was pruned and repaired, smaller points included.",
        results,
        "\n".join(f"- *{name}*: {text}" for name, text in METHODS.items()),
    )


def parse_row(text: str) -> Row:
    epochs, point = text.split(":")
    return int(epochs), float(point)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=parse_row, nargs="+", default=[*map(parse_row, NO_TRAINING)])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--train-limit", type=int, default=None, help="training images used")
    parser.add_argument("--calibration", type=int, default=4096, help="images to score on")
    parser.add_argument("--repair", type=int, default=2048, help="images for the last repair")
    parser.add_argument("--checkpoints", type=Path, default=rc.CHECKPOINTS)
    parser.add_argument("--images", type=Path, default=rc.IMAGES)
    parser.add_argument("--resume", action="store_true", help="add to what was found before")
    parser.add_argument("--name", default="resnet56_cifar10", help="of the page of results")
    options = parser.parse_args()
    images, path = rc.load_images(options.images), RESULTS / f"{options.name}.json"
    found: FoundRows = json.loads(path.read_text()) if options.resume and path.exists() else {}
    for seed in options.seeds:
        for method in options.methods:
            names = {row: f"{method}|{row[0]}|{row[1]:g}" for row in options.rows}
            missing = [row for row, name in names.items() if str(seed) not in found.get(name, {})]
            new = one_seed(method, images, missing, options, seed) if missing else {}
            for row, values in new.items():
                found.setdefault(names[row], {})[str(seed)] = values
            page(found, options)


if __name__ == "__main__":
    main()
