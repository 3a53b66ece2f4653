"""A small VGG on Fashion-MNIST: accuracy against MACs for several criteria.

    python benchmarks/fashion_mnist.py --data /usr/share/datasets/fashion-mnist

``--data`` is a folder with the four ``…-ubyte.gz`` files (Debian's package dataset-fashion-mnist);
without it, `keras.datasets` downloads them. The network is trained here, pruned to 1/2, 1/4, 1/8
and 1/16 of its MACs by each criterion, and fine-tuned for one epoch each time. Test images are used
for the final figures alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import small_net
from common import RESULTS, here_and_now, say, table, write

import keras  # isort: skip - `common` quietens it
import ridurre

matplotlib.use("Agg")
from matplotlib import pyplot as plt

L = keras.layers
POINTS = (2, 4, 8, 16)
METHODS: dict[str, dict[str, Any]] = {
    "random": {"criterion": "random"},
    "L1": {"criterion": "l1"},
    "k-means": {"criterion": "kmeans"},
    "ridurre": {
        "scope": "global", "cost": "macs", "steps": 6, "schedule": "geometric",
        "min_fraction": 0.05, "recover": {"how": "least_squares", "max_rows": 16384},
    },
}  # fmt: skip


def load(folder: Path | None) -> tuple[np.ndarray, ...]:
    """Images ``(n, 28, 28, 1)`` from 0 to 1 and labels, for training and for the test."""
    if folder is not None:
        return small_net.load(folder)
    (a, b), (c, d) = keras.datasets.fashion_mnist.load_data()
    return a[..., None] / np.float32(255), b, c[..., None] / np.float32(255), d


def vgg(width: int = 24) -> keras.Model:
    inputs = keras.Input((28, 28, 1))
    x = inputs
    for stage in range(3):
        for _ in range(2):
            x = L.Conv2D(width << stage, 3, padding="same", use_bias=False)(x)
            x = L.ReLU()(L.BatchNormalization()(x))
        x = L.MaxPooling2D()(x) if stage < 2 else L.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, L.Dense(10)(x))


def train(model: keras.Model, data: Any, epochs: int, rate: float, seed: int) -> None:
    keras.utils.set_random_seed(seed)
    steps = epochs * -(-len(data[0]) // 128)
    schedule = keras.optimizers.schedules.PolynomialDecay(rate, steps, 0.0)
    model.compile(
        keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(*data, batch_size=128, epochs=epochs, verbose=2)


def accuracy(model: keras.Model, x: np.ndarray, y: np.ndarray) -> float:
    return 100 * float((model.predict(x, batch_size=500, verbose=0).argmax(axis=1) == y).mean())


def pruned(model: keras.Model, options: dict[str, Any], point: int, data: Any, seed: int) -> Any:
    target = ridurre.MACs(1 / point)
    return ridurre.prune(
        ridurre.ChannelPrune(target=target, data=data, seed=seed, **options), model
    )


def draw(curves: dict[str, list[float]], whole: float, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, values in curves.items():
        axes.plot([1, *POINTS], [whole, *values], marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, *POINTS], [f"{p}×" for p in (1, *POINTS)])
    axes.set_xlabel("fewer MACs")
    axes.set_ylabel("test accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--epochs", type=int, default=4, help="of the first training")
    parser.add_argument("--finetune-epochs", type=int, default=1)
    parser.add_argument("--width", type=int, default=24)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    x, y, x_test, y_test = load(options.data)
    found: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in METHODS}
    wholes = []
    for seed in options.seeds:
        keras.utils.set_random_seed(seed)
        model = vgg(options.width)
        train(model, (x, y), options.epochs, 0.1, seed)
        wholes.append(accuracy(model, x_test, y_test))
        say(f"seed {seed}: whole network {wholes[-1]:.2f} %")
        some = np.random.default_rng(seed).permutation(len(x))[:2048]
        for name, settings in METHODS.items():
            row = []
            for point in POINTS:
                smaller = pruned(model, settings, point, (x[some], y[some]), seed)
                before = accuracy(smaller, x_test, y_test)
                train(smaller, (x, y), options.finetune_epochs, 0.02, seed)
                row.append((before, accuracy(smaller, x_test, y_test)))
                say(f"{name}, {point} ×: {row[-1][0]:.2f} -> {row[-1][1]:.2f} %")
            found[name].append(row)
    mean = {name: np.mean(runs, axis=0) for name, runs in found.items()}
    picture = RESULTS / "fashion_mnist.png"
    draw({n: m[:, 1].tolist() for n, m in mean.items()}, float(np.mean(wholes)), picture)
    rows = [
        [name, *(f"{after:.2f} ({before:.2f})" for before, after in values)]
        for name, values in mean.items()
    ]
    results = table(["criterion", *(f"{p} × fewer MACs" for p in POINTS)], rows)
    print(results)
    write(
        "fashion_mnist",
        "A small VGG on Fashion-MNIST",
        here_and_now(),
        f"Six convolutions of {options.width} to {4 * options.width} filters, "
        f"{options.epochs} epochs: {np.mean(wholes):.2f} % of the test images. After "
        f"{options.finetune_epochs} epoch(s) of fine-tuning, and before in brackets; mean of the "
        f"seeds {options.seeds}. *ridurre* is squared gate Taylor per MAC in six steps with "
        "repair by least squares; the others take the same fraction of every layer.",
        results,
        "![Accuracy against MACs](fashion_mnist.png)",
    )


if __name__ == "__main__":
    main()
