"""Layers inside a layer whose code was looked into, and classes that say little of themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import ridurre
from ridurre.errors import RequestError
from ridurre.testing import check_model, randomise


class Plain(layers.Layer):
    """What the layers below share: they are made from `width` (and know no shapes)."""

    def __init__(self, width: int = 5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width = width
        self.make()

    def make(self) -> None:
        self.up = layers.Dense(self.width, activation="relu", name="up")
        self.down = layers.Dense(3, name="down")

    def build(self, shape: Any) -> None:
        if hasattr(self, "up"):
            self.up.build(shape)
            self.down.build((*shape[:-1], self.up.units))

    def call(self, x: Any) -> Any:
        return self.down(self.up(x))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"width": self.width}


@keras.saving.register_keras_serializable()
class Liar(Plain):
    """Says that it returns another shape than it does; who is inside is never asked."""

    def compute_output_shape(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("nobody asked before")


@keras.saving.register_keras_serializable()
class AroundLiar(Plain):
    def make(self) -> None:
        self.inner = Liar(self.width, name="inner")

    def build(self, shape: Any) -> None:
        self.inner.build(shape)

    def call(self, x: Any) -> Any:
        return x + self.inner(x)


@keras.saving.register_keras_serializable()
class WithNone(Plain):
    """Returns what it has no use for, too."""

    def call(self, x: Any, cache: Any = None) -> Any:
        return super().call(x), cache


@keras.saving.register_keras_serializable()
class AroundNone(Plain):
    def make(self) -> None:
        self.inner = WithNone(self.width, name="inner")

    def build(self, shape: Any) -> None:
        self.inner.build(shape)

    def call(self, x: Any) -> Any:
        y, cache = self.inner(x, cache=None)
        assert cache is None
        return y


@keras.saving.register_keras_serializable()
class WithPositions(Plain):
    """A table that is read at numbers which the code makes."""

    def make(self) -> None:
        super().make()
        self.table = layers.Embedding(4, 3, name="table")

    def build(self, shape: Any) -> None:
        self.table.build(None)
        self.up.build(shape)
        self.down.build((*shape[:-1], self.width))

    def call(self, x: Any) -> Any:
        return super().call(x + self.table(ops.arange(4)))


@keras.saving.register_keras_serializable()
class Gated(Plain):
    """Half of a width for each of two."""

    def __init__(self, width: int = 10, **kwargs: Any) -> None:
        super().__init__(width, **kwargs)

    def make(self) -> None:
        self.up = layers.Dense(self.width // 2, activation="relu", name="up")
        self.gate = layers.Dense(self.width // 2, name="gate")
        self.down = layers.Dense(3, name="down")

    def build(self, shape: Any) -> None:
        super().build(shape)
        self.gate.build(shape)

    def call(self, x: Any) -> Any:
        return self.down(self.up(x) * self.gate(x))


@keras.saving.register_keras_serializable()
class Heads(Plain):
    """Scores that are scaled by the size of a head."""

    def make(self) -> None:
        self.attention = layers.MultiHeadAttention(2, self.width, name="attention")

    def build(self, shape: Any) -> None:
        self.attention.build(shape, shape)

    def call(self, x: Any) -> Any:
        return self.attention(x, x)


@keras.saving.register_keras_serializable()
class ReshapesOnTheWay(Plain):
    """Makes a layer without weights at every call, and leaves its parts to be built then."""

    def build(self, shape: Any) -> None:
        self.built = True

    def call(self, x: Any) -> Any:
        y = self.up(x)
        return self.down(layers.Reshape((4, self.width))(y))


@keras.saving.register_keras_serializable()
class SaysShapes(Plain):
    """A class that says what it returns by a number of its own."""

    def make(self) -> None:
        self.up = layers.Dense(self.width, name="up")

    def build(self, shape: Any) -> None:
        self.up.build(shape)

    def call(self, x: Any) -> Any:
        return self.up(x)

    def compute_output_shape(self, shape: Any) -> Any:
        return (*shape[:-1], self.width)


@keras.saving.register_keras_serializable()
class PassesOn(Plain):
    """Holds a layer of Keras that does not take its own configuration (nor can be saved)."""

    def make(self) -> None:
        super().make()
        self.same = layers.Identity(dtype=self.dtype_policy, name="same")

    def call(self, x: Any) -> Any:
        return self.same(super().call(x))


@keras.saving.register_keras_serializable()
class PadsWithNothing(Plain):
    """Joins an empty part."""

    def call(self, x: Any) -> Any:
        y = self.up(x)
        return self.down(ops.concatenate([y, y[..., :0]], axis=-1))


@keras.saving.register_keras_serializable()
class ReshapesAWeight(Plain):
    """Gives a weight the rank of what it is multiplied with, in two ways."""

    def build(self, shape: Any) -> None:
        super().build(shape)
        self.scale = self.add_weight(shape=(self.width,), name="scale")
        self.shift = self.add_weight(shape=(self.width,), name="shift")

    def call(self, x: Any) -> Any:
        scale = ops.reshape(self.scale, (1, 1, self.width))
        return self.down(self.up(x) * scale + ops.reshape(self.shift, (1, -1)))


CASES: dict[str, Callable[[], layers.Layer]] = {
    cls.__name__: lambda cls=cls: cls(name="block")
    for cls in (AroundLiar, AroundNone, WithPositions, Gated, Heads, ReshapesOnTheWay, SaysShapes,
                PadsWithNothing, ReshapesAWeight)
}  # fmt: skip


def network(block: layers.Layer) -> keras.Model:
    x = inputs = keras.Input((4, 3))
    x = layers.Dense(2, name="after")(layers.Flatten()(block(x)))
    model = keras.Model(inputs, x)
    randomise(model)
    return model


@pytest.mark.parametrize("name", CASES)
def test_what_is_inside_can_go(name: str) -> None:
    assert check_model(network(CASES[name]())) > 0


@pytest.mark.filterwarnings("ignore:Channels that flow into:ridurre.RidurreWarning")
@pytest.mark.parametrize("shared_first", [True, False])
def test_what_a_barrier_holds_stays_whole_wherever_else_it_is_called(shared_first: bool) -> None:
    class Shy(Plain):
        def call(self, x: Any) -> Any:
            return super().call(x) if x.__class__.__name__ != "KerasTensor" else x * float(x)

        def compute_output_spec(self, x: Any) -> Any:
            return keras.KerasTensor(x.shape, x.dtype)

    inputs, shy = keras.Input((4, 3)), Shy(name="shy")
    branches = [shy(inputs)]
    branches.insert(0 if shared_first else 1, layers.Dense(3, name="last")(shy.up(inputs)))
    model = keras.Model(inputs, layers.Concatenate()(branches))
    graph = ridurre.DependencyGraph(model)
    assert "its code does not run" in graph.trace.closed["shy"]
    assert graph.groups == []


@keras.saving.register_keras_serializable()
class SaysWidth(SaysShapes):
    """Says its shape by a number that it also computes with, and does not know all of it."""

    def call(self, x: Any) -> Any:
        return super().call(x) * self.width**0.5

    def compute_output_shape(self, shape: Any) -> Any:
        return (None, None, self.width)


def test_a_number_that_says_the_shape_and_a_scale_stays() -> None:
    inputs = keras.Input((4, 3))
    x = layers.GlobalAveragePooling1D()(SaysWidth(name="block")(inputs))
    model = keras.Model(inputs, layers.Dense(2, name="after")(x))
    randomise(model)
    assert ridurre.DependencyGraph(model).groups == []


class Shuffled(Plain):
    """Says the sizes of its shuffle in so many words, and adds it to what was shuffled."""

    def make(self) -> None:
        self.up = layers.Dense(6, name="up")

    def build(self, shape: Any) -> None:
        self.up.build(shape)

    def call(self, x: Any) -> Any:
        y = self.up(x)
        z = ops.transpose(ops.reshape(y, (-1, 4, 2, 3)), (0, 1, 3, 2))
        return y + ops.tanh(ops.reshape(z, (-1, 4, 6)))


def test_what_a_class_cannot_lose_together_is_refused_before_it_is_cut() -> None:
    graph = ridurre.DependencyGraph(network(Shuffled(name="block")))
    with pytest.raises(RequestError, match="'block' .* does not follow when .* go together"):
        graph.get_pruning_plan("block/up", [5, 4, 2])


class Silent(Plain):
    """A class that nobody can ask for its configuration."""

    def get_config(self) -> dict[str, Any]:
        raise AttributeError("no such thing")


class SilentAndOther(Silent):
    """It cannot be made anew from its attributes: they say another number."""

    def __init__(self, width: int = 5, **kwargs: Any) -> None:
        super().__init__(width, **kwargs)
        self.width = 2 * width


def test_a_class_without_a_configuration_is_made_from_its_attributes() -> None:
    model = network(Silent(name="block"))
    graph = ridurre.DependencyGraph(model)
    plan = graph.get_pruning_plan("block/up", [0, 3])
    smaller = plan.exec()
    assert smaller.get_layer("block").width == 3
    assert ridurre.verify(model, smaller, plan) < 1e-5


def test_attributes_that_are_not_the_arguments_make_no_wrong_layer() -> None:
    policy = keras.DTypePolicy("float32")  # then Keras notes no arguments
    model = network(SilentAndOther(name="block", dtype=policy))
    graph = ridurre.DependencyGraph(model)
    for group in graph.groups:
        plan = graph.get_pruning_plan(group, [0])
        assert ridurre.verify(model, plan.exec(), plan) < 1e-5


def test_a_layer_that_does_not_take_its_own_configuration_is_made_from_its_attributes() -> None:
    model = network(PassesOn(name="block"))
    plan = ridurre.DependencyGraph(model).get_pruning_plan("block/up", [0, 3])
    assert ridurre.verify(model, plan.exec(), plan) < 1e-5


def test_an_argument_that_keras_drops_does_not_matter() -> None:
    inputs = keras.Input((4,), dtype="int32")
    x = layers.ReversibleEmbedding(7, 5, name="words")(inputs, training=False)
    model = keras.Model(inputs, layers.Dense(2)(x))
    assert [g.size for g in ridurre.DependencyGraph(model).groups] == [5]


def test_numbers_differ_from_call_to_call() -> None:
    """Where the numbers that the code makes depend on a size, the size stays."""

    class Counts(Plain):
        def call(self, x: Any) -> Any:
            y = self.up(x)
            return self.down(y * self.scale(np.arange(y.shape[-1])[:, None])[:, 0])

        def make(self) -> None:
            super().make()
            self.scale = layers.Dense(1, name="scale")

    graph = ridurre.DependencyGraph(network(Counts(name="block")))
    assert not any("block/up" in str(group) for group in graph.groups)


@keras.saving.register_keras_serializable()
class ManyNumbers(Plain):
    """Three of its numbers are the size that goes, one that is equal is none, others are idle."""

    def make(self) -> None:
        self.first = self.second = self.third = self.factor = self.width
        for index in range(6):
            setattr(self, f"idle_{index}", self.width)
        self.parts = [layers.Dense(self.width, name=f"part_{i}") for i in range(3)]
        self.down = layers.Dense(3, name="down")

    def build(self, shape: Any) -> None:
        for part in self.parts:
            part.build(shape)
        self.down.build((*shape[:-1], self.width))

    def call(self, x: Any) -> Any:
        sizes = (self.first, self.second, self.third)
        parts = [
            ops.reshape(part(x), (-1, 4, n)) for part, n in zip(self.parts, sizes, strict=True)
        ]
        return self.factor * self.down(parts[0] + parts[1] + parts[2])


def test_of_many_equal_numbers_those_change_that_the_code_reads_as_the_size() -> None:
    model = network(ManyNumbers(name="block"))
    plan = ridurre.DependencyGraph(model).get_pruning_plan("block/part_0", [1, 2])
    smaller = plan.exec()
    block = smaller.get_layer("block")
    assert (block.first, block.second, block.third, block.factor) == (3, 3, 3, 5)
    assert ridurre.verify(model, smaller, plan) < 1e-5
