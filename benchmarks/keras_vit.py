"""What torch_pruning_vit.py runs for the ridurre side, command for command like torch_vit.py."""

from __future__ import annotations

import time
from typing import Any

import keras
import keras_worker
from common import peak_mb, reset_peak, serve
from keras_worker import count, lowest_half
from sequence_tasks import vit

import ridurre

WIDTH, DEPTH, HEADS, PATCH, SIZE, CLASSES = 768, 12, 12, 16, 224, 1000


class Bench(keras_worker.Bench):
    """ViT-B/16 and what is measured on it."""

    def build(self, name: str) -> dict[str, Any]:
        keras.utils.set_random_seed(0)
        self.model = vit((SIZE, SIZE, 3), PATCH, WIDTH, DEPTH, HEADS, CLASSES)
        return {
            "parameters": count(self.model),
            "versions": [f"keras {keras.__version__}", f"ridurre {ridurre.__version__}"],
        }

    def plan(self) -> ridurre.PruningPlan:
        """Half of the heads and half of the MLP width, the smaller L1 norms of each group."""
        graph = ridurre.DependencyGraph(self.model)
        inner = [g for g in graph.groups if g.size in (HEADS, 4 * WIDTH)]
        norms: dict[Any, Any] = {}
        return graph.get_pruning_plan({g: lowest_half(graph, g, norms) for g in inner})

    def whole(self) -> dict[str, float]:
        """Seconds and peak memory in MB of the cut, graph included."""
        before = reset_peak()
        start = time.perf_counter()
        smaller = self.plan().exec()
        elapsed = time.perf_counter() - start
        return {"seconds": elapsed, "peak": peak_mb() - before, "parameters": count(smaller)}

    def correct(self) -> dict[str, Any]:
        """Whether heads are whole, and how far the output is from that of zeroed weights."""
        plan = self.plan()
        smaller = plan.exec()
        blocks = [smaller.get_layer(f"block{i}_attention") for i in range(DEPTH)]
        sizes = {
            (b.num_heads, smaller.get_layer(f"block{i}_wide").units) for i, b in enumerate(blocks)
        }
        return {
            "whole": all(b.key_dim == b.value_dim == WIDTH // HEADS for b in blocks),
            "left": sorted(sizes),
            "difference": ridurre.verify(self.model, smaller, plan),
            "untold": None,
        }


if __name__ == "__main__":
    bench = Bench()
    serve(
        {
            f.__name__: f
            for f in (bench.build, bench.graph, bench.groups, bench.whole, bench.correct)
        }
    )
