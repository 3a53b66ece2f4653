"""The contract of every rule: whatever subset of channels goes, the rest computes the same.

A row of a table is a layer, or a few lines that a user might write, between two dense layers (see
`ridurre.testing.check_rule`), and the number of plans that there are: stated in advance, it finds
channels that are tied or frozen without need. Nothing but a row is needed for a new rule.
"""

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any, NamedTuple

import keras
import numpy as np
import own_layers
import pytest
from attention_rows import ATTENTION, CONTRACTIONS
from keras import layers as L
from keras import ops
from rows import Build, Row, Tensor, blocks, layer, mix, subsets

import ridurre
from ridurre.backend import (
    CustomScaleLayer,
    LayerScale,
    StochasticDepth,
    all_layers,
    functional_graph,
    has_graph,
    library_operation,
    to_numpy,
)
from ridurre.data import random_inputs
from ridurre.errors import FrozenChannelError
from ridurre.graph.rules import rules
from ridurre.graph.rules.activation import ELEMENTWISE
from ridurre.graph.trace import Trace
from ridurre.testing import check_rule, randomise, sandwich

pytestmark = pytest.mark.core

FIRST = {"data_format": "channels_first"}


#: Functions of one number that need no other arguments.
ONE_NUMBER = sorted(ELEMENTWISE - {keras.activations.threshold}, key=lambda f: f.__name__)


def side_by_side(functions: list[Build], *, axis: int = 1) -> Build:
    """Several functions of the same tensor, results one behind the other."""
    return lambda x: ops.concatenate([f(x) for f in functions], axis=axis)


def with_second(merge: Callable[[list[Tensor]], Tensor]) -> Build:
    """A merge of the tensor and a second one with as many channels of its own."""
    return lambda x: merge([x, mix(x)])


CONVOLUTIONS = {
    "conv1d strides": Row(layer(L.Conv1D, 2, 2, strides=2), (5, 3), 8),
    "conv1d causal dilated": Row(
        layer(L.Conv1D, 2, 2, padding="causal", dilation_rate=2, use_bias=False), (4, 3), 8
    ),
    "conv1d first": Row(layer(L.Conv1D, 2, 2, **FIRST), (3, 6), 8, 1),
    "conv2d same": Row(
        layer(L.Conv2D, 5, 3, padding="same", activation="tanh"), (3, 4, 3), subsets(3, 5)
    ),
    "conv2d strides": Row(
        layer(L.Conv2D, 2, (2, 1), strides=(1, 2), use_bias=False), (3, 4, 3), 8
    ),
    "conv2d dilated": Row(layer(L.Conv2D, 2, 2, dilation_rate=(2, 1)), (4, 3, 3), 8),
    "conv2d layer as activation": Row(
        layer(L.Conv2D, 2, 1, activation=L.ReLU(negative_slope=0.5)), (1, 2, 3), 8
    ),
    "conv2d first": Row(layer(L.Conv2D, 2, (2, 1), strides=2, **FIRST), (3, 3, 9), 8, 1),
    "conv2d groups of one": Row(layer(L.Conv2D, 3, 1, groups=3), (1, 2, 3), subsets(3, 3)),
    "conv3d": Row(layer(L.Conv3D, 2, (2, 1, 2), strides=(1, 2, 1)), (2, 3, 2, 3), 8),
    "conv3d no bias": Row(
        layer(L.Conv3D, 2, 2, padding="same", use_bias=False, activation="elu"), (1, 2, 2, 3), 8
    ),
    "conv3d first": Row(layer(L.Conv3D, 2, (2, 2, 1), **FIRST), (3, 2, 2, 4), 8, 1),
    "conv1d transpose": Row(layer(L.Conv1DTranspose, 5, 3, strides=2), (2, 2), subsets(2, 5)),
    "conv1d transpose first": Row(layer(L.Conv1DTranspose, 2, 2, **FIRST), (3, 4), 8, 1),
    "conv2d transpose": Row(
        layer(
            L.Conv2DTranspose, 2, (2, 3), strides=2, padding="same", use_bias=False,
            activation="relu",
        ),
        (1, 2, 3),
        8,
    ),
    "conv2d transpose dilated": Row(
        layer(L.Conv2DTranspose, 2, 2, dilation_rate=2), (2, 1, 3), 8
    ),
    "conv2d transpose first": Row(
        layer(L.Conv2DTranspose, 2, 2, strides=(1, 2), **FIRST), (3, 1, 2), 8, 1
    ),
    "conv3d transpose": Row(layer(L.Conv3DTranspose, 2, 2, strides=2), (1, 2, 1, 3), 8),
    "conv3d transpose first": Row(
        layer(L.Conv3DTranspose, 2, (2, 1, 1), use_bias=False, **FIRST), (3, 1, 1, 4), 8, 1
    ),
    "depthwise1d": Row(layer(L.DepthwiseConv1D, 2, strides=2), (5, 3), 6),
    "depthwise1d multiplier": Row(
        layer(L.DepthwiseConv1D, 2, depth_multiplier=3), (3, 2),
        subsets(2) + blocks(2, 3) + subsets(3),
    ),  # whole channels go, or the same output of every channel
    "depthwise1d first": Row(layer(L.DepthwiseConv1D, 2, **FIRST), (3, 6), 6, 1),
    "depthwise2d": Row(
        layer(L.DepthwiseConv2D, 2, strides=2, use_bias=False, activation="relu"), (3, 4, 3), 6
    ),
    "depthwise2d dilated": Row(layer(L.DepthwiseConv2D, 2, dilation_rate=2), (3, 4, 3), 6),
    "depthwise2d multiplier": Row(
        layer(L.DepthwiseConv2D, 2, padding="same", depth_multiplier=2, activation="tanh"),
        (2, 2, 3),
        subsets(3) + blocks(3, 2) + 2,
    ),
    "depthwise2d multiplier first": Row(
        layer(L.DepthwiseConv2D, 1, depth_multiplier=3, use_bias=False, **FIRST),
        (2, 1, 2),
        subsets(2) + blocks(2, 3) + subsets(3),
        1,
    ),
    "separable1d": Row(layer(L.SeparableConv1D, 5, 2), (3, 2), subsets(2, 5)),
    "separable1d first": Row(
        layer(L.SeparableConv1D, 2, 2, depth_multiplier=2, **FIRST), (3, 8), 8, 1
    ),
    "separable2d": Row(
        layer(L.SeparableConv2D, 2, 2, use_bias=False, activation="relu"), (2, 3, 3), 8
    ),
    "separable2d multiplier": Row(
        layer(L.SeparableConv2D, 2, (2, 1), strides=2, depth_multiplier=2), (3, 2, 3), 8
    ),
}  # fmt: skip

