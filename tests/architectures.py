"""Random Keras models: graphs over everything that ridurre supports.

A model is described by a `Program`: a list of steps ``(name in STEPS, seed)``. A step draws tensors
from those that exist so far and adds new ones; a step that finds nothing it can work on is skipped.
So any part of a program is a program, which makes one that fails easy to shrink, and the same
generator serves Hypothesis (`programs`) and long runs (`random_program`). What must hold for every
model is in `random_checks`.

To add a kind of step, write a function of a `Maker` and decorate it with `@step()`.
"""

import collections
import contextlib
import functools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import hypothesis.strategies as st
import keras
import numpy as np
from keras import layers as L
from keras import ops
from keras.src.backend.common import global_state
from keras.src.utils.naming import auto_name

from ridurre.backend import all_layers, functional_graph, has_graph, to_numpy
from ridurre.testing import randomise

CONV = {3: L.Conv1D, 4: L.Conv2D, 5: L.Conv3D}
CONV_TRANSPOSE = {3: L.Conv1DTranspose, 4: L.Conv2DTranspose, 5: L.Conv3DTranspose}
DEPTHWISE = {3: L.DepthwiseConv1D, 4: L.DepthwiseConv2D}
SEPARABLE = {3: L.SeparableConv1D, 4: L.SeparableConv2D}
AVERAGE_POOLING = {3: L.AveragePooling1D, 4: L.AveragePooling2D, 5: L.AveragePooling3D}
MAX_POOLING = {3: L.MaxPooling1D, 4: L.MaxPooling2D, 5: L.MaxPooling3D}
GLOBAL_AVERAGE = {
    3: L.GlobalAveragePooling1D,
    4: L.GlobalAveragePooling2D,
    5: L.GlobalAveragePooling3D,
}
GLOBAL_MAX = {3: L.GlobalMaxPooling1D, 4: L.GlobalMaxPooling2D, 5: L.GlobalMaxPooling3D}
ZERO_PADDING = {3: L.ZeroPadding1D, 4: L.ZeroPadding2D, 5: L.ZeroPadding3D}
CROPPING = {3: L.Cropping1D, 4: L.Cropping2D, 5: L.Cropping3D}
UP_SAMPLING = {3: L.UpSampling1D, 4: L.UpSampling2D, 5: L.UpSampling3D}
SPATIAL_DROPOUT = {3: L.SpatialDropout1D, 4: L.SpatialDropout2D, 5: L.SpatialDropout3D}

MERGES = (L.Add, L.Subtract, L.Multiply, L.Average, L.Maximum, L.Minimum)
ACTIVATIONS = """relu tanh sigmoid gelu silu elu selu softplus softsign hard_sigmoid hard_silu
    leaky_relu relu6 mish log_sigmoid""".split()
RAW = """relu tanh sigmoid gelu silu elu softplus softsign hard_sigmoid hard_silu leaky_relu relu6
    sin cos abs negative arctan erf celu soft_shrink squareplus hard_tanh""".split()
LARGEST = 1200  # numbers in one tensor, per sample
WIDEST = 18


class Skip(Exception):
    """This step finds nothing that it can work on."""


@keras.saving.register_keras_serializable(package="architectures")
class Mystery(keras.Layer):
    """A layer that no rule describes; it mixes the channels."""

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, dtype=x.dtype)

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(input_shape[-1],), name="scale")
        super().build(input_shape)

    def call(self, x):
        return x * self.scale + ops.mean(x, axis=-1, keepdims=True)


# --------------------------------------------------------------------------------- the generator


