"""The ResNets for CIFAR-10 of He et al. 2015 with published weights, and the data they read.

Run as a script, it checks the accuracies that the weights are published with. What it needs and
where that comes from is described in the README next to the checkpoints.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from cifar import IMAGES, Images, augment, augmented_batches, load_images, mixed, normalise
from common import say

import keras  # isort: skip - `common` quietens it
from keras import layers as L
from keras import ops

import ridurre

CHECKPOINTS = Path("/work/shared/data")
__all__ = ["IMAGES", "Images", "augment", "augmented_batches", "load_images", "normalise"]
#: Percent correct of the 10000 test images: as stored (README of the checkpoints).
PUBLISHED = {20: 91.73, 56: 93.39}
DEPTHS = (20, 32, 44, 56)
WIDTHS = (16, 32, 64)


def resnet(depth: int = 56, dot: str = ".") -> keras.Model:
    """A CIFAR ResNet without weights; names are those of the checkpoints.

    Args:
        depth: 6n + 2.
        dot: what stands for the dots in names, which Keras on PyTorch refuses.
    """
    blocks = (depth - 2) // 6
    inputs = keras.Input((32, 32, 3), name="image")
    x = _conv_norm(inputs, WIDTHS[0], 1, "conv1", "bn1")
    x = L.ReLU(name="relu")(x)
    for stage, width in enumerate(WIDTHS, 1):
        for block in range(blocks):
            stride = 2 if stage > 1 and block == 0 else 1
            x = _block(x, width, stride, f"layer{stage}{dot}{block}{dot}")
    x = L.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, L.Dense(10, name="linear")(x), name=f"resnet{depth}")


def _block(x: keras.KerasTensor, width: int, stride: int, name: str) -> keras.KerasTensor:
    y = _conv_norm(x, width, stride, f"{name}conv1", f"{name}bn1")
    y = L.ReLU(name=f"{name}relu1")(y)
    y = _conv_norm(y, width, 1, f"{name}conv2", f"{name}bn2")
    if stride > 1:  # option A: every second pixel, zeros for the new channels
        edge = width // 4
        x = ops.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (edge, edge)))
    return L.ReLU(name=f"{name}relu2")(L.Add(name=f"{name}add")([y, x]))


def _conv_norm(
    x: keras.KerasTensor, width: int, stride: int, conv: str, norm: str
) -> keras.KerasTensor:
    if stride > 1:  # Keras' own padding would be one-sided
        x = L.ZeroPadding2D(1, name=f"{conv}_pad")(x)
    padding = "valid" if stride > 1 else "same"
    x = L.Conv2D(width, 3, stride, padding=padding, use_bias=False, name=conv)(x)
    return L.BatchNormalization(momentum=0.9, epsilon=1e-5, name=norm)(x)


def load(depth: int = 56, folder: Path = CHECKPOINTS) -> keras.Model:
    """A CIFAR ResNet with its published weights."""
    model = resnet(depth)
    with np.load(folder / f"resnet{depth}_cifar10.npz") as file:
        for layer in model.layers:
            if layer.weights:
                layer.set_weights(_weights(layer, file))
    return model


def _weights(layer: keras.Layer, file: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    names = {
        L.Conv2D: ("weight",),
        L.Dense: ("weight", "bias"),
        L.BatchNormalization: ("weight", "bias", "running_mean", "running_var"),
    }[type(layer)]
    kernel, *rest = (file[f"{layer.name}.{name}"] for name in names)
    axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[kernel.ndim]
    return [kernel.transpose(axes), *rest]


def correct(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> float:
    """Percent of the images (as stored) that are told right."""
    guesses = model.predict(normalise(images), batch_size=250, verbose=0).argmax(axis=1)
    return 100 * float((guesses == labels).mean())


def fine_tune(
    model: keras.Model,
    images: Images,
    epochs: int,
    seed: int,
    *,
    rate: float = 0.02,
    batch_size: int = 128,
    limit: int | None = None,
    teacher: keras.Model | None = None,
) -> None:
    """Train with SGD and a learning rate that goes from `rate` to zero.

    With a teacher, only its outputs are learned, on mixed images: for those, too, it says what is
    right (Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", 2022).

    Args:
        model: is compiled and trained.
        images: augmented as in the training of the checkpoints.
        epochs: the last one counts.
        seed: of order and augmentation.
        rate: highest learning rate.
        batch_size: images per step.
        limit: training images used.
        teacher: the network to distil from, if any.
    """
    keras.utils.set_random_seed(seed)
    x, y = images.x_train[:limit], images.y_train[:limit]
    steps = -(-len(x) // batch_size)
    rng = np.random.default_rng(seed)
    optimizer = keras.optimizers.SGD(
        ridurre.LinearToZero(rate, steps * epochs), momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])

    def batches() -> Iterator[Any]:
        while True:
            for pictures, labels in augmented_batches(x, y, batch_size, rng):
                yield (pictures if teacher is None else mixed(pictures, rng)), labels

    options: dict[str, Any] = {"steps_per_epoch": steps, "verbose": 2}
    if teacher is None:
        model.fit(batches(), epochs=epochs, **options)
    else:
        ridurre.Distillation(teacher, batches(), alpha=0.0, **options)(model, 0, epochs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS)
    parser.add_argument("--images", type=Path, default=IMAGES)
    parser.add_argument("--depths", type=int, nargs="+", default=list(PUBLISHED))
    args = parser.parse_args()
    images = load_images(args.images)
    for depth in args.depths:
        accuracy = correct(load(depth, args.checkpoints), images.x_test, images.y_test)
        say(
            f"ResNet-{depth}: {accuracy:.2f} % of the test images, {PUBLISHED.get(depth)} published"
        )
        if abs(accuracy - PUBLISHED.get(depth, accuracy)) > 0.02:
            raise SystemExit(f"ResNet-{depth} does not compute what its author's does.")


if __name__ == "__main__":
    main()
