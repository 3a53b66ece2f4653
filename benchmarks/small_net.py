"""A small network and Fashion-MNIST, for Keras 3 and for the Keras 2 of other tools alike."""

from __future__ import annotations

import gzip
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

NAMES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


class Data(NamedTuple):
    """Fashion-MNIST: images ``(n, 28, 28, 1)`` from 0 to 1, and labels ``(n,)``."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load(folder: Path) -> Data:
    """From a folder with the four ``…-ubyte.gz`` files (Debian's package dataset-fashion-mnist)."""
    a, b, c, d = (_read(folder / f"{name}-ubyte.gz") for name in NAMES)
    return Data(a[..., None] / np.float32(255), b, c[..., None] / np.float32(255), d)


def _read(path: Path) -> np.ndarray:
    data = gzip.decompress(path.read_bytes())
    rank = data[3]
    shape = np.frombuffer(data, ">i4", rank, 4)
    return np.frombuffer(data, "uint8", offset=4 + 4 * rank).reshape(shape)


def build(keras: Any) -> Any:
    """Three convolutions and two dense layers, with the Keras that is given."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(10),
        ]
    )


def compile_model(keras: Any, model: Any) -> None:
    """Adam and cross-entropy from logits."""
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )


def accuracy(model: Any, data: Data) -> float:
    """Percent of the test images."""
    guesses = model.predict(data.x_test, batch_size=500, verbose=0).argmax(axis=1)
    return 100 * float((guesses == data.y_test).mean())


def sparsity(model: Any) -> float:
    """Fraction of zeros in the kernels."""
    kernels = [w for w in model.get_weights() if w.ndim > 1]
    return 1 - sum(np.count_nonzero(w) for w in kernels) / sum(w.size for w in kernels)


def clock(keras: Any) -> Any:
    """A callback that writes down the seconds of every epoch, in `seconds`."""

    class Clock(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.seconds: list[float] = []

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.seconds.append(time.perf_counter() - self.start)

    return Clock()
