"""ridurre next to Torch-Pruning on ViT-B/16: the graph, half of the heads and the MLP, memory.

    python benchmarks/torch_pruning_vit.py

uses the environment of torch_pruning.py, which is made at first (`--env DIR`), and writes
benchmarks/results/torch_pruning_vit.md. Both tools cut half of the heads and half of the MLP width
of every block, in processes of their own that take turns; then it is checked that heads were cut
whole and that the output is what it has to be.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import here_and_now, say, table, write
from torch_pruning import (
    TOOLS,
    first_row,
    memory_of,
    python_of,
    row_of,
    size_row,
    start,
    times_of,
)

MODEL = "ViT-B/16"
WORKERS = {"Torch-Pruning": "torch_vit", "ridurre": "keras_vit"}


def check(python: Path, threads: int) -> list[list[Any]]:
    """A line for each tool: are heads whole, and is the output right?"""
    rows = []
    for tool in TOOLS:
        worker, _ = start(tool, python, MODEL, threads, WORKERS)
        with worker:
            found = worker.call("correct")
        say(f"{tool}: {found}")
        left = "; ".join(f"{heads} heads, {wide} units" for heads, wide in found["left"])
        untold = "" if found["untold"] is None else f"{found['untold']:.1e}"
        whole = "yes" if found["whole"] else "**no**"
        rows.append([tool, left, whole, f"{found['difference']:.1e}", untold])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="turns (default: %(default)s)")
    parser.add_argument("--memory-repeats", type=int, default=3, help="new processes")
    parser.add_argument("--threads", type=int, default=1, help="of each tool")
    parser.add_argument("--env", type=Path, default=Path.home() / ".cache" / "ridurre-bench")
    options = parser.parse_args()
    python = python_of(options.env)
    right = check(python, options.threads)
    times = times_of(python, MODEL, options.repeats, options.threads, WORKERS)
    peaks = memory_of(python, MODEL, options.memory_repeats, options.threads, WORKERS)
    versions = [v for t in TOOLS for v in times["facts"][t]["versions"]]
    head = ("model", "graph: TP [ms]", "ridurre [ms]", "times faster", "with groups listed",
            "whole cut: TP [ms]", "ridurre [ms]", "times faster", "peak memory: TP [MB]",
            "ridurre [MB]", "times less")  # fmt: skip
    firsts = ("model", "graph: TP [ms]", "ridurre [ms]", "times faster",
              "whole cut: TP [ms]", "ridurre [ms]", "times faster")  # fmt: skip
    results = table(head, [row_of(MODEL, times, peaks)])
    print(results)
    write(
        "torch_pruning_vit",
        "ridurre next to Torch-Pruning on ViT-B/16",
        here_and_now() + " " + ", ".join(versions) + ".",
        "224×224, patches of 16, width 768, 12 blocks, 12 heads, MLP 3072, average of all "
        "positions, 1000 classes, float32, random weights. Both cut half of the heads and half of "
        "the MLP width of every block and leave the residual stream alone. Torch-Pruning is given "
        "`num_heads`, `prune_num_heads=True`, `prune_head_dims=False`, `head_pruning_ratio=0.5`, "
        "`pruning_ratio=0.5`, and patches, projections, second MLP layers and classifier to "
        "ignore, as its examples for timm do.",
        f"Wall times, medians of {options.repeats} turns after one to warm up; each tool in a "
        f"process of its own with {options.threads} thread(s), the two take turns; ratios are "
        "medians over neighbouring turns. What is timed is explained in "
        "[torch_pruning](torch_pruning.md): Torch-Pruning changes its model in place, ridurre "
        "builds a second one, whose weights are part of its time and memory.",
        results,
        "First calls of a new process (one measurement each):",
        table(firsts, [first_row(MODEL, times)]),
        "Trainable parameters before and after:",
        table(("model", "TP before", "after", "ridurre before", "after"), [size_row(MODEL, times)]),
        "Correctness: the largest difference of the outputs for random pictures to those of the "
        "original whose slices that read the removed heads and units are zero, relative to the "
        "largest output.",
        table(
            ("tool", "left in every block", "heads whole", "difference", "number of heads not set"),
            right,
        ),
        "*Number of heads not set*: Torch-Pruning cuts the weights and leaves the attention "
        "module's own number of heads to the user; the last column is the difference where that is "
        "forgotten and the module derives the size of a head from its weights. ridurre rebuilds "
        "the layer with its new configuration.",
        "Not compared: timm's and torchvision's own classes (there is no torchvision beside this "
        "PyTorch build; the model is written in plain PyTorch, with attention as in timm); one "
        "layer for queries, keys and values there, three in Keras; the "
        "choice of heads, which rests on different random weights and on norms over different "
        "layouts; time of a forward pass, which is PyTorch's and TensorFlow's.",
    )


if __name__ == "__main__":
    main()
