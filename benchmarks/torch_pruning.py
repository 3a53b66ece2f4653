"""ridurre next to Torch-Pruning: building the graph, pruning half of everything, memory.

    python benchmarks/torch_pruning.py

makes a virtual environment with PyTorch and Torch-Pruning at first (about 1 GB, `--env DIR`), takes
about 20 minutes on 2 cores and writes benchmarks/results/torch_pruning.md. Both tools work on the
same five architectures at 224×224, in processes of their own that take turns.

Goals: the graph at least 10 times as fast, the whole cut no slower.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from common import HERE, Worker, here_and_now, other_python, ratio, say, table, write

MODELS = ("ResNet50", "VGG16", "MobileNetV2", "DenseNet121", "EfficientNetB0")
PACKAGES = ("torch==2.13.0", "torch-pruning==1.6.1", "numpy")
TOOLS = ("Torch-Pruning", "ridurre")
WORKERS = {"Torch-Pruning": "torch_worker", "ridurre": "keras_worker"}
#: What PyTorch and TensorFlow read their number of threads from.
THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")


def python_of(env: Path) -> Path:
    """The interpreter of Torch-Pruning's environment."""
    return other_python(env, PACKAGES, "torch_pruning")


def start(
    tool: str, python: Path, model: str, threads: int, workers: Mapping[str, str] = WORKERS
) -> tuple[Worker, dict[str, Any]]:
    """A worker of a tool with a model, and what it says about it."""
    os.environ |= dict.fromkeys(THREADS, str(threads))
    if tool == "ridurre":
        command = [sys.executable, str(HERE / f"{workers[tool]}.py")]
    else:  # this folder stands last, or this file would be taken for the package of its name
        load = f"import {workers[tool]} as w; w.main()"
        code = f"import sys; sys.path.append({str(HERE)!r}); {load}"
        command = [str(python), "-c", code]
    worker = Worker(command)
    return worker, worker.call("build", name=model)


def times_of(
    python: Path, model: str, repeats: int, threads: int, programs: Mapping[str, str] = WORKERS
) -> dict[str, Any]:
    """Times of both tools in turns, and what they are measured on."""
    workers, facts = {}, {}
    for tool in TOOLS:
        workers[tool], facts[tool] = start(tool, python, model, threads, programs)
    found: dict[str, Any] = {
        "facts": facts,
        **{tool: {"graph": [], "groups": [], "whole": [], "first": {}} for tool in TOOLS},
    }
    try:
        for i in range(repeats + 1):  # the first turn warms up
            for tool, worker in workers.items():
                seconds = {"graph": worker.call("graph")}
                if tool == "ridurre":
                    seconds["groups"] = worker.call("groups")
                whole = worker.call("whole")
                seconds["whole"] = whole["seconds"]
                found[tool]["left"] = whole["parameters"]
                for key, value in seconds.items():
                    if i:
                        found[tool][key].append(value)
                    else:
                        found[tool]["first"][key] = value
                say(f"{model} {i}/{repeats} {tool}: {seconds}")
    finally:
        for worker in workers.values():
            worker.__exit__()
    return found


def memory_of(
    python: Path, model: str, repeats: int, threads: int, programs: Mapping[str, str] = WORKERS
) -> dict[str, list[float]]:
    """Peak memory in MB of the whole cut, each time in a new process."""
    peaks: dict[str, list[float]] = {tool: [] for tool in TOOLS}
    for i in range(repeats):
        for tool in TOOLS:
            worker, _ = start(tool, python, model, threads, programs)
            with worker:
                peaks[tool].append(worker.call("whole")["peak"])
            say(f"{model} memory {i + 1}/{repeats} {tool}: {peaks[tool][-1]:.0f} MB")
    return peaks


def row_of(model: str, times: dict[str, Any], peaks: dict[str, list[float]]) -> list[Any]:
    """One row of the table of results."""
    theirs, ours = (times[t] for t in TOOLS)
    row: list[Any] = [model]
    for key, digits in ("graph", 0), ("whole", 0):
        row += [
            f"{1000 * median(theirs[key]):.{digits}f}",
            f"{1000 * median(ours[key]):.{digits}f}",
            f"**{ratio(theirs[key], ours[key]):.1f}**",
        ]
    row.insert(4, f"{ratio(theirs['graph'], ours['groups']):.1f}")
    a, b = (median(peaks[t]) for t in TOOLS)
    return [*row, f"{a:.0f}", f"{b:.0f}", f"**{a / b:.1f}**"]


