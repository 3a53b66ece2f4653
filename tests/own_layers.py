"""Layers and models of a user's own: sub-layers, weights, hard-coded sizes, and worse."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers as L
from keras import ops

register = keras.saving.register_keras_serializable(package="tests")


@register
class Linear(L.Layer):
    """Its configuration names its size."""

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape: Any) -> None:
        self.w = self.add_weight(shape=(shape[-1], self.units), name="w")
        self.b = self.add_weight(shape=(self.units,), name="b")

    def call(self, x: Any) -> Any:
        return ops.matmul(x, self.w) + self.b

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"units": self.units}


@register
class Twice(Linear):
    """The same, twice."""

    def call(self, x: Any) -> Any:
        return 2 * super().call(x)


@register
class Scaled(L.Layer):
    """A weight on the left, a transposed one, one in a list, one that moves positions."""

    def build(self, shape: Any) -> None:
        n = shape[-1]
        self.gamma = self.add_weight(shape=(n,), name="gamma")
        self.places = self.add_weight(shape=(1, 4, n), name="places")
        self.pair = [self.add_weight(shape=(n,), name=f"pair{i}") for i in range(2)]
        self.w = self.add_weight(shape=(5, n), name="w")

    def call(self, x: Any) -> Any:
        y = self.gamma * x + self.places[:, : x.shape[1]]
        y = ops.relu(y * self.pair[0] + self.pair[1])
        return ops.matmul(y, ops.transpose(self.w))


@register
class Window(L.Layer):
    """Takes as many rows of a table as there are positions."""

    def build(self, shape: Any) -> None:
        self.table = self.add_weight(shape=(4, shape[-1]), name="table")

    def call(self, x: Any) -> Any:
        return x + ops.slice(ops.convert_to_tensor(self.table), (1, 0), x.shape[1:])


@register
class Block(L.Layer):
    """Sub-layers, a model among them, and a shuffle of heads whose number is an attribute."""

    def __init__(self, width: int = 6, heads: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width, self.heads = width, heads
        self.inside = L.Dense(width, activation="relu")
        self.norm = L.BatchNormalization()
        self.net = keras.Sequential([L.Dense(5, activation=ops.tanh), L.Dense(width)])

    def call(self, x: Any, training: bool = False) -> Any:
        y = self.norm(self.inside(x), training=training)
        y = y + self.net(y)
        batch, steps, width = ops.shape(y)
        z = ops.reshape(y, (batch, steps, self.heads, width // self.heads))
        return ops.reshape(ops.transpose(z, (0, 1, 3, 2)), (batch, steps, width))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"width": self.width, "heads": self.heads}


@register
class Nested(L.Layer):
    """A layer of one's own in a layer of one's own, one of them called twice."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.a, self.b = Block(4), Linear(5)
        self.c = L.Dense(3)

    def call(self, x: Any) -> Any:
        return self.b(ops.relu(self.c(self.b(self.a(x)) @ ops.ones((5, 3)))) @ ops.ones((3, 4)))


@register
class Residual(L.Layer):
    """What ResNets are written of; the stride is a number that is no size."""

    def __init__(self, filters: int, stride: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters, self.stride = filters, stride
        self.convs = [L.Conv2D(filters, 3, s, padding="same") for s in (stride, 1)]
        self.norms = [L.BatchNormalization() for _ in range(2)]
        self.shortcut = L.Conv2D(filters, 1, stride)

    def call(self, x: Any, training: bool = False) -> Any:
        y = ops.relu(self.norms[0](self.convs[0](x), training=training))
        return ops.relu(self.norms[1](self.convs[1](y), training=training) + self.shortcut(x))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"filters": self.filters, "stride": self.stride}


@register
class Encoder(L.Layer):
    """A transformer's layer, as many write it."""

    def __init__(self, heads: int, size: int, mlp: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.heads, self.size, self.mlp = heads, size, mlp
        self.attention = L.MultiHeadAttention(heads, size)
        self.norms = [L.LayerNormalization() for _ in range(2)]
        self.up = L.Dense(mlp, activation="gelu")

    def build(self, shape: Any) -> None:
        self.down = L.Dense(shape[-1])
        self.attention.build(shape, shape)
        for norm in self.norms:
            norm.build(shape)
        self.up.build(shape)
        self.down.build((*shape[:-1], self.mlp))

    def call(self, x: Any) -> Any:
        y = self.norms[0](x)
        x = x + self.attention(y, y)
        return x + self.down(self.up(self.norms[1](x)))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"heads": self.heads, "size": self.size, "mlp": self.mlp}


