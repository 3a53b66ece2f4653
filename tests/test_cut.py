"""Cutting single layers by hand."""

import keras
import numpy as np
import pytest
from builders import L, chain, pictures, predict

import ridurre
from ridurre.errors import RequestError
from ridurre.testing import randomise

CONVOLUTIONS = {1: L.Conv1D, 2: L.Conv2D, 3: L.Conv3D}
FORMATS = ["channels_last", "channels_first"]
SIZES = (6, 7, 8)


def built(layer, *shape, seed=0):
    layer.build((None, *shape))
    rng = np.random.default_rng(seed)
    for variable in layer.weights:
        variable.assign(rng.integers(1, 100, variable.shape))
    return layer


def convolution(rank=2, data_format="channels_last", **options):
    size = SIZES[:rank]
    layer = CONVOLUTIONS[rank](5, (2, 3, 1)[:rank], data_format=data_format, **options)
    return built(layer, *((3, *size) if data_format == "channels_first" else (*size, 3)))


def values(layer):
    return {v.name: v.numpy() for v in layer.weights}


def state(layer):
    return [v.numpy().tobytes() for v in layer.weights], layer.get_config()


def run(layer, x):
    return keras.ops.convert_to_numpy(layer(x))


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("rank", CONVOLUTIONS)
def test_filters_go(rank, data_format):
    layer = convolution(rank, data_format)
    before, old = state(layer), values(layer)
    smaller = ridurre.prune_conv(layer, [3, 0])
    assert type(smaller) is type(layer)
    assert (smaller.name, smaller.filters) == (layer.name, 3)
    np.testing.assert_array_equal(smaller.kernel, old["kernel"][..., [1, 2, 4]])
    np.testing.assert_array_equal(smaller.bias, old["bias"][[1, 2, 4]])
    assert state(layer) == before


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("rank", CONVOLUTIONS)
def test_input_channels_go(rank, data_format):
    layer = convolution(rank, data_format)
    before, old = state(layer), values(layer)
    smaller = ridurre.prune_related_conv(layer, [0])
    assert type(smaller) is type(layer)
    assert (smaller.name, smaller.filters) == (layer.name, 5)
    np.testing.assert_array_equal(smaller.kernel, old["kernel"][..., [1, 2], :])
    np.testing.assert_array_equal(smaller.bias, old["bias"])
    assert state(layer) == before


@pytest.mark.parametrize("axis", [-1, 1, 2])
def test_channels_of_a_batch_norm_go(axis):
    shape = [4, 6, 8]
    layer = built(L.BatchNormalization(axis=axis), *shape)
    before, old = state(layer), values(layer)
    gone = [0, 2]
    smaller = ridurre.prune_batchnorm(layer, gone)
    assert (smaller.name, smaller.axis) == (layer.name, layer.axis)
    assert set(values(smaller)) == {"gamma", "beta", "moving_mean", "moving_variance"}
    for name, value in values(smaller).items():
        np.testing.assert_array_equal(value, np.delete(old[name], gone), err_msg=name)
    shape[axis if axis < 0 else axis - 1] -= 2
    assert run(smaller, np.ones((2, *shape), "float32")).shape == (2, *shape)
    assert state(layer) == before


def test_a_batch_norm_without_scale_and_offset():
    layer = built(L.BatchNormalization(scale=False, center=False), 4, 5)
    smaller = ridurre.prune_batchnorm(layer, [1])
    assert set(values(smaller)) == {"moving_mean", "moving_variance"}
    np.testing.assert_array_equal(smaller.moving_mean, layer.moving_mean.numpy()[[0, 2, 3, 4]])


def test_a_convolution_without_bias():
    layer = convolution(use_bias=False)
    for cut in (ridurre.prune_conv, ridurre.prune_related_conv):
        assert set(values(cut(layer, [0]))) == {"kernel"}


def test_the_smaller_layers_run(rng):
    """By hand, on whole numbers: what stays computes the same, to the last bit."""
    layer = convolution()
    x = rng.integers(-5, 5, (2, 6, 7, 3)).astype("float32")
    np.testing.assert_array_equal(
        run(ridurre.prune_conv(layer, [0, 2]), x), run(layer, x)[..., [1, 3, 4]]
    )
    masked = x * [0, 1, 1]
    np.testing.assert_array_equal(
        run(ridurre.prune_related_conv(layer, [0]), x[..., [1, 2]]), run(layer, masked)
    )


def test_settings_survive():
    layer = convolution(
        strides=2,
        padding="same",
        activation="relu",
        kernel_regularizer="l2",
        bias_constraint="non_neg",
        kernel_initializer="zeros",
        trainable=False,
        dtype="float16",
        name="odd",
    )
    for cut in (ridurre.prune_conv, ridurre.prune_related_conv):
        smaller = cut(layer, [0])
        config = layer.get_config()
        if cut is ridurre.prune_conv:
            config["filters"] = 4
        assert smaller.get_config() == config
        assert smaller.kernel.dtype == "float16"
        assert not smaller.trainable
    norm = built(L.BatchNormalization(momentum=0.5, epsilon=0.1, trainable=False), 4, 5)
    assert ridurre.prune_batchnorm(norm, [0]).get_config() == norm.get_config()


