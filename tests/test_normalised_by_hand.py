"""Normalisation that a layer's own code does: what is left is normalised by what is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops
from test_opening import same_after_loading

import ridurre
from ridurre.backend import to_numpy
from ridurre.data import random_inputs
from ridurre.testing import randomise

pytestmark = pytest.mark.core


@keras.saving.register_keras_serializable("by_hand")
class RootMeanSquare(L.Layer):
    """As `keras.layers.RMSNormalization`."""

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(shape[-1],), name="scale", initializer="ones")

    def call(self, x: Any) -> Any:
        square = ops.mean(ops.square(x), axis=-1, keepdims=True)
        return x * ops.rsqrt(square + 1e-3) * self.scale


@keras.saving.register_keras_serializable("by_hand")
class MeanAndVariance(L.Layer):
    """As `keras.layers.LayerNormalization`, its axes written in other ways."""

    def build(self, shape: Any) -> None:
        self.gamma = self.add_weight(shape=(shape[-1],), name="gamma", initializer="ones")
        self.beta = self.add_weight(shape=(shape[-1],), name="beta", initializer="zeros")

    def call(self, x: Any) -> Any:
        centred = x - ops.expand_dims(ops.mean(x, axis=-1), -1)
        variance = ops.var(x, axis=2, keepdims=True)
        return centred / ops.sqrt(variance + 1e-3) * self.gamma + self.beta


@keras.saving.register_keras_serializable("by_hand")
class MeanThroughWeights(L.Layer):
    """A mean over channels that goes through a layer of its own is no normalisation."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.attend = L.Dense(1, activation="sigmoid", name="attend")

    def build(self, shape: Any) -> None:
        self.attend.build((*shape[:-1], 1))

    def call(self, x: Any) -> Any:
        return x * self.attend(ops.mean(x, axis=-1, keepdims=True))


@keras.saving.register_keras_serializable("by_hand")
class MeanAsWell(RootMeanSquare):
    """The mean itself is returned, too."""

    def call(self, x: Any) -> Any:
        square = ops.mean(ops.square(x), axis=-1, keepdims=True)
        return x * ops.rsqrt(square + 1e-3) * self.scale, square


@keras.saving.register_keras_serializable("by_hand")
class MeanOfOthers(L.Layer):
    """The mean of other channels, as many of them, scales what comes in."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.others = L.Dense(7, name="others")

    def build(self, shape: Any) -> None:
        self.others.build(shape)

    def call(self, x: Any) -> Any:
        return x * ops.mean(self.others(x), axis=-1, keepdims=True)


def around(layer: L.Layer) -> keras.Model:
    inputs = keras.Input((4, 3))
    x = L.Dense(7, activation="relu", name="before")(inputs)
    y = keras.tree.flatten(layer(x))
    outputs = [L.Dense(2, name=f"after_{i}")(t) for i, t in enumerate(y)]
    model = keras.Model(inputs, outputs)
    randomise(model)
    return model


PAIRS = {
    "root mean square": (RootMeanSquare, lambda: L.RMSNormalization(epsilon=1e-3)),
    "mean and variance": (MeanAndVariance, lambda: L.LayerNormalization(epsilon=1e-3)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_left_is_what_keras_layer_leaves(name: str, tmp_path: Path) -> None:
    by_hand, by_keras = (around(make()) for make in PAIRS[name])
    by_keras.set_weights(by_hand.get_weights())
    inputs = random_inputs(by_hand)
    pruned = []
    for model in (by_hand, by_keras):
        plan = ridurre.DependencyGraph(model).get_pruning_plan("before", [0, 4, 5])
        assert not plan.exact
        pruned.append(plan.exec())
    assert [w.shape for w in pruned[0].get_weights()] == [w.shape for w in pruned[1].get_weights()]
    outputs = [to_numpy(model(inputs)) for model in pruned]
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-5)
    same_after_loading(pruned[0], tmp_path / "model.keras", inputs)


@pytest.mark.parametrize("layer", [MeanThroughWeights, MeanAsWell])
def test_another_mean_over_channels_holds_them(layer: Any) -> None:
    assert ridurre.DependencyGraph(around(layer())).groups == []


def test_the_mean_of_other_channels_holds_those() -> None:
    graph = ridurre.DependencyGraph(around(MeanOfOthers(name="scaled")))
    assert [g.producers for g in graph.groups] == [("before",)]


def test_the_plan_names_the_mean() -> None:
    plan = ridurre.DependencyGraph(around(RootMeanSquare(name="norm"))).get_pruning_plan(
        "before", [0]
    )
    assert [name.startswith("norm/mean") for name in plan.inexact] == [True]
