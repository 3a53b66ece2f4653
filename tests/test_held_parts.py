"""Layers that do not say how they are made, inside of one that does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import pytest
from keras import layers as L
from keras import ops
from test_opening import same_after_loading

import ridurre
from ridurre.data import random_inputs
from ridurre.errors import FrozenChannelError, ModelError
from ridurre.testing import randomise

pytestmark = pytest.mark.core


class Untold(L.Layer):
    """Is made with another number than it keeps, and tells nobody."""

    def __init__(self, double: int, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.units = double // 2
        self.up = L.Dense(self.units, activation="relu", name="up")
        self.gate = L.Dense(self.units, name="gate")
        self.down = L.Dense(3, name="down")

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(self.units,), name="scale", initializer="ones")
        for dense in (self.up, self.gate):
            dense.build(shape)
        self.down.build(shape[:-1] + (self.units,))

    def call(self, x: Any) -> Any:
        y = self.up(x) * self.gate(x) * self.scale
        return self.down(ops.reshape(y, (-1, *x.shape[1:-1], self.units)))

    def get_config(self) -> dict[str, Any]:
        raise NotImplementedError("it does not say")


class Between(L.Layer):
    """Holds one that does not say, and does not say either."""

    def __init__(self, quadruple: int, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.inner = Untold(quadruple // 2, name="inner")
        self.last = L.Dense(3, name="last")

    def build(self, shape: Any) -> None:
        self.inner.build(shape)
        self.last.build(shape)

    def call(self, x: Any) -> Any:
        return x + self.last(self.inner(x))

    def get_config(self) -> dict[str, Any]:
        raise NotImplementedError("it does not say")


@keras.saving.register_keras_serializable("held")
class Holder(L.Layer):
    """Makes a part in its constructor, or when it is built."""

    PARTS = {"untold": Untold, "between": Between}

    def __init__(self, part: str, size: int, early: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.part, self.size, self.early = part, size, early
        self.before = L.Dense(3, activation="tanh", name="before")
        if early:
            self.held = self.PARTS[part](size, name="held")

    def build(self, shape: Any) -> None:
        if not self.early:
            self.held = self.PARTS[self.part](self.size, name="held")
        self.before.build(shape)
        self.held.build((*shape[:-1], 3))

    def call(self, x: Any) -> Any:
        return x + self.held(self.before(x))

    def get_config(self) -> dict[str, Any]:
        own = {"part": self.part, "size": self.size, "early": self.early}
        return super().get_config() | own


@keras.saving.register_keras_serializable("held")
class ToldByKeras(L.Layer):
    """Without a `get_config`: Keras notes what it is made with."""

    def __init__(self, size: int, name: str = "block") -> None:
        super().__init__(name=name)
        self.up = L.Dense(size + 1, activation="relu", name="up")
        self.down = L.Dense(3, name="down")

    def build(self, shape: Any) -> None:
        self.up.build(shape)
        self.down.build((*shape[:-1], self.up.units))

    def call(self, x: Any) -> Any:
        return self.down(self.up(x))


def around(layer: L.Layer) -> keras.Model:
    inputs = keras.Input((4, 3))
    x = L.GlobalAveragePooling1D()(layer(inputs))
    model = keras.Model(inputs, L.Dense(2, name="after")(x))
    randomise(model)
    return model


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize(("part", "size"), [("untold", 14), ("between", 28)])
def test_a_part_that_only_its_holder_can_make(
    part: str, size: int, early: bool, tmp_path: Path
) -> None:
    model = around(Holder(part, size, early, name="block"))
    inputs = random_inputs(model)
    for gone in [0, 3, 5], [2]:  # it can be made smaller, saved, loaded, and smaller still
        graph = ridurre.DependencyGraph(model)
        (group,) = (g for g in graph.groups if any(p.endswith("gate") for p in g.producers))
        plan = graph.get_pruning_plan(group, gone)
        smaller = plan.exec()
        assert ridurre.verify(model, smaller, plan) < 1e-5
        model = same_after_loading(smaller, tmp_path / "model.keras", inputs)
    assert group.size == 4


def test_the_holder_loses_of_its_own_and_the_part_stays(tmp_path: Path) -> None:
    model = around(Holder("untold", 10, name="block"))
    graph = ridurre.DependencyGraph(model)
    plan = graph.get_pruning_plan({"block/before": [1], "block/held/up": [0, 2]})
    smaller = plan.exec()
    assert ridurre.verify(model, smaller, plan) < 1e-5
    same_after_loading(smaller, tmp_path / "model.keras", random_inputs(model))


class Closed(L.Layer):
    """Keeps what it is given, so that it is a barrier, and does not say how it is made."""

    def __init__(self, double: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.half = double // 2

    def call(self, x: Any) -> Any:
        self.seen = x
        return x * self.half

    def get_config(self) -> dict[str, Any]:
        raise NotImplementedError("it does not say")


@keras.saving.register_keras_serializable("held")
class HoldsClosed(ToldByKeras):
    def __init__(self, size: int, name: str = "block") -> None:
        super().__init__(size, name)
        self.closed = Closed(6, name="closed")

    def call(self, x: Any) -> Any:
        return self.closed(super().call(x))


@pytest.mark.filterwarnings("ignore:Channels that flow into:ridurre.RidurreWarning")
def test_a_part_that_is_not_looked_into_comes_out_of_its_holder_as_well() -> None:
    model = around(HoldsClosed(6))
    graph = ridurre.DependencyGraph(model)
    assert list(graph.barriers) == ["block/closed"]
    plan = graph.get_pruning_plan("block/up", [0, 3])
    smaller = plan.exec()
    assert smaller.get_layer("block").up.units == 5
    assert smaller.get_layer("block").closed.half == 3


@pytest.mark.parametrize("cls", [Untold, Between])
def test_nobody_holds_it(cls: Any) -> None:
    """Then no smaller model can be made, whatever is to go."""
    inputs = keras.Input((4, 3))
    x = L.Dense(5, name="elsewhere")(cls(12, name="block")(inputs))
    model = keras.Model(inputs, L.Dense(2)(x))
    graph = ridurre.DependencyGraph(model)
    assert graph.groups == []
    with pytest.raises(FrozenChannelError, match="want of a `get_config`.*'block'"):
        graph.get_pruning_plan("elsewhere", [0])


@pytest.mark.parametrize("cls", [Untold, Between])
def test_made_from_its_attributes_it_is_saved_with_them(cls: Any, tmp_path: Path) -> None:
    """A class whose `get_config` fails, with arguments that it keeps under their names."""
    name = {"Untold": "double", "Between": "quadruple"}[cls.__name__]

    @keras.saving.register_keras_serializable("held", f"Keeps{cls.__name__}")
    class Keeps(cls):  # type: ignore[misc]
        def __init__(self, size: int, **kwargs: Any) -> None:
            super().__init__(**{name: size}, **{k: kwargs[k] for k in ["name"]})
            self.size = size

    model = around(Keeps(12, name="block"))
    for gone in [0, 2], [1]:
        graph = ridurre.DependencyGraph(model)
        group = next(g for g in graph.groups if any(p.endswith("gate") for p in g.producers))
        plan = graph.get_pruning_plan(group, gone if len(gone) < group.size - 1 else [0])
        smaller = plan.exec()
        assert ridurre.verify(model, smaller, plan) < 1e-5
        model = same_after_loading(smaller, tmp_path / "model.keras", random_inputs(model))


@keras.saving.register_keras_serializable("held")
class CountsInATuple(L.Layer):
    """Adds to a shape that it holds, which only a tuple allows."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.wide = (4, 7)
        self.up = L.Dense(7, name="up")
        self.down = L.Dense(3, name="down")

    def build(self, shape: Any) -> None:
        self.up.build(shape)
        self.down.build((*shape[:-1], 7))

    def call(self, x: Any) -> Any:
        return self.down(ops.reshape(self.up(x), (-1,) + self.wide))


