"""What torch_pruning_vit.py runs in the environment that has PyTorch and Torch-Pruning.

ViT-B/16 in plain PyTorch: attention as in timm, with one layer for queries, keys and values, and
the average of all positions in front of the classifier.
"""

from __future__ import annotations

import copy
import time
from importlib import metadata
from typing import Any

import torch
import torch_pruning as tp
import torch_worker
from common import peak_mb, reset_peak, serve
from torch import nn
from torch_worker import CLASSES, SIZE, count

WIDTH, DEPTH, HEADS, WIDE, PATCH = 768, 12, 12, 3072, 16


class Attention(nn.Module):
    """Attention of all positions to all, with as many channels inside as `qkv` has."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, positions, _ = x.shape
        size = self.qkv.out_features // (3 * self.heads)
        parts = self.qkv(x).reshape(batch, positions, 3, self.heads, size)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        scores = ((q * size**-0.5) @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((scores @ v).transpose(1, 2).reshape(batch, positions, -1))


class Block(nn.Module):
    """Attention and an MLP, each normalised in front and added behind."""

    def __init__(self, width: int, heads: int, wide: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.attention = Attention(width, heads)
        self.fc1, self.fc2 = nn.Linear(width, wide), nn.Linear(wide, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.places = nn.Parameter(0.02 * torch.randn(1, (SIZE // PATCH) ** 2, WIDTH))
        self.blocks = nn.Sequential(*(Block(WIDTH, HEADS, WIDE) for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH, 1e-6)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.blocks(x)).mean(1))


def pruner_of(model: ViT, example: torch.Tensor) -> Any:
    """Half of the heads and half of the MLP width; the residual stream stays."""
    stays: list[nn.Module] = [model.patches, model.head]
    for block in model.blocks:
        stays += [block.attention.proj, block.fc2]
    return tp.pruner.BasePruner(
        model,
        example,
        importance=tp.importance.GroupMagnitudeImportance(p=1),
        pruning_ratio=0.5,
        ignored_layers=stays,
        num_heads={b.attention.qkv: HEADS for b in model.blocks},
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=0.5,
    )


def set_heads(model: ViT, pruner: Any) -> None:
    """Torch-Pruning knows how many heads are left; the model has to be told."""
    for block in model.blocks:
        block.attention.heads = pruner.num_heads[block.attention.qkv]


class Bench(torch_worker.Bench):
    """ViT-B/16 and what is measured on it."""

    def build(self, name: str) -> dict[str, Any]:
        torch.manual_seed(0)
        self.model = ViT().eval()
        self.example = torch.randn(1, 3, SIZE, SIZE)
        versions = [f"{p} {metadata.version(p)}" for p in ("torch", "torch-pruning")]
        return {"parameters": count(self.model), "versions": versions}

    def whole(self) -> dict[str, float]:
        """Seconds and peak memory in MB of the cut, graph included."""
        model = copy.deepcopy(self.model)
        before = reset_peak()
        start = time.perf_counter()
        pruner = pruner_of(model, self.example)
        pruner.step()
        set_heads(model, pruner)
        elapsed = time.perf_counter() - start
        return {"seconds": elapsed, "peak": peak_mb() - before, "parameters": count(model)}

    def correct(self) -> dict[str, Any]:
        """Whether heads are whole, and how far the output is from that of zeroed weights."""
        model, zeroed = copy.deepcopy(self.model), copy.deepcopy(self.model)
        pruner = pruner_of(model, self.example)
        twins = dict(zip(model.modules(), zeroed.modules(), strict=True))
        whole = True
        for group in pruner.step(interactive=True):
            for dependency, indices in group:
                layer, handler = dependency.target.module, dependency.handler
                if layer not in twins or not isinstance(layer, nn.Linear):
                    continue
                made = pruner.DG.is_out_channel_pruning_fn(handler)
                if not made:
                    with torch.no_grad():
                        twins[layer].weight[:, indices] = 0
                if WIDE not in (layer.in_features, layer.out_features):
                    whole &= is_whole(indices, WIDTH // HEADS)
            group.prune()
        with torch.no_grad():
            expected = zeroed(self.example)
            untold = distance(model, self.example, expected)
            set_heads(model, pruner)
            told = distance(model, self.example, expected)
        sizes = {(b.attention.heads, b.fc1.out_features) for b in model.blocks}
        return {"whole": whole, "left": sorted(sizes), "difference": told, "untold": untold}


def is_whole(indices: list[int], size: int) -> bool:
    """Whether indices are whole blocks of this size."""
    blocks = {i // size for i in indices}
    return sorted(indices) == [i for b in sorted(blocks) for i in range(b * size, (b + 1) * size)]


def distance(model: nn.Module, x: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, relative to the largest expected value."""
    return float((model(x) - expected).abs().max() / expected.abs().max())


def main() -> None:
    bench = Bench()
    serve({f.__name__: f for f in (bench.build, bench.graph, bench.whole, bench.correct)})
