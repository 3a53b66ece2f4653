"""Three small tasks beyond convolutions: data that need no download, and networks of core layers.

- *ViT*: a vision transformer on Fashion-MNIST (a folder, see small_net.py) or CIFAR-10 (an
  ``.npz``, see cifar.py);
- *LSTM*: the digits that ship with scikit-learn (1797 pictures of 8×8), read as sequences of eight
  rows of eight pixels;
- *Conv1D + GRU*: the next character in the text of Python's own documentation, which ships with
  Python (``pydoc_data.topics``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics
from typing import Any, NamedTuple

import cifar
import keras
import numpy as np
import small_net

L = keras.layers
ops = keras.ops
Tensor = keras.KerasTensor

LENGTH = 64  # characters in a row
CHARACTERS = 80  # the most frequent ones; all others are 0


class Data(NamedTuple):
    """Inputs and labels (one for each sample, or for each step of each), for training and test."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def pictures(path: Path) -> Data:
    """Fashion-MNIST out of a folder, CIFAR-10 out of an ``.npz`` file."""
    if path.is_dir():
        return Data(*small_net.load(path))
    images = cifar.load_images(path)
    x, x_test = cifar.normalise(images.x_train), cifar.normalise(images.x_test)
    return Data(x, images.y_train, x_test, images.y_test)


def digits(_: Path) -> Data:
    """The digits of scikit-learn, every fourth for the test."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x, y = found.images.astype("float32") / 16, found.target
    test = np.arange(len(x)) % 4 == 3
    return Data(x[~test], y[~test], x[test], y[test])


def characters(_: Path) -> Data:
    """Rows of characters and the ones that come next; no paragraph is in both parts.

    The documentation repeats itself: each different paragraph counts once, every tenth is for the
    test.
    """
    text = "\n\n".join(topics.topics.values())
    paragraphs = list(dict.fromkeys(" ".join(p.split()) for p in text.split("\n\n")))
    common = [c for c, _ in Counter("".join(paragraphs)).most_common(CHARACTERS - 1)]
    number = {c: i for i, c in enumerate(common, 1)}

    def rows(some: list[str]) -> tuple[np.ndarray, np.ndarray]:
        numbers = np.array([number.get(c, 0) for c in "\n".join(some)], "int32")
        count = (len(numbers) - 1) // LENGTH
        starts = LENGTH * np.arange(count)[:, None] + np.arange(LENGTH)
        return numbers[starts], numbers[starts + 1]

    test = paragraphs[9::10]
    return Data(*rows([p for i, p in enumerate(paragraphs) if i % 10 != 9]), *rows(test))


def block(x: Tensor, heads: int, name: str) -> Tensor:
    """Attention and an MLP four times as wide, each normalised in front and added behind."""
    width = x.shape[-1]
    y = L.LayerNormalization(epsilon=1e-6, name=f"{name}_attention_norm")(x)
    attention = L.MultiHeadAttention(heads, width // heads, name=f"{name}_attention")
    x = L.Add(name=f"{name}_attended")([x, attention(y, y)])
    y = L.LayerNormalization(epsilon=1e-6, name=f"{name}_mlp_norm")(x)
    y = L.Dense(4 * width, activation="gelu", name=f"{name}_wide")(y)
    return L.Add(name=f"{name}_added")([x, L.Dense(width, name=f"{name}_narrow")(y)])


def vit(
    shape: tuple[int, ...], patch: int, width: int, depth: int, heads: int, classes: int = 10
) -> keras.Model:
    """A vision transformer: patches, learned positions, blocks, the average of all positions.

    Args:
        shape: of a picture, ``(height, width, channels)``.
        patch: edge of a patch in pixels.
        width: of the residual stream.
        depth: number of blocks.
        heads: per block.
        classes: of the output, logits.
    """
    inputs = keras.Input(shape, name="picture")
    x = L.Conv2D(width, patch, patch, name="patches")(inputs)
    x = L.Reshape((-1, width), name="sequence")(x)
    numbers = ops.cumsum(ops.ones_like(x[:, :, 0], dtype="int32"), axis=1) - 1
    x = L.Add(name="placed")([x, L.Embedding(x.shape[1], width, name="places")(numbers)])
    for i in range(depth):
        x = block(x, heads, f"block{i}")
    x = L.LayerNormalization(epsilon=1e-6, name="last_norm")(x)
    return keras.Model(inputs, L.Dense(classes, name="head")(L.GlobalAveragePooling1D()(x)))


def small_vit(data: Data) -> keras.Model:
    return vit(data.x.shape[1:], patch=4, width=64, depth=4, heads=4)


def lstm(data: Data) -> keras.Model:
    inputs = keras.Input(data.x.shape[1:], name="rows")
    x = L.LSTM(48, return_sequences=True, name="first")(inputs)
    return keras.Model(inputs, L.Dense(10, name="head")(L.LSTM(64, name="second")(x)))


def conv_gru(_: Data) -> keras.Model:
    inputs = keras.Input((LENGTH,), dtype="int32", name="characters")
    x = L.Embedding(CHARACTERS, 32, name="letters")(inputs)
    x = L.Conv1D(96, 5, padding="causal", activation="relu", name="near")(x)
    x = L.GRU(128, return_sequences=True, name="far")(x)
    return keras.Model(inputs, L.Dense(CHARACTERS, name="head")(x))


@dataclass(frozen=True)
class Task:
    """What is learned, by which network, for how long.

    Attributes:
        load: the data, given where pictures are.
        build: the network, given the data; its outputs are logits.
        epochs: of the first training.
        finetune_epochs: after pruning.
        rate: highest learning rate of the first training; half of it for fine-tuning.
        title: for the page of results.
    """

    load: Callable[[Path], Data]
    build: Callable[[Data], keras.Model]
    epochs: int
    finetune_epochs: int
    rate: float
    title: str


TASKS = {
    "vit": Task(pictures, small_vit, 5, 1, 1e-3, "ViT (4 blocks, 4 heads, width 64, patches of 4)"),
    "lstm": Task(digits, lstm, 30, 4, 4e-3, "two LSTMs, scikit-learn's digits row by row"),
    "gru": Task(characters, conv_gru, 8, 1, 4e-3, "Conv1D + GRU, the next character"),
}


def some(data: Data, limit: int | None) -> Data:
    """The first of the training samples."""
    return Data(data.x[:limit], data.y[:limit], data.x_test, data.y_test)


def train(model: keras.Model, data: Data, epochs: int, rate: float, seed: int) -> None:
    """Adam, batches of 64, the learning rate linearly to zero; the last epoch counts."""
    keras.utils.set_random_seed(seed)
    steps = epochs * -(-len(data.x) // 64)
    schedule = keras.optimizers.schedules.PolynomialDecay(rate, steps, 0.0)
    compile_model(model, keras.optimizers.Adam(schedule))
    model.fit(data.x, data.y, batch_size=64, epochs=epochs, verbose=2)


def compile_model(model: keras.Model, optimizer: Any = "sgd") -> None:
    """With cross-entropy from logits, which the criteria take from there."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)


def accuracy(model: keras.Model, x: np.ndarray, y: np.ndarray) -> float:
    """Percent of the labels that are told right."""
    return 100 * float((model.predict(x, batch_size=250, verbose=0).argmax(axis=-1) == y).mean())
