"""Neuron merging: what a removed filter made, a similar one that stays makes nearly too."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from ridurre.backend import library_operation, to_numpy
from ridurre.graph.labels import Value
from ridurre.graph.rules import Call
from ridurre.linear import Linear
from ridurre.recovery.pair import PASSING, Pair, Side
from ridurre.recovery.sites import affine, is_linear, set_values

L = keras.layers
#: Layers that multiply their outputs by s when their inputs are multiplied by s > 0, per channel.
SCALING = (
    *PASSING, L.MaxPooling1D, L.MaxPooling2D, L.MaxPooling3D, L.AveragePooling1D,
    L.AveragePooling2D, L.AveragePooling3D, L.GlobalAveragePooling1D, L.GlobalAveragePooling2D,
    L.GlobalAveragePooling3D, L.GlobalMaxPooling1D, L.GlobalMaxPooling2D, L.GlobalMaxPooling3D,
    L.Flatten, L.Reshape, L.Permute, L.ZeroPadding1D, L.ZeroPadding2D, L.ZeroPadding3D,
    L.Cropping1D, L.Cropping2D, L.Cropping3D, L.UpSampling1D, L.UpSampling3D, L.LeakyReLU,
)  # fmt: skip
_ACTIVATIONS = (keras.activations.linear, keras.activations.relu, keras.activations.leaky_relu)


def merge(pair: Pair) -> None:
    """Let a similar filter that stays stand in for each removed one, without data.

    For every removed filter i, the kept filter k whose weights point most nearly the same way is
    found (biases, and the batch norm that follows, folded in). What reads i's channel then reads
    k's instead, s = ‖w_i‖ / ‖w_k‖ times as strongly: ``W[:, k] += s · W[:, i]``. That holds where
    nothing but positively homogeneous layers (ReLU, LeakyReLU, pooling, dropout, reshaping) lies
    between; elsewhere weights are left as they are.

    Source: Kim et al. 2020, "Neuron Merging: Compensating for Pruned Neurons". Needs weights only.
    """
    for old, new in pair.calls():
        if _plain(new.operation) and pair.new.once(new):
            norms: list[Call] = []
            producer = _producer(pair.old, old.x, norms)
            if producer is not None:
                _merge_into(pair, producer, norms, old, new)


def _plain(layer: Any) -> bool:
    """Whether every output of a layer reads all of its input channels."""
    kinds = (L.Dense, L.Conv1D, L.Conv2D, L.Conv3D)
    return type(layer) in kinds and getattr(layer, "groups", 1) == 1


def _producer(side: Side, value: Value, norms: list[Call]) -> Call | None:
    """The layer whose filters make a tensor, if scaling a filter scales a part of the tensor.

    Batch norms in between are added to `norms`, the first one first.
    """
    while (call := side.maker.get(value)) is not None:
        layer = call.operation
        if _plain(layer):
            return call if _scales(layer) and (is_linear(layer) or not norms) else None
        if type(layer) is L.BatchNormalization:
            norms.insert(0, call)
        elif type(layer) not in PASSING and (norms or not _scales(layer)):
            return None
        value = call.x
    return None


def _scales(layer: Any) -> bool:
    """Whether multiplying a layer's inputs (or its kernel and bias) by s > 0 does so to outputs."""
    if isinstance(layer, L.ReLU):
        return layer.max_value is None and layer.threshold == 0
    if isinstance(layer, L.Activation) or _plain(layer):
        return layer.activation is None or layer.activation in _ACTIVATIONS
    return type(layer) in SCALING or library_operation(layer) in ("Relu", "LeakyRelu")


def _merge_into(pair: Pair, producer: Call, norms: list[Call], old: Call, new: Call) -> None:
    weights = pair.old.trace.space.weights
    kernel = old.operation.kernel
    read = weights[id(kernel), len(kernel.shape) - 2].labels
    made = weights[id(producer.operation.kernel), len(producer.operation.kernel.shape) - 1].labels
    kept = pair.kept.kept(producer.operation.kernel, -1)
    if read.shape[1] > 1 or kept is None or kept.all():
        return
    columns = np.moveaxis(to_numpy(kernel).astype("float64"), -2, 0)
    moved = np.zeros_like(columns)
    for i, k, strength in _stand_ins(producer, norms, kept):
        moved[read[:, 0] == made[k, 0]] += strength * columns[read[:, 0] == made[i, 0]]
    for axis, left in ((0, pair.kept.kept(kernel, -2)), (-1, pair.kept.kept(kernel, -1))):
        moved = moved if left is None else np.compress(left, moved, axis)
    target = new.operation.kernel
    set_values(target, to_numpy(target) + np.moveaxis(moved, 0, -2))


def _stand_ins(producer: Call, norms: list[Call], kept: np.ndarray) -> list[tuple[int, int, float]]:
    """For every removed filter the kept one that is most like it, and how much stronger it is."""
    linear = Linear(producer)
    filters = np.vstack([linear.matrices[0].astype("float64"), linear.bias[None]]).T
    scale, offset = affine(norms)
    filters = filters * np.reshape(scale, (-1, 1))
    filters[:, -1] += offset
    sizes = np.linalg.norm(filters, axis=1)
    directions = filters / np.where(sizes > 0, sizes, 1)[:, None]
    likeness = np.where(kept & (sizes > 0), directions @ directions.T, -np.inf)
    nearest = likeness.argmax(axis=1)
    return [
        (int(i), int(nearest[i]), float(sizes[i] / sizes[nearest[i]]))
        for i in np.flatnonzero(~kept & (likeness.max(axis=1) > 0))
    ]
