"""Which channels are mostly zero, counted by hand."""

from typing import Any

import keras
import numpy as np
import pytest
from builders import L

from ridurre.errors import RequestError, UnknownLayerError
from ridurre.surgeon import identify
from ridurre.surgeon.identify import get_apoz, high_apoz
from ridurre.testing import randomise, snapshot

Tensor = Any


def identity(width: int, name: str, **options: Any) -> keras.Layer:
    """A dense layer that hands its input on, so that zeros can be counted in the data."""
    return L.Dense(width, kernel_initializer="identity", name=name, **options)


DATA = np.array([[1, -1, 0], [2, -1, 0], [3, 5, -2], [-4, 6, -2]], "float32")
ZEROS = [0.25, 0.5, 1.0]  # of each column after a ReLU


def model_of(*layers: keras.Layer, shape: tuple[int, ...] = (3,)) -> keras.Model:
    x = inputs = keras.Input(shape)
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x)


def softly() -> keras.Layer:
    """A batch norm that changes nothing."""
    return L.BatchNormalization(epsilon=0.0)


@pytest.mark.core
@pytest.mark.parametrize(
    "behind",
    [
        [L.Activation("relu")],
        [L.ReLU()],
        [softly(), L.ReLU()],
        [L.Reshape((3, 1)), L.ReLU()],
        [L.Dropout(0.5), softly(), L.Activation("relu"), identity(3, "read")],
    ],
    ids=["activation", "relu", "batch_norm", "reshape", "dropout"],
)
def test_zeros_are_counted_after_the_activation(behind):
    layers = [type(x).from_config(x.get_config()) for x in behind]
    model = model_of(identity(3, "made"), *layers)
    np.testing.assert_allclose(get_apoz(model, model.get_layer("made"), DATA), ZEROS)


@pytest.mark.core
def test_an_activation_of_its_own():
    model = model_of(identity(3, "made", activation="relu"), L.Activation("tanh"))
    before = snapshot(model)
    received = get_apoz(model, "made", DATA)
    assert isinstance(received, np.ndarray)
    np.testing.assert_allclose(received, ZEROS)
    assert snapshot(model) == before


@pytest.mark.parametrize(
    "behind",
    [[], [identity(3, "read", activation="relu")], [L.Softmax()]],
    ids=["nothing", "other channels", "softmax"],
)
def test_without_an_activation_it_is_the_own_output(behind):
    """(A softmax has no zeros.)"""
    layers = [type(x).from_config(x.get_config()) for x in behind]
    model = model_of(identity(3, "made"), *layers)
    expected = [0, 0, 0] if behind and isinstance(behind[0], L.Softmax) else [0, 0, 0.5]
    np.testing.assert_allclose(get_apoz(model, "made", DATA), expected)


def test_mixed_positions_end_the_search(rng):
    """Behind a Flatten every channel has many places of its own; the layer's output is counted."""
    model = model_of(L.Conv2D(5, 1, name="made"), L.Flatten(), L.ReLU(), shape=(4, 3, 3))
    x = rng.normal(size=(5, 4, 3, 3)).astype("float32")
    np.testing.assert_allclose(get_apoz(model, "made", x), [0] * 5)


def test_a_branch_ends_the_search():
    inputs = keras.Input((3,))
    x = identity(3, "made")(inputs)
    model = keras.Model(inputs, [L.ReLU()(x), L.Activation("tanh")(x)])
    np.testing.assert_allclose(get_apoz(model, "made", DATA), [0, 0, 0.5])
    model = keras.Model(inputs, [L.ReLU()(x), x])
    np.testing.assert_allclose(get_apoz(model, "made", DATA), [0, 0, 0.5])


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_positions_count_like_samples(data_format, rng):
    """A pooling in between, and channels on the axis that the layer says."""
    first = data_format == "channels_first"
    shape = (3, 4, 6) if first else (4, 6, 3)
    layers = [L.Cropping2D(1, data_format=data_format, name="made"), L.ReLU()]
    x = rng.integers(-1, 2, (5, *shape)).astype("float32")
    inner = x[:, :, 1:-1, 1:-1] if first else x[:, 1:-1, 1:-1]
    expected = (inner <= 0).mean(axis=(0, 2, 3) if first else (0, 1, 2))
    received = get_apoz(model_of(*layers, shape=shape), "made", x)
    np.testing.assert_allclose(received, expected)