CORE = {
    "dense": Row(layer(L.Dense, 5), (3,), subsets(3, 5)),
    "dense rank 3": Row(layer(L.Dense, 2, use_bias=False), (2, 3), 8),
    "dense rank 4": Row(layer(L.Dense, 2, activation="gelu"), (1, 2, 3), 8),
    "dense rank 5": Row(layer(L.Dense, 2), (1, 2, 1, 3), 8),
    "dense over positions": Row(
        lambda x: L.Dense(5, activation="relu")(L.Permute((2, 1))(x)), (4, 3), 6
    ),
    "dense behind heads": Row(
        lambda x: L.Dense(2)(L.Reshape((2, 3))(x)), (6,), blocks(3, 2) + subsets(2)
    ),  # the heads share the kernel: a position goes in both of them
    "dropouts": Row(
        lambda x: L.ActivityRegularization(l2=0.1)(
            L.GaussianNoise(0.3)(L.GaussianDropout(0.3)(L.AlphaDropout(0.2)(L.Dropout(0.5)(x))))
        ),
        (3,),
        6,
    ),
    "spatial dropout 1d": Row(layer(L.SpatialDropout1D, 0.5), (2, 3), 6),
    "spatial dropout 2d": Row(layer(L.SpatialDropout2D, 0.5, **FIRST), (3, 1, 2), 6, 1),
    "spatial dropout 3d": Row(layer(L.SpatialDropout3D, 0.5), (1, 2, 1, 3), 6),
    "identity": Row(layer(L.Identity), (3,), 6),
    "rescaling": Row(layer(L.Rescaling, 0.5, offset=-0.25), (2, 3), 6),
    "stochastic depth": Row(layer(StochasticDepth, 0.3), (2, 3), 6),
    "layer scale": Row(layer(LayerScale, 0.5, 3), (2, 3), 6),
    "scaled addition": Row(with_second(layer(CustomScaleLayer, 0.3)), (2, 3), 12),
    "embedding": Row(
        lambda x: L.Add()([x, L.Embedding(4, 3)(ops.cast(x[:, :, 0] > 0, "int32"))]), (2, 3), 6
    ),  # the first channel chooses rows of the table, so it has to stay
}

NORMALISATIONS = {
    "batch": Row(layer(L.BatchNormalization), (3,), 6),
    "batch rank 4": Row(layer(L.BatchNormalization, epsilon=0.01), (2, 2, 3), 6),
    "batch no scale": Row(layer(L.BatchNormalization, scale=False), (2, 3), 6),
    "batch no center": Row(layer(L.BatchNormalization, center=False), (2, 3), 6),
    "batch neither": Row(layer(L.BatchNormalization, center=False, scale=False), (2, 3), 6),
    "batch axis 1": Row(layer(L.BatchNormalization, axis=1), (3, 2, 2), 6, 1),
    "batch over positions": Row(layer(L.BatchNormalization, axis=1), (2, 3), 6),
    "layer": Row(layer(L.LayerNormalization), (2, 3), 6),
    "layer no scale": Row(layer(L.LayerNormalization, scale=False), (3,), 6),
    "layer no center": Row(layer(L.LayerNormalization, center=False), (3,), 6),
    "layer over positions": Row(layer(L.LayerNormalization, axis=1), (4, 3), 6),
    "layer over all": Row(layer(L.LayerNormalization, axis=(1, 2, 3)), (2, 1, 3), 6),
    "layer axis 1": Row(layer(L.LayerNormalization, axis=1), (3, 2, 2), 6, 1),
    "rms": Row(layer(L.RMSNormalization), (2, 3), 6),
    "rms over all": Row(layer(L.RMSNormalization, axis=(1, 2)), (2, 3), 6),
    "unit": Row(layer(L.UnitNormalization), (2, 3), 6),
    "unit over positions": Row(layer(L.UnitNormalization, axis=[1]), (2, 3), 6),
    "group": Row(
        layer(L.GroupNormalization, 2), (2, 4), blocks(2, 2) + 6
    ),  # whole groups, or what leaves equal groups: one position, of one or both
    "group no scale": Row(layer(L.GroupNormalization, 1, scale=False), (2, 3), 6),
    "group no center axis 1": Row(
        layer(L.GroupNormalization, 2, axis=1, center=False), (4, 2, 1), blocks(2, 2) + 6, 1
    ),
    "group of all": Row(layer(L.GroupNormalization, 1), (2, 2, 3), 6),
    "instance": Row(layer(L.GroupNormalization, -1), (2, 2, 3), 6),
}  # fmt: skip

ACTIVATIONS = {
    "all functions": Row(
        side_by_side([layer(L.Activation, f) for f in ONE_NUMBER]), (1, 3), 6
    ),
    "relu": Row(layer(L.ReLU, max_value=1.0, negative_slope=0.1, threshold=0.2), (2, 3), 6),
    "leaky relu": Row(layer(L.LeakyReLU, negative_slope=0.2), (2, 3), 6),
    "elu": Row(layer(L.ELU, alpha=0.5), (2, 3), 6),
    "layer in activation": Row(layer(L.Activation, L.LeakyReLU()), (2, 3), 6),
    "prelu": Row(layer(L.PReLU), (2, 1, 3), 6),
    "prelu rank 2": Row(layer(L.PReLU), (3,), 6),
    "prelu shared": Row(layer(L.PReLU, shared_axes=[1, 2]), (2, 2, 3), 6),
    "prelu one shared": Row(layer(L.PReLU, shared_axes=[2]), (2, 2, 3), 6),
    "prelu channels shared": Row(layer(L.PReLU, shared_axes=[3]), (2, 1, 3), 6),
    "prelu axis 1": Row(layer(L.PReLU, shared_axes=[2]), (3, 2), 6, 1),
    "softmax over positions": Row(layer(L.Softmax, axis=1), (3, 3), 6),
    "softmax over areas": Row(layer(L.Softmax, axis=(1, 2)), (2, 2, 3), 6),
    "softmax operations over positions": Row(
        side_by_side([
            lambda x: ops.softmax(x, axis=1),
            lambda x: ops.log_softmax(x, axis=1),
            lambda x: ops.sparsemax(x, axis=1),
            lambda x: ops.normalize(x + 1e-3, axis=1),
        ]),
        (3, 3),
        6,
    ),
}  # fmt: skip


def per_dimension(cls: str, *args: Any, first: bool = True, **kwargs: Any) -> dict[str, Row]:
    """The 1-, 2- and 3-dimensional layers of a name, channels last and (if there is) first."""
    rows = {}
    for n in (1, 2, 3):
        make = layer(getattr(L, f"{cls}{n}D"), *args, **kwargs)
        rows[f"{cls} {n}d"] = Row(make, (4, 3, 4)[:n] + (3,), 6)
        if first:
            make = layer(getattr(L, f"{cls}{n}D"), *args, **kwargs, **FIRST)
            rows[f"{cls} {n}d first"] = Row(make, (3, 4, 3, 4)[: n + 1], 6, 1)
    return rows


