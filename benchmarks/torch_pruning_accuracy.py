"""ridurre next to Torch-Pruning on ResNet-56 / CIFAR-10: accuracy and time to prune.

    python benchmarks/torch_pruning_accuracy.py --epochs 1 5

Same checkpoint, same MACs, same images, same training (SGD with Nesterov momentum, batches of 128,
learning rate from 0.02 to zero, 10 % warm-up, no distillation), same seeds. Before training,
ridurre's network goes through ``recover(…, "renormalise")``. Torch-Pruning does not
follow the channels that option-A shortcuts pad, so residual streams are left alone there, and by
ridurre's L2. Both of ridurre's rows are refitted in steps, by least squares. Torch-Pruning's
environment is that of torch_pruning.py.

The page is written anew after every run; with ``--resume``, what a run before has found
(results/torch_pruning_accuracy.json) is not run again.
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
from common import HERE, RESULTS, here_and_now, say, table, write
from resnet56_cifar10 import by_ridurre, ready, repaired
from torch_pruning import python_of

import keras  # isort: skip - `common` quietens it
import ridurre

OWN: dict[str, dict[str, Any]] = {
    "ridurre": {},
    "ridurre, L2, global": {"streams": "leave", "criterion": "l2", "cost": None},
}
TORCH = {
    "Torch-Pruning, Taylor, global": ("taylor", "global"),
    "Torch-Pruning, L2, global": ("l2", "global"),
    "Torch-Pruning, L2, uniform": ("l2", "local"),
}
METHODS = [*OWN, *TORCH]


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
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def by_keras(
    arguments: dict[str, Any], options: Any, seed: int, images: rc.Images
) -> dict[str, Any]:
    model = rc.load(56, options.checkpoints)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    order = np.random.default_rng(seed).permutation(len(images.x_train))[:4096]
    x, y = rc.normalise(images.x_train[order]), images.y_train[order]
    start = time.perf_counter()
    ((_, smaller, plan),) = by_ridurre(model, (x, y), [options.fewer], seed, **arguments)
    smaller = repaired(smaller, model, plan, x[:1024])
    seconds = time.perf_counter() - start
    macs = [ridurre.model_complexity(m).macs for m in (model, smaller)]
    accuracy = {0: rc.correct(smaller, images.x_test, images.y_test)}
    for epochs in options.epochs:
        tuned = ready(smaller, model, plan, images.x_train[order])
        rc.fine_tune(tuned, images, epochs, seed, limit=options.train_limit)
        accuracy[epochs] = rc.correct(tuned, images.x_test, images.y_test)
    return {"accuracy": accuracy, "fewer": macs[0] / macs[1], "seconds": seconds}


#: By method and seed, what was found; epochs are text, as JSON wants it.
FoundRuns = dict[str, dict[str, dict[str, Any]]]


def page(found: FoundRuns) -> None:
    """Write and print the table of all that was found so far."""
    every = [run for runs in found.values() for run in runs.values()]
    epochs = sorted({int(e) for run in every for e in run["accuracy"]})
    rows = []
    for name in [n for n in METHODS if n in found]:
        runs = found[name]
        fewer, seconds = (mean(r[key] for r in runs.values()) for key in ("fewer", "seconds"))
        accuracy = [[r["accuracy"].get(str(e)) for r in runs.values()] for e in epochs]
        cells = ["" if None in a else f"{mean(a):.2f}" for a in accuracy]
        rows.append([name, f"{fewer:.2f}", *cells, " ".join(sorted(runs)), f"{seconds:.0f}"])
    trained = [f"{e} epoch(s)" if e else "no training" for e in epochs]
    results = table(["", "× fewer MACs", *trained, "seeds", "seconds to prune"], rows)
    print(results)
    (RESULTS / "torch_pruning_accuracy.json").write_text(json.dumps(found, indent=1) + "\n")
    write(
        "torch_pruning_accuracy",
        "ridurre next to Torch-Pruning: accuracy on ResNet-56 / CIFAR-10",
        here_and_now(),
        "Percent of the 10000 test images, mean of the seeds; 93.39 unpruned. "
        + " ".join(__doc__.split("\n\n")[2].split()),
        results,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fewer", type=float, default=2.1, help="times fewer MACs")
    parser.add_argument("--epochs", type=int, nargs="*", default=[])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--train-limit", type=int)
    parser.add_argument("--checkpoints", type=Path, default=rc.CHECKPOINTS)
    parser.add_argument("--images", type=Path, default=rc.IMAGES)
    parser.add_argument("--env", type=Path, default=Path.home() / ".cache" / "ridurre-bench")
    parser.add_argument("--resume", action="store_true", help="add to what was found before")
    options = parser.parse_args()
    images, path = rc.load_images(options.images), RESULTS / "torch_pruning_accuracy.json"
    found: FoundRuns = json.loads(path.read_text()) if options.resume and path.exists() else {}
    wanted = {str(e) for e in (0, *options.epochs)}
    for seed in options.seeds:
        for name in options.methods:
            known = found.setdefault(name, {})
            if wanted <= known.get(str(seed), {"accuracy": {}})["accuracy"].keys():
                continue
            if name in OWN:
                run = by_keras(OWN[name], options, seed, images)
            else:
                run = by_torch(*TORCH[name], options, seed)
            say(f"{name}, seed {seed}: {run}")
            run["accuracy"] = {str(e): value for e, value in run["accuracy"].items()}
            known[str(seed)] = run
            page(found)
    page(found)


if __name__ == "__main__":
    main()
