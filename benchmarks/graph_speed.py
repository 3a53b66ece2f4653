"""How long the graph, the plan and the rebuilding take, next to Keras' own clone_model.

    python benchmarks/graph_speed.py

takes about 5 minutes on 2 cores and writes benchmarks/results/graph_speed.md. Everything is timed
in one process, in turns; ratios are medians over the turns of neighbouring measurements.

Goals: the graph of ResNet50 in under 100 ms; planning and rebuilding it in under 3 times what
`keras.models.clone_model` takes.
"""

from __future__ import annotations

import argparse
import gc
import time
from statistics import median
from typing import Any

import keras
from common import here_and_now, ratio, say, table, write

import ridurre

MODELS = ("ResNet50", "VGG16", "MobileNetV2", "DenseNet121", "EfficientNetB0")
HEADER = (
    "model", "layers", "groups", "graph [ms]", "+ groups [ms]", "plan [ms]", "rebuild [ms]",
    "clone_model [ms]", "plan + rebuild / clone", "the same, processor time",
    "one unit of each group: / clone",
)  # fmt: skip


def half(graph: Any) -> dict[Any, range]:
    """Half of every group goes."""
    return {g: range(g.size // 2) for g in graph.groups}


def one(graph: Any) -> dict[Any, range]:
    """One unit of every group goes: next to nothing, so the new model is as large as the clone."""
    return {g: range(1) for g in graph.groups}


def turn(model: Any) -> dict[str, float]:
    """Seconds of every stage, each once; "cpu_…" in processor time of the whole process."""
    times = {}

    def timed(name: str, action: Any) -> Any:
        gc.collect()
        start, start_cpu = time.perf_counter(), time.process_time()
        result = action()
        times[name] = time.perf_counter() - start
        times[f"cpu_{name}"] = time.process_time() - start_cpu
        return result

    timed("clone", lambda: keras.models.clone_model(model))
    graph = timed("graph", lambda: ridurre.DependencyGraph(model))
    timed("groups", lambda: graph.groups)
    for name, request in ("half", half(graph)), ("one", one(graph)):
        plan = timed(f"plan_{name}", lambda r=request: graph.get_pruning_plan(r))
        timed(f"exec_{name}", plan.exec)
        for clock in "", "cpu_":
            times[clock + name] = times[f"{clock}plan_{name}"] + times[f"{clock}exec_{name}"]
    return times


def measure(name: str, repeats: int) -> tuple[list[Any], bool]:
    """One row of the table, and whether the goals are met."""
    model = getattr(keras.applications, name)(weights=None)
    turns = []
    for i in range(repeats + 1):
        turns.append(turn(model))
        say(f"{name} {i}/{repeats}: " + _short(turns[-1]))
    times = {k: [t[k] for t in turns[1:]] for k in turns[0]}  # the first turn warms up
    graph = ridurre.DependencyGraph(model)
    ms = {k: 1000 * median(v) for k, v in times.items()}
    both = [a + b for a, b in zip(times["graph"], times["groups"], strict=True)]
    ratios = [
        ratio(times["half"], times["clone"]),
        ratio(times["cpu_half"], times["cpu_clone"]),
        ratio(times["one"], times["clone"]),
    ]
    row = [
        name, len(model.layers), len(graph.groups), f"{ms['graph']:.1f}",
        f"{1000 * median(both):.1f}", f"{ms['plan_half']:.1f}", f"{ms['exec_half']:.0f}",
        f"{ms['clone']:.0f}", *(f"{r:.2f}" for r in ratios),
    ]  # fmt: skip
    return row, median(both) < 0.1 and ratios[0] < 3


def _short(times: dict[str, float]) -> str:
    names = ("clone", "graph", "groups", "half", "one")
    return ", ".join(f"{k} {times[k]:.3f} ({times['cpu_' + k]:.3f} cpu)" for k in names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME")
    parser.add_argument("--repeats", type=int, default=9, help="turns (default: %(default)s)")
    options = parser.parse_args()
    rows = []
    for name in options.models:
        row, good = measure(name, options.repeats)
        rows.append(row)
        if name == "ResNet50":
            verdict = f"ResNet50: goals {'met' if good else 'MISSED'}"
            say(verdict)
    result = table(HEADER, rows)
    print(result)
    write(
        "graph_speed",
        "Graph, plan and rebuilding, next to clone_model",
        here_and_now(),
        f"Medians of {options.repeats} turns, 224×224 inputs, `weights=None`, float32. *graph*: "
        "`ridurre.DependencyGraph(model)`; *+ groups*: the same with its `groups`; *plan*: "
        "`get_pruning_plan` of half of every group; *rebuild*: `plan.exec()`, weights included; "
        "*clone_model*: `keras.models.clone_model(model)`, which makes fresh weights. The ratios "
        "are medians over turns. In the last column hardly anything is removed, so that the new "
        "model is as large as the clone.",
        result,
        "Goals for ResNet50: graph under 100 ms, plan and rebuild under 3 times the clone.",
    )


if __name__ == "__main__":
    main()