POSITIONS = {
    **per_dimension("MaxPooling", 2, strides=1),
    **per_dimension("AveragePooling", 2, padding="same"),
    **per_dimension("AdaptiveMaxPooling", 2),
    **per_dimension("AdaptiveAveragePooling", 2),
    **per_dimension("GlobalMaxPooling"),
    **per_dimension("GlobalAveragePooling", keepdims=True),
    **per_dimension("UpSampling", 2, first=False),
    **per_dimension("ZeroPadding", 1),
    **per_dimension("Cropping", 1, first=False),
    "global max keepdims": Row(layer(L.GlobalMaxPooling2D, keepdims=True), (2, 1, 3), 6),
    "global average first": Row(layer(L.GlobalAveragePooling2D, **FIRST), (3, 2, 1), 6, 1),
    "upsampling bilinear first": Row(
        layer(L.UpSampling2D, (2, 1), interpolation="bilinear", **FIRST), (3, 2, 2), 6, 1
    ),
    "upsampling 3d first": Row(layer(L.UpSampling3D, 2, **FIRST), (3, 1, 2, 1), 6, 1),
    "padding uneven": Row(layer(L.ZeroPadding2D, ((0, 1), (2, 0)), **FIRST), (3, 1, 2), 6, 1),
    "cropping 2d first": Row(layer(L.Cropping2D, ((0, 1), (2, 0)), **FIRST), (3, 2, 4), 6, 1),
    "cropping 3d first": Row(layer(L.Cropping3D, 1, **FIRST), (3, 3, 4, 3), 6, 1),
    "resizing": Row(layer(L.Resizing, 3, 2), (2, 2, 3), 6),
    "resizing cropped first": Row(
        layer(L.Resizing, 1, 2, crop_to_aspect_ratio=True, **FIRST), (3, 2, 2), 6, 1
    ),
    "pooling operations": Row(
        side_by_side([
            lambda x: ops.max_pool(x, 2, strides=1),
            lambda x: ops.average_pool(x, 2, strides=1),
            lambda x: ops.image.resize(x, (4, 2)),
        ]),
        (2, 3, 3),
        6,
    ),
    "pooling operations first": Row(
        side_by_side(
            [
                lambda x: ops.max_pool(x, (2, 1), strides=1, **FIRST),
                lambda x: ops.image.resize(x, (2, 3), **FIRST),
            ],
            axis=2,
        ),
        (3, 4, 3),
        6,
        1,
    ),
}  # fmt: skip

RESHAPING = {
    "flatten": Row(layer(L.Flatten), (2, 2, 3), 6),
    "flatten first": Row(layer(L.Flatten, **FIRST), (3, 2, 2), 6, 1),
    "flatten rank 2 first": Row(layer(L.Flatten, **FIRST), (3,), 6),
    "flatten behind permute": Row(lambda x: L.Flatten()(L.Permute((3, 1, 2))(x)), (2, 2, 3), 6),
    "reshape positions": Row(layer(L.Reshape, (4, 3)), (2, 2, 3), 6),
    "reshape open": Row(layer(L.Reshape, (-1, 3)), (2, 2, 3), 6),
    "reshape channels open": Row(layer(L.Reshape, (4, -1)), (2, 2, 3), 6),
    "reshape to pixel": Row(layer(L.Reshape, (1, 1, 3)), (3,), 6),
    "reshape to heads": Row(layer(L.Reshape, (2, 3)), (6,), blocks(3, 2) + 14),
    "reshape there and back": Row(
        lambda x: ops.reshape(ops.reshape(x, (-1, 6)), (-1, 2, 3)), (2, 3), 6
    ),
    "reshape batch": Row(lambda x: ops.reshape(ops.reshape(x, (-1, 3)), (-1, 2, 3)), (2, 3), 6),
    "permute": Row(layer(L.Permute, (3, 1, 2)), (2, 1, 3), 6),
    "repeat vector": Row(layer(L.RepeatVector, 2), (3,), 6),
    "transpose": Row(lambda x: ops.transpose(x, (0, 3, 1, 2)), (2, 1, 3), 6),
    "transpose backwards": Row(lambda x: ops.transpose(ops.transpose(x) * 2), (2, 3), 6),
    "swapaxes": Row(lambda x: ops.swapaxes(x, 1, -1), (2, 4, 3), 6),
    "moveaxis": Row(lambda x: ops.moveaxis(x, -1, 1), (2, 4, 3), 6),
    "moveaxis twice": Row(lambda x: ops.moveaxis(x, (1, 3), (3, 2)), (2, 4, 3), 6),
    "expand_dims": Row(lambda x: ops.expand_dims(x, (1, -1)), (3,), 6),
    "squeeze": Row(lambda x: ops.squeeze(x, (1, 2)), (1, 1, 3), 6),
    "squeeze what is 1": Row(lambda x: L.Dense(2)(ops.squeeze(x)), (1, 1, 3), 8),
    "flip channels": Row(lambda x: ops.flip(x, -1), (2, 3), 6),
    "flip positions": Row(lambda x: ops.flip(x, 1), (2, 3), 6),
    "flip all": Row(lambda x: ops.flip(ops.flip(x), 0), (2, 3), 6),
    "repeat channels": Row(lambda x: ops.repeat(x, 2, axis=-1), (2, 3), 6),
    "repeat positions": Row(lambda x: ops.repeat(x, [1, 3], axis=1), (2, 3), 6),
    "tile": Row(lambda x: ops.tile(x, (1, 2, 3)), (2, 3), 6),
    "tile short": Row(lambda x: ops.tile(x, 2), (2, 3), 6),
    "broadcast_to": Row(lambda x: ops.broadcast_to(x[:1, None], (2, 4, 3)), (3,), 6),
    "depth_to_space": Row(lambda x: ops.depth_to_space(x, 2), (1, 2, 8), blocks(2, 4)),
    "depth_to_space first": Row(
        lambda x: ops.depth_to_space(x, 2, **FIRST), (8, 2, 1), blocks(2, 4), 1
    ),
    "pixel shuffle": Row(
        lambda x: ops.reshape(
            ops.transpose(ops.reshape(x, (-1, 2, 3, 2, 2)), (0, 1, 3, 2, 4)), (-1, 4, 3, 2)
        ),
        (2, 3, 4),
        blocks(2, 2) + 6,
    ),
    "channel shuffle": Row(
        lambda x: L.Reshape((2, 6))(L.Permute((1, 3, 2))(L.Reshape((2, 2, 3))(x))),
        (2, 6),
        blocks(3, 2) + 14,
    ),
    "shuffle between groups": Row(
        lambda x: L.Conv1D(2, 1, groups=2)(
            L.Reshape((3, 4))(
                L.Permute((1, 3, 2))(L.Reshape((3, 2, 2))(L.Conv1D(4, 1, groups=2)(x)))
            )
        ),
        (3, 2),
        subsets(2) + blocks(2, 2),
    ),
}  # fmt: skip

