r"""ResNet-20 on CIFAR-10 with single weights set to zero: accuracy against sparsity.

    python benchmarks/resnet20_sparsity.py                       # no fine-tuning, three seeds
    python benchmarks/resnet20_sparsity.py --resume --epochs 2   # and with two epochs

Starts from the published checkpoint (``--checkpoints``, ``--images``: see resnet_cifar.py). What is
reported follows Blalock et al., "What is the State of Neural Network Pruning?", MLSys 2020:
compression and theoretical speed-up (both original / remaining, of the whole network), several
operating points, mean and standard deviation over seeds, the unpruned network, and random pruning
and global magnitude as baselines. Every seed chooses other calibration images; training is the same
for all methods. Test images are read once per row, by the model of the last epoch. The classifier
is pruned like every other layer. The page is written anew after every row; with ``--resume``
what a run before has found (results/resnet20_sparsity.json) is not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import matplotlib
import numpy as np
import resnet_cifar as rc
from common import RESULTS, here_and_now, say, table, write

import keras  # isort: skip - `common` quietens it
import ridurre
from ridurre.criteria import BlockOBS

matplotlib.use("Agg")
from matplotlib import pyplot as plt

LEVELS = (0.5, 0.8, 0.9, 0.95)
WHOLE = 91.73
#: By name, the arguments of `ridurre.LevelPrune` besides the level, and the data that are needed.
METHODS: dict[str, tuple[dict[str, Any], str]] = {
    "random": ({"criterion": "random", "scope": "local"}, ""),
    "magnitude, layer": ({"scope": "local"}, ""),
    "magnitude, global": ({"scope": "global"}, ""),
    "LAMP": ({"criterion": "lamp", "scope": "global"}, ""),
    "gradient × weight, global": ({"criterion": "snip", "scope": "global"}, "labels"),
    "Wanda": ({"criterion": "wanda", "scope": "output"}, "samples"),
    "OBS with weight update": (
        {"criterion": BlockOBS(rows=4096), "scope": "global", "steps": 4, "schedule": "geometric",
         "recover": {"how": ["least_squares", "renormalise"], "max_rows": 8192, "rounds": 1}},
        "samples",
    ),
}  # fmt: skip
#: By method, level and epochs, and seed: accuracy, compression, speed-up, seconds to prune.
Found = dict[str, dict[str, list[float]]]


def one(
    method: str, level: float, epochs: list[int], images: rc.Images, seed: int, options: Any
) -> dict[int, list[float]]:
    """What one method does to the network, by epochs of fine-tuning."""
    model = rc.load(20, options.checkpoints)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    order = np.random.default_rng(seed).permutation(len(images.x_train))[: options.calibration]
    x, y = rc.normalise(images.x_train[order]), images.y_train[order]
    arguments, needs = METHODS[method]
    data = {"": None, "samples": x, "labels": (x, y)}[needs]
    start = time.perf_counter()
    strategy = ridurre.LevelPrune(level, data=data, seed=seed, **arguments)
    pruned = ridurre.prune(strategy, model)
    seconds = time.perf_counter() - start
    size = ridurre.model_complexity(pruned)
    figures = [size.parameters / size.nonzero, size.macs / size.nonzero_macs, seconds]
    found = {}
    for n in epochs:
        tuned = ridurre.strip(pruned)
        if n:
            with ridurre.keep_zeros(tuned):
                rc.fine_tune(tuned, images, n, seed, limit=options.train_limit)
            if ridurre.model_complexity(tuned).nonzero_macs != size.nonzero_macs:
                raise SystemExit("The masks did not hold.")
        found[n] = [rc.correct(tuned, images.x_test, images.y_test), *figures]
        say(f"{method}, {level:.0%}, seed {seed}, {n} epochs: {found[n][0]:.2f} %, {seconds:.0f} s")
    return found


def cell(runs: dict[str, list[float]] | None) -> str:
    if not runs:
        return ""
    accuracy = [run[0] for run in runs.values()]
    spread = f" ± {pstdev(accuracy):.2f}" if len(runs) > 1 else ""
    return f"{mean(accuracy):.2f}{spread}"


def page(found: Found) -> None:
    """Write, draw and print all that was found so far."""
    every_epochs = sorted({int(name.split("|")[2]) for name in found})
    rows = []
    for method in METHODS:
        for level in LEVELS:
            runs = [found.get(f"{method}|{level}|{n}") for n in every_epochs]
            known = next((r for r in runs if r), None)
            if known is None:
                continue
            compression, speedup, seconds = (mean(r[i] for r in known.values()) for i in (1, 2, 3))
            seeds = " / ".join(str(len(r or {})) for r in runs)
            rows.append(
                [method, f"{level:.0%}", f"{compression:.2f}", f"{speedup:.2f}",
                 *map(cell, runs), seeds, f"{seconds:.1f}"]
            )  # fmt: skip
    head = ["method", "sparsity of kernels", "compression", "theoretical speed-up",
            *(f"{n} epochs" for n in every_epochs), "seeds", "seconds to prune"]  # fmt: skip
    results = table(head, rows)
    print(results)
    (RESULTS / "resnet20_sparsity.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(found, every_epochs, RESULTS / "resnet20_sparsity.png")
    write(
        "resnet20_sparsity",
        "ResNet-20 on CIFAR-10, single weights set to zero",
        here_and_now(),
        f"Unpruned: {WHOLE} % of the 10000 test images; 270,896 parameters, 41 M MACs. Accuracy in "
        "percent, mean ± standard deviation over the seeds; rows of several runs stand together. "
        + " ".join(__doc__.split("\n\n")[2].split()),
        results,
        "![Accuracy against compression](resnet20_sparsity.png)",
    )


def draw(found: Found, every_epochs: list[int], path: Path) -> None:
    """Accuracy against compression, a panel for each number of epochs."""
    figure, panels = plt.subplots(
        1, len(every_epochs), figsize=(6 * len(every_epochs) + 2, 4), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for axes, epochs in zip(panels[0], every_epochs, strict=True):
        for method in METHODS:
            runs = [found.get(f"{method}|{level}|{epochs}") for level in LEVELS]
            points = [
                (mean(r[1] for r in run.values()), mean(r[0] for r in run.values()))
                for run in runs
                if run
            ]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", label=method)
        axes.axhline(WHOLE, color="grey", linestyle=":", label="unpruned")
        axes.set_xscale("log", base=2)
        axes.set_xlabel("compression (original / remaining parameters)")
        axes.set_ylabel("test accuracy, %")
        axes.set_title(f"{epochs} epochs of fine-tuning")
        axes.grid(alpha=0.3)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--levels", type=float, nargs="+", default=list(LEVELS))
    parser.add_argument("--epochs", type=int, nargs="+", default=[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train-limit", type=int, help="training images used")
    parser.add_argument("--calibration", type=int, default=1024, help="images to score on")
    parser.add_argument("--checkpoints", type=Path, default=rc.CHECKPOINTS)
    parser.add_argument("--images", type=Path, default=rc.IMAGES)
    parser.add_argument("--resume", action="store_true", help="add to what was found before")
    options = parser.parse_args()
    images, path = rc.load_images(options.images), RESULTS / "resnet20_sparsity.json"
    found: Found = json.loads(path.read_text()) if options.resume and path.exists() else {}
    for seed in options.seeds:
        for method in options.methods:
            for level in options.levels:
                names = {n: f"{method}|{level}|{n}" for n in options.epochs}
                missing = [n for n, k in names.items() if str(seed) not in found.get(k, {})]
                if not missing:
                    continue
                for n, values in one(method, level, missing, images, seed, options).items():
                    found.setdefault(names[n], {})[str(seed)] = values
                page(found)
    page(found)


if __name__ == "__main__":
    main()
