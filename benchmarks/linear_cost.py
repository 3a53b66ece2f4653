"""Whether cost grows linearly: chains of residual blocks of 100 to 3000 layers.

    python benchmarks/linear_cost.py

takes about 20 minutes on 2 cores and writes benchmarks/results/linear_cost.md. Every model is built
in a process of its own; these take turns in the measurements. Times are processor times of the
whole process, which other work on the machine disturbs less than wall times.

Goal: time and memory per layer of graph, plan and rebuilding constant within 30 %.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import tracemalloc
from collections.abc import Callable
from statistics import median
from typing import Any

import keras
from common import Worker, here_and_now, say, serve, table, write
from keras import layers as kl

import ridurre

SIZES = (100, 300, 1000, 3000)
#: Stages, and how many layers they run over in one turn: the short ones are repeated.
ROUNDS = {"graph": 3000, "groups": 3000, "plan": 3000, "rebuild": 300, "clone": 300}
LABELS = {
    "graph": "graph",
    "groups": "groups",
    "plan": "plan",
    "rebuild": "rebuild",
    "clone": "Keras' clone_model",
}
KINDS = {
    "stages": "a new stage with a projection every 4 blocks (many groups)",
    "one": "one stage: one group through all blocks",
    "grouped": "one stage, the blocks' first convolutions have two groups",
}


def chain(layers: int, kind: str) -> Any:
    """Residual blocks of 7 layers on 8 to 12 channels; `layers` is what they add up to, nearly."""

    def conv(x: Any, width: int, size: int, groups: int = 1) -> Any:
        x = kl.Conv2D(width, size, padding="same", use_bias=False, groups=groups)(x)
        return kl.BatchNormalization()(x)

    inputs = keras.Input((8, 8, 3))
    x = kl.ReLU()(conv(inputs, 8, 3))
    made, block = 4, 0
    while made < layers - 9:
        width = 8 + 2 * (block // 4 % 3) if kind == "stages" else 8
        shortcut = x if x.shape[-1] == width else conv(x, width, 1)
        made += 7 + 2 * (shortcut is not x)
        y = conv(kl.ReLU()(conv(x, 8, 3, 1 + (kind == "grouped"))), width, 3)
        x = kl.ReLU()(kl.Add()([y, shortcut]))
        block += 1
    outputs = kl.Dense(10)(kl.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs)


class Bench:
    """One model and what is measured on it."""

    def build(self, layers: int, kind: str) -> dict[str, Any]:
        start = time.perf_counter()
        self.model = chain(layers, kind)
        elapsed = time.perf_counter() - start
        graph = ridurre.DependencyGraph(self.model)
        return {
            "layers": len(self.model.layers),
            "groups": len(graph.groups),
            "seconds": elapsed,
        }

    def time(self) -> dict[str, float]:
        """Seconds of processor time of every stage; on small models the mean of several rounds."""
        rounds = {name: max(1, most // len(self.model.layers)) for name, most in ROUNDS.items()}
        spent = dict.fromkeys(ROUNDS, 0.0)

        def timed(name: str, action: Callable[[], Any]) -> Any:
            if turn >= rounds[name]:
                return None
            gc.collect()
            start = time.process_time()
            result = action()
            spent[name] += time.process_time() - start
            return result

        turn = 0
        while turn < max(rounds.values()):
            self._stages(timed)
            turn += 1
        return {name: seconds / rounds[name] for name, seconds in spent.items()}

    def memory(self) -> dict[str, tuple[int, int]]:
        """Bytes of Python and NumPy that every stage has allocated at its peak, and has left."""
        found: dict[str, tuple[int, int]] = {}

        def traced(name: str, action: Callable[[], Any]) -> Any:
            gc.collect()
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            result = action()
            peak = tracemalloc.get_traced_memory()[1]
            gc.collect()
            found[name] = (peak - before, tracemalloc.get_traced_memory()[0] - before)
            return result

        tracemalloc.start()
        self._stages(traced)
        tracemalloc.stop()
        return found

    def _stages(self, run: Callable[[str, Callable[[], Any]], Any]) -> None:
        graph = run("graph", lambda: ridurre.DependencyGraph(self.model))
        groups = run("groups", lambda: graph.groups)
        request = {g: range(g.size // 2) for g in groups}
        plan = run("plan", lambda: graph.get_pruning_plan(request))
        smaller = run("rebuild", plan.exec)
        del smaller
        run("clone", lambda: keras.models.clone_model(self.model))


def worker() -> None:
    sys.setrecursionlimit(50_000)  # keras.Model follows the graph recursively, whatever its depth
    bench = Bench()
    serve({"build": bench.build, "time": bench.time, "memory": bench.memory})


def measure(kind: str, sizes: list[int], repeats: int) -> str:
    """The tables of one kind of chain."""
    workers = {n: Worker([sys.executable, __file__, "--worker"], 1800) for n in sizes}
    try:
        facts = {}
        for n, w in workers.items():
            facts[n] = w.call("build", layers=n, kind=kind)
            say(f"{kind}: {facts[n]}")
        times: dict[int, list[dict[str, float]]] = {n: [] for n in sizes}
        for i in range(repeats + 1):
            for n, w in workers.items():
                times[n].append(w.call("time"))
                text = ", ".join(f"{k} {v:.3f}" for k, v in times[n][-1].items())
                say(f"{kind} {n} layers, turn {i}/{repeats}: {text}")
        memory = {}
        for n, w in workers.items():
            memory[n] = w.call("memory")
            say(f"{kind} {n} layers, memory: {memory[n]}")
    finally:
        for w in workers.values():
            w.__exit__()
    per_layer = {
        s: [1e6 * median(t[s] for t in times[n][1:]) / facts[n]["layers"] for n in sizes]
        for s in ROUNDS
    }
    peak = {s: [memory[n][s][0] / 1024 / facts[n]["layers"] for n in sizes] for s in ROUNDS}
    counts = ", ".join(f"{facts[n]['layers']} ({facts[n]['groups']})" for n in sizes)
    return "\n\n".join([
        f"## {kind}: {KINDS[kind]}",
        f"Layers (groups): {counts}.",
        "Processor time per layer in µs:",
        _spread(per_layer, sizes, ".0f"),
        "Peak memory per layer in KiB (tracemalloc: Python objects and NumPy arrays):",
        _spread(peak, sizes, ".1f"),
    ])  # fmt: skip


def _spread(values: dict[str, list[float]], sizes: list[int], form: str) -> str:
    header = ["", *(f"{n} layers" for n in sizes), "largest / smallest"]
    rows = [
        [LABELS[s], *(format(v, form) for v in row), f"{max(row) / min(row):.2f}"]
        for s, row in values.items()
    ]
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), metavar="LAYERS")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--repeats", type=int, default=5, help="turns (default: %(default)s)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker()
        return
    parts = [measure(kind, options.sizes, options.repeats) for kind in options.kinds]
    print("\n\n".join(parts))
    write(
        "linear_cost",
        "Cost per layer of chains of residual blocks",
        here_and_now(),
        f"Medians of {options.repeats} turns; every model in its own process, the processes take "
        "turns. Times are processor times of the whole process. *graph*: "
        "`ridurre.DependencyGraph(model)`; *groups*: its `groups`; *plan*: half of every group; "
        "*rebuild*: `plan.exec()`. Keras' own `clone_model` stands below for comparison. Goal: "
        "the last column at most 1.30.",
        *parts,
    )


if __name__ == "__main__":
    main()