@register
class HandMade(L.Layer):
    """Attention from scratch: sizes are attributes, the weights have three axes."""

    def __init__(self, heads: int, size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.heads, self.size = heads, size
        self.qkv = L.Dense(3 * heads * size)
        self.out = L.Dense(heads * size)

    def call(self, x: Any) -> Any:
        batch, steps = ops.shape(x)[:2]
        z = ops.reshape(self.qkv(x), (batch, steps, 3, self.heads, self.size))
        q, k, v = (ops.transpose(z[:, :, i], (0, 2, 1, 3)) for i in range(3))
        scores = ops.softmax(ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))) / self.size**0.5)
        y = ops.transpose(ops.matmul(scores, v), (0, 2, 1, 3))
        return self.out(ops.reshape(y, (batch, steps, self.heads * self.size)))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"heads": self.heads, "size": self.size}


@register
class SaysSix(L.Layer):
    """A size stands in the code."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.a, self.b, self.c = L.Dense(6), L.Dense(5, activation="relu"), L.Dense(3)

    def call(self, x: Any) -> Any:
        y = ops.reshape(ops.reshape(self.a(x), (-1, 4, 2, 3)), (-1, 4, 6))
        return self.c(self.b(y))


@register
class ScaleBySize(L.Layer):
    """Divides by its width, so that it computes something else when that changes."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.a = L.Dense(6)

    def call(self, x: Any) -> Any:
        y = self.a(x)
        return y / y.shape[-1]


@register
class Branches(L.Layer):
    """Asks for the values of a tensor."""

    def call(self, x: Any) -> Any:
        return x if float(np.asarray(ops.sum(x))) > 0 else -x


@register
class Remembers(L.Layer):
    """Keeps a tensor for later."""

    def call(self, x: Any) -> Any:
        self.last = x * 2
        return self.last


@register
class Counts(L.Layer):
    """Changes a weight of its own in inference."""

    def build(self, shape: Any) -> None:
        self.calls = self.add_weight(shape=(), name="calls", trainable=False)

    def call(self, x: Any) -> Any:
        self.calls.assign_add(1.0)
        return x * 2


@register
class BuiltEarly(L.Layer):
    """Its sub-layers are built where no layer's name stands in front of their weights' paths."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.up, self.down = L.Dense(5, activation="relu", name="up"), L.Dense(6, name="down")
        self.up.build((None, 4, 6))
        self.down.build((None, 4, 5))

    def call(self, x: Any) -> Any:
        return x + self.down(self.up(x))


@register
class ForgetsTwice(L.Layer):
    """Its configuration says nothing of an argument that its sub-layer was made with."""

    def __init__(self, twice: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inner = Twice(5) if twice else Linear(5)

    def call(self, x: Any) -> Any:
        return self.inner(x)

    def get_config(self) -> dict[str, Any]:
        return super().get_config()


@register
class Idle(L.Layer):
    """Has a layer that only training uses."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.extra = L.Dense(3)

    def build(self, shape: Any) -> None:
        self.extra.build(shape)

    def call(self, x: Any, training: bool = False) -> Any:
        return x + 0 * ops.sum(self.extra(x)) if training else x


@register
class NoConfig(L.Layer):
    """Cannot be made from its configuration."""

    def __init__(self, dense: Any) -> None:
        super().__init__()
        self.dense = dense

    def call(self, x: Any) -> Any:
        return self.dense(x)

    def get_config(self) -> dict[str, Any]:
        return super().get_config()


@register
class Net(keras.Model):
    """A subclassed network."""

    def __init__(self, widths: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.widths = widths
        self.stem = L.Conv2D(3, 3, padding="same")
        self.blocks = [Residual(n, 2) for n in widths]
        self.head = L.Dense(2)

    def call(self, x: Any, training: bool = False) -> Any:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, training=training)
        return self.head(ops.mean(x, axis=(1, 2)))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"widths": self.widths}


@register
class Words(keras.Model):
    """Two inputs by name, token numbers among them."""

    def __init__(self, width: int = 5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width = width
        self.table, self.mix = L.Embedding(7, width), L.Dense(width)
        self.head = L.Dense(2)

    def call(self, inputs: Any) -> Any:
        x = self.table(inputs["tokens"]) + self.mix(inputs["values"])
        return self.head(ops.mean(ops.relu(x), axis=1))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"width": self.width}