SLICING = {
    "channels": Row(lambda x: x[:, 1:], (3,), 5),  # one channel is read by nothing and may go
    "one channel": Row(lambda x: x[:, 1], (3,), 3),
    "stride": Row(lambda x: x[..., ::2], (5,), 27),
    "negative stride": Row(lambda x: x[..., ::-2], (5,), 27),
    "negative bounds": Row(lambda x: x[:, -4:-1], (5,), 27),
    "two slices": Row(lambda x: ops.concatenate([x[:, :2], x[:, 1:]], axis=-1), (3,), 4),
    "all kinds": Row(lambda x: x[:, 0, None, ..., :2], (2, 2, 3), 5),
    "positions": Row(lambda x: x[:, ::2, 1], (3, 2, 3), 6),
    "axis 1": Row(lambda x: x[:, 2:0:-1], (3, 2), 5, 1),
    "slice positions": Row(layer(own_layers.Window), (2, 3), 12),
    "take": Row(lambda x: ops.take(x, [4, 0, 2], axis=-1), (5,), 27),
    "take twice": Row(lambda x: ops.take(x, [2, 0, 0, -1], axis=-1), (3,), 5),
    "take positions": Row(lambda x: ops.take(x, [1, 0, 1], axis=1), (2, 3), 6),
    "take a position": Row(lambda x: ops.take(x, 0, axis=1), (2, 3), 6),
    "take a table of positions": Row(lambda x: ops.take(x, [[0, 1], [1, 0]], axis=1), (2, 3), 6),
    "take along positions": Row(
        lambda x: ops.take_along_axis(x, np.array([[[1], [0]]]), axis=1), (3, 3), 6
    ),
    "split in two": Row(lambda x: ops.split(x, [2], axis=-1), (5,), 20),
    "split evenly": Row(lambda x: list(ops.split(x, 2, axis=-1)), (4,), 8),
    "split positions": Row(lambda x: list(ops.split(x, 2, axis=1)), (4, 3), 6),
    "split at points": Row(lambda x: list(ops.split(x, [1, 3], axis=1)), (4, 3), 6),
    "array_split": Row(lambda x: list(ops.array_split(x, 2, axis=-1)), (5,), 20),
    "array_split positions": Row(lambda x: list(ops.array_split(x, 2, axis=1)), (3, 3), 6),
    "unstack positions": Row(lambda x: list(ops.unstack(x, axis=1)), (2, 3), 6),
    "pad channels": Row(lambda x: ops.pad(x, ((0, 0), (1, 0), (1, 2))), (2, 3), 12),
    "pad channels with ones": Row(
        lambda x: ops.pad(x, ((0, 0), (0, 2)), constant_values=1.0), (3,), 8
    ),  # the padding may go too
    "pad positions": Row(
        lambda x: ops.pad(x, ((0, 0), (1, 1), (0, 0)), mode="reflect"), (3, 3), 6
    ),
    "pad axis 1": Row(lambda x: ops.pad(x, [[0, 0], [0, 1], [2, 0]]), (3, 2), 6, 1),
}  # fmt: skip


def reductions(**kwargs: Any) -> Build:
    """All reductions over the first axis of positions, as one tensor of numbers."""
    names = """mean sum max amax min amin prod var std all any logsumexp norm median
    nanmean nansum nanmax nanmin nanstd nanvar nanprod argmax argmin ptp""".split()
    functions = [getattr(ops, name) for name in names]
    return lambda x: ops.concatenate(
        [ops.cast(f(x, axis=1, **kwargs), "float32") for f in functions], axis=1
    )


def unary(names: str, prepare: Build = lambda x: x) -> Build:
    """Operations by name, each on the prepared tensor."""
    functions = [getattr(ops, name) for name in names.split()]
    return side_by_side([lambda x, f=f: ops.cast(f(prepare(x)), "float32") for f in functions])


def binary(names: str) -> Build:
    """Operations by name, on the tensor and on a second one, both positive."""
    functions = [getattr(ops, name) for name in names.split()]

    def build(x: Tensor) -> Tensor:
        a, b = ops.exp(ops.tanh(x)), ops.exp(ops.tanh(mix(x)))
        return ops.concatenate([ops.cast(f(a, b), "float32") for f in functions], axis=1)

    return build


def within(x: Tensor) -> Tensor:
    """Between 0.2 and 0.8, where every function is defined."""
    return 0.2 + 0.6 * ops.sigmoid(x)


OPERATIONS = {
    "on any number": Row(
        unary(
            """abs absolute fabs relu relu6 sigmoid sparse_sigmoid softplus softsign soft_shrink
            sparse_plus silu squareplus log_sigmoid leaky_relu hard_sigmoid hard_silu elu selu gelu
            celu tanh_shrink hard_tanh hard_shrink arcsinh arctan cbrt ceil conjugate copy cos cosh
            deg2rad rad2deg exp exp2 expm1 floor imag real angle i0 isfinite isinf isnan isneginf
            isposinf isreal nan_to_num negative ones_like zeros_like round sign signbit sin sinc
            sinh square tan tanh trunc erf erfc stop_gradient logical_not"""
        ),
        (1, 3),
        6,
    ),
    "on some numbers": Row(
        unary("arccos arcsin arctanh log log10 log1p log2 sqrt rsqrt reciprocal erfinv", within),
        (1, 3),
        6,
    ),
    "above one": Row(unary("arccosh", lambda x: 2 + ops.tanh(x)), (1, 3), 6),
    "on integers": Row(
        unary("bitwise_invert bitwise_not", lambda x: ops.cast(100 * x, "int32")), (1, 3), 6
    ),
    "with arguments": Row(
        side_by_side([
            lambda x: ops.clip(x, -0.5, 0.5),
            lambda x: ops.threshold(x, 0.1, -1.0),
            lambda x: ops.cast(ops.cast(x, "float16"), "float32"),
            lambda x: ops.cast(ops.saturate_cast(100 * x, "int8"), "float32"),
            lambda x: keras.activations.relu(x, negative_slope=0.2, max_value=1.0),
        ]),
        (1, 3),
        6,
    ),
    "reductions": Row(reductions(), (3, 3), 6),
    "counting": Row(
        lambda x: ops.cast(ops.count_nonzero(ops.round(x), axis=1), "float32"), (3, 3), 6
    ),
    "reductions that keep the axis": Row(reductions(keepdims=True), (2, 3), 6),
    "reductions over areas": Row(
        lambda x: ops.mean(x, axis=(1, -2)) - ops.max(x, axis=(-3, 2)), (2, 3, 3), 6
    ),
    "along positions": Row(
        side_by_side([
            lambda x: ops.cumsum(x, axis=1),
            lambda x: ops.cumprod(x, axis=-2),
            lambda x: ops.roll(x, 1, axis=1),
            lambda x: ops.sort(x, axis=1),
            lambda x: ops.diff(x, axis=1),
        ]),
        (3, 3),
        6,
    ),
    "of two tensors": Row(
        binary("""add subtract multiply divide divide_no_nan true_divide floor_divide maximum
        minimum fmax fmin power mod fmod arctan2 hypot logaddexp logaddexp2 greater greater_equal
        less less_equal equal not_equal heaviside"""),
        (1, 3),
        12,
    ),
    "logic": Row(
        lambda x: ops.where(
            ops.logical_or(ops.logical_and(x > 0, x < 1), ops.logical_xor(mix(x) > 0, x > 2)),
            x,
            3.0,
        ),
        (2, 3),
        12,
    ),
    "a + b": Row(lambda x: x + mix(x), (2, 3), 12),
    "broadcasting b": Row(lambda x: x * mix(x)[:, :1], (2, 3), 12),
    "b of lower rank": Row(lambda x: x - mix(x)[0], (2, 3), 12),
    "b of one channel": Row(lambda x: x * mix(x, 1), (2, 3), 6),
    "python numbers": Row(lambda x: (2 - x) / 3 + 1 - (-x) ** 2, (2, 3), 6),
    "an array per channel": Row(lambda x: x * np.array([0.5, 2.0, -1.0], "float32"), (2, 3), 6),
    "an array before": Row(lambda x: ops.subtract(np.arange(3.0), x), (2, 3), 6),
    "an array per position": Row(lambda x: x + np.arange(4.0)[:, None], (4, 3), 6),
    "an array per number": Row(lambda x: ops.maximum(x, np.eye(2, 3)[None]), (2, 3), 6),
    "an array of more positions": Row(
        lambda x: x + np.arange(12.0).reshape(4, 3), (1, 3), 6
    ),
    "an array on axis 1": Row(lambda x: x * np.arange(1.0, 4.0)[:, None], (3, 2), 6, 1),
    "a tensor of the backend": Row(lambda x: x * ops.convert_to_tensor([1.0, 2, 3]), (2, 3), 6),
    "an array in where": Row(
        lambda x: ops.where(np.array([True, False, True]), x, np.float32(0.5)), (2, 3), 6
    ),
}  # fmt: skip


