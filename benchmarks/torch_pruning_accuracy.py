"""ridurre next to Torch-Pruning on ResNet-56 / CIFAR-10: accuracy and time to prune.

    python benchmarks/torch_pruning_accuracy.py --epochs 1 5

Same checkpoint, same MACs, same images, same training (SGD with Nesterov momentum, batches of 128,
learning rate from 0.02 to zero, 10 % warm-up, no distillation), same seeds. Torch-Pruning does not
follow the channels that option-A shortcuts pad, so residual streams are left alone there. Its
environment is that of torch_pruning.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import resnet_cifar as rc
from common import HERE, here_and_now, say, table, write
from resnet56_cifar10 import by_ridurre, repaired
from torch_pruning import python_of

import keras  # isort: skip - `common` quietens it
import ridurre

TORCH = {
    "Torch-Pruning, Taylor, global": ("taylor", "global"),
    "Torch-Pruning, L2, global": ("l2", "global"),
    "Torch-Pruning, L2, uniform": ("l2", "local"),
}


def by_torch(criterion: str, scope: str, options: Any, seed: int) -> dict[str, Any]:
    code = f"import sys; sys.path.append({str(HERE)!r}); import torch_resnet as t; t.main()"
    command = [
        str(python_of(options.env)), "-c", code, "--criterion", criterion, "--scope", scope,
        "--fewer", str(options.fewer), "--seed", str(seed), "--images", str(options.images),
        "--checkpoints", str(options.checkpoints), "--epochs", *map(str, options.epochs),
    ]  # fmt: skip
    if options.train_limit:
        command += ["--train-limit", str(options.train_limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE.parent)
    found = json.loads(done.stdout.splitlines()[-1])
    return found | {"accuracy": {int(k): v for k, v in found["accuracy"].items()}}


def by_keras(options: Any, seed: int, images: rc.Images) -> dict[str, Any]:
    model = rc.load(56, options.checkpoints)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    order = np.random.default_rng(seed).permutation(len(images.x_train))[:4096]
    x, y = rc.normalise(images.x_train[order]), images.y_train[order]
    start = time.perf_counter()
    ((_, smaller, plan),) = by_ridurre(model, (x, y), [options.fewer], seed)
    smaller = repaired(smaller, model, plan, x[:1024])
    seconds = time.perf_counter() - start
    macs = [ridurre.model_complexity(m).macs for m in (model, smaller)]
    accuracy = {0: rc.correct(smaller, images.x_test, images.y_test)}
    for epochs in options.epochs:
        tuned = keras.models.clone_model(smaller)
        tuned.set_weights(smaller.get_weights())
        rc.fine_tune(tuned, images, epochs, seed, limit=options.train_limit)
        accuracy[epochs] = rc.correct(tuned, images.x_test, images.y_test)
    return {"accuracy": accuracy, "fewer": macs[0] / macs[1], "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fewer", type=float, default=2.1, help="times fewer MACs")
    parser.add_argument("--epochs", type=int, nargs="*", default=[])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--train-limit", type=int)
    parser.add_argument("--checkpoints", type=Path, default=rc.CHECKPOINTS)
    parser.add_argument("--images", type=Path, default=rc.IMAGES)
    parser.add_argument("--env", type=Path, default=Path.home() / ".cache" / "ridurre-bench")
    options = parser.parse_args()
    images = rc.load_images(options.images)
    rows = []
    methods: dict[str, Any] = {
        "ridurre": lambda seed: by_keras(options, seed, images),
        **{n: lambda seed, a=a: by_torch(*a, options, seed) for n, a in TORCH.items()},
    }
    for name, run in methods.items():
        runs = []
        for seed in options.seeds:
            runs.append(run(seed))
            say(f"{name}, seed {seed}: {runs[-1]}")
        accuracy = [f"{mean(r['accuracy'][e] for r in runs):.2f}" for e in (0, *options.epochs)]
        fewer, seconds = (mean(r[key] for r in runs) for key in ("fewer", "seconds"))
        rows.append([name, f"{fewer:.2f}", *accuracy, f"{seconds:.0f}"])
    head = ["", "× fewer MACs", "no training", *(f"{e} epoch(s)" for e in options.epochs)]
    results = table([*head, "seconds to prune"], rows)
    print(results)
    write(
        "torch_pruning_accuracy",
        "ridurre next to Torch-Pruning: accuracy on ResNet-56 / CIFAR-10",
        here_and_now(),
        "Percent of the 10000 test images, mean of the seeds "
        f"{options.seeds}; 93.39 unpruned. " + " ".join(__doc__.split("\n\n")[2].split()),
        results,
    )


if __name__ == "__main__":
    main()