class Maker:
    """The tensors that a random model has so far.

    Attributes:
        rng: every random choice comes from it.
        live: all tensors that a step may use.
        depth: how deep this model is nested.
        open: whether some sizes are unknown, so that steps which need them don't apply.
    """

    def __init__(self, rng: random.Random, depth: int = 0) -> None:
        self.rng = rng
        self.depth = depth
        self.open = False
        self.inputs: list[keras.KerasTensor] = []
        self.live: list[keras.KerasTensor] = []
        self.used: set[int] = set()

    # choices

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def choice(self, options):
        return self.rng.choice(list(options))

    def width(self) -> int:
        return self.rng.choice((3, 3, 5, 5, 7, 7, 2, 4))

    def array(self, *shape: int) -> np.ndarray:
        values = np.random.default_rng(self.rng.randrange(2**32)).uniform(0.5, 1.5, shape)
        return values.astype("float32")

    def pick(self, *ranks: int, where: Callable = lambda x: True) -> keras.KerasTensor:
        """A tensor that exists, rather a late one."""
        found = [
            x for x in self.live if (not ranks or len(x.shape) in ranks) and where(tuple(x.shape))
        ]
        if not found:
            raise Skip
        x = self.rng.choice(found[-2:] if self.chance(0.6) else found)
        self.used.add(id(x))
        return x

    # growing

    def input(self, *shape: int, dtype: str | None = None) -> keras.KerasTensor:
        self.inputs.append(keras.Input(shape, dtype=dtype))
        return self.inputs[-1]

    def add(self, *tensors: keras.KerasTensor) -> None:
        for x in tensors:
            if math.prod(n or 6 for n in x.shape[1:]) > LARGEST or (x.shape[-1] or 0) > 4 * WIDEST:
                raise Skip
        self.live += tensors

    def run(self, name: str, seed: int) -> bool:
        """Run one step; whether it found something to do."""
        before = list(self.live), list(self.inputs), set(self.used)
        self.rng = random.Random(seed)
        try:
            STEPS[name](self)
        except (Skip, TypeError, ValueError) as error:
            if not (self.open or isinstance(error, Skip)):
                raise
            self.live, self.inputs, self.used = before
            return False
        return True

    def leaves(self) -> list[keras.KerasTensor]:
        return [x for x in self.live if id(x) not in self.used]

    # pieces

    def project(self, x: keras.KerasTensor, width: int, **options) -> keras.KerasTensor:
        """The same positions with new channels."""
        rank = len(x.shape)
        if rank in (3, 4) and self.chance(0.7):
            return CONV[rank](width, self.choice((1, 3)), padding="same", **options)(x)
        return L.Dense(width, **options)(x)

    def mate(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """A tensor of the same shape."""
        if None in x.shape[1:]:  # of such, equal shapes say nothing
            return self.project(x, x.shape[-1])
        inputs = [] if self.chance(0.2) else self.inputs  # of which no channel can go
        same = [y for y in self.live if y.shape == x.shape and all(y is not z for z in inputs)]
        if same and self.chance(0.5):
            y = self.rng.choice(same)
        elif (near := [y for y in self.live if y.shape[:-1] == x.shape[:-1]]) and self.chance(0.8):
            y = self.project(self.rng.choice(near), x.shape[-1])
        else:
            y = self.project(x, x.shape[-1])
        self.used.add(id(y))
        return y

    def neighbour(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """A tensor with the same positions and other channels."""
        near = [y for y in self.live if y.shape[:-1] == x.shape[:-1]]
        if near and self.chance(0.6) and None not in x.shape[1:]:
            y = self.rng.choice(near)
        else:
            y = self.project(x, self.width())
        self.used.add(id(y))
        return y

    def composite(self, *ranks: int) -> tuple[keras.KerasTensor, int]:
        """A tensor and a divisor of its number of channels."""
        with contextlib.suppress(Skip):
            if self.chance(0.6):
                x = self.pick(*ranks, where=lambda s: s[-1] in (4, 6, 8, 9, 10, 12, 14, 15))
                return x, self.choice(g for g in range(2, x.shape[-1]) if x.shape[-1] % g == 0)
        x = self.project(self.pick(*ranks), self.choice((4, 6, 8, 9)))
        return x, self.choice(g for g in range(2, x.shape[-1]) if x.shape[-1] % g == 0)

    def activation(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """One of the three ways to write an activation."""
        kind = self.rng.randrange(4)
        if kind == 0:
            return L.Activation(self.choice(ACTIVATIONS))(x)
        if kind == 1:
            return self.choice((L.ReLU, L.LeakyReLU, L.ELU, partial(L.ReLU, max_value=6.0)))()(x)
        return getattr(ops, self.choice(RAW))(x)

    def reshape(self, x: keras.KerasTensor, shape: Sequence[int]) -> keras.KerasTensor:
        """By layer or by operation, sometimes with one size left open."""
        shape = list(shape)
        if None in shape:
            if shape.count(None) > 1:
                raise Skip
            return L.Reshape([-1 if n is None else n for n in shape])(x)
        if self.chance(0.3):
            shape[self.rng.randrange(len(shape))] = -1
            return L.Reshape(shape)(x)
        return L.Reshape(shape)(x) if self.chance(0.5) else ops.reshape(x, (-1, *shape))

    def transpose(self, x: keras.KerasTensor, order: Sequence[int]) -> keras.KerasTensor:
        """By layer or by operation; the batch stays in front."""
        if self.chance(0.5):
            return L.Permute(tuple(order[1:]))(x)
        return ops.transpose(x, tuple(order))

    def last(self, x: keras.KerasTensor) -> int:
        """The last axis, counted from the front or from the back."""
        return self.choice((-1, len(x.shape) - 1))


STEPS: dict[str, Callable[[Maker], None]] = {}
_WEIGHTS: dict[str, int] = {}


def step(weight: int = 4):
    """Decorator: a kind of step, and how often it is drawn."""

    def register(function: Callable[[Maker], None]):
        STEPS[function.__name__] = function
        _WEIGHTS[function.__name__] = weight
        return function

    return register


def positions(x: keras.KerasTensor) -> tuple[int, ...]:
    return tuple(x.shape[1:-1])


# ---- layers with weights


@step(14)
def conv(m: Maker) -> None:
    x = m.pick(3, 4, 5)
    kernel = m.rng.randint(1, min(3, *positions(x)))
    padding = m.choice(("same", "valid"))
    options = {"strides": 2} if m.chance(0.25) else {}
    if not options and padding == "same" and kernel > 1 and m.chance(0.2):
        options = {"dilation_rate": 2}
    if m.chance(0.4):
        options["activation"] = m.choice(ACTIVATIONS)
    x = CONV[len(x.shape)](m.width(), kernel, padding=padding, use_bias=m.chance(0.7), **options)(x)
    m.add(m.activation(x) if m.chance(0.3) else x)


@step(8)
def grouped_conv(m: Maker) -> None:
    x, groups = m.composite(3, 4)
    if m.chance(0.2):
        groups = x.shape[-1]
    filters = groups * m.rng.randint(1, 3)
    m.add(
        CONV[len(x.shape)](
            filters, m.choice((1, 3)), padding="same", groups=groups, use_bias=m.chance(0.7)
        )(x)
    )


@step(5)
def conv_transpose(m: Maker) -> None:
    x = m.pick(3, 4) if m.chance(0.9) else m.pick(5)
    strides = m.choice((1, 2))
    padding = m.choice(("same", "valid"))
    options = {"activation": m.choice(ACTIVATIONS)} if m.chance(0.3) else {}
    m.add(
        CONV_TRANSPOSE[len(x.shape)](
            m.width(), m.choice((2, 3)), strides=strides, padding=padding, **options
        )(x)
    )


@step(8)
def depthwise_conv(m: Maker) -> None:
    x = m.pick(3, 4)
    if x.shape[-1] > WIDEST:
        raise Skip
    m.add(
        DEPTHWISE[len(x.shape)](
            m.choice((1, 2, 3)),
            padding="same",
            strides=m.choice((1, 1, 2)),
            depth_multiplier=m.choice((1, 1, 2)),
            use_bias=m.chance(0.6),
        )(x)
    )


@step(5)
def separable_conv(m: Maker) -> None:
    x = m.pick(3, 4)
    multiplier = m.choice((1, 1, 2))
    m.add(SEPARABLE[len(x.shape)](m.width(), 2, padding="same", depth_multiplier=multiplier)(x))


@step(8)
def dense(m: Maker) -> None:
    x = m.pick()
    activation = m.choice([None, *ACTIVATIONS])
    m.add(L.Dense(m.width(), activation=activation, use_bias=m.chance(0.7))(x))


@step(1)
def embedding(m: Maker) -> None:
    shape = m.choice(((4,), (3, 3)))
    m.add(L.Embedding(m.rng.randint(2, 4), m.width())(m.input(*shape, dtype="int32")))


@step(4)
def shared_layer(m: Maker) -> None:
    """The same layer on two tensors with as many channels."""
    x = m.pick(3, 4)
    y = m.mate(x) if m.chance(0.7) else m.pick(len(x.shape), where=lambda s: s[-1] == x.shape[-1])
    rank, width = len(x.shape), m.width()
    layer = m.choice(
        (
            partial(L.Dense, width),
            partial(CONV[rank], width, 3, padding="same"),
            partial(SEPARABLE[rank], width, 2, padding="same", depth_multiplier=m.choice((1, 2))),
            partial(DEPTHWISE[rank], 3, padding="same", depth_multiplier=m.choice((1, 2))),
            partial(CONV_TRANSPOSE[rank], width, 2),
            L.BatchNormalization,
            partial(L.Dropout, 0.3),
            L.ReLU,
        )
    )()
    m.add(layer(x), layer(y))


# ---- normalisation and activation


@step(12)
def batch_normalization(m: Maker) -> None:
    x = m.pick()
    options = m.choice(({}, {}, {"scale": False}, {"center": False}))
    m.add(L.BatchNormalization(**options)(x))


@step(2)
def normalise_across(m: Maker) -> None:
    x, groups = m.composite(3, 4)
    layer = m.choice(
        (
            L.LayerNormalization(axis=m.choice((-1, [-2, -1], [1, -1]))),
            L.RMSNormalization(),
            L.UnitNormalization(),
            L.GroupNormalization(groups),
            L.GroupNormalization(x.shape[-1]),
        )
    )
    m.add(layer(x))


@step(3)
def group_normalization(m: Maker) -> None:
    """With whole groups removed, an exact one."""
    x, groups = m.composite(3, 4)
    m.add(L.GroupNormalization(groups, center=m.chance(0.8), scale=m.chance(0.8))(x))


@step(10)
def activate(m: Maker) -> None:
    m.add(m.activation(m.pick()))


@step(4)
def prelu(m: Maker) -> None:
    x = m.pick()
    inner = list(range(1, len(x.shape) - 1))
    shared = m.choice((None, inner, inner[:1], list(range(1, len(x.shape)))))
    m.add(L.PReLU(shared_axes=shared)(x))


@step(4)
def passing(m: Maker) -> None:
    x = m.pick()
    options = [
        L.Dropout(0.2),
        L.GaussianNoise(0.1),
        L.GaussianDropout(0.1),
        L.AlphaDropout(0.1),
        L.Identity(),
        L.ActivityRegularization(l2=0.01),
        L.Rescaling(0.5, offset=0.25),
    ]
    if len(x.shape) in SPATIAL_DROPOUT:
        options.append(SPATIAL_DROPOUT[len(x.shape)](0.2))
    m.add(m.choice(options)(x))


# ---- positions


@step(8)
def pooling(m: Maker) -> None:
    x = m.pick(3, 4, 5, where=lambda s: min(s[1:-1]) > 1)
    kind = m.choice((AVERAGE_POOLING, MAX_POOLING))[len(x.shape)]
    m.add(kind(2, strides=m.choice((1, 2)), padding=m.choice(("same", "valid")))(x))


@step(4)
def global_pooling(m: Maker) -> None:
    x = m.pick(3, 4, 5)
    kind = m.choice((GLOBAL_AVERAGE, GLOBAL_MAX))[len(x.shape)]
    m.add(kind(keepdims=m.chance(0.5))(x))


@step(3)
def reduce_positions(m: Maker) -> None:
    """Pooling written as a reduction."""
    x = m.pick(3, 4)
    axes = list(range(1, len(x.shape) - 1))
    axis = m.choice((axes, axes[0], [a - len(x.shape) for a in axes]))
    reduce = m.choice((ops.mean, ops.max, ops.min, ops.sum, ops.var, ops.logsumexp))
    m.add(reduce(x, axis=axis, keepdims=m.chance(0.5)))


@step(4)
def pad_or_crop(m: Maker) -> None:
    x = m.pick(3, 4, 5)
    rank = len(x.shape)
    if min(positions(x)) > 2 and m.chance(0.5):
        cropping = (
            m.choice((1, (0, 1), (1, 0))) if rank == 3 else m.choice((1, ((0, 1),) * (rank - 2)))
        )
        m.add(CROPPING[rank](cropping)(x))
    else:
        padding = m.choice((1, (0, 1))) if rank == 3 else m.choice((1, ((0, 1),) * (rank - 2)))
        m.add(ZERO_PADDING[rank](padding)(x))


@step(3)
def upsampling(m: Maker) -> None:
    x = m.pick(3, 4, where=lambda s: max(s[1:-1]) < 5)
    options = {"interpolation": "bilinear"} if len(x.shape) == 4 and m.chance(0.4) else {}
    m.add(UP_SAMPLING[len(x.shape)](2, **options)(x))


@step(1)
def resizing(m: Maker) -> None:
    m.add(L.Resizing(3, 4)(m.pick(4)))


@step(3)
def spatial_slice(m: Maker) -> None:
    x = m.pick(3, 4)
    key = m.choice(
        (slice(None, None, 2), slice(1, None), slice(None, None, -1), slice(0, -1), 0, -1)
    )
    if positions(x)[0] < 2:
        raise Skip
    whole = (slice(None),) * (len(x.shape) - 2)
    m.add(x[(slice(None), key, *m.choice((whole, (), (Ellipsis,))))])


@step(2)
def along_positions(m: Maker) -> None:
    x = m.pick(3, 4)
    m.add(
        m.choice(
            (
                partial(ops.flip, axis=1),
                partial(ops.roll, shift=1, axis=1),
                partial(ops.cumsum, axis=1),
                partial(ops.sort, axis=1),
                partial(ops.normalize, axis=1),
                partial(ops.softmax, axis=1),
                L.Softmax(axis=1),
                partial(ops.pad, pad_width=[(0, 0), (1, 1)] + [(0, 0)] * (len(x.shape) - 2)),
                partial(
                    ops.pad,
                    pad_width=[(0, 0), (1, 0)] + [(0, 0)] * (len(x.shape) - 2),
                    mode="reflect" if positions(x)[0] > 1 else "constant",
                ),
            )
        )(x)
    )


@step(1)
def unstack_positions(m: Maker) -> None:
    x = m.pick(3, 4, where=lambda s: 2 <= s[1] <= 3)
    parts = ops.unstack(x, axis=1)
    m.rng.shuffle(parts)
    m.add(ops.concatenate(parts, axis=-1) if m.chance(0.5) else parts[0] - parts[1])


@step(1)
def pooling_operation(m: Maker) -> None:
    x = m.pick(3, 4)
    m.add(m.choice((ops.max_pool, ops.average_pool))(x, 2, strides=1, padding="same"))


# ---- shapes


@step(4)
def flatten(m: Maker) -> None:
    x = m.pick(3, 4, where=lambda s: math.prod(s[1:]) <= 300)
    flat = L.Flatten()(x) if m.chance(0.7) else ops.reshape(x, (-1, math.prod(x.shape[1:])))
    m.add(L.Dense(m.width(), activation=m.choice((None, "relu", "tanh")))(flat))


@step(4)
def merge_positions(m: Maker) -> None:
    """Height and width in one axis, and sometimes back."""
    x = m.pick(4)
    h, w, c = x.shape[1:]
    y = m.reshape(x, (h * w, c))
    if m.chance(0.4):
        y = m.project(y, c)
        y = m.reshape(y, (w, h, c))
    m.add(y)


@step(4)
def unflatten(m: Maker) -> None:
    """As a generator begins: a dense layer whose units become positions and channels."""
    h, w, c = m.choice((2, 3)), m.choice((2, 3)), m.width()
    x = L.Dense(h * w * c)(m.pick(2))
    m.add(m.reshape(x, m.choice(((h, w, c), (h * w, c)))))


@step(5)
def heads(m: Maker) -> None:
    """Channels on two axes, and back, whole or with one axis pooled away."""
    x, groups = m.composite(3, 4)
    inner = positions(x)
    y = m.reshape(x, (*inner, groups, x.shape[-1] // groups))
    kind = m.rng.randrange(5)
    if kind == 0:
        y = m.reshape(L.Activation("tanh")(y), (*inner, x.shape[-1]))
    elif kind == 1:
        y = m.choice((ops.mean, ops.max, ops.sum))(y, axis=m.choice((-1, -2)))
    elif kind == 2:
        rank = len(y.shape)
        y = m.transpose(y, (0, rank - 2, *range(1, rank - 2), rank - 1))
    elif kind == 3:
        y = y * m.array(*m.choice(((1,), (groups, 1), (x.shape[-1] // groups,))))
        y = m.reshape(y, (*inner, x.shape[-1]))
    m.add(y)


@step(5)
def channel_shuffle(m: Maker) -> None:
    x, groups = m.composite(3, 4)
    inner, rank = positions(x), len(x.shape)
    y = m.reshape(x, (*inner, groups, x.shape[-1] // groups))
    y = m.transpose(y, (*range(rank - 1), rank, rank - 1))
    m.add(m.reshape(y, (*inner, x.shape[-1])))


@step(3)
def pixel_shuffle(m: Maker) -> None:
    x = m.pick(4, where=lambda s: s[1] * s[2] <= 16)
    h, w, _ = x.shape[1:]
    c = m.choice((1, 2, 3))
    y = L.Conv2D(4 * c, 1)(x)
    if m.chance(0.4):
        m.add(ops.nn.depth_to_space(y, 2))
        return
    y = m.reshape(y, (h, w, 2, 2, c) if m.chance(0.5) else (h, w, 2, 2 * c))
    if len(y.shape) == 6:
        y = m.transpose(y, (0, 1, 3, 2, 4, 5))
        m.add(m.reshape(y, (h * 2, w * 2, c)))
    else:
        y = m.transpose(y, (0, 1, 3, 2, 4))
        m.add(m.reshape(y, (h * 2, w, 2 * c)))


@step(3)
def pixel_unshuffle(m: Maker) -> None:
    x = m.pick(4, where=lambda s: s[1] % 2 == s[2] % 2 == 0 and s[3] <= 5)
    h, w, c = x.shape[1:]
    y = m.reshape(x, (h // 2, 2, w // 2, 2, c))
    y = m.transpose(y, m.choice(((0, 1, 3, 2, 4, 5), (0, 1, 3, 5, 2, 4))))
    m.add(m.reshape(y, (h // 2, w // 2, 4 * c)))


@step(4)
def permute(m: Maker) -> None:
    x = m.pick(3, 4)
    rank = len(x.shape)
    order = list(range(1, rank))
    m.rng.shuffle(order)
    kind = m.rng.randrange(3)
    if kind == 0:
        m.add(ops.swapaxes(x, 1, m.last(x)))
    elif kind == 1:
        m.add(ops.moveaxis(x, m.last(x), 1))
    else:
        m.add(m.transpose(x, (0, *order)))


@step(2)
def repeat_vector(m: Maker) -> None:
    m.add(L.RepeatVector(3)(m.pick(2)))


@step(2)
def new_axis(m: Maker) -> None:
    x = m.pick(2, 3)
    axis = m.choice((1, len(x.shape), -1))
    y = ops.expand_dims(x, axis)
    if m.chance(0.5):
        y = ops.squeeze(m.activation(y), axis)
    m.add(y)


@step(2)
def broadcast(m: Maker) -> None:
    x = m.pick(2, 3, where=lambda s: math.prod(s[1:]) < 100)
    if len(x.shape) == 2:
        m.add(L.RepeatVector(2)(x))
    else:
        m.add(ops.tile(x, (1, 2, 1)) if m.chance(0.5) else ops.repeat(x, 2, axis=1))


@step(3)
def repeat_channels(m: Maker) -> None:
    x = m.pick(where=lambda s: s[-1] <= 8)
    if m.chance(0.1):
        m.add(ops.repeat(x, [m.rng.randint(1, 2) for _ in range(x.shape[-1])], axis=m.last(x)))
    elif m.chance(0.5):
        m.add(ops.repeat(x, 2, axis=m.last(x)))
    else:
        m.add(ops.tile(x, (1,) * (len(x.shape) - 1) + (2,)))


# ---- several tensors


@step(12)
def merge_layer(m: Maker) -> None:
    x = m.pick(where=lambda s: len(s) < 6)
    kind = m.choice(MERGES)
    others = [m.mate(x) for _ in range(1 if kind is L.Subtract else m.choice((1, 1, 2)))]
    xs = [x, *others]
    m.rng.shuffle(xs)
    m.add(kind()(xs))


@step(8)
def merge_operation(m: Maker) -> None:
    x = m.pick(where=lambda s: len(s) < 6)
    y = m.mate(x)
    kind = m.rng.randrange(7)
    merged = {
        0: lambda: x + y,
        1: lambda: x - y,
        2: lambda: x * y,
        3: lambda: ops.maximum(x, y),
        4: lambda: ops.where(x > 0, y, x),
        5: lambda: ops.where(y > x, 0.5, y),
        6: lambda: x * ops.cast(y > 0.1, x.dtype),
    }[kind]()
    m.add(merged)


@step(6)
def residual(m: Maker) -> None:
    """Convolution, normalisation, activation, addition; sometimes with a projection."""
    x = m.pick(3, 4)
    width = m.choice((x.shape[-1], x.shape[-1], m.width()))
    y = m.project(x, width, use_bias=False)
    y = m.activation(L.BatchNormalization()(y))
    y = m.project(y, width)
    shortcut = x if width == x.shape[-1] else m.project(x, width)
    m.add(L.Add()([shortcut, y]) if m.chance(0.5) else y + shortcut)


@step(4)
def option_a(m: Maker) -> None:
    """The shortcut of the CIFAR ResNets: every other position, channels padded with zeros."""
    x = m.pick(3, 4, where=lambda s: min(s[1:-1]) > 1 and s[-1] < 10)
    rank, before, after = len(x.shape), m.rng.randint(0, 2), m.rng.randint(1, 2)
    every = slice(None, None, 2)
    shortcut = x[(slice(None), *(every,) * (rank - 2), *m.choice(((), (slice(None),))))]
    shortcut = ops.pad(shortcut, [(0, 0)] * (rank - 1) + [(before, after)])
    y = CONV[rank](x.shape[-1] + before + after, 3, strides=2, padding="same")(x)
    m.add(shortcut + y)


@step(12)
def concatenate(m: Maker) -> None:
    x = m.pick()
    others = [m.neighbour(x) for _ in range(m.choice((1, 1, 2)))]
    xs = [x, *others]
    m.rng.shuffle(xs)
    axis = m.last(x)
    m.add(L.Concatenate(axis=axis)(xs) if m.chance(0.6) else ops.concatenate(xs, axis=axis))


@step(4)
def concatenate_positions(m: Maker) -> None:
    x = m.pick(3, 4)
    y = m.mate(x)
    m.add(L.Concatenate(axis=m.choice((1, len(x.shape) - 2)))([x, y]))


@step(4)
def gate(m: Maker) -> None:
    """Squeeze and excite."""
    x = m.pick(3, 4)
    rank, c = len(x.shape), x.shape[-1]
    keep = m.chance(0.5)
    y = GLOBAL_AVERAGE[rank](keepdims=keep)(x)
    if not keep and m.chance(0.8):
        y = m.reshape(y, (1,) * (rank - 2) + (c,))
    reduced = len(y.shape) == 2
    make = partial(L.Dense) if reduced or m.chance(0.5) else partial(CONV[rank], kernel_size=1)
    y = make(m.width(), activation="relu")(y)
    y = make(c, activation=m.choice(("sigmoid", "hard_sigmoid", None)))(y)
    m.add(L.Multiply()([x, y]) if reduced or m.chance(0.5) else x * y)


@step(3)
def mask(m: Maker) -> None:
    """One number per position times all channels."""
    x = m.pick(3, 4)
    y = m.project(x, 1, activation="sigmoid")
    m.add(m.choice((lambda: x * y, lambda: L.Multiply()([x, y]), lambda: x + y))())


@step(3)
def broadcast_channels(m: Maker) -> None:
    """One number per channel with all positions."""
    x = m.pick(3, 4)
    y = m.choice((ops.mean, ops.max))(
        m.mate(x), axis=list(range(1, len(x.shape) - 1)), keepdims=True
    )
    m.add(m.choice((lambda: x - y, lambda: L.Add()([x, y]), lambda: ops.maximum(y, x)))())


@step(1)
def mean_channel(m: Maker) -> None:
    x = m.pick(3, 4)
    m.add(x + ops.mean(m.project(x, m.width()), axis=-1, keepdims=True))


@step(3)
def stack(m: Maker) -> None:
    x = m.pick(2, 3, 4)
    y, rank = m.mate(x), len(x.shape)
    axis = m.choice((1, rank - 1, rank, -1, -2))
    z = ops.stack([x, y], axis=axis)
    kind = m.rng.randrange(3)
    if kind == 0:
        z = ops.mean(z, axis=axis)
    elif kind == 1 and axis in (-1, -2, rank - 1, rank):
        z = m.reshape(z, (*positions(x), 2 * x.shape[-1]))  # interleaved, or side by side
    m.add(z)


# ---- parts of a tensor


@step(8)
def split(m: Maker) -> None:
    """Branches from one tensor, treated apart and joined in another order."""
    x = m.pick(where=lambda s: s[-1] >= 4)
    c, axis = x.shape[-1], m.last(x)
    if m.chance(0.4) and any(c % n == 0 for n in (2, 3)):
        parts = ops.split(x, m.choice(n for n in (2, 3) if c % n == 0), axis=axis)
    else:
        points = sorted(m.rng.sample(range(1, c), m.choice((1, 1, 2))))
        parts = ops.split(x, points, axis=axis)
    parts = [m.activation(p) if m.chance(0.4) else p for p in parts]
    if m.chance(0.4):
        parts[0] = m.project(parts[0], m.width())
    m.rng.shuffle(parts)
    if m.chance(0.6):
        m.add(ops.concatenate(parts, axis=-1))
    elif len({p.shape for p in parts}) == 1 and m.chance(0.6):
        m.add(parts[0] + parts[1])
    else:
        m.add(*parts[: m.choice((1, 2))])


@step(6)
def channel_slice(m: Maker) -> None:
    x = m.pick(where=lambda s: s[-1] >= 3)
    c = x.shape[-1]
    start, stop = sorted(m.rng.sample(range(c + 1), 2))
    key = m.choice(
        (
            slice(start, stop),
            slice(start, None),
            slice(None, -1),
            slice(None, None, 2),
            slice(1, None, 2),
            slice(None, None, -1),
            slice(None, None, -2),
            slice(-2, None),
        )
    )
    y = x[..., key] if m.chance(0.7) else x[(slice(None),) * (len(x.shape) - 1) + (key,)]
    if m.chance(0.4):
        y = ops.concatenate([y, x], axis=-1)
    m.add(y)


@step(1)
def one_channel(m: Maker) -> None:
    x = m.pick(3, 4)
    i = m.rng.randrange(-x.shape[-1], x.shape[-1])
    m.add(m.choice((lambda: x[..., i], lambda: x * x[..., i][..., None]))())


@step(4)
def take(m: Maker) -> None:
    x = m.pick(where=lambda s: s[-1] >= 3)
    c = x.shape[-1]
    kind = m.rng.randrange(4)
    if kind == 0:
        indices = m.rng.sample(range(c), c)
    elif kind == 1:
        indices = sorted(m.rng.sample(range(c), m.rng.randint(2, c - 1)))
    elif kind == 2:
        indices = [m.rng.randrange(c) for _ in range(c)]
    else:
        indices = [-1, 0, 1]
    if m.chance(0.5):
        indices = np.array(indices)
    m.add(ops.take(x, indices, axis=m.last(x)))


@step(4)
def pad_channels(m: Maker) -> None:
    x = m.pick(where=lambda s: s[-1] <= 8)
    width = [(0, 0)] * (len(x.shape) - 1) + [(m.rng.randint(0, 2), m.rng.randint(0, 2))]
    if len(x.shape) > 2 and m.chance(0.3):
        width[1] = (1, 0)
    options = {"constant_values": 0.5} if m.chance(0.3) else {}
    m.add(ops.pad(x, width, **options))


# ---- constants


@step(8)
def constant(m: Maker) -> None:
    x = m.pick()
    c = x.shape[-1]
    ones = (1,) * (len(x.shape) - 1)
    shapes = [(c,), (1, c), (*ones, c), (1,)]
    if None not in x.shape[1:]:
        shapes += [tuple(x.shape[1:]), (1, *x.shape[1:]), (x.shape[1], *ones[1:])]
    value = m.choice((0.5, 1.5, m.array(*m.choice(shapes)), m.array(c)))
    if m.chance(0.1):
        value = ops.convert_to_tensor(value)
    m.add(
        m.choice(
            (
                lambda: x * value,
                lambda: x + value,
                lambda: ops.subtract(value, x),
                lambda: ops.multiply(value, x),
                lambda: ops.maximum(x, value),
                lambda: x / value,
                lambda: ops.where(to_numpy(value) > 1.0, x, 0.25),
                lambda: ops.where(to_numpy(value) > 1.0, x, ops.tanh(x)),
            )
        )()
    )


@step(2)
def clip(m: Maker) -> None:
    x = m.pick()
    m.add(m.choice((lambda: ops.clip(x, -1.0, 1.0), lambda: ops.minimum(x, 0.5), lambda: abs(x)))())


# ---- whole blocks


@contextlib.contextmanager
def own_names() -> Iterator[None]:
    """Layers made inside are counted from the start, so that they are called like some outside."""
    names = "object_name_uids"
    before = global_state.get_global_attribute(names)
    global_state.set_global_attribute(names, collections.defaultdict(int))
    try:
        yield
    finally:
        global_state.set_global_attribute(names, before)


def inner_model(m: Maker, shape: Sequence[int], inputs: int, name: str) -> keras.Model:
    """A random model of a few steps."""
    inner = Maker(m.rng, m.depth + 1)
    inner.open = m.open
    for side in ("left", "right")[:inputs]:
        inner.inputs.append(keras.Input(shape, name=side))
    inner.live = list(inner.inputs)
    for kind in _drawn_names(m.rng, m.rng.randint(2, 4), inside=True):
        inner.run(kind, m.rng.randrange(2**32))
    outputs = [y for y in inner.leaves() if all(y is not x for x in inner.inputs)][:2]
    if not outputs:
        raise Skip
    if m.chance(0.1):
        outputs.append(inner.inputs[0])
    if m.chance(0.1):
        outputs = {f"output{i}": y for i, y in enumerate(reversed(outputs))}
    if isinstance(outputs, list) and len(outputs) == 1:
        outputs = outputs[0]
    given = inner.inputs[0] if inputs == 1 else inner.inputs
    if inputs > 1 and m.chance(0.3):
        given = {"left": inner.inputs[0], "right": inner.inputs[1]}
    return keras.Model(given, outputs, name=name)


@step(6)
def nested(m: Maker) -> None:
    """A model inside the model, itself random, called once or twice."""
    if m.depth > 1:
        raise Skip
    x = m.pick(2, 3, 4)
    inputs = m.choice((1, 1, 1, 1, 2))
    name, alike = auto_name("inner"), m.chance(0.5)
    with own_names() if alike else contextlib.nullcontext():
        model = inner_model(m, x.shape[1:], inputs, name)
    for _ in range(m.choice((1, 1, 2))):
        given = x if inputs == 1 else [x, m.mate(x)]
        if isinstance(model.input, dict):
            names = m.rng.sample(("left", "right"), 2)
            given = dict(zip(names, given, strict=True))
        m.add(*keras.tree.flatten(model(given)))
        x = m.mate(x)
    if m.chance(0.2) and not alike:  # one of its layers is also used outside
        fits = [y for y in model.layers if isinstance(y, L.Dense | L.BatchNormalization | L.ReLU)]
        fits = [y for y in fits if len(y._inbound_nodes) == 1 and y.input.shape == x.shape]
        if fits:
            m.add(m.rng.choice(fits)(x))


@step(3)
def nested_sequential(m: Maker) -> None:
    x = m.pick(4)
    width = m.width()
    pieces = [
        partial(L.Conv2D, width, 3, padding="same"),
        partial(L.Conv2D, m.width(), 1, activation="relu"),
        L.BatchNormalization,
        L.ReLU,
        partial(L.DepthwiseConv2D, 2, padding="same", depth_multiplier=m.choice((1, 2))),
        partial(L.Dense, m.width()),
        partial(L.MaxPooling2D, 2, padding="same"),
        partial(L.Dropout, 0.2),
    ]
    model = keras.Sequential([keras.Input(x.shape[1:]), *(m.choice(pieces)() for _ in range(3))])
    y = model(x)
    if m.chance(0.3):
        m.add(y, model(m.mate(x)))
    elif m.chance(0.5) and y.shape == x.shape and not m.open:
        m.add(x + y)
    else:
        m.add(y)


@step(3)
def another_input(m: Maker) -> None:
    shape = m.choice(((5, 4, 3), (6, 2), (5,)))
    m.add(L.Dense(m.width())(m.input(*shape)))


@step(5)
def channels_first(m: Maker) -> None:
    """A few layers with the channels in front."""
    x = m.pick(4, where=lambda s: min(s[1:-1]) > 1)
    y = m.transpose(x, (0, 3, 1, 2))
    first = {"data_format": "channels_first"}
    # Keras on TensorFlow adds a bias of shape (1, n, 1, 1) along the last axis if that has size n
    # too, so a bias is safe only where no number of channels that may be left is the width.
    biased = {True: first, False: first | {"use_bias": False}}
    for _ in range(m.rng.randint(1, 3)):
        width, size = m.width(), y.shape[3]
        options = [
            partial(L.Conv2D, width, 2, padding="same", **biased[width < size]),
            partial(
                L.Conv2D, 2 * y.shape[1], 1, groups=y.shape[1], **biased[2 * y.shape[1] < size]
            ),
            partial(L.Conv2DTranspose, width, 2, **biased[width < size]),
            partial(
                L.DepthwiseConv2D,
                2,
                padding="same",
                depth_multiplier=m.choice((1, 2)),
                **biased[2 * y.shape[1] < size],
            ),
            partial(L.SeparableConv2D, width, 2, padding="same", **biased[width < size]),
            partial(L.MaxPooling2D, 2, padding="same", **first),
            partial(L.AveragePooling2D, 2, strides=1, **first),
            partial(L.BatchNormalization, axis=1),
            partial(L.GroupNormalization, y.shape[1], axis=1),
            partial(L.ZeroPadding2D, 1, **first),
            partial(L.UpSampling2D, 2, **first),
            partial(L.PReLU, shared_axes=[2, 3]),
            L.ReLU,
        ]
        y = m.choice(options)()(y)
        if min(y.shape[2:]) < 2:
            break
    if math.prod(y.shape[1:]) > LARGEST or y.shape[1] > WIDEST:
        raise Skip
    kind = m.rng.randrange(5)
    if kind == 0:
        m.add(L.Dense(m.width())(L.Flatten(**first)(y)))
    elif kind == 1:
        m.add(L.GlobalAveragePooling2D(keepdims=m.chance(0.5), **first)(y))
    elif kind == 2:
        m.add(L.Concatenate(axis=1)([y, L.Conv2D(m.width(), 1, **biased[False])(y)]))
    else:
        m.add(m.transpose(y, (0, 2, 3, 1)))


@step(1)
def unknown(m: Maker) -> None:
    """Something that no rule describes."""
    x = m.pick(3)
    kind = m.rng.randrange(5)
    y = {
        0: lambda: Mystery()(x),
        1: lambda: L.Lambda(_half, output_shape=tuple(x.shape[1:]))(x),
        2: lambda: L.TimeDistributed(L.Dense(m.width()))(x),
        3: lambda: L.LSTM(m.width(), return_sequences=True)(x),
        4: lambda: ops.einsum("bnc,bmc->bnm", x, x),
    }[kind]()
    m.add(y)


@keras.saving.register_keras_serializable(package="architectures")
def _half(x):
    return x * 0.5


@step(1)
def mix_channels(m: Maker) -> None:
    """What cannot go on without all channels."""
    x = m.pick(2, 3, 4)
    m.add(
        m.choice(
            (
                L.Softmax(),
                L.Activation("softmax"),
                L.Dense(m.width(), activation="softmax"),
                partial(ops.cumsum, axis=-1),
                partial(ops.normalize, axis=-1),
                L.Rescaling(m.array(x.shape[-1]).tolist()),
            )
        )(x)
    )


# ---- sequences: never drawn by `random_program`, whose models stay what they are


def _recurrent(m: Maker, width: int, **options) -> L.RNN:
    """A recurrent layer of any kind, or a cell or two."""
    options |= {name: True for name in ("go_backwards", "return_state") if m.chance(0.2)}
    biased = {"use_bias": m.chance(0.8)}
    gru = biased | {"reset_after": m.chance(0.5)}
    cells = {
        "simple": partial(L.SimpleRNNCell, **biased),
        "gru": partial(L.GRUCell, **gru),
        "lstm": partial(L.LSTMCell, activation=m.choice(("tanh", "relu")), **biased),
    }
    layers = {
        "simple": partial(L.SimpleRNN, **biased, **options),
        "gru": partial(L.GRU, **gru, **options),
        "lstm": partial(L.LSTM, recurrent_dropout=0.2, **biased, **options),
    }
    kind = m.choice(cells)
    if m.chance(0.7):
        return layers[kind](width)
    if m.chance(0.5):
        return L.RNN(cells[kind](width), **options)
    return L.RNN([cells[kind](m.width()), cells[m.choice(cells)](width)], **options)


def _bidirectional(m: Maker, width: int, **options) -> L.Bidirectional:
    mode = m.choice(("concat", "concat", "sum", "mul", "ave", None))
    layer = _recurrent(m, width, **options)
    layer.go_backwards = False
    return L.Bidirectional(layer, merge_mode=mode)


@step(0)
def recurrent(m: Maker) -> None:
    """A recurrent layer, with states that come from another tensor now and then."""
    x = m.pick(3)
    make = _bidirectional if m.chance(0.3) else _recurrent
    layer = make(m, m.width(), return_sequences=m.chance(0.7))
    states = {}
    if type(layer) in (L.LSTM, L.GRU, L.SimpleRNN) and m.chance(0.3):
        start = m.pick(2) if m.chance(0.5) else x[:, 0]
        count = 2 if isinstance(layer, L.LSTM) else 1
        states["initial_state"] = [L.Dense(layer.units)(start) for _ in range(count)]
        if count == 2 and m.chance(0.3):
            states["initial_state"] = states["initial_state"][:1] * 2
    outputs = keras.tree.flatten(layer(x, **states))
    for y in outputs[1:]:  # what cannot be read at once is read by the heads
        m.add(y)
    m.add(outputs[0])


@step(0)
def encoder_and_decoder(m: Maker) -> None:
    """The states of one layer start another one."""
    x, y, width = m.pick(3), m.pick(3), m.width()
    cls = m.choice((L.LSTM, L.GRU))
    _, *states = cls(width, return_state=True)(x)
    m.add(cls(width, return_sequences=m.chance(0.7))(y, initial_state=states))


@step(0)
def time_distributed(m: Maker) -> None:
    x = m.pick(3, 4, 5)
    rank, width = len(x.shape) - 1, m.width()
    options = [
        partial(L.Dense, width, activation=m.choice((None, "relu"))),
        L.BatchNormalization,
        L.LayerNormalization,
        L.Flatten,
        L.ReLU,
    ]
    if rank in CONV and None not in x.shape[2:]:
        options += [
            partial(CONV[rank], width, 2, padding="same"),
            partial(GLOBAL_AVERAGE[rank]),
            partial(MAX_POOLING[rank], 2, padding="same"),
        ] * 2
    if rank == 3:
        options.append(lambda: L.GRU(width, return_sequences=m.chance(0.5)))
    m.add(L.TimeDistributed(m.choice(options)())(x))


@step(0)
def conv_lstm(m: Maker) -> None:
    x = m.pick(4, 5)
    cls = {4: L.ConvLSTM1D, 5: L.ConvLSTM2D}[len(x.shape)]
    layer = cls(m.choice((2, 3)), 2, padding="same", return_sequences=m.chance(0.6))
    m.add(L.Bidirectional(layer)(x) if m.chance(0.2) else layer(x))


@step(0)
def shared_recurrent(m: Maker) -> None:
    """The same layer for two sequences."""
    x = m.pick(3)
    y = m.mate(x)
    make = _bidirectional if m.chance(0.3) else _recurrent
    layer = make(m, m.width(), return_sequences=True)
    for z in (x, y):
        m.add(*keras.tree.flatten(layer(z)))


@step(0)
def masked_words(m: Maker) -> None:
    """Words of which some are padding."""
    x = L.Embedding(3, m.width(), mask_zero=True)(m.input(m.choice((4, 7)), dtype="int32"))
    if m.chance(0.5):
        x = L.Dense(m.width())(x)
    make = _bidirectional if m.chance(0.4) else _recurrent
    layer = make(m, m.width(), return_sequences=m.chance(0.5))
    m.add(*keras.tree.flatten(layer(x)))


# --------------------------------------------------------------------------------- whole programs

INPUTS = (
    (6, 5, 3),
    (4, 4, 2),
    (5, 6, 1),
    (7, 3),
    (6, 2),
    (5,),
    (3, 4, 3, 2),
    (None, None, 3),
    (None, 2),
)
_FORMS = (0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 5, 5, 6, 7, 8)
_NAMES = [name for name, weight in _WEIGHTS.items() for _ in range(weight)]
_INSIDE = [n for n in _NAMES if n not in ("nested", "another_input", "embedding", "unknown")]


def _drawn_names(rng: random.Random, count: int, inside: bool = False) -> list[str]:
    return [rng.choice(_INSIDE if inside else _NAMES) for _ in range(count)]


@dataclass(frozen=True)
class Program:
    """A random model as data.

    Attributes:
        form: index into `INPUTS`.
        seed: of the heads, the weights and the requests.
        steps: ``(name, seed)``.
    """

    form: int
    seed: int
    steps: tuple[tuple[str, int], ...]


def random_program(seed: int, most: int = 14) -> Program:
    """The program of a seed."""
    rng = random.Random(seed)
    form = rng.choice(_FORMS)
    names = _drawn_names(rng, rng.randint(4, most))
    return Program(form, seed, tuple((name, rng.randrange(2**16)) for name in names))


_SEQUENCES = (
    ("recurrent",) * 8
    + ("time_distributed",) * 4
    + ("encoder_and_decoder", "conv_lstm", "shared_recurrent", "masked_words") * 2
    + ("dense", "conv", "residual", "merge_layer", "concatenate")
)


def sequence_program(seed: int, most: int = 10) -> Program:
    """The program of a seed with recurrent layers in it."""
    rng = random.Random(f"sequence {seed}")
    form = rng.choice((3, 3, 3, 4, 4, 6, 8))
    names = [
        rng.choice(_SEQUENCES) if rng.random() < 0.6 else rng.choice(_NAMES)
        for _ in range(rng.randint(3, most))
    ]
    return Program(form, seed, tuple((name, rng.randrange(2**16)) for name in names))


def programs(most: int = 10) -> st.SearchStrategy[Program]:
    """The same for Hypothesis, which would repeat and vary parts of earlier lists of steps."""
    return st.integers(0, 2**32 - 1).map(partial(random_program, most=most))


@functools.singledispatch
def build(program: Program) -> tuple[keras.Model, list[str]]:
    """The model of a program, with random weights, and the names of the steps it took."""
    keras.utils.clear_session(free_memory=False)
    m = Maker(random.Random(program.seed))
    m.open = None in INPUTS[program.form]
    x = m.input(*INPUTS[program.form])
    m.live = [m.project(x, m.width()), x]
    m.used.add(id(x))
    taken = [name for name, seed in program.steps if m.run(name, seed)]
    m.rng = random.Random(program.seed + 1)
    model = keras.Model(m.inputs if len(m.inputs) > 1 else x, _heads(m))
    if m.chance(0.1):
        model = _wrapped(m, model)
    for layer in all_layers(model):
        if m.chance(0.05):
            layer.trainable = False
    randomise(model, program.seed % 2**32)
    return model, taken


def _heads(m: Maker) -> keras.KerasTensor | list[keras.KerasTensor]:
    """Outputs that read every tensor which nothing else reads."""
    vectors, outputs = [], []
    for x in m.leaves():
        rank = len(x.shape)
        unknown = [a for a in range(1, rank) if x.shape[a] is None]
        if rank in (3, 4) and x.shape[-1] and m.chance(0.1):
            outputs.append(m.project(x, 2))
        elif unknown:
            vectors.append(L.Flatten()(ops.mean(x, axis=unknown, keepdims=True)))
        elif rank in GLOBAL_AVERAGE and (math.prod(x.shape[1:]) > 300 or m.chance(0.4)):
            vectors.append(GLOBAL_AVERAGE[rank]()(x))
        else:
            vectors.append(L.Flatten()(x) if rank > 2 else x)
    while vectors:
        some, vectors = vectors[:3], vectors[3:]
        x = L.Concatenate()(some) if len(some) > 1 else some[0]
        if m.chance(0.4):
            x = L.Dense(5, activation="relu")(x)
        outputs.append(L.Dense(m.choice((1, 2, 3)))(x))
    return outputs[0] if len(outputs) == 1 else outputs


def _wrapped(m: Maker, model: keras.Model) -> keras.Model:
    """The model as the only layer, or nearly, of another one."""
    if len(model.inputs) == len(model.outputs) == 1 and m.chance(0.5):
        return keras.Sequential([keras.Input(model.input.shape[1:]), model, L.Dense(2)])
    inputs = [keras.Input(x.shape[1:], dtype=x.dtype) for x in model.inputs]
    outputs = model(inputs if len(inputs) > 1 else inputs[0])
    return keras.Model(inputs, outputs)


@functools.singledispatch
def describe(program: Program) -> str:
    """The failing model in words: its calls in order, and how to build it again."""
    try:
        model, _ = build(program)
    except Exception as error:
        return f"{program}\n(cannot be built: {error})"
    lines = [repr(program), *_calls(model)]
    return "\n".join(lines)


def _calls(model: keras.Model, indent: str = "  ") -> Iterator[str]:
    graph = functional_graph(model)
    names = {id(t): f"input{i}{tuple(t.shape)}" for i, t in enumerate(graph.inputs)}
    for node in graph.nodes:
        op = node.operation

        def show(x):
            if isinstance(x, keras.KerasTensor):
                return names[id(x)]
            return f"array{np.shape(x)}" if isinstance(x, np.ndarray) else repr(x)

        arguments = [show(x) for x in node.args if not isinstance(x, list | tuple)]
        for x in node.args:
            if isinstance(x, list | tuple):
                arguments.append("[" + ", ".join(show(y) for y in x) + "]")
        arguments += [f"{k}={show(v)}" for k, v in node.kwargs.items()]
        shapes = ", ".join(str(tuple(t.shape)) for t in node.outputs)
        for i, t in enumerate(node.outputs):
            names[id(t)] = op.name + (f"[{i}]" if len(node.outputs) > 1 else "")
        yield f"{indent}{op.name} = {type(op).__name__}({', '.join(arguments)}) -> {shapes}"
        if has_graph(op):
            yield from _calls(op, indent + "    ")