def at_each_rank(merge: Callable[[list[Tensor]], Tensor]) -> Build:
    """The tensor and averages of it, of lower rank, and with axes of size 1."""
    return lambda x: merge([x, ops.mean(x, (1, 2)), ops.max(x, 2, keepdims=True)])


MERGING = {
    **{
        f"{cls.__name__}": Row(with_second(layer(cls)), (2, 3), 12)
        for cls in (L.Add, L.Subtract, L.Multiply, L.Average, L.Maximum, L.Minimum)
    },
    "Add of three": Row(lambda x: L.Add()([x, mix(x), mix(x)]), (3,), 18),
    "Multiply of several ranks": Row(at_each_rank(layer(L.Multiply)), (2, 2, 3), 6),
    "Maximum of one channel": Row(lambda x: L.Maximum()([mix(x, 1), x]), (2, 3), 6),
    "Concatenate": Row(lambda x: L.Concatenate()([x, mix(x, 2), x]), (2, 3), 8),
    "Concatenate positions": Row(
        lambda x: L.Concatenate(axis=2)([x, L.Conv2D(3, (1, 2))(x)]), (2, 3, 3), 12
    ),
    "Concatenate other positions": Row(
        lambda x: L.Concatenate(axis=1)([L.Conv2D(3, (2, 1))(x), x]), (2, 3, 3), 12
    ),
    "Concatenate first": Row(
        lambda x: L.Concatenate(axis=1)([x, L.Conv1D(2, 1, **FIRST)(x)]), (3, 4), 8, 1
    ),
    "Concatenate batch": Row(with_second(lambda xs: ops.concatenate(xs, axis=0)), (3,), 12),
    "concatenate": Row(lambda x: ops.concatenate([mix(x, 2), x], axis=-1), (3,), 8),
    "stack": Row(with_second(lambda xs: ops.stack(xs, axis=1)), (2, 3), 12),
    "stack last": Row(with_second(lambda xs: ops.stack(xs, axis=-1)), (2, 3), 12),
}  # fmt: skip


def recurrent(cls: Callable[..., keras.Layer], *args: Any, **kwargs: Any) -> Row:
    """A recurrent layer of three units (or what makes one) over four steps of two channels."""
    return Row(layer(cls, *args, **kwargs), (4, 2), subsets(2, 3))


SEQUENCE = {"return_sequences": True}
STATE = {"return_state": True}
RECURRENT = {
    "simple rnn": recurrent(L.SimpleRNN, 3),
    "simple rnn no bias": recurrent(L.SimpleRNN, 3, use_bias=False, **SEQUENCE, **STATE),
    "lstm": recurrent(L.LSTM, 3),
    "lstm no bias": recurrent(L.LSTM, 3, use_bias=False, go_backwards=True, **STATE),
    "lstm sequence": recurrent(L.LSTM, 3, dropout=0.2, recurrent_dropout=0.3, **SEQUENCE),
    "gru": recurrent(L.GRU, 3, unroll=True, **SEQUENCE),
    "gru no bias": recurrent(L.GRU, 3, use_bias=False, **STATE),
    "gru reset before": recurrent(L.GRU, 3, reset_after=False),
    "gru reset before no bias": recurrent(
        L.GRU, 3, reset_after=False, use_bias=False, activation="relu", **SEQUENCE
    ),
    "cell simple rnn": recurrent(lambda: L.RNN(L.SimpleRNNCell(3), **STATE)),
    "cell lstm": recurrent(lambda: L.RNN(L.LSTMCell(3, activation="elu"), unroll=True)),
    "cell gru": recurrent(lambda: L.RNN(L.GRUCell(3, reset_after=False), **SEQUENCE)),
    "cells": Row(
        layer(lambda: L.RNN([L.LSTMCell(5), L.GRUCell(3)], **STATE)), (3, 2), subsets(2, 3, 5)
    ),  # those of the first cell have no name; see test_recurrent.py
    "bidirectional": Row(
        layer(L.Bidirectional, L.LSTM(3)), (4, 2), subsets(2) + blocks(3, 2)
    ),  # Keras wants both layers equally wide: a unit goes in both of them
    "bidirectional sum": Row(
        layer(lambda: L.Bidirectional(L.GRU(3, **SEQUENCE), merge_mode="sum")), (4, 2), 8
    ),
    "bidirectional mul": Row(
        layer(lambda: L.Bidirectional(L.SimpleRNN(3), merge_mode="mul")), (4, 2), 8
    ),
    "bidirectional ave": Row(
        layer(lambda: L.Bidirectional(L.LSTM(3), merge_mode="ave")), (4, 2), 8
    ),
    "bidirectional none": Row(
        layer(lambda: L.Bidirectional(L.GRU(3, **SEQUENCE, **STATE), merge_mode=None)), (4, 2), 8
    ),
    "bidirectional two kinds": Row(
        layer(lambda: L.Bidirectional(
            L.GRU(2, **SEQUENCE), backward_layer=L.SimpleRNN(2, go_backwards=True, **SEQUENCE)
        )),
        (3, 3),
        subsets(3) + blocks(2, 2),
    ),
    "bidirectional conv lstm first": Row(
        layer(lambda: L.Bidirectional(L.ConvLSTM1D(3, 2, **FIRST))), (2, 2, 3), 8, 2
    ),
    "time distributed": recurrent(lambda: L.TimeDistributed(L.Dense(3, activation="relu"))),
    "time distributed conv2d": Row(
        layer(L.TimeDistributed, L.Conv2D(3, 2, strides=2)), (2, 3, 4, 2), 8
    ),
    "time distributed batch": Row(layer(L.TimeDistributed, L.BatchNormalization()), (2, 3), 6),
    "time distributed flatten": Row(layer(L.TimeDistributed, L.Flatten()), (2, 4, 3), 6),
    "time distributed reshape": Row(layer(L.TimeDistributed, L.Reshape((1, 3))), (2, 3), 6),
    "time distributed lstm": Row(layer(L.TimeDistributed, L.LSTM(3)), (2, 3, 2), 8),
    "time distributed twice": Row(
        layer(lambda: L.TimeDistributed(L.TimeDistributed(L.Dense(3)))), (2, 3, 1, 2), 8
    ),
    "conv lstm 1d": Row(layer(L.ConvLSTM1D, 3, 2, strides=2, **SEQUENCE), (2, 4, 2), 8),
    "conv lstm 2d": Row(
        layer(L.ConvLSTM2D, 3, (2, 1), padding="same", use_bias=False, **STATE), (2, 3, 2, 2), 8
    ),
    "conv lstm 2d first": Row(
        layer(L.ConvLSTM2D, 3, 2, go_backwards=True, **FIRST), (2, 2, 3, 2), 8, 2
    ),
    "conv lstm 3d": Row(layer(L.ConvLSTM3D, 3, (1, 2, 1)), (2, 1, 3, 2, 2), 8),
}  # fmt: skip

