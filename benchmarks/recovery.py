"""What recovery without training gives back on ResNet-56 / CIFAR-10.

The same share of the filters with the smallest L1 norm goes from the first convolution of every
block; residual streams stay. Calibration images are clean training images, without labels. Judged
by the last 5000 training images (which the published network has learnt by heart: 100 %), or with
``--test``, once everything is decided, by the 10000 test images.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from common import here_and_now, say, table, write
from resnet_cifar import (
    CHECKPOINTS,
    IMAGES,
    augment,
    correct,
    load,
    load_images,
    normalise,
)

import keras  # isort: skip - `common` quietens it
import ridurre
from ridurre.graph import ChannelGraph
from ridurre.plan import Planner, PruningPlan

HELD_OUT = 5000
METHODS: dict[str, list[str]] = {
    "nothing": [],
    "merge": ["merge"],
    "mean": ["mean"],
    "batch_norm, augmented images": ["batch_norm"],
    "variance": ["variance"],
    "least_squares": ["least_squares"],
}


def internal_l1(model: keras.Model, keep: float) -> PruningPlan:
    """Keep this share of the filters inside every block, those with the largest L1 norm."""
    request = {}
    for layer in model.layers:
        if layer.name.endswith(".conv1"):
            norms = np.abs(keras.ops.convert_to_numpy(layer.kernel)).sum(axis=(0, 1, 2))
            request[layer.name] = np.argsort(norms)[: len(norms) - round(len(norms) * keep)]
    planner = Planner(ChannelGraph(model))
    return planner.plan(planner.alive(request))


def run(args: argparse.Namespace) -> list[list[str]]:
    images, model = load_images(args.images), load(args.depth, args.checkpoints)
    held = (images.x_train[-HELD_OUT:], images.y_train[-HELD_OUT:])
    judges = {"held-out training images": held}
    if args.test:
        judges["test images"] = (images.x_test, images.y_test)
    rng = np.random.default_rng(args.seed)
    chosen = images.x_train[rng.permutation(len(images.x_train) - HELD_OUT)[: args.samples]]
    clean, augmented = normalise(chosen), normalise(augment(chosen, rng))
    macs = ridurre.model_complexity(model).macs
    rows = []
    for keep in args.keep:
        plan = internal_l1(model, keep)
        pruned = ridurre.apply(model, plan)
        faster = macs / ridurre.model_complexity(pruned).macs
        for name in args.how:
            start = time.perf_counter()
            data = augmented if "augmented" in name else clean
            result = ridurre.recover(
                pruned, model, plan, data, METHODS[name], samples=None, seed=args.seed
            )
            seconds = time.perf_counter() - start
            marks = [f"{correct(result, *judge):.2f}" for judge in judges.values()]
            rows.append([name, f"{faster:.2f} ×", *marks, f"{seconds:.0f}"])
            say(" | ".join(rows[-1]))
    return [["recovery", "fewer MACs", *(f"% of {j}" for j in judges), "seconds"], *rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS)
    parser.add_argument("--images", type=Path, default=IMAGES)
    parser.add_argument("--depth", type=int, default=56)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5])
    parser.add_argument("--how", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test", action="store_true")
    args = parser.parse_args()
    header, *rows = run(args)
    text = (
        f"{args.samples} clean training images without labels (seed {args.seed}); L1, uniform, "
        "residual streams left alone; no fine-tuning."
    )
    write("recovery", "Recovery without training", here_and_now(), text, table(header, rows))


if __name__ == "__main__":
    main()
