"""Does a latency target hold when the result is timed? Original and pruned model in turns.

python benchmarks/latency_target.py
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
from common import here_and_now, ratio, say, table, write

import keras  # isort: skip - `common` quietens it
import ridurre
from ridurre.backend import run_compiled
from ridurre.measure import timed_in_turns


def timed_apart(models: list[keras.Model], repeats: int) -> list[list[float]]:
    """Seconds of predictions in a process of its own: the search leaves traces in this one."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{i}.keras") for i in range(len(models))]
        for model, file in zip(models, files, strict=True):
            model.save(file)
        command = [sys.executable, __file__, "--repeats", str(repeats), "--files", *map(str, files)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])


def timed(files: list[Path], repeats: int) -> list[list[float]]:
    """Seconds of predictions of models from files, in turns.

    One follows the other at once, as when a model is used, and as the target measures: with pauses
    in between, caches are cold, and large models lose more by that.
    """
    x = np.random.default_rng(0).normal(size=(1, 224, 224, 3)).astype("float32")
    models = [keras.saving.load_model(file) for file in files]
    return timed_in_turns([functools.partial(run_compiled(m), x) for m in models], repeats, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["MobileNetV2", "ResNet50"])
    parser.add_argument("--goal", type=float, default=0.6, help="fraction of the original's time")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--files", type=Path, nargs=2, help="only time these two, in turns")
    options = parser.parse_args()
    if options.files:
        return print(json.dumps(timed(options.files, options.repeats)))
    rows = []
    for name in options.models:
        model = getattr(keras.applications, name)(weights=None)
        target = ridurre.Latency(options.goal)
        smaller = ridurre.prune(ridurre.ChannelPrune(target=target), model)
        whole, pruned = timed_apart([model, smaller], options.repeats)
        macs = [ridurre.model_complexity(m).macs for m in (smaller, model)]
        rows.append(
            [
                name,
                f"{1000 * median(whole):.1f}",
                f"{1000 * median(pruned):.1f}",
                f"{ratio(pruned, whole):.2f}",
                f"{macs[0] / macs[1]:.2f}",
            ]
        )
        say(" | ".join(rows[-1]))
    results = table(("", "whole [ms]", "pruned [ms]", "ratio", "MACs left"), rows)
    print(results)
    write(
        "latency_target",
        f"Pruned to {options.goal} of the time of a prediction",
        here_and_now(),
        f"Batch of one, 224×224, the same fraction of every group; medians of {options.repeats} "
        "predictions in turns, in a process of its own with both models loaded from files.",
        results,
    )


if __name__ == "__main__":
    main()