ROWS = (
    CONVOLUTIONS | CORE | NORMALISATIONS | ACTIVATIONS | POSITIONS | RESHAPING | SLICING
    | OPERATIONS | MERGING | RECURRENT | CONTRACTIONS | ATTENTION
)  # fmt: skip


@keras.saving.register_keras_serializable(package="tests")
class OwnCell(keras.layers.Layer):
    """A cell that no rule describes: a running mean, with a state for every channel."""

    state_size = 4

    def call(self, x, states):
        mean = (x + states[0]) / 2
        return mean, [mean]


@keras.saving.register_keras_serializable(package="tests")
class Unknown(keras.layers.Layer):
    """A layer that no rule describes, and whose code is not to be looked into."""

    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-1:], name="scale")

    def call(self, x):
        self.last = x * self.scale  # code that keeps tensors could compute anything
        return self.last


class Mixing(NamedTuple):
    """What mixes channels, and the class of the layer that a warning names, if any."""

    build: Build
    barrier: str | None = None


def spread(x: Tensor) -> Tensor:
    """An activation function of one's own."""
    return x / (1 + ops.sum(x**2, axis=-1, keepdims=True))


MIXING = {
    "softmax": Mixing(layer(L.Softmax)),
    "masking": Mixing(lambda x: L.SimpleRNN(3)(L.Masking()(x))),
    "time distributed softmax": Mixing(layer(lambda: L.TimeDistributed(L.Softmax()))),
    "time distributed model": Mixing(
        layer(lambda: L.TimeDistributed(keras.Sequential([keras.Input((4,)), L.Dense(3)]))),
        "Sequential",
    ),
    "softmax of all": Mixing(layer(L.Softmax, axis=(1, 2))),
    "activation softmax": Mixing(layer(L.Activation, "softmax")),
    "activation log_softmax": Mixing(layer(L.Activation, "log_softmax")),
    "activation of one's own": Mixing(layer(L.Activation, spread)),
    "activation lambda": Mixing(layer(L.Activation, lambda x: x / (1 + ops.sum(x**2)))),
    "ops.softmax": Mixing(ops.softmax),
    "ops.log_softmax": Mixing(lambda x: ops.log_softmax(x, axis=-1)),
    "ops.normalize": Mixing(ops.normalize),
    "ops.glu": Mixing(ops.glu, "Glu"),
    "mean of channels": Mixing(lambda x: ops.mean(x, axis=-1, keepdims=True)),
    "max of channels": Mixing(lambda x: ops.max(x, axis=2)),
    "sum of all": Mixing(lambda x: ops.sum(x, axis=(1, 2))),
    "cumsum": Mixing(lambda x: ops.cumsum(x, axis=-1)),
    "roll": Mixing(lambda x: ops.roll(x, 1, axis=2)),
    "sort": Mixing(ops.sort),
    "unstack": Mixing(lambda x: ops.unstack(x, axis=-1)[1]),
    "unknown layer": Mixing(layer(Unknown), "Unknown"),
    "cell of one's own": Mixing(layer(lambda: L.RNN(OwnCell())), "OwnCell"),
    "cell of one's own in a stack": Mixing(
        layer(lambda: L.RNN([OwnCell(), L.GRUCell(3)])), "OwnCell"
    ),
    "lstm of steps": Mixing(lambda x: L.LSTM(3)(L.Permute((2, 1))(x))),
    "normalization": Mixing(
        layer(L.Normalization, mean=[0.0, 1.0, 2.0, 3.0], variance=[1.0, 2.0, 3.0, 4.0])
    ),
    "rescaling per channel": Mixing(layer(L.Rescaling, [0.5, 1.0, 2.0, 3.0])),
    "convolution over channels": Mixing(lambda x: L.Conv1D(3, 2)(L.Permute((2, 1))(x))),
    "pooling over channels": Mixing(lambda x: L.MaxPooling1D(2)(L.Permute((2, 1))(x))),
    "padding like a mirror": Mixing(
        lambda x: ops.pad(x, ((0, 0), (0, 0), (1, 1)), mode="reflect")
    ),
    "ravel": Mixing(lambda x: ops.reshape(ops.ravel(x), (-1, 8))),
    "normalisation over unsorted axes": Mixing(layer(L.LayerNormalization, axis=(1, -1))),
    "uneven repeats": Mixing(lambda x: ops.repeat(x, [1, 2, 1, 3], axis=-1)),
    "positions chosen channel by channel": Mixing(
        lambda x: ops.take_along_axis(x, ops.argmax(x, axis=1, keepdims=True), axis=1)
    ),
    "positions chosen at run time": Mixing(
        lambda x: ops.take(x, ops.cast(x[0, 0, :2] > 0, "int32"), axis=-1)
    ),
}  # fmt: skip


class Cut(NamedTuple):
    """A request of a grouped convolution's neighbour or of itself, and what it comes to."""

    layer: str
    channels: list[int]
    before: list[int]
    inputs: list[int]
    outputs: list[int]
    groups: int


class Grouped(NamedTuple):
    """A grouped convolution and the shape it takes; compiling it anew takes a second each time."""

    build: Build
    shape: tuple[int, ...]
    cuts: list[Cut]
    axis: int = -1