def test_a_convolution_with_pooling_and_batch_norm(rng):
    model = model_of(
        L.Conv2D(5, 3, name="made"), L.MaxPooling2D(), L.BatchNormalization(), L.ReLU(name="relu"),
        L.GlobalAveragePooling2D(), L.Dense(2), shape=(8, 7, 3),
    )  # fmt: skip
    randomise(model)
    x = rng.normal(size=(40, 8, 7, 3)).astype("float32")
    relu = keras.Model(model.input, model.get_layer("relu").output)
    y = keras.ops.convert_to_numpy(relu(x))
    np.testing.assert_allclose(get_apoz(model, "made", x), (y == 0).mean(axis=(0, 1, 2)))


@pytest.mark.core
@pytest.mark.parametrize(
    ("nodes", "expected"),
    [(None, [0.5, 0.5, 0.5]), ([0, 1], [0.5, 0.5, 0.5]), ([0], ZEROS), ([1], [0.75, 0.5, 0.0])],
)
def test_calls_of_a_shared_layer(nodes, expected):
    inputs = [keras.Input((3,), name=name) for name in ("left", "right")]
    shared = identity(3, "shared", activation="relu")
    model = keras.Model(inputs, L.Add()([shared(x) for x in inputs]))
    other = np.array([[-1, -1, 1], [-2, -2, 2], [-3, 1, 1], [1, 2, 3]], "float32")
    np.testing.assert_allclose(get_apoz(model, "shared", [DATA, other], nodes), expected)


def test_layers_of_a_nested_model():
    inner = model_of(identity(3, "made", activation="relu"))
    x = inputs = keras.Input((3,))
    for _ in range(2):
        x = inner(L.Rescaling(-1)(x))
    model = keras.Model(inputs, x)
    both = np.concatenate([np.maximum(-DATA, 0), 0 * DATA])
    np.testing.assert_allclose(get_apoz(model, "made", DATA), (both == 0).mean(axis=0))
    with pytest.raises(RequestError, match="is a nested model"):
        get_apoz(model, inner, DATA)


def test_other_data_than_arrays():
    model = model_of(identity(3, "made", activation="relu"))
    batches = [(DATA[:3],), (DATA[3:],)]
    np.testing.assert_allclose(get_apoz(model, "made", batches), ZEROS)


def test_what_makes_no_sense():
    model = model_of(identity(3, "made"))
    with pytest.raises(UnknownLayerError, match="no layer 'other'"):
        get_apoz(model, "other", DATA)
    with pytest.raises(RequestError, match=r"some of \[0\]"):
        get_apoz(model, "made", DATA, [1])
    with pytest.raises(RequestError, match="do not fit the model"):
        get_apoz(model, "made", DATA[:, :2])
    with pytest.raises(RequestError, match="one of 'std', 'absolute', 'both'"):
        high_apoz([0.5], method="mean")
    with pytest.raises(RequestError, match="one number per channel"):
        high_apoz([])


# mean 0.6, standard deviation 0.255
APOZ = np.array([0.2, 0.3, 0.5, 0.7, 0.8, 0.95, 0.75])


@pytest.mark.core
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [5]),
        ({"cutoff_std": 0.5}, [4, 5, 6]),
        ({"cutoff_std": 0}, [3, 4, 5, 6]),
        ({"method": "absolute"}, []),
        ({"method": "absolute", "cutoff_absolute": 0.8}, [4, 5]),
        ({"method": "both"}, [5]),
        ({"method": "both", "cutoff_absolute": 0.7}, [3, 4, 5, 6]),
        ({"method": "both", "cutoff_std": 3}, []),
    ],
)
def test_high_apoz(options, expected):
    mean, std = APOZ.mean(), APOZ.std()
    assert (round(float(mean), 3), round(float(std), 3)) == (0.6, 0.255)
    received = high_apoz(APOZ, **options)
    assert received.tolist() == expected
    assert identify.high_apoz(list(APOZ), **options).tolist() == expected


def test_a_channel_that_is_always_zero_is_high_whatever_the_spread():
    """The cut-off never lies above 1."""
    assert high_apoz([0.0, 1.0, 1.0]).tolist() == [1, 2]
    assert high_apoz([0.0, 1.0], "absolute", cutoff_absolute=2).tolist() == [1]
    assert high_apoz([0.5, 0.5]).tolist() == [0, 1]