def first_row(model: str, times: dict[str, Any]) -> list[Any]:
    """The first calls in a new process, with whatever is loaded and compiled then."""
    row: list[Any] = [model]
    for key in ("graph", "whole"):
        a, b = (times[tool]["first"][key] for tool in TOOLS)
        row += [f"{1000 * a:.0f}", f"{1000 * b:.0f}", f"{a / b:.1f}"]
    return row


def size_row(model: str, times: dict[str, Any]) -> list[Any]:
    """What both tools started from and what they left."""
    row: list[Any] = [model]
    for tool in TOOLS:
        whole = times["facts"][tool]["parameters"]
        row += [f"{whole:,}", f"{times[tool]['left']:,}"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS, metavar="NAME")
    parser.add_argument("--repeats", type=int, default=7, help="turns (default: %(default)s)")
    parser.add_argument(
        "--memory-repeats", type=int, default=3, help="new processes (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="of each tool (default: %(default)s)"
    )
    parser.add_argument(
        "--env",
        type=Path,
        default=Path.home() / ".cache" / "ridurre-bench",
        help="where PyTorch is or will be installed (default: %(default)s)",
    )
    options = parser.parse_args()
    python = python_of(options.env)
    rows, firsts, sizes, versions = [], [], [], []
    for model in options.models:
        times = times_of(python, model, options.repeats, options.threads)
        counts = [times["facts"][t]["parameters"] for t in TOOLS]
        if abs(counts[0] - counts[1]) > 0.01 * counts[1]:
            raise SystemExit(f"{model}: the two models are not the same ({counts} parameters)")
        versions = [v for t in TOOLS for v in times["facts"][t]["versions"]]
        peaks = memory_of(python, model, options.memory_repeats, options.threads)
        rows.append(row_of(model, times, peaks))
        firsts.append(first_row(model, times))
        sizes.append(size_row(model, times))
        say(" | ".join(map(str, rows[-1])))
    header = (
        "model", "graph: TP [ms]", "ridurre [ms]", "times faster", "with groups listed",
        "whole cut: TP [ms]", "ridurre [ms]", "times faster", "peak memory: TP [MB]",
        "ridurre [MB]", "times less",
    )  # fmt: skip
    results = table(header, rows)
    print(results)
    write(
        "torch_pruning",
        "ridurre next to Torch-Pruning",
        here_and_now() + " " + ", ".join(versions) + ".",
        f"Wall times, medians of {options.repeats} turns after one to warm up; each tool in a "
        f"process of its own with {options.threads} thread(s), the two take turns; "
        "ratios are medians over neighbouring turns. Input 224×224, float32, random weights.",
        "- *graph*: `tp.DependencyGraph().build_dependency(model, example_inputs)` against "
        "`ridurre.DependencyGraph(model)`; *with groups listed*: against the same with its "
        "`groups`, which Torch-Pruning's figure does not contain.\n"
        "- *whole cut*: Torch-Pruning's `BasePruner(…, GroupMagnitudeImportance(p=1), "
        "pruning_ratio=0.5, ignored_layers=[classifier])` and `step()`, against ridurre's graph, "
        "L1 norms of all groups, plan of the lower half of each, and `exec()`. Torch-Pruning "
        "changes its model in place; ridurre builds a new one and leaves the original, so its "
        "time and memory contain a second (smaller) model. Copying the model for Torch-Pruning "
        "beforehand is not counted.\n"
        "- *peak memory*: growth of the resident set during the whole cut, in a new process each "
        "time (what is loaded at the first use counts).",
        results,
        "First calls of a new process (one measurement each):",
        table(
            (
                "model",
                "graph: TP [ms]",
                "ridurre [ms]",
                "times faster",
                "whole cut: TP [ms]",
                "ridurre [ms]",
                "times faster",
            ),
            firsts,
        ),
        "Trainable parameters before and after:",
        table(("model", "TP before", "after", "ridurre before", "after"), sizes),
        "Goals: graph at least 10 times as fast, the whole cut no slower.",
    )


if __name__ == "__main__":
    main()
