"""A layer without weights, called on tensors of several sizes inside of others' code."""

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
from ridurre.errors import FrozenChannelError
from ridurre.testing import check_model, randomise

pytestmark = pytest.mark.core


@keras.saving.register_keras_serializable()
class Turned(L.Layer):
    """Adds the number of the position, whatever the sizes; it may be given a factor as well."""

    def call(self, x: Any, factor: Any = None) -> Any:
        positions = ops.arange(x.shape[1], dtype="float32")
        x = x * ops.reshape(ops.cos(positions), (-1, *[1] * (len(x.shape) - 2)))
        return x if factor is None else x * factor


@keras.saving.register_keras_serializable()
class OfNoMore(L.Layer):
    """Insists on a number of channels, but only where there are more of them than two."""

    def call(self, x: Any) -> Any:
        if x.shape[-1] > 2 and x.shape[-1] != 7:
            raise ValueError("seven channels, or very few")
        return ops.tanh(x) * 2


@keras.saving.register_keras_serializable()
class Grouped(L.Layer):
    """Attention by hand with more heads for queries than for keys and values."""

    def __init__(self, heads: int = 6, groups: int = 2, size: int = 5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.heads, self.groups, self.size = heads, groups, size
        self.query = L.EinsumDense("btm,mhd->bthd", (None, heads, size), name="query")
        self.key = L.EinsumDense("btm,mhd->bthd", (None, groups, size), name="key")
        self.value = L.EinsumDense("btm,mhd->bthd", (None, groups, size), name="value")
        self.out = L.EinsumDense("bthd,hdm->btm", (None, 3), name="out")
        self.turn = Turned(name="turn")

    def build(self, shape: Any) -> None:
        for dense in (self.query, self.key, self.value):
            dense.build(shape)
        self.out.build((None, None, self.heads, self.size))

    def call(self, x: Any) -> Any:
        query, key = self.turn(self.query(x)), self.turn(self.key(x))
        key, value = (ops.repeat(y, self.heads // self.groups, 2) for y in (key, self.value(x)))
        scores = ops.softmax(ops.einsum("bqhd,bkhd->bhqk", query, key) / self.size**0.5)
        return x + self.out(ops.einsum("bhqk,bkhd->bqhd", scores, value))

    def get_config(self) -> dict[str, Any]:
        sizes = {"heads": self.heads, "groups": self.groups, "size": self.size}
        return super().get_config() | sizes


def ended(inputs: Any, *tensors: Any) -> keras.Model:
    x = L.Concatenate()([L.GlobalAveragePooling1D()(t) for t in tensors])
    model = keras.Model(inputs, L.Dense(2, name="after")(x))
    randomise(model)
    return model


def two_branches(layer: L.Layer, widths: tuple[int, int]) -> keras.Model:
    inputs = keras.Input((4, 3))
    branches = [L.Dense(n, name=f"wide_{n}")(inputs) for n in widths]
    return ended(inputs, *map(layer, branches))


def test_groups_of_heads_go_with_their_positions_turned(tmp_path: Path) -> None:
    inputs = keras.Input((4, 3))
    model = ended(inputs, Grouped(name="attention")(inputs))
    graph = ridurre.DependencyGraph(model)
    (heads,) = graph.groups  # the size of a head is in the turning of positions
    assert heads.size == 2
    for gone in [0], [1]:
        plan = graph.get_pruning_plan(heads, gone)
        smaller = plan.exec()
        assert smaller.get_layer("attention").query.kernel.shape == (3, 3, 5)
        assert ridurre.verify(model, smaller, plan) < 1e-5
        same_after_loading(smaller, tmp_path / "model.keras", random_inputs(model))


def test_two_branches_of_two_widths_lose_what_they_lose() -> None:
    model = two_branches(Turned(name="turn"), (3, 5))
    graph = ridurre.DependencyGraph(model)
    assert sorted(g.size for g in graph.groups) == [3, 5]
    plan = graph.get_pruning_plan({"wide_3": [1], "wide_5": [0, 2, 3]})
    assert ridurre.verify(model, plan.exec(), plan) < 1e-5
    assert check_model(model) > 0


@pytest.mark.parametrize("widths", [(2, 7), (7, 2)])
def test_a_size_that_one_of_two_calls_insists_on_stays(widths: tuple[int, int]) -> None:
    graph = ridurre.DependencyGraph(two_branches(OfNoMore(name="seven"), widths))
    assert [g.producers for g in graph.groups] == [("wide_2",)]
    with pytest.raises(FrozenChannelError, match="does not follow"):
        graph.get_pruning_plan("wide_7", [0])


def test_once_with_a_second_tensor_and_once_without() -> None:
    inputs = keras.Input((4, 3))
    turn = Turned(name="turn")
    factor = L.Dense(1, name="factor")(inputs)
    first = turn(L.Dense(3, name="first")(inputs))
    second = turn(L.Dense(3, name="second")(inputs), factor)
    assert check_model(ended(inputs, first, second)) > 0


def test_with_weights_all_calls_keep_their_sizes() -> None:
    @keras.saving.register_keras_serializable()
    class Weighted(Turned):
        def build(self, shape: Any) -> None:
            self.scale = self.add_weight(shape=(), name="scale")

        def call(self, x: Any, factor: Any = None) -> Any:
            return super().call(x, factor) * self.scale

    graph = ridurre.DependencyGraph(two_branches(Weighted(name="turn"), (5, 7)))
    assert graph.groups == []
