"""Does a latency target hold when the result is timed? Original and pruned model in turns.

python benchmarks/latency_target.py
"""

from __future__ import annotations

import argparse
import functools
from statistics import median

import numpy as np
from common import here_and_now, interleaved, ratio, say, table, write

import keras  # isort: skip - `common` quietens it
import ridurre
from ridurre.backend import run_compiled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["MobileNetV2", "ResNet50"])
    parser.add_argument("--goal", type=float, default=0.6, help="fraction of the original's time")
    parser.add_argument("--repeats", type=int, default=50)
    options = parser.parse_args()
    rows = []
    for name in options.models:
        model = getattr(keras.applications, name)(weights=None)
        target = ridurre.Latency(options.goal)
        smaller = ridurre.prune(ridurre.ChannelPrune(target=target), model)
        x = np.zeros((1, 224, 224, 3), "float32")
        actions = {
            "whole": functools.partial(run_compiled(model), x),
            "pruned": functools.partial(run_compiled(smaller), x),
        }
        times = interleaved(actions, options.repeats, warmup=5)
        macs = [ridurre.model_complexity(m).macs for m in (smaller, model)]
        rows.append(
            [
                name,
                f"{1000 * median(times['whole']):.1f}",
                f"{1000 * median(times['pruned']):.1f}",
                f"{ratio(times['pruned'], times['whole']):.2f}",
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
        "predictions in turns.",
        results,
    )


if __name__ == "__main__":
    main()
