"""Networks whose groups and plans can be worked out by hand; odd, unequal channel counts."""

from collections.abc import Callable

import keras
import numpy as np
from keras import layers as L
from keras import ops

Tensor = keras.KerasTensor


def resnet18(classes: int = 1000) -> keras.Model:
    """ResNet-18 for 224×224 pictures: no biases but the classifier's, 1×1 projections."""

    def conv(x: Tensor, filters: int, size: int, stride: int, name: str) -> Tensor:
        options = {"padding": "same", "use_bias": False, "name": name}
        return L.Conv2D(filters, size, stride, **options)(x)

    def norm(x: Tensor, name: str) -> Tensor:
        return L.BatchNormalization(name=name)(x)

    inputs = keras.Input((224, 224, 3), name="picture")
    x = L.ReLU()(norm(conv(inputs, 64, 7, 2, "conv1"), "bn1"))
    x = L.MaxPooling2D(3, 2, padding="same")(x)
    for stage, filters in enumerate((64, 128, 256, 512), 1):
        for block in (1, 2):
            at = f"stage{stage}_block{block}"
            stride = 2 if stage > 1 and block == 1 else 1
            y = L.ReLU()(norm(conv(x, filters, 3, stride, f"{at}_conv1"), f"{at}_bn1"))
            y = norm(conv(y, filters, 3, 1, f"{at}_conv2"), f"{at}_bn2")
            if stride == 2:
                x = norm(conv(x, filters, 1, 2, f"{at}_projection"), f"{at}_projection_bn")
            x = L.ReLU()(L.Add()([x, y]))
    return keras.Model(inputs, L.Dense(classes, name="head")(L.GlobalAveragePooling2D()(x)))


def head(x: Tensor) -> Tensor:
    return L.Dense(2, name="head")(L.GlobalAveragePooling2D()(x))


def bn(x: Tensor, name: str) -> Tensor:
    """Divides by exactly 1 where the variance is 0.75."""
    return L.BatchNormalization(epsilon=0.25, name=name)(x)


def two_residual_blocks() -> keras.Model:
    inputs = keras.Input((2, 2, 3))
    x = L.Conv2D(5, 1, name="stem")(inputs)
    for block, width in (("one", 7), ("two", 3)):
        y = L.ReLU()(bn(L.Conv2D(width, 3, padding="same", name=f"{block}_in")(x), f"{block}_bn"))
        x = L.Add()([L.Conv2D(5, 1, name=f"{block}_out")(y), x])
    return keras.Model(inputs, head(L.ReLU()(bn(x, "last_bn"))))


def dense_block() -> keras.Model:
    """Everything so far is concatenated: in front at first, behind the second time."""
    inputs = keras.Input((2, 2, 2))
    a = L.Conv2D(3, 1, name="a")(inputs)
    b = L.Conv2D(5, 1, name="b")(L.ReLU()(bn(a, "a_bn")))
    ab = L.Concatenate()([a, b])
    c = L.Conv2D(7, 1, name="c")(L.ReLU()(bn(ab, "ab_bn")))
    cab = L.Concatenate()([c, ab])
    return keras.Model(inputs, head(L.ReLU()(bn(cab, "cab_bn"))))


def padded_shortcut() -> keras.Model:
    """Option A of the CIFAR ResNets: every second pixel, zeros for the channels that are new."""
    inputs = keras.Input((4, 4, 2))
    stem = L.Conv2D(3, 1, name="stem")(inputs)
    short = ops.pad(stem[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (2, 1)))
    main = L.Conv2D(6, 3, 2, padding="same", name="main")(stem)
    return keras.Model(inputs, head(L.ReLU()(bn(main + short, "bn"))))


def unet() -> keras.Model:
    inputs = keras.Input((4, 4, 2))
    down = L.Conv2D(3, 3, padding="same", activation="relu", name="down")(inputs)
    x = L.Conv2D(7, 1, activation="relu", name="bottom")(L.MaxPooling2D()(down))
    up = L.Conv2DTranspose(5, 2, 2, name="up")(x)
    return keras.Model(inputs, L.Conv2D(2, 1, name="out")(L.Concatenate()([up, down])))