def test_a_tuple_of_sizes_is_one_after_loading(tmp_path: Path) -> None:
    model = around(CountsInATuple(name="block"))
    plan = ridurre.DependencyGraph(model).get_pruning_plan("block/up", [0, 3])
    smaller = plan.exec()
    assert smaller.get_layer("block").wide == (4, 5)
    assert ridurre.verify(model, smaller, plan) < 1e-5
    same_after_loading(smaller, tmp_path / "model.keras", random_inputs(model))


@keras.saving.register_keras_serializable("held")
class Derives(L.Layer):
    """Its code reads one number, and another that was derived from that in the beginning."""

    def __init__(self, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width, self.half = width, width // 2
        self.up = L.Dense(width, name="up")
        self.gate = L.Dense(width // 2, name="gate")
        self.down = L.Dense(3, name="down")

    def build(self, shape: Any) -> None:
        self.up.build(shape)
        self.gate.build(shape)
        self.down.build((*shape[:-1], self.width + self.half))

    def call(self, x: Any) -> Any:
        up = ops.reshape(self.up(x), (-1, 4, self.width))
        gate = ops.reshape(self.gate(x), (-1, 4, self.half))
        return self.down(ops.concatenate([up, gate], axis=-1))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"width": self.width}


def test_the_file_says_the_full_size_whatever_became_of_the_number(tmp_path: Path) -> None:
    model = around(Derives(10, name="block"))
    plan = ridurre.DependencyGraph(model).get_pruning_plan("block/up", [0, 3, 4, 5])
    smaller = plan.exec()
    assert (smaller.get_layer("block").width, smaller.get_layer("block").half) == (6, 5)
    same_after_loading(smaller, tmp_path / "model.keras", random_inputs(model))


@keras.saving.register_keras_serializable("held")
class Net(keras.Model):
    """Without a `get_config`: Keras notes nothing of what it is made with."""

    def __init__(self, width: int = 6, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width = width
        self.up = L.Dense(width, activation="relu")
        self.down = L.Dense(2)

    def build(self, shape: Any) -> None:
        self.up.build(shape)
        self.down.build((*shape[:-1], self.width))
        super().build(shape)

    def call(self, x: Any) -> Any:
        return self.down(self.up(x))


@pytest.mark.parametrize("width", [6, 7])
def test_a_model_of_which_keras_notes_nothing(width: int, tmp_path: Path) -> None:
    model = Net(width)
    model(keras.ops.zeros((2, 3)))
    randomise(model)
    inputs = random_inputs(model)
    for gone, left in ([0, 3], width - 2), ([1], width - 3):
        graph = ridurre.DependencyGraph(model)
        plan = graph.get_pruning_plan(graph.groups[0], gone)
        smaller = plan.exec()
        assert smaller.up.units == left
        assert ridurre.verify(model, smaller, plan) < 1e-5
        model = same_after_loading(smaller, tmp_path / "model.keras", inputs)


def test_what_keras_notes_is_in_the_file(tmp_path: Path) -> None:
    model = around(ToldByKeras(6))
    for gone, left in ([0, 3], 5), ([1], 4):
        plan = ridurre.DependencyGraph(model).get_pruning_plan("block/up", gone)
        smaller = plan.exec()
        assert smaller.get_layer("block").up.units == left
        assert ridurre.verify(model, smaller, plan) < 1e-5
        model = same_after_loading(smaller, tmp_path / "model.keras", random_inputs(model))


def test_a_strategy_says_which_class_cannot_be_made() -> None:
    inputs = keras.Input((4, 3))
    x = L.Dense(5, name="elsewhere")(Untold(12, name="block")(inputs))
    with pytest.raises(ModelError, match="(?s)'block' .*Untold.* cannot be re-created"):
        ridurre.prune(ridurre.ChannelPrune(0.5), keras.Model(inputs, L.Dense(2)(x)))