GROUPED = {
    "2 groups of 3 → 2": Grouped(
        layer(L.Conv1D, 4, 2, groups=2, name="grouped"),
        (2, 6),
        [
            Cut("before", [1], before=[1, 4], inputs=[1], outputs=[], groups=2),
            Cut("grouped", [2], before=[], inputs=[], outputs=[0, 2], groups=2),
        ],
    ),
    "3 groups of 2 → 1": Grouped(
        layer(L.Conv2D, 3, 1, groups=3, use_bias=False, activation="relu", name="grouped"),
        (1, 1, 6),
        [
            Cut("before", [0], before=[0, 1], inputs=[], outputs=[0], groups=2),
            Cut("before", [1, 3, 5], before=[1, 3, 5], inputs=[1], outputs=[], groups=3),
            Cut("grouped", [1, 2], before=[2, 3, 4, 5], inputs=[], outputs=[1, 2], groups=1),
        ],
    ),
    "3 groups of 1 → 2": Grouped(
        layer(L.Conv3D, 6, 1, groups=3, name="grouped"),
        (1, 1, 1, 3),
        [
            Cut("before", [1], before=[1], inputs=[], outputs=[2, 3], groups=2),
            Cut("grouped", [5], before=[2], inputs=[], outputs=[4, 5], groups=2),
            Cut("grouped", [0, 2, 4], before=[], inputs=[], outputs=[0, 2, 4], groups=3),
        ],
    ),
    "2 groups of 2 → 3 first": Grouped(
        layer(L.Conv2D, 6, (2, 1), strides=2, groups=2, name="grouped", **FIRST),
        (4, 2, 15),
        [
            Cut("before", [0, 2], before=[0, 2], inputs=[0], outputs=[], groups=2),
            Cut("grouped", [0, 5], before=[], inputs=[], outputs=[0, 2, 3, 5], groups=2),
        ],
        axis=1,
    ),
}


#: Keras can call these operations on channels first only, and cannot load them from a file.
UNSAVED = {
    "adaptive max": (lambda x: ops.adaptive_max_pool(x, (1, 2), **FIRST), (5, 2, 6)),
    "adaptive average": (lambda x: ops.adaptive_average_pool(x, (2, 3), **FIRST), (5, 2, 6)),
}


@pytest.mark.parametrize("name", UNSAVED)
def test_operations_that_keras_cannot_load(name: str) -> None:
    build, shape = UNSAVED[name]
    model = sandwich(build, shape, channel_axis=1)
    randomise(model)
    plan = ridurre.DependencyGraph(model).get_pruning_plan("before", [0, 3])
    assert plan.removed["before/bias"][0].tolist() == [0, 3]
    assert ridurre.verify(model, plan.exec(), plan) <= 1e-4


@pytest.mark.parametrize("name", GROUPED)
def test_groups_lose_the_same_positions_or_go_as_a_whole(name: str) -> None:
    build, shape, cuts, axis = GROUPED[name]
    model = sandwich(build, shape, channel_axis=axis)
    randomise(model)
    graph = ridurre.DependencyGraph(model)
    for cut in cuts:
        plan = graph.get_pruning_plan(cut.layer, cut.channels)
        smaller = plan.exec()
        kernel = plan.removed.get("grouped/kernel", {})
        rank = len(model.get_layer("grouped").kernel.shape)
        gone = [kernel.get(rank - 2, []), kernel.get(rank - 1, [])]
        gone.append(plan.removed.get("before/kernel", {}).get(1, []))
        assert [list(g) for g in gone] == [cut.inputs, cut.outputs, cut.before]
        assert smaller.get_layer("grouped").groups == cut.groups
        assert ridurre.verify(model, smaller, plan) <= 1e-4


# What Keras 3.15 itself cannot run on a back end, pruned or not (the first on JAX: not after it was
# saved). It is tried, so that a Keras that can is noticed and the row is checked from then on.
KERAS_CANNOT = {
    "torch": {
        "layer over positions", "layer axis 1", "transpose backwards", "repeat positions",
        "negative stride", "axis 1", "on any number", "counting", "uneven repeats",
    },
    "jax": {
        "pooling operations first", "repeat positions", "reductions",
        "reductions that keep the axis", "uneven repeats",
    },
}  # fmt: skip


def keras_cannot(name: str, model: keras.Model) -> bool:
    """Whether a row is one that Keras fails on with the back end in use; it has to fail."""
    if name not in KERAS_CANNOT.get(keras.backend.backend(), ()):
        return False
    with pytest.raises(Exception, match="Exception encountered|incompatible with the layer"):
        for one in (model, keras.models.model_from_json(model.to_json())):
            one(random_inputs(model))
    return True


# Keras 3.15 compares None with -1 in Tensordot.
@pytest.mark.filterwarnings("ignore:NotImplemented should not be used:DeprecationWarning")
@pytest.mark.parametrize("name", ROWS)
def test_every_subset_of_channels_can_go(name: str) -> None:
    build, shape, plans, axis = ROWS[name]
    if keras_cannot(name, sandwich(build, shape, channel_axis=axis)):
        return
    assert check_rule(build, shape, channel_axis=axis, prunable=plans > 0) == plans


def operations(model: keras.Model) -> Iterator[keras.Operation]:
    """All layers and operations of a model, at every depth."""
    for node in functional_graph(model).nodes:
        if has_graph(node.operation):
            yield from operations(node.operation)
        else:
            yield node.operation


@pytest.mark.filterwarnings("ignore:NotImplemented should not be used:DeprecationWarning")
def test_every_rule_has_a_row() -> None:
    tried = [(row.build, row.shape) for row in ROWS.values()]
    tried += [(row.build, row.shape) for row in GROUPED.values()]
    tried += [(row.build, (2, 4)) for row in MIXING.values()]
    tried += UNSAVED.values()
    hit: set[type | str] = set()
    for build, shape in tried:
        inputs = keras.Input(shape)
        model = keras.Model(inputs, build(inputs))
        hit |= {library_operation(x) or type(x) for x in operations(model)}
        inside = [c.operation for c in Trace(model).calls]  # what layers' code does
        hit |= {library_operation(x) or type(x) for x in inside}
        hit |= {type(x) for x in all_layers(model)}  # cells, and what is wrapped
    assert [str(key) for key in rules() if key not in hit] == []


def mixing_model(build: Build) -> keras.Model:
    """``free`` (5) → ``mixed`` (4) → what mixes channels → a dense layer that reads it."""
    inputs = keras.Input((2, 3))
    x = build(L.Dense(4, name="mixed")(L.Dense(5, name="free")(inputs)))
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))
    randomise(model)
    return model


def graph_of(model: keras.Model, barrier: str | None) -> ridurre.DependencyGraph:
    """The graph, whose warning names the barrier if there is one."""
    if barrier is None:
        return ridurre.DependencyGraph(model)
    with pytest.warns(ridurre.RidurreWarning, match=barrier):
        return ridurre.DependencyGraph(model)


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_channels_keeps_them_all(name: str) -> None:
    build, barrier = MIXING[name]
    model = mixing_model(build)
    if keras_cannot(name, model):
        return
    graph = graph_of(model, barrier)
    assert not graph.removable("mixed").any()
    with pytest.raises(FrozenChannelError, match=f"'mixed'.*{barrier or ''}"):
        graph.get_pruning_plan("mixed", [1])
    plan = graph.get_pruning_plan("free", [0, 3])
    assert ridurre.verify(model, plan.exec(), plan) <= 1e-4
    assert plan.removed.keys() == {"free/kernel", "free/bias", "mixed/kernel"}


