"""What torch_pruning.py runs in the environment that has PyTorch and Torch-Pruning.

The architectures are those of keras.applications, layer by layer, in plain PyTorch (there is no
torchvision build for every CPU). torch_pruning.py calls `main`; run as a script, this file would
take torch_pruning.py for the package of that name.
"""

from __future__ import annotations

import copy
import gc
import math
import time
from typing import Any

import torch
import torch_pruning as tp
from common import peak_mb, reset_peak, serve
from torch import nn
from torch.nn import functional

SIZE = 224
CLASSES = 1000


def conv(
    inputs: int, outputs: int, size: int, stride: int = 1, bias: bool = False, groups: int = 1
) -> nn.Conv2d:
    """A convolution with "same" padding."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=bias, groups=groups)


def vgg16() -> nn.Module:
    layers: list[nn.Module] = []
    width = 3
    for filters, count in (64, 2), (128, 2), (256, 3), (512, 3), (512, 3):
        for _ in range(count):
            layers += [conv(width, filters, 3, bias=True), nn.ReLU()]
            width = filters
        layers.append(nn.MaxPool2d(2))
    layers += [nn.Flatten(), nn.Linear(512 * 7 * 7, 4096), nn.ReLU(), nn.Linear(4096, 4096)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(4096, CLASSES))


class Bottleneck(nn.Module):
    """The residual block of ResNet50: the stride is in the first convolution."""

    def __init__(self, inputs: int, filters: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(inputs, filters, 1, stride, bias=True),
            nn.BatchNorm2d(filters),
            nn.ReLU(),
            conv(filters, filters, 3, bias=True),
            nn.BatchNorm2d(filters),
            nn.ReLU(),
            conv(filters, 4 * filters, 1, bias=True),
            nn.BatchNorm2d(4 * filters),
        )
        self.shortcut = nn.Identity()
        if stride > 1 or inputs != 4 * filters:
            project = conv(inputs, 4 * filters, 1, stride, bias=True)
            self.shortcut = nn.Sequential(project, nn.BatchNorm2d(4 * filters))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.body(x) + self.shortcut(x))


def resnet50() -> nn.Module:
    layers = [conv(3, 64, 7, 2, bias=True), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    width = 64
    for filters, count, stride in (64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2):
        for i in range(count):
            layers.append(Bottleneck(width, filters, 1 if i else stride))
            width = 4 * filters
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))


class DenseLayer(nn.Module):
    """Batch norm, 1×1, batch norm, 3×3; the result is put beside the input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            conv(inputs, 4 * growth, 1),
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(),
            conv(4 * growth, growth, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.body(x)], 1)


def densenet121() -> nn.Module:
    layers = [conv(3, 64, 7, 2), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    width = 64
    for stage, count in enumerate((6, 12, 24, 16)):
        if stage:
            layers += [nn.BatchNorm2d(width), nn.ReLU(), conv(width, width // 2, 1)]
            layers.append(nn.AvgPool2d(2))
            width //= 2
        for _ in range(count):
            layers.append(DenseLayer(width, 32))
            width += 32
    layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


class Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            conv(width, squeezed, 1, bias=True),
            nn.SiLU(),
            conv(squeezed, width, 1, bias=True),
            nn.Sigmoid(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.body(x)


class Inverted(nn.Module):
    """Expansion, depthwise, (gate,) projection: the block of MobileNetV2 and EfficientNet."""

    def __init__(
        self, inputs: int, outputs: int, size: int, stride: int, expand: int, gate: bool
    ) -> None:
        super().__init__()
        width = inputs * expand
        activation = nn.SiLU if gate else nn.ReLU6
        layers: list[nn.Module] = []
        if expand > 1:
            layers += [conv(inputs, width, 1), nn.BatchNorm2d(width), activation()]
        layers.append(conv(width, width, size, stride, groups=width))
        layers += [nn.BatchNorm2d(width), activation()]
        if gate:
            layers.append(Gate(width, max(1, inputs // 4)))
        layers += [conv(width, outputs, 1), nn.BatchNorm2d(outputs)]
        self.body = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def inverted_net(stages: list[tuple[int, int, int, int, int]], gate: bool) -> nn.Module:
    """Stages of (outputs, blocks, kernel size, stride, expansion)."""
    activation = nn.SiLU if gate else nn.ReLU6
    layers = [conv(3, 32, 3, 2), nn.BatchNorm2d(32), activation()]
    width = 32
    for outputs, count, size, stride, expand in stages:
        for i in range(count):
            layers.append(Inverted(width, outputs, size, 1 if i else stride, expand, gate))
            width = outputs
    layers += [conv(width, 1280, 1), nn.BatchNorm2d(1280), activation()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, CLASSES))


def mobilenet_v2() -> nn.Module:
    rows = (16, 1, 1, 1), (24, 2, 2, 6), (32, 3, 2, 6), (64, 4, 2, 6), (96, 3, 1, 6), (160, 3, 2, 6)
    stages = [(o, n, 3, s, e) for o, n, s, e in (*rows, (320, 1, 1, 6))]
    return inverted_net(stages, gate=False)


def efficientnet_b0() -> nn.Module:
    stages = [
        (16, 1, 3, 1, 1),
        (24, 2, 3, 2, 6),
        (40, 2, 5, 2, 6),
        (80, 3, 3, 2, 6),
        (112, 3, 5, 1, 6),
        (192, 4, 5, 2, 6),
        (320, 1, 3, 1, 6),
    ]
    return inverted_net(stages, gate=True)


MODELS = {
    "ResNet50": resnet50,
    "VGG16": vgg16,
    "MobileNetV2": mobilenet_v2,
    "DenseNet121": densenet121,
    "EfficientNetB0": efficientnet_b0,
}


class Bench:
    """One model and what is measured on it."""

    def build(self, name: str) -> dict[str, Any]:
        torch.manual_seed(0)
        self.model = MODELS[name]().eval()
        self.example = torch.randn(1, 3, SIZE, SIZE)
        return {
            "parameters": count(self.model),
            "versions": [f"torch {torch.__version__}", f"torch-pruning {tp.__version__}"],
        }

    def graph(self) -> float:
        """Seconds to build the dependency graph."""
        model = copy.deepcopy(self.model)
        gc.collect()
        start = time.perf_counter()
        tp.DependencyGraph().build_dependency(model, example_inputs=self.example)
        return time.perf_counter() - start

    def whole(self) -> dict[str, float]:
        """Seconds and peak memory in MB of pruning half of all channels, graph included."""
        model = copy.deepcopy(self.model)
        before = reset_peak()
        start = time.perf_counter()
        pruner = tp.pruner.BasePruner(
            model,
            self.example,
            importance=tp.importance.GroupMagnitudeImportance(p=1),
            pruning_ratio=0.5,
            ignored_layers=[model[-1]],
        )
        pruner.step()
        elapsed = time.perf_counter() - start
        return {"seconds": elapsed, "peak": peak_mb() - before, "parameters": count(model)}

    def check(self) -> list[int]:
        """Shape of the output, to see that the model runs."""
        with torch.no_grad():
            return list(self.model(self.example).shape)


def count(model: nn.Module) -> int:
    return sum(math.prod(p.shape) for p in model.parameters())


def main() -> None:
    bench = Bench()
    serve({"build": bench.build, "graph": bench.graph, "whole": bench.whole, "check": bench.check})
