"""What torch_pruning.py runs for the ridurre side, command for command like torch_worker.py."""

from __future__ import annotations

import gc
import time
from typing import Any

import keras
import numpy as np
from common import peak_mb, reset_peak, serve

import ridurre
from ridurre.criteria.weights import group_norms


class Bench:
    """One model and what is measured on it."""

    def build(self, name: str) -> dict[str, Any]:
        keras.utils.set_random_seed(0)
        self.model = getattr(keras.applications, name)(weights=None)
        return {
            "parameters": count(self.model),
            "versions": [f"keras {keras.__version__}", f"ridurre {ridurre.__version__}"],
        }

    def graph(self) -> float:
        """Seconds to build the dependency graph."""
        gc.collect()
        start = time.perf_counter()
        graph = ridurre.DependencyGraph(self.model)
        elapsed = time.perf_counter() - start
        del graph
        return elapsed

    def groups(self) -> float:
        """Seconds to build the dependency graph and list all of its groups."""
        gc.collect()
        start = time.perf_counter()
        groups = ridurre.DependencyGraph(self.model).groups
        elapsed = time.perf_counter() - start
        del groups
        return elapsed

    def whole(self) -> dict[str, float]:
        """Seconds and peak memory in MB of pruning half of all channels, graph included."""
        before = reset_peak()
        start = time.perf_counter()
        graph = ridurre.DependencyGraph(self.model)
        norms: dict[Any, Any] = {}
        request = {g: lowest_half(graph, g, norms) for g in graph.groups}
        smaller = graph.get_pruning_plan(request).exec()
        elapsed = time.perf_counter() - start
        return {"seconds": elapsed, "peak": peak_mb() - before, "parameters": count(smaller)}


def lowest_half(graph: Any, group: Any, norms: dict[Any, Any]) -> np.ndarray:
    """The half of a group with the smaller L1 norms."""
    size = np.sum(group_norms(graph, group, known=norms), axis=0)
    return np.argsort(size, kind="stable")[: group.size // 2]


def count(model: Any) -> int:
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


if __name__ == "__main__":
    bench = Bench()
    serve(
        {"build": bench.build, "graph": bench.graph, "groups": bench.groups, "whole": bench.whole}
    )
