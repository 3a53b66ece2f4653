"""kerassurgeon's calls before and at recurrent layers, wrappers and masks: weights by hand."""

import keras
import numpy as np
import pytest
from keras import layers as L

from ridurre.backend import to_numpy
from ridurre.surgeon import delete_channels
from ridurre.testing import randomise

GATES = {"SimpleRNN": 1, "GRU": 3, "LSTM": 4}


def network(*layers):
    inputs = keras.Input((4, 3))
    x = L.Conv1D(5, 1, name="before")(inputs)
    for layer in layers:
        x = layer(x)
    model = keras.Model(inputs, L.Dense(2, name="after")(x))
    randomise(model)
    return model


def weights(model, name):
    return [to_numpy(v) for v in model.get_layer(name).weights]


@pytest.mark.parametrize("kind", GATES)
def test_channels_before_a_recurrent_layer(kind):
    model = network(getattr(L, kind)(3, name="layer"))
    new = delete_channels(model, "before", [1, 4])
    kernel, *rest = weights(model, "layer")
    found = weights(new, "layer")
    np.testing.assert_array_equal(found[0], np.delete(kernel, [1, 4], 0))
    for a, b in zip(rest, found[1:], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", GATES)
def test_units_of_a_recurrent_layer(kind):
    model = network(getattr(L, kind)(3, name="layer"))
    new = delete_channels(model, "layer", [1])
    gone = [1 + 3 * gate for gate in range(GATES[kind])]
    kernel, recurrent, bias = weights(model, "layer")
    found = weights(new, "layer")
    np.testing.assert_array_equal(found[0], np.delete(kernel, gone, 1))
    np.testing.assert_array_equal(found[1], np.delete(np.delete(recurrent, gone, 1), 1, 0))
    np.testing.assert_array_equal(found[2], np.delete(bias, gone, -1))
    np.testing.assert_array_equal(
        weights(new, "after")[0], np.delete(weights(model, "after")[0], 1, 0)
    )


def test_channels_of_a_wrapped_layer():
    model = network(L.TimeDistributed(L.Dense(6, name="inner"), name="each"), L.Flatten())
    new = delete_channels(model, "each", [0, 5])
    kernel, bias = weights(model, "each")
    np.testing.assert_array_equal(weights(new, "each")[0], np.delete(kernel, [0, 5], 1))
    np.testing.assert_array_equal(weights(new, "each")[1], np.delete(bias, [0, 5]))


def test_channels_before_both_directions():
    model = network(L.Bidirectional(L.LSTM(3), name="both"))
    new = delete_channels(model, "before", [2])
    for place in (0, 3):
        np.testing.assert_array_equal(
            weights(new, "both")[place], np.delete(weights(model, "both")[place], 2, 0)
        )
