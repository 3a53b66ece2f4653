"""Peak memory of scoring and repair on ResNet50 at 224×224, beyond the model and the data.

    python benchmarks/memory.py

Every row is a process of its own, which has made predictions on a batch of 32 before it is watched.
Goal: under 3 GB.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import numpy as np
from common import here_and_now, peak_mb, reset_peak, say, table, write

import keras  # isort: skip - `common` quietens it
import ridurre
from ridurre import criteria

ROWS = {
    "l1": criteria.Magnitude(1),
    "fpgm": criteria.FPGM(),
    "wifv, 64 samples": criteria.WeightedVariance(samples=64),
    "obs, 64 samples": criteria.BlockOBS(samples=64),
    "gate_taylor, 2 batches of 32": criteria.GateTaylor(batches=2),
    "output_taylor, 2 batches of 32": criteria.OutputTaylor(batches=2),
    "group_fisher, 8 samples": criteria.GroupFisher(batches=8),
    "recover, least squares, 128 samples": None,
}


def worker(name: str) -> None:
    rng = np.random.default_rng(0)
    model = keras.applications.ResNet50(weights=None)
    model.compile(loss="sparse_categorical_crossentropy")
    x = rng.normal(size=(128, 224, 224, 3)).astype("float32")
    y = rng.integers(0, 1000, len(x))
    model.predict(x[:32], verbose=0)
    smaller, plan = ridurre.ChannelPrune(0.3).run(model)
    graph = ridurre.DependencyGraph(model)
    criterion = ROWS[name]
    before, start = reset_peak(), time.perf_counter()
    if criterion is None:
        ridurre.recover(smaller, model, plan, x)
    else:
        criterion.score(graph, (x, y))
    print(f"{peak_mb() - before:.0f} {time.perf_counter() - start:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker)
        return
    rows = []
    for name in ROWS:
        command = [sys.executable, __file__, "--worker", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append([name, *done.stdout.split()[-2:]])
        say(" | ".join(rows[-1]))
    results = table(("", "peak growth [MB]", "seconds"), rows)
    print(results)
    write(
        "memory",
        "Peak memory on ResNet50 at 224×224",
        here_and_now(),
        "Growth of the resident set over that after a prediction on 32 samples.",
        results,
    )


if __name__ == "__main__":
    main()
