"""Tiny networks with odd, unequal channel counts, and a pruning method that does as it is told."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

import ridurre

L = keras.layers


def chain() -> keras.Model:
    """Two convolutions in a row: `a` makes 5 channels, `b` 7; the head reads their averages."""
    inputs = keras.Input((6, 8, 3), name="picture")
    x = L.Conv2D(5, 3, name="a")(inputs)
    x = L.BatchNormalization(name="bn")(x)
    x = L.ReLU(name="relu")(x)
    x = L.Conv2D(7, 3, name="b")(x)
    x = L.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, L.Dense(2, name="head")(x), name="chain")


def residual() -> keras.Model:
    """One residual block, 1×1 throughout: `stem` and `outer` are tied by an addition.

    ``stem`` (3 → 5) → ``inner`` (5 → 7) → ``outer`` (7 → 5) + stem → ReLU → average → ``head``
    (5 → 2). No biases, so that norms can be told from the kernels alone.
    """
    inputs = keras.Input((4, 5, 3), name="picture")
    stem = L.Conv2D(5, 1, use_bias=False, name="stem")(inputs)
    x = L.Conv2D(7, 1, use_bias=False, name="inner")(stem)
    x = L.Conv2D(5, 1, use_bias=False, name="outer")(x)
    x = L.ReLU(name="relu")(L.Add(name="add")([stem, x]))
    x = L.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, L.Dense(2, use_bias=False, name="head")(x), name="residual")


def columns(filters: int) -> keras.Model:
    """A single convolution `a` with so many filters, behind it a dense layer."""
    inputs = keras.Input((2, 3, 3))
    x = L.Conv2D(filters, 1, name="a")(inputs)
    return keras.Model(inputs, L.Dense(2, name="head")(L.Flatten()(x)), name="columns")


def set_filters(model: keras.Model, layer: str, sizes: Sequence[float]) -> None:
    """Fill a kernel so that filter i has an L1 norm of ``sizes[i]``; the bias is zero."""
    kernel, *bias = model.get_layer(layer).weights
    fan_in = kernel.shape[0] * kernel.shape[1] * kernel.shape[2]
    kernel.assign(np.broadcast_to(np.asarray(sizes) / fan_in, kernel.shape))
    for variable in bias:
        variable.assign(np.zeros(variable.shape))


def channels(model: keras.Model, name: str) -> int:
    """Filters of a convolution of the model."""
    return model.get_layer(name).kernel.shape[-1]


def weights(model: keras.Model) -> dict[str, np.ndarray]:
    return {v.path: v.numpy().copy() for v in model.variables}


def predict(model: keras.Model, x: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(x, training=False))


def pictures(model: keras.Model, count: int = 2, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, *model.inputs[0].shape[1:])).astype("float32")


def leave_it(*_: Any) -> None:
    """A callback that does nothing."""


Answer = Callable[[keras.Layer, np.ndarray], Any] | Mapping[str, Any]


class Scripted(ridurre.BasePruning):
    """Votes as told, and remembers what it was asked.

    Args:
        answer: a function of layer and kernel, or what to answer by layer name (else nothing).
    """

    def __init__(self, answer: Answer, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.answer = answer
        self.asked: list[tuple[float, str, np.ndarray]] = []

    def run_pruning_for_conv2d_layer(
        self, pruning_factor: float, layer: keras.Layer, layer_weight_mtx: np.ndarray
    ) -> Any:
        self.asked.append((pruning_factor, layer.name, layer_weight_mtx))
        if callable(self.answer):
            return self.answer(layer, layer_weight_mtx)
        return self.answer.get(layer.name, [])


def scripted(
    answer: Answer,
    *,
    factor: float = 0.5,
    compile_fn: Callable[..., Any] = leave_it,
    finetune_fn: Callable[..., Any] | None = None,
    epochs: int = 0,
    trained: int = 0,
    rounds: int | None = 1,
    percent: float | None = None,
    **options: Any,
) -> Scripted:
    """A `Scripted` method for one round without training, unless said otherwise."""
    return Scripted(
        answer, factor, compile_fn, finetune_fn, epochs, trained, rounds, percent, **options
    )


def first(layer: keras.Layer, kernel: np.ndarray) -> list[int]:
    """Always the first filter."""
    return [0]


def weakest(layer: keras.Layer, kernel: np.ndarray) -> list[int]:
    """The filter with the smallest L1 norm."""
    return [int(np.abs(kernel).sum((0, 1, 2)).argmin())]