def test_no_channel_at_all_gives_a_copy():
    layer = convolution()
    for cut in (ridurre.prune_conv, ridurre.prune_related_conv):
        copy = cut(layer, [])
        assert copy is not layer
        np.testing.assert_array_equal(copy.kernel, layer.kernel)


@pytest.mark.parametrize("idxs", [np.array([1, 3]), (3, 1), {1, 3}, range(1, 4, 2)], ids=repr)
def test_indices_may_come_in_many_forms(idxs):
    assert ridurre.prune_conv(convolution(), idxs).filters == 3


def test_chained_by_hand_it_is_what_the_graph_does():
    model = chain()
    randomise(model)
    gone = [1, 4]
    names = ["a", "bn", "relu", "b", "pool", "head"]
    layers = {name: model.get_layer(name) for name in names}
    layers["a"] = ridurre.prune_conv(layers["a"], gone)
    layers["bn"] = ridurre.prune_batchnorm(layers["bn"], gone)
    layers["b"] = ridurre.prune_related_conv(layers["b"], gone)
    by_graph = ridurre.DependencyGraph(model).get_pruning_plan("a", gone).exec()
    for name in ("a", "bn", "b"):
        mine, theirs = values(layers[name]), values(by_graph.get_layer(name))
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            np.testing.assert_array_equal(value, theirs[key], err_msg=f"{name}/{key}")
    x = pictures(model)
    y = x
    for name in names:
        y = layers[name](y, training=False) if name == "bn" else layers[name](y)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(y), predict(by_graph, x))


# --- mistakes -------------------------------------------------------------------------------------

CUTS = [
    (ridurre.prune_conv, convolution, 5),
    (ridurre.prune_related_conv, convolution, 3),
    (ridurre.prune_batchnorm, lambda: built(L.BatchNormalization(), 4, 5), 5),
]


@pytest.mark.parametrize(("cut", "layer", "size"), CUTS, ids=lambda x: getattr(x, "__name__", ""))
@pytest.mark.parametrize(
    ("idxs", "message"),
    [
        (lambda n: [n], "index out of range for layer '.*', which has {n} channels .* Received: "),
        (lambda n: [-1], r"index out of range .* Received: \[-1\]"),
        (lambda n: [1, 1], r"can be removed once\. Repeated: \[1\]"),
        (lambda n: [1.0], r"Expected a flat list of whole numbers.* Received: \[1\.0\]"),
        (lambda n: [[0], [1]], r"Expected a flat list of whole numbers"),
        (lambda n: [True] * n, r"Expected a flat list of whole numbers"),
        (lambda n: 1, r"Expected a flat list of whole numbers"),
        (lambda n: None, r"Expected a flat list of whole numbers"),
        (range, "This would remove every channel of layer '.*'. At least one has"),
    ],
)
def test_bad_indices_are_refused(cut, layer, size, idxs, message):
    with pytest.raises(RequestError, match=message.replace("{n}", str(size))):
        cut(layer(), idxs(size))


@pytest.mark.parametrize(
    ("cut", "layer", "message"),
    [
        (ridurre.prune_conv, L.Dense(3), "Expected a Conv1D or Conv2D or Conv3D .*: Dense"),
        (ridurre.prune_conv, L.DepthwiseConv2D(3), "Received: DepthwiseConv2D"),
        (ridurre.prune_conv, L.Conv2DTranspose(3, 1), "Received: Conv2DTranspose"),
        (ridurre.prune_conv, "conv1", "Received: str"),
        (ridurre.prune_conv, None, "Received: NoneType"),
        (ridurre.prune_related_conv, L.BatchNormalization(), "Received: BatchNormalization"),
        (ridurre.prune_batchnorm, L.Conv2D(3, 1), "Expected a BatchNormalization layer"),
        (ridurre.prune_batchnorm, L.LayerNormalization(), "Received: LayerNormalization"),
        (ridurre.prune_conv, L.Conv2D(3, 1, name="new"), "layer 'new' is not built"),
        (ridurre.prune_batchnorm, L.BatchNormalization(name="new"), "layer 'new' is not built"),
    ],
)
def test_other_layers_are_refused(cut, layer, message):
    with pytest.raises(RequestError, match=message):
        cut(layer, [0])


@pytest.mark.parametrize("cut", [ridurre.prune_conv, ridurre.prune_related_conv])
def test_grouped_convolutions_are_refused(cut):
    layer = built(L.Conv2D(6, 1, groups=3, name="grouped"), 4, 4, 6)
    with pytest.raises(RequestError, match="'grouped' has 3 groups.*Use ridurre.DependencyGraph"):
        cut(layer, [0])
