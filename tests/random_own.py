"""Random models beyond convolutions: transformers, and layers and models of random classes.

They are programs like those of `architectures`, drawn separately, so that those stay what they are.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import keras
import numpy as np
import random_lines  # noqa: F401 - what it registers
from architectures import (
    _NAMES,
    Maker,
    Program,
    _calls,
    _heads,
    build,
    describe,
    random_program,
    sequence_program,
    step,
)
from keras import layers as L
from keras import ops
from random_classes import Source, Writer, made, steps

from ridurre.backend import all_layers, has_graph
from ridurre.testing import randomise

# --------------------------------------------------------------------------------- one random class


@dataclass(frozen=True)
class OwnProgram(Program):
    """A random class and a model around it, or one that is it; the steps are those of the class."""


SHAPES = ((4, 5), (3, 7), (5,), (4, 4, 3), (None, 3))
_OWN_FORMS = (0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4)


def own_program(seed: int, most: int = 7) -> OwnProgram:
    """The program of a seed."""
    rng = random.Random(f"own {seed}")
    return OwnProgram(rng.choice(_OWN_FORMS), seed, steps(rng, rng.randint(2, most)))


def source_of(program: OwnProgram) -> tuple[Source, int, random.Random]:
    """The class, the width that it is called with, and what else there is to draw."""
    rng = random.Random(f"class {program.seed}")
    shape, model = SHAPES[program.form], rng.random() < 0.3
    width = shape[-1] if model else rng.choice((3, 5, 6, 7, 4, 8))
    writer = Writer(rng, shape[:-1], width, model=model)
    if model:
        writer.run("dense", rng.randrange(2**16))
    for kind, seed in program.steps:
        writer.run(kind, seed)
    return writer.finish(rng), width, rng


@build.register
def _(program: OwnProgram) -> tuple[keras.Model, list[str]]:
    keras.utils.clear_session(free_memory=False)
    source, width, rng = source_of(program)
    shape, layer = SHAPES[program.form], made(source)()
    if isinstance(layer, keras.Model):
        layer(np.zeros((2, *(n or 7 for n in shape)), "float32"))
        model = layer
    else:
        model = around(layer, shape, width, rng)
    for part in all_layers(model):
        if rng.random() < 0.05:
            part.trainable = False
    randomise(model, program.seed % 2**32)
    return model, list(source.kinds)


def around(
    layer: keras.Layer, shape: tuple[int | None, ...], width: int, rng: random.Random
) -> keras.Model:
    """A layer between one that makes its channels and others that read its outputs."""
    m = Maker(rng)
    m.open = None in shape
    inputs = m.input(*shape)
    x = L.Dense(width, activation=rng.choice((None, "relu")))(inputs)
    kind = rng.choice(("once", "once", "once", "twice", "sequential", "inside", "again"))
    if kind == "sequential":
        outputs = keras.Sequential([L.ReLU(), layer])(x)
    elif kind == "inside":
        start = keras.Input(x.shape[1:])
        outputs = keras.Model(start, layer(L.ReLU()(start)))(x)
    else:
        outputs = layer(x)
    ends = keras.tree.flatten(outputs)
    if kind == "twice":
        ends += keras.tree.flatten(layer(L.Dense(width)(inputs)))
    elif kind == "again":  # another layer of the class, as blocks follow each other
        given = ends.pop(0) if len(ends[0].shape) == len(x.shape) else x
        ends += keras.tree.flatten(type(layer)()(L.Dense(width)(given)))
    m.live = ends
    return keras.Model(inputs, _heads(m))


@describe.register
def _(program: OwnProgram) -> str:
    lines = [repr(program), source_of(program)[0].whole()]
    try:
        model, _ = build(program)
    except Exception as error:
        return "\n".join([*lines, f"(cannot be built: {error})"])
    return "\n".join([*lines, *(_calls(model) if has_graph(model) else ())])


# ----------------------------------------------------------------------- whole models, step by step


@keras.saving.register_keras_serializable(package="random_own")
class Places(L.Layer):
    """Adds a table of positions."""

    def build(self, shape):
        self.table = self.add_weight(shape=shape[1:], name="table")

    def call(self, x):
        return x + self.table


@keras.saving.register_keras_serializable(package="random_own")
class FirstToken(L.Layer):
    """Puts a learnt token in front."""

    def build(self, shape):
        self.token = self.add_weight(shape=(1, 1, shape[-1]), name="token")

    def call(self, x):
        n, width = ops.shape(x)[0], x.shape[-1]
        return ops.concatenate([ops.broadcast_to(self.token, (n, 1, width)), x], axis=1)


def _tokens(m: Maker) -> keras.KerasTensor:
    return m.pick(3, where=lambda s: s[1] is not None and s[-1] < 13)


def _norm(m: Maker, x: keras.KerasTensor) -> keras.KerasTensor:
    if m.chance(0.4):  # so that there is something to compare number by number
        return x
    return m.choice((L.LayerNormalization, L.RMSNormalization, L.BatchNormalization))()(x)


def _by_hand(m: Maker, x: keras.KerasTensor, y: keras.KerasTensor) -> keras.KerasTensor:
    """Attention of operations, of a few kinds."""
    heads, size, value = m.choice((1, 2, 3)), m.choice((2, 3)), m.choice((2, 3))
    if m.chance(0.4):

        def project(z, n):
            return L.EinsumDense("btc,chd->bthd", (z.shape[1], heads, n), bias_axes="hd")(z)
    else:

        def project(z, n):
            return ops.reshape(L.Dense(heads * n)(z), (-1, z.shape[1], heads, n))

    q, k, v = project(x, size), project(y, size), project(y, value)
    if m.chance(0.5):
        scores = ops.softmax(ops.einsum("bqhd,bkhd->bhqk", q, k) / size**0.5)
        z = ops.einsum("bhqk,bkhd->bqhd", scores, v)
    else:
        q, k, v = (ops.transpose(t, (0, 2, 1, 3)) for t in (q, k, v))
        scores = ops.matmul(q, ops.swapaxes(k, -1, -2)) / size**0.5
        z = ops.transpose(ops.matmul(ops.softmax(scores), v), (0, 2, 1, 3))
    if m.chance(0.3):
        return L.EinsumDense("bqhd,hdc->bqc", tuple(x.shape[1:]))(z)
    return L.Dense(x.shape[-1])(ops.reshape(z, (-1, x.shape[1], heads * value)))


def _attend(m: Maker, x: keras.KerasTensor, y: keras.KerasTensor) -> keras.KerasTensor:
    kind = m.rng.randrange(3)
    heads, size = m.choice((1, 2, 3, 4)), m.choice((2, 3))
    options = {"use_causal_mask": True} if m.chance(0.2) else {}
    if kind == 0:
        return _by_hand(m, x, y)
    if kind == 1:
        groups = m.choice(n for n in (1, 2, 3, 4) if heads % n == 0)
        y = y if y.shape[-1] == x.shape[-1] else L.Dense(x.shape[-1])(y)
        return L.GroupQueryAttention(size, heads, groups, use_bias=m.chance(0.8))(x, y, **options)
    value = {"value_dim": 4} if m.chance(0.3) else {}
    layer = L.MultiHeadAttention(heads, size, use_bias=m.chance(0.8), **value)
    return layer(x, y, **options)


@step(0)
def words(m: Maker) -> None:
    """Tokens, with a mask now and then, and their positions."""
    n = m.choice((4, 7))
    masked = m.chance(0.2)
    x = L.Embedding(5, m.width(), mask_zero=masked)(m.input(n, dtype="int32"))
    m.add(Places()(x) if m.chance(0.7) and not masked else x)


@step(0)
def patches(m: Maker) -> None:
    x = m.pick(4, where=lambda s: None not in s[1:] and min(s[1:3]) > 3)
    y = m.choice((L.Conv2D(m.width(), 2, 2), L.Conv2D(m.width(), 3, 2, padding="same")))(x)
    y = L.Reshape((-1, y.shape[-1]))(y)
    y = FirstToken()(y) if m.chance(0.4) else y
    m.add(Places()(y) if m.chance(0.7) else y)


@step(0)
def attention_block(m: Maker) -> None:
    x = _tokens(m)
    if m.chance(0.6):
        y = _norm(m, x)
        m.add(x + _attend(m, y, y))
    else:
        m.add(_norm(m, L.Add()([x, _attend(m, x, x)])))


@step(0)
def cross_attention(m: Maker) -> None:
    x, y = _tokens(m), _tokens(m)
    m.add(x + _attend(m, x, y))


@step(0)
def mlp_block(m: Maker) -> None:
    x = _tokens(m)
    y, width = _norm(m, x), x.shape[-1]
    if m.chance(0.5):
        y = L.Dense(m.width(), activation=m.choice(("gelu", "relu")))(y)
    else:
        n = m.width()
        y = m.choice((ops.silu, ops.gelu))(L.Dense(n, use_bias=False)(y)) * L.Dense(n)(y)
    y = L.Dropout(0.1)(y) if m.chance(0.3) else y
    if m.chance(0.3):
        m.add(x + L.EinsumDense("abc,cd->abd", (None, width), bias_axes="d")(y))
    else:
        m.add(x + L.Dense(width)(y))


@step(0)
def attention_pool(m: Maker) -> None:
    x = _tokens(m)
    scores = L.Dense(m.choice((1, 2)))(x)
    weights = ops.softmax(scores, axis=1)
    y = ops.einsum("bsn,bsd->bnd", weights, x)
    m.add(L.Flatten()(y) if m.chance(0.5) else ops.mean(y, axis=1))


@step(0)
def classic_attention(m: Maker) -> None:
    x, cls = _tokens(m), m.choice((L.Attention, L.AdditiveAttention))
    y = L.Dense(x.shape[-1])(x) if m.chance(0.5) else x
    m.add(cls()([x, y]))


@step(0)
def own_layer(m: Maker) -> None:
    """A layer of a random class."""
    x = m.pick(2, 3, 4, where=lambda s: s[-1] < 13 and None not in s[-1:])
    writer = Writer(m.rng, tuple(x.shape[1:-1]), x.shape[-1], depth=1)
    for kind, seed in steps(m.rng, m.rng.randint(1, 4)):
        writer.run(kind, seed)
    layer = made(writer.finish(m.rng))()
    m.add(layer(x))
    if m.chance(0.2):
        m.add(layer(m.mate(x)))


BLOCKS = (
    ("attention_block",) * 5
    + ("mlp_block",) * 4
    + ("words", "patches", "cross_attention", "attention_pool", "classic_attention") * 1
    + ("own_layer",) * 4
    + ("dense", "residual", "concatenate")
)


def transformer_program(seed: int, most: int = 8) -> Program:
    """The program of a seed with attention, and layers of random classes, in it."""
    rng = random.Random(f"transformer {seed}")
    form = rng.choice((0, 1, 3, 3, 3, 4, 4))
    start = ["patches"] if form < 2 else [rng.choice(("words", "conv", "attention_block"))]
    names = start + [
        rng.choice(BLOCKS) if rng.random() < 0.8 else rng.choice(_NAMES)
        for _ in range(rng.randint(2, most - 1))
    ]
    return Program(form, seed, tuple((name, rng.randrange(2**16)) for name in names))


#: How a seed gives a program, by the kind of program.
DRAWS = {
    "convolutions": random_program,
    "sequences": sequence_program,
    "transformers": transformer_program,
    "own": own_program,
}