# Normalisation across channels is not exact. Here is what remains to be computed, once more.


def moments(x: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    return x.mean(axes, keepdims=True), x.var(axes, keepdims=True)


def layer_norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, axes: tuple) -> np.ndarray:
    mean, variance = moments(x, axes)
    return (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta


def rms_norm(x: np.ndarray, scale: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return x / np.sqrt((x**2).mean(axes, keepdims=True) + 1e-6) * scale


def unit_norm(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return x / np.sqrt((x**2).sum(axes, keepdims=True))


def group_norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, groups: int) -> np.ndarray:
    parts = x.reshape(*x.shape[:-1], groups, -1)
    mean, variance = moments(parts, (1, 2, 4))
    return ((parts - mean) / np.sqrt(variance + 1e-3)).reshape(x.shape) * gamma + beta


class Normaliser(NamedTuple):
    """A layer, what goes, the formula for what stays, and whether it is exact."""

    make: Callable[[], keras.Layer]
    gone: list[int]
    formula: Callable[..., np.ndarray]
    exact: bool = False


NORMALISERS = {
    "layer": Normaliser(L.LayerNormalization, [1, 4], lambda x, g, b: layer_norm(x, g, b, (-1,))),
    "layer over all": Normaliser(
        lambda: L.LayerNormalization(axis=(1, 2, 3)),
        [0],
        lambda x, g, b: layer_norm(x, g, b, (1, 2, 3)),
    ),
    "layer over positions": Normaliser(
        lambda: L.LayerNormalization(axis=1),
        [0, 5],
        lambda x, g, b: layer_norm(x, g[:, None, None], b[:, None, None], (1,)),
        exact=True,
    ),
    "rms": Normaliser(L.RMSNormalization, [2], lambda x, s: rms_norm(x, s, (-1,))),
    "rms over all": Normaliser(
        lambda: L.RMSNormalization(axis=[1, 2, 3]), [3, 5], lambda x, s: rms_norm(x, s, (1, 2, 3))
    ),
    "unit": Normaliser(L.UnitNormalization, [0, 1], lambda x: unit_norm(x, (-1,))),
    "unit over positions": Normaliser(
        lambda: L.UnitNormalization(axis=2), [2], lambda x: unit_norm(x, (2,)), exact=True
    ),
    "part of every group": Normaliser(
        lambda: L.GroupNormalization(2), [1, 4], lambda x, g, b: group_norm(x, g, b, 2)
    ),
    "part of a single group": Normaliser(
        lambda: L.GroupNormalization(1), [0, 3], lambda x, g, b: group_norm(x, g, b, 1)
    ),
    "a whole group": Normaliser(
        lambda: L.GroupNormalization(3), [2, 3], lambda x, g, b: group_norm(x, g, b, 2), exact=True
    ),
    "a group and part of the rest": Normaliser(
        lambda: L.GroupNormalization(3), [0, 1, 2, 4], lambda x, g, b: group_norm(x, g, b, 2)
    ),
    "single channels": Normaliser(
        lambda: L.GroupNormalization(-1), [2, 3], lambda x, g, b: group_norm(x, g, b, 4), exact=True
    ),
}


@pytest.mark.parametrize("name", NORMALISERS)
def test_a_normaliser_computes_the_formula_of_what_is_left(
    name: str, rng: np.random.Generator
) -> None:
    make, gone, formula, exact = NORMALISERS[name]
    inputs = keras.Input((2, 3, 5))
    norm = make()
    outputs = L.Dense(2, name="read")(norm(L.Dense(6, name="make")(inputs)))
    model = keras.Model(inputs, outputs)
    randomise(model)
    if keras_cannot(name, model):
        return
    plan = ridurre.DependencyGraph(model).get_pruning_plan("make", gone)
    assert plan.inexact == (() if exact else (norm.name,))
    assert plan.exact == exact

    x = rng.normal(size=(4, 2, 3, 5)).astype("float32")
    kept = [i for i in range(6) if i not in gone]
    kernel, bias, weight, offset = (
        to_numpy(v) for n in ("make", "read") for v in model.get_layer(n).weights
    )
    own = [to_numpy(v) for v in norm.weights]
    own = [v[..., kept] if v.shape[-1] == 6 else v for v in own]
    expected = formula(x @ kernel[:, kept] + bias[kept], *own) @ weight[kept] + offset
    np.testing.assert_allclose(to_numpy(plan.exec()(x)), expected, rtol=1e-4, atol=1e-5)


def test_an_inexact_plan_says_so() -> None:
    inputs = keras.Input((3,))
    norm = L.LayerNormalization(name="norm")(L.Dense(5, name="make")(inputs))
    model = keras.Model(inputs, L.Dense(2)(norm))
    plan = ridurre.DependencyGraph(model).get_pruning_plan("make", [0])
    assert "Not exact: statistics across channels change in norm" in str(plan)
    with pytest.raises(ridurre.RidurreError, match="not exact: norm"):
        ridurre.verify(model, plan.exec(), plan)


@pytest.mark.parametrize("rows", [2, 3, 4, 5])
@pytest.mark.parametrize("first", [False, True])
def test_a_constant_over_rows_is_not_taken_for_a_bias(rows: int, first: bool) -> None:
    """Keras on TensorFlow adds it along the last axis, if that has as many channels."""
    inputs = keras.Input((rows, 2, 3))
    constant = np.arange(1.0, rows + 1, dtype="float32").reshape(rows, 1, 1)
    x = L.Dense(5, name="make")(inputs)
    x = ops.add(constant, x) if first else ops.add(x, constant)
    model = keras.Model(inputs, L.Dense(2)(x))
    randomise(model)
    graph = ridurre.DependencyGraph(model)
    misread = keras.backend.backend() == "tensorflow" and rows == 5 and not first
    assert graph.removable("make").any() != misread
    for count in range(1, 5) if not misread else ():
        plan = graph.get_pruning_plan("make", range(count))
        assert ridurre.verify(model, plan.exec(), plan) <= 1e-4


def test_a_constant_over_columns_is_not_taken_for_one_over_rows() -> None:
    """Keras on TensorFlow adds it along the first axis behind the batch, if that is as long."""
    inputs = keras.Input((4, 4, 2))
    constant = np.arange(1.0, 5.0, dtype="float32").reshape(4, 1)
    model = keras.Model(inputs, L.Dense(2)(L.Dense(3, name="make")(inputs) + constant))
    graph = ridurre.DependencyGraph(model)
    assert graph.removable("make").any() != (keras.backend.backend() == "tensorflow")


def test_subsets_and_blocks() -> None:
    sets = [set(c) for n in range(1, 6) for c in combinations(range(6), n)]
    assert subsets(6) == len(sets)
    assert blocks(2, 3) == sum(len({i // 3 for i in s}) < 2 for s in sets)
