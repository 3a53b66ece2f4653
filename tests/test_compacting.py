"""Channels that zeros have emptied are removed, and nothing else changes."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from builders import L, residual
from hypothesis import given, settings
from hypothesis import strategies as st
from models import padded_shortcut, two_residual_blocks, unet

import ridurre
from ridurre.backend import to_numpy
from ridurre.testing import randomise, snapshot
from ridurre.weights import weights_of

pytestmark = pytest.mark.core


def zero(model: keras.Model, layer: str, channels: Any, axis: int = -1) -> None:
    """Empty filters (axis -1) or what is read of channels (axis -2)."""
    kernel = np.array(to_numpy(model.get_layer(layer).kernel))
    np.moveaxis(kernel, axis, 0)[channels] = 0
    model.get_layer(layer).kernel.assign(kernel)


def same(model: keras.Model, smaller: keras.Model) -> None:
    x = np.random.default_rng(0).normal(size=(3, *model.inputs[0].shape[1:])).astype("float32")
    expected, received = (to_numpy(m(x, training=False)) for m in (model, smaller))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(received, expected, atol=1e-5 * scale, rtol=1e-5)


def widths(model: keras.Model) -> dict[str, int]:
    return {x.name: x.kernel.shape[-1] for x in model.layers if hasattr(x, "kernel")}


def chain(*, norm: bool = False, bias: bool = True, padding: str = "valid") -> keras.Model:
    inputs = keras.Input((7, 7, 3))
    x = L.Conv2D(5, 3, use_bias=not norm, padding=padding, name="first")(inputs)
    x = L.BatchNormalization(name="norm")(x) if norm else x
    x = L.ReLU()(x)
    x = L.Conv2D(7, 3, use_bias=bias, padding=padding, name="second")(x)
    x = L.Dense(2, name="head")(L.Flatten()(L.ReLU()(x)))
    model = keras.Model(inputs, x)
    randomise(model)
    return model


def test_what_nothing_reads_goes() -> None:
    model = chain()
    zero(model, "second", [1, 3], axis=-2)
    before = snapshot(model)
    smaller = ridurre.compact(model)
    assert widths(smaller) == {"first": 3, "second": 7, "head": 2}
    same(model, smaller)
    assert snapshot(model) == before


def test_what_nothing_makes_goes_into_the_biases() -> None:
    model = chain()
    model.get_layer("first").bias.assign([1.0, 2, -3, 4, 5])
    zero(model, "first", [1, 2])
    smaller = ridurre.compact(model)
    assert widths(smaller) == {"first": 3, "second": 7, "head": 2}
    assert not np.allclose(to_numpy(smaller.get_layer("second").bias),
                           to_numpy(model.get_layer("second").bias))  # fmt: skip
    same(model, smaller)


def test_a_constant_of_zero_goes_wherever_it_is_read() -> None:
    model = chain(bias=False, padding="same")
    model.get_layer("first").bias.assign([0.0, -2, 3, 4, 5])  # the ReLU cuts the second off
    zero(model, "first", [0, 1, 2])
    smaller = ridurre.compact(model)
    assert widths(smaller)["first"] == 3  # the third is a constant of 3 under zero padding
    same(model, smaller)


def test_constants_behind_batch_norm() -> None:
    model = chain(norm=True)
    zero(model, "first", [0, 4])
    smaller = ridurre.compact(model)
    assert widths(smaller)["first"] == 3
    same(model, smaller)


def test_a_constant_that_no_bias_can_take_over_stays() -> None:
    model = chain(bias=False)
    model.get_layer("first").bias.assign([1.0, 2, 3, 4, 5])
    zero(model, "first", [1])
    assert widths(ridurre.compact(model))["first"] == 5


def test_one_thing_leads_to_another() -> None:
    model = chain()
    zero(model, "head", slice(0, None, 7), axis=-2)  # the first channel of every pixel
    zero(model, "head", slice(1, None, 7), axis=-2)
    zero(model, "second", 4, axis=-2)
    kernel = np.array(to_numpy(model.get_layer("second").kernel))
    kernel[:, :, 2, 2:] = 0  # read by the two that go alone
    model.get_layer("second").kernel.assign(kernel)
    smaller = ridurre.compact(model)
    assert widths(smaller) == {"first": 3, "second": 5, "head": 2}
    same(model, smaller)


def test_one_channel_stays() -> None:
    model = chain()
    zero(model, "second", slice(None), axis=-2)
    smaller = ridurre.compact(model)
    assert widths(smaller)["first"] == 1
    same(model, smaller)


def test_channels_tied_to_others_stay_unless_all_are_empty() -> None:
    model = residual()
    randomise(model)
    zero(model, "outer", [0, 1])
    same(model, ridurre.compact(model))
    assert widths(ridurre.compact(model))["outer"] == widths(model)["outer"]


def test_statistics_across_channels_keep_them() -> None:
    inputs = keras.Input((4,))
    x = L.LayerNormalization()(L.Dense(5, name="first")(inputs))
    model = keras.Model(inputs, L.Dense(2, name="head")(x))
    randomise(model)
    zero(model, "head", [1], axis=-2)
    assert widths(ridurre.compact(model))["first"] == 5


def test_a_masked_model_compiled_stays_compiled() -> None:
    model = chain()
    model.compile("sgd", "mse")
    sparse = ridurre.prune(ridurre.LevelPrune(0.9, scope="global", block=(3, 1)), model)
    smaller = ridurre.compact(sparse)
    assert smaller.compiled
    same(sparse, smaller)


MODELS: dict[str, Callable[[], keras.Model]] = {
    "chain": chain,
    "chain, batch norm, same": lambda: chain(norm=True, padding="same"),
    "residual": residual,
    "blocks": two_residual_blocks,
    "padded shortcut": padded_shortcut,
    "unet": unet,
}


@pytest.mark.parametrize("name", MODELS)
def test_whatever_is_zero_nothing_changes(name: str) -> None:
    model = MODELS[name]()
    randomise(model)
    whole = model.get_weights()

    @given(st.integers(0, 2**32 - 1), st.sampled_from([0.3, 0.6, 0.9]))
    @settings(max_examples=6, deadline=None)
    def check(seed: int, level: float) -> None:
        model.set_weights(whole)
        rng = np.random.default_rng(seed)
        for w in weights_of(model):
            value = np.array(w.value)
            value[..., rng.random(value.shape[-1]) < level] = 0
            value[..., rng.random(value.shape[-2]) < level / 2, :] = 0
            w.variable.assign(value)
        smaller = ridurre.compact(model)
        assert smaller.count_params() <= model.count_params()
        same(model, smaller)

    check()