def squeeze_and_excite(gate: str = "relu") -> keras.Model:
    inputs = keras.Input((2, 2, 2))
    x = L.Conv2D(5, 1, name="wide")(inputs)
    y = L.Dense(3, activation="relu", name="squeeze")(L.GlobalAveragePooling2D()(x))
    y = L.Reshape((1, 1, 5))(L.Dense(5, activation=gate, name="excite")(y))
    return keras.Model(inputs, head(L.Multiply()([x, y])))


def inner(name: str, channels: int = 3, width: int = 5) -> keras.Model:
    inputs = keras.Input((2, 2, channels))
    x = L.Conv2D(width, 1, name="conv")(inputs)
    return keras.Model(inputs, L.Conv2D(4, 1, name="out")(L.ReLU()(x)), name=name)


def twins() -> keras.Model:
    """Two nested models whose layers have the same names."""
    inputs = keras.Input((2, 2, 3))
    sides = [inner("left", width=5)(inputs), inner("right", width=7)(inputs)]
    return keras.Model(inputs, head(L.Concatenate(name="both")(sides)))


def padding_twice() -> keras.Model:
    """A nested model that pads its channels and is fed with its own output."""
    x = keras.Input((2, 2, 5))
    y = ops.pad(L.Conv2D(3, 1, name="conv")(x), ((0, 0), (0, 0), (0, 0), (1, 1)))
    padding = keras.Model(x, y, name="padding")
    inputs = keras.Input((2, 2, 2))
    x = L.Conv2D(5, 1, name="stem")(inputs)
    return keras.Model(inputs, head(padding(padding(x))))


def several_outputs_twice() -> keras.Model:
    """A nested model with two outputs, called on two tensors."""
    x = keras.Input((3,))
    y = L.Dense(5, name="shared", activation="relu")(x)
    fork = keras.Model(x, [y, L.Dense(4, name="other")(y)], name="fork")
    inputs = keras.Input((2,))
    a, b = L.Dense(3, name="a")(inputs), L.Dense(3, name="b")(inputs)
    (a1, a2), (b1, b2) = fork(a), fork(b)
    outputs = [L.Dense(2, name="head_1")(a1 - b1), L.Dense(3, name="head_2")(a2)]
    return keras.Model(inputs, [*outputs, L.Dense(1, name="head_3")(b2)])


def three_deep() -> keras.Model:
    """Sequential in Functional in Functional."""
    steps = [keras.Input((2, 2, 3)), L.Conv2D(5, 1, name="conv"), L.ReLU()]
    row = keras.Sequential(steps, name="row")
    x = keras.Input((2, 2, 3))
    middle = keras.Model(x, L.Conv2D(4, 1, name="conv")(row(x)), name="middle")
    inputs = keras.Input((2, 2, 2))
    return keras.Model(inputs, head(middle(L.Conv2D(3, 1, name="conv")(inputs))))


def shared_convolution() -> keras.Model:
    shared = L.Conv2D(5, 1, name="shared")
    inputs = keras.Input((2, 2, 2))
    x, y = L.Conv2D(3, 1, name="x")(inputs), L.Conv2D(3, 3, padding="same", name="y")(inputs)
    outputs = L.Concatenate(name="both")([shared(x), L.Conv2D(7, 1, name="z")(x), shared(y)])
    return keras.Model(inputs, head(outputs))


def split_and_flatten() -> keras.Model:
    """Slices in another order, a permutation in front of Flatten, a pad with unequal edges."""
    inputs = keras.Input((2, 2, 2))
    x = L.Conv2D(7, 1, name="x")(inputs)
    a, b = ops.split(x, (2,), axis=-1)
    y = L.Concatenate()([b, ops.pad(a, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, 1:]])
    y = L.Flatten(name="flat")(L.Permute((3, 1, 2))(y))
    return keras.Model(inputs, L.Dense(2, name="head")(y))


