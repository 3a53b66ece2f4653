"""ResNet-56 / CIFAR-10 pruned by Torch-Pruning; torch_pruning_accuracy.py runs this.

Prints one line of JSON: accuracies by epochs of fine-tuning, times fewer MACs, seconds to prune.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch_pruning as tp
from cifar import augmented_batches, load_images, normalise
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Two 3×3 convolutions and an option-A shortcut; names are those of the checkpoint."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.edge = outputs // 4 if stride > 1 else 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.edge:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.edge, self.edge))
        return functional.relu(y + x)


class ResNet(nn.Module):
    def __init__(self, depth: int = 56) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        width = 16
        for stage, outputs in enumerate((16, 32, 64), 1):
            blocks = []
            for i in range((depth - 2) // 6):
                blocks.append(Block(width, outputs, 2 if stage > 1 and i == 0 else 1))
                width = outputs
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def load(folder: Path) -> nn.Module:
    model = ResNet()
    with np.load(folder / "resnet56_cifar10.npz") as file:
        state = {name: torch.tensor(file[name]) for name in file.files}
    missing, unknown = model.load_state_dict(state, strict=False)
    if unknown or any("num_batches" not in name for name in missing):
        raise SystemExit(f"The checkpoint does not fit: {missing}, {unknown}")
    return model.eval()


def tensors(x: np.ndarray, y: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(y.astype("int64"))


def correct(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    model.eval()
    hits = 0
    with torch.no_grad():
        for start in range(0, len(images), 250):
            x, y = tensors(normalise(images[start : start + 250]), labels[start : start + 250])
            hits += int((model(x).argmax(1) == y).sum())
    return 100 * hits / len(images)


def prune(model: nn.Module, options: argparse.Namespace, x: np.ndarray, y: np.ndarray) -> float:
    """Prune in place to the MACs that are wanted; returns how many times fewer there are."""
    example = torch.randn(1, 3, 32, 32)
    whole = tp.utils.count_ops_and_params(model, example)[0]
    taylor = options.criterion == "taylor"
    importance = (
        tp.importance.GroupTaylorImportance()
        if taylor
        else tp.importance.GroupMagnitudeImportance(p=2)
    )
    # Channels padded by the shortcuts are beyond it, so residual streams are left alone.
    streams = [m for n, m in model.named_modules() if n == "conv1" or n.endswith(".conv2")]
    pruner = tp.pruner.BasePruner(
        model,
        example,
        importance=importance,
        global_pruning=options.scope == "global",
        pruning_ratio=1.0,
        max_pruning_ratio=0.9,
        iterative_steps=options.steps,
        ignored_layers=[*streams, model.linear],
    )
    for step in range(options.steps):
        if taylor:
            model.zero_grad()
            rows = slice(step % 4 * 1024, step % 4 * 1024 + 1024)
            for a, b in zip(*(t.split(128) for t in tensors(x[rows], y[rows])), strict=True):
                (functional.cross_entropy(model(a), b) / 8).backward()
        pruner.step()
        fewer = whole / tp.utils.count_ops_and_params(model, example)[0]
        if fewer >= options.fewer:
            break
    model.zero_grad()
    return fewer


def train(model: nn.Module, images: np.ndarray, labels: np.ndarray, epochs: int, seed: int) -> None:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    steps, warmup = epochs * -(-len(images) // 128), max(1, epochs * -(-len(images) // 128) // 10)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.02, momentum=0.9, nesterov=True)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: (t + 1) / warmup if t < warmup else (steps - t) / (steps - warmup)
    )
    model.train()
    for _ in range(epochs):
        for a, b in augmented_batches(images, labels, 128, rng):
            x, y = tensors(a, b)
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            rate.step()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--criterion", choices=("taylor", "l2"), default="taylor")
    parser.add_argument("--scope", choices=("global", "local"), default="global")
    parser.add_argument("--fewer", type=float, default=2.0)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--epochs", type=int, nargs="*", default=[])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-limit", type=int)
    parser.add_argument("--checkpoints", type=Path)
    parser.add_argument("--images", type=Path)
    options = parser.parse_args()
    images = load_images(options.images)
    model = load(options.checkpoints)
    order = np.random.default_rng(options.seed).permutation(len(images.x_train))[:4096]
    start = time.perf_counter()
    fewer = prune(model, options, normalise(images.x_train[order]), images.y_train[order])
    seconds = time.perf_counter() - start
    accuracy = {0: correct(model, images.x_test, images.y_test)}
    for epochs in options.epochs:
        tuned = copy.deepcopy(model)
        limit = slice(0, options.train_limit)
        train(tuned, images.x_train[limit], images.y_train[limit], epochs, options.seed)
        accuracy[epochs] = correct(tuned, images.x_test, images.y_test)
    json.dump({"accuracy": accuracy, "fewer": fewer, "seconds": seconds}, sys.stdout)


if __name__ == "__main__":
    main()