def grouped_and_depthwise() -> keras.Model:
    inputs = keras.Input((4, 4, 2))
    x = L.Conv2D(6, 1, name="x")(inputs)
    x = L.Conv2D(9, 3, groups=3, name="grouped")(x)
    x = L.DepthwiseConv2D(1, depth_multiplier=2, name="depthwise")(x)
    return keras.Model(inputs, head(L.SeparableConv2D(5, 1, name="separable")(x)))


def channels_first() -> keras.Model:
    """Flatten moves the channels last again; pooling does not."""
    inputs = keras.Input((4, 2))
    x = bn(L.Dense(5, name="x")(inputs), "last")
    x = L.BatchNormalization(axis=1, epsilon=0.25, name="bn")(L.Permute((2, 1))(x))
    pooled = L.GlobalMaxPooling1D(data_format="channels_first")(x)
    flat = L.Flatten(data_format="channels_first")(x)
    return keras.Model(inputs, L.Dense(2, name="head")(L.Concatenate()([pooled, flat])))


def places(like: Tensor, width: int) -> Tensor:
    """A vector for every position of a tensor ``(batch, positions)``."""
    numbers = ops.cumsum(ops.ones_like(like, dtype="int32"), axis=1) - 1
    return L.Embedding(like.shape[1], width, name="places")(numbers)


def encoder(x: Tensor, heads: int, size: int, wide: int, name: str, *, before: bool) -> Tensor:
    """A block of a transformer, normalised before or behind its two parts."""

    def norm(x: Tensor, part: str) -> Tensor:
        return L.LayerNormalization(epsilon=1e-3, name=f"{name}_{part}_norm")(x)

    attention = L.MultiHeadAttention(heads, size, name=f"{name}_attention")
    y = norm(x, "attention") if before else x
    y = L.Add(name=f"{name}_attended")([x, attention(y, y)])
    x = y if before else norm(y, "attention")
    y = norm(x, "mlp") if before else x
    y = L.Dense(wide, activation="gelu", name=f"{name}_wide")(y)
    y = L.Add(name=f"{name}_added")([x, L.Dense(x.shape[-1], name=f"{name}_narrow")(y)])
    return y if before else norm(y, "mlp")


def vit(width: int = 12, heads: int = 3, size: int = 4, wide: int = 20) -> keras.Model:
    """A vision transformer: patches, positions, two blocks, the average of all positions."""
    inputs = keras.Input((8, 12, 3), name="picture")
    x = L.Conv2D(width, 4, 4, name="patches")(inputs)
    x = L.Reshape((6, width))(x)
    x = x + places(ops.reshape(inputs[:, ::4, ::4, 0], (-1, 6)), width)
    for block in ("one", "two"):
        x = encoder(x, heads, size, wide, block, before=True)
    x = L.LayerNormalization(name="last_norm")(x)
    return keras.Model(inputs, L.Dense(5, name="head")(L.GlobalAveragePooling1D()(x)), name="vit")


def bert(width: int = 10, heads: int = 2, size: int = 3, wide: int = 14) -> keras.Model:
    """A text encoder: tokens (0 is padding) and positions, normalised behind every part."""
    inputs = keras.Input((7,), dtype="int32", name="tokens")
    tokens = L.Embedding(11, width, mask_zero=True, name="words")(inputs)
    x = L.LayerNormalization(name="first_norm")(tokens + places(inputs, width))
    for block in ("one", "two"):
        x = encoder(x, heads, size, wide, block, before=False)
    return keras.Model(inputs, L.Dense(4, activation="tanh", name="pooled")(x[:, 0]), name="bert")


NETWORKS: dict[str, Callable[[], keras.Model]] = {
    f.__name__: f
    for f in (
        two_residual_blocks,
        dense_block,
        padded_shortcut,
        unet,
        squeeze_and_excite,
        twins,
        padding_twice,
        several_outputs_twice,
        three_deep,
        shared_convolution,
        split_and_flatten,
        grouped_and_depthwise,
        channels_first,
    )
}


def whole_numbers(model: keras.Model, seed: int = 0) -> None:
    """Give every weight small whole values, with which float32 makes no rounding error."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        ones = "variance" in variable.name
        value = np.full(variable.shape, 0.75) if ones else rng.integers(-2, 3, variable.shape)
        variable.assign(value)
