"""kerassurgeon's interface: channels go, and what stays is what `np.delete` leaves."""

from typing import Any

import keras
import numpy as np
import own_layers
import pytest
from builders import L, pictures, predict

import ridurre
from ridurre import surgeon
from ridurre.errors import FrozenChannelError, RequestError, UnknownLayerError
from ridurre.surgeon import Surgeon, delete_channels
from ridurre.testing import randomise, snapshot

FIRST, LAST = "channels_first", "channels_last"
CONVOLUTIONS = {1: L.Conv1D, 2: L.Conv2D, 3: L.Conv3D}
CHANNELS = [[0], [-1], [1, 2]]

# Layers behind a convolution, by their number of spatial axes and data format.
SPATIAL = {
    "max_pooling": lambda n, f: getattr(L, f"MaxPooling{n}D")(2, data_format=f),
    "average_pooling": lambda n, f: getattr(L, f"AveragePooling{n}D")(3, 2, data_format=f),
    "global_max": lambda n, f: getattr(L, f"GlobalMaxPooling{n}D")(data_format=f),
    "global_average": lambda n, f: getattr(L, f"GlobalAveragePooling{n}D")(data_format=f),
    "global_kept": lambda n, f: getattr(L, f"GlobalMaxPooling{n}D")(data_format=f, keepdims=True),
    "cropping": lambda n, f: getattr(L, f"Cropping{n}D")(1, **fmt(n, f)),
    "up_sampling": lambda n, f: getattr(L, f"UpSampling{n}D")(2, **fmt(n, f)),
    "zero_padding": lambda n, f: getattr(L, f"ZeroPadding{n}D")(1, **fmt(n, f)),
    "spatial_dropout": lambda n, f: getattr(L, f"SpatialDropout{n}D")(0.5, **fmt(n, f)),
    "batch_normalization": lambda n, f: L.BatchNormalization(axis=1 if f == FIRST else -1),
}
PASSING = {
    "dropout": lambda: L.Dropout(0.5),
    "gaussian_noise": lambda: L.GaussianNoise(0.5),
    "gaussian_dropout": lambda: L.GaussianDropout(0.5),
    "alpha_dropout": lambda: L.AlphaDropout(0.5),
    "activity_regularization": lambda: L.ActivityRegularization(0.1),
    "activation": lambda: L.Activation("tanh"),
    "relu": L.ReLU,
    "thresholded_relu": lambda: L.ReLU(threshold=0.3),
    "leaky_relu": L.LeakyReLU,
    "elu": L.ELU,
    "prelu": lambda: L.PReLU(shared_axes=[1, 2]),
    "identity": L.Identity,
}


def fmt(rank: int, data_format: str) -> dict[str, str]:
    """Some one-dimensional layers have no data format."""
    return {"data_format": data_format} if rank > 1 else {}


def indices(channels: list[int], count: int = 5) -> list[int]:
    return [i % count for i in channels]


def rows_of(shape: tuple[int, ...], axis: int, channels: list[int]) -> np.ndarray:
    """Where channels of a tensor are when it is flattened, by hand; the batch axis is left out."""
    positions = np.arange(np.prod(shape[1:])).reshape(shape[1:])
    return np.take(positions, channels, axis - 1 if axis > 0 else axis).ravel()


def zeroed(model: keras.Model, name: str, axis: int, gone: Any) -> keras.Model:
    """A copy whose layer reads none of these input channels."""
    new = keras.models.clone_model(model)
    new.set_weights(model.get_weights())
    kernel = new.get_layer(name).kernel
    value = kernel.numpy().copy() if hasattr(kernel, "numpy") else np.array(kernel)
    np.moveaxis(value, axis, 0)[gone] = 0
    kernel.assign(value)
    return new


def same(new: keras.Layer, expected: list[np.ndarray]) -> None:
    received = new.get_weights()
    assert [w.shape for w in received] == [w.shape for w in expected]
    for a, b in zip(received, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def run_both(new: keras.Model, old: keras.Model) -> None:
    x = [pictures_of(t) for t in old.inputs]
    x = x if len(x) > 1 else x[0]
    for a, b in zip(outputs(new, x), outputs(old, x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def pictures_of(tensor: Any) -> np.ndarray:
    rng = np.random.default_rng(len(tensor.shape))
    shape = (2, *(n or 6 for n in tensor.shape[1:]))
    return rng.normal(size=shape).astype("float32")


def outputs(model: keras.Model, x: Any) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(model(x, training=False))]


def between(layer: keras.Layer, rank: int = 2, data_format: str = LAST) -> keras.Model:
    size = (6, 7, 8)[:rank]
    shape = (3, *size) if data_format == FIRST else (*size, 3)
    options = {"data_format": data_format}
    inputs = keras.Input(shape)
    x = CONVOLUTIONS[rank](5, 2, name="made", **options)(inputs)
    x = layer(x)
    model = keras.Model(inputs, L.Dense(4, name="read")(L.Flatten(name="flat")(x)))
    randomise(model)
    return model


def check_between(model: keras.Model, layer: keras.Layer, axis: int, channels: list[int]) -> None:
    before = snapshot(model)
    new = delete_channels(model, model.get_layer("made"), channels)
    gone = indices(channels)
    kernel, bias = model.get_layer("made").get_weights()
    same(new.get_layer("made"), [np.delete(kernel, gone, -1), np.delete(bias, gone)])
    if isinstance(layer, L.BatchNormalization | L.PReLU):
        same(new.get_layer(layer.name), [np.delete(w, gone, -1) for w in layer.get_weights()])
    rows = rows_of(layer.output.shape, axis, gone)
    kernel, bias = model.get_layer("read").get_weights()
    same(new.get_layer("read"), [np.delete(kernel, rows, 0), bias])
    if getattr(model.get_layer("made"), "data_format", LAST) == LAST:  # the CPU has no other
        run_both(new, zeroed(model, "read", 0, rows))
    assert snapshot(model) == before


FORMATLESS = ("cropping", "up_sampling", "zero_padding", "spatial_dropout")
SPATIAL_ROWS = [
    pytest.param(name, rank, data_format, channels, id=f"{name}{rank}d-{data_format}-{channels}")
    for name in SPATIAL
    for rank in CONVOLUTIONS
    for data_format in (FIRST, LAST)
    for channels in (CHANNELS if rank == 2 else [[1, -1]])
    if rank > 1 or data_format == LAST or name not in FORMATLESS
]


@pytest.mark.parametrize(("name", "rank", "data_format", "channels"), SPATIAL_ROWS)
def test_channels_before_a_spatial_layer(name, rank, data_format, channels):
    layer = SPATIAL[name](rank, data_format)
    axis = 1 if data_format == FIRST else -1
    check_between(between(layer, rank, data_format), layer, axis, channels)


@pytest.mark.parametrize("name", PASSING)
def test_channels_before_a_passing_layer(name):
    layer = PASSING[name]()
    check_between(between(layer), layer, -1, [1, -1])


@pytest.mark.core
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
def test_channels_before_a_batch_norm(channels):
    layer = L.BatchNormalization()
    check_between(between(layer), layer, -1, channels)


@pytest.mark.parametrize(
    ("build", "axis"),
    [
        (lambda: L.Permute((3, 1, 2)), 1),
        (lambda: L.Permute((1, 3, 2)), 2),
        (lambda: L.Reshape((30, 5)), 2),
    ],
    ids=["permute_first", "permute_middle", "reshape"],
)
def test_channels_before_a_layer_that_moves_them(build, axis):
    layer = build()
    check_between(between(layer), layer, axis, [1, 4])


@pytest.mark.parametrize("channels", CHANNELS, ids=str)
@pytest.mark.parametrize("data_format", [FIRST, LAST])
@pytest.mark.parametrize("rank", CONVOLUTIONS)
def test_channels_between_convolutions(rank, data_format, channels):
    size = (6, 7, 8)[:rank]
    inputs = keras.Input((3, *size) if data_format == FIRST else (*size, 3))
    convolution = CONVOLUTIONS[rank]
    x = convolution(5, 2, data_format=data_format, name="made")(inputs)
    x = convolution(7, 3, data_format=data_format, name="read")(x)
    model = keras.Model(inputs, x)
    randomise(model)
    new = delete_channels(model, model.get_layer("made"), channels, copy=True)
    gone = indices(channels)
    kernel, bias = model.get_layer("read").get_weights()
    same(new.get_layer("read"), [np.delete(kernel, gone, -2), bias])
    kernel, bias = model.get_layer("made").get_weights()
    same(new.get_layer("made"), [np.delete(kernel, gone, -1), np.delete(bias, gone)])
    if data_format == LAST:
        run_both(new, zeroed(model, "read", -2, gone))


def test_channels_before_a_repeat_vector():
    inputs = keras.Input((3,))
    x = L.RepeatVector(7, name="again")(L.Dense(5, name="made")(inputs))
    model = keras.Model(inputs, L.Conv1D(4, 3, name="read")(x))
    randomise(model)
    new = delete_channels(model, "made", [0, 3])
    kernel, bias = model.get_layer("read").get_weights()
    same(new.get_layer("read"), [np.delete(kernel, [0, 3], 1), bias])
    run_both(new, zeroed(model, "read", 1, [0, 3]))


def test_channels_of_an_embedding():
    inputs = keras.Input((4,), dtype="int32")
    model = keras.Model(inputs, L.Dense(3, name="read")(L.Embedding(9, 5, name="made")(inputs)))
    randomise(model)
    new = delete_channels(model, "made", [-1, 1])
    same(new.get_layer("made"), [np.delete(model.get_layer("made").get_weights()[0], [1, 4], 1)])
    kernel, bias = model.get_layer("read").get_weights()
    same(new.get_layer("read"), [np.delete(kernel, [1, 4], 0), bias])
    x = np.arange(8).reshape(2, 4)
    expected = predict(zeroed(model, "read", 0, [1, 4]), x)
    np.testing.assert_allclose(predict(new, x), expected, rtol=1e-5)


def two_branches(merge: keras.Layer, data_format: str = LAST) -> keras.Model:
    """Two inputs, two convolutions with 5 filters, brought together."""
    shape = (3, 4, 6) if data_format == FIRST else (4, 6, 3)
    inputs = [keras.Input(shape, name=n) for n in ("left", "right")]
    ends = [
        L.Conv2D(5, 3, data_format=data_format, name=f"conv_{n}")(x)
        for n, x in enumerate(inputs, 1)
    ]
    x = L.Flatten()(merge(ends))
    model = keras.Model(inputs, L.Dense(4, name="read")(x))
    randomise(model)
    return model


MERGES = ["Add", "Multiply", "Average", "Maximum", "Minimum", "Subtract"]


@pytest.mark.parametrize("data_format", [FIRST, LAST])
@pytest.mark.parametrize("name", MERGES)
def test_channels_before_a_merge(name, data_format):
    channels = [1, -1]
    merge = getattr(L, name)()
    model = two_branches(merge, data_format)
    both = Surgeon(model)
    for end in ("conv_1", "conv_2"):
        both.add_job("delete_channels", model.get_layer(end), channels=channels)
    new = both.operate()
    gone = indices(channels)
    for end in ("conv_1", "conv_2"):
        kernel, bias = model.get_layer(end).get_weights()
        same(new.get_layer(end), [np.delete(kernel, gone, -1), np.delete(bias, gone)])
    rows = rows_of(merge.output.shape, 1 if data_format == FIRST else -1, gone)
    kernel, bias = model.get_layer("read").get_weights()
    same(new.get_layer("read"), [np.delete(kernel, rows, 0), bias])
    if data_format == LAST:
        run_both(new, zeroed(model, "read", 0, rows))


@pytest.mark.core
def test_channels_tied_by_an_addition_go_along():
    model = two_branches(L.Add())
    new = delete_channels(model, "conv_1", [0, 3])
    kernel, bias = model.get_layer("conv_2").get_weights()
    same(new.get_layer("conv_2"), [np.delete(kernel, [0, 3], -1), np.delete(bias, [0, 3])])


@pytest.mark.core
def test_different_channels_of_tied_layers_are_refused():
    """kerassurgeon built a network here that computed something else."""
    model = two_branches(L.Add())
    jobs = Surgeon(model)
    jobs.add_job("delete_channels", "conv_1", channels=[0])
    jobs.add_job("delete_channels", "conv_2", channels=[1, 2])
    with pytest.raises(RequestError, match=r"'conv_1' and 'conv_2'.*\[0\] of.*\[1, 2\] of"):
        jobs.operate()


def test_different_channels_before_a_shared_layer_are_refused():
    """They were kept apart in the weights of one branch only, and the other was wrong."""
    inputs = keras.Input((5,))
    shared = L.Dense(3, name="shared")
    ends = [L.Dense(4, name=name)(inputs) for name in ("one", "other")]
    model = keras.Model(inputs, [shared(x) for x in ends])
    randomise(model)
    jobs = Surgeon(model)
    jobs.add_job("delete_channels", "one", channels=[0])
    jobs.add_job("delete_channels", "other", channels=[1])
    with pytest.raises(RequestError, match="read by one shared layer"):
        jobs.operate()
    jobs = Surgeon(model)
    for name in ("one", "other"):
        jobs.add_job("delete_channels", name, channels=[1])
    new = jobs.operate()
    kernel, bias = model.get_layer("shared").get_weights()
    same(new.get_layer("shared"), [np.delete(kernel, 1, 0), bias])
    run_both(new, zeroed(model, "shared", 0, 1))


@pytest.mark.parametrize("channels", CHANNELS, ids=str)
@pytest.mark.parametrize("data_format", [FIRST, LAST])
def test_channels_before_a_concatenation(data_format, channels):
    axis = 1 if data_format == FIRST else -1
    merge = L.Concatenate(axis=axis)
    model = two_branches(merge, data_format)
    jobs = Surgeon(model, copy=True)
    jobs.add_job("delete_channels", model.get_layer("conv_1"), channels=channels)
    jobs.add_job("delete_channels", model.get_layer("conv_2"), channels=[3])
    new = jobs.operate()
    rows = rows_of(merge.output.shape, axis, [*indices(channels), 8])
    kernel, bias = model.get_layer("read").get_weights()
    same(new.get_layer("read"), [np.delete(kernel, rows, 0), bias])
    if data_format == LAST:
        run_both(new, zeroed(model, "read", 0, rows))


def branches(*, long: bool, reader: bool) -> keras.Model:
    inputs = keras.Input((6, 7, 3))
    x = L.Conv2D(2, 3, name="conv_1")(inputs)
    x = L.Conv2D(4, 1, name="conv_3")(L.ReLU(name="relu")(x)) if long else x
    y = L.Conv2D(5, 3, name="conv_2")(inputs)
    x = L.Concatenate(name="both")([x, y])
    x = L.Dense(3, name="read")(x) if reader else x
    model = keras.Model(inputs, x)
    randomise(model)
    return model


@pytest.mark.core
@pytest.mark.parametrize("reader", [False, True])
@pytest.mark.parametrize("long", [False, True])
def test_a_layer_without_channels_goes_with_its_branch(long, reader):
    model = branches(long=long, reader=reader)
    before = snapshot(model)
    new = delete_channels(model, model.get_layer("conv_1"), [0, 1])
    assert [x.name for x in new.layers[1:]] == ["conv_2", *(["read"] if reader else [])]
    same(new.get_layer("conv_2"), model.get_layer("conv_2").get_weights())
    gone = 4 if long else 2
    x = pictures(model)
    if reader:
        kernel, bias = model.get_layer("read").get_weights()
        same(new.get_layer("read"), [kernel[gone:], bias])
        old = zeroed(model, "read", 0, range(gone))
        np.testing.assert_allclose(predict(new, x), predict(old, x), rtol=1e-5, atol=1e-5)
    else:
        np.testing.assert_allclose(predict(new, x), predict(model, x)[..., gone:], rtol=1e-5)
    assert snapshot(model) == before


def test_a_branch_goes_together_with_channels_elsewhere():
    inputs = keras.Input((4,))
    ends = [L.Dense(n, name=f"end_{n}")(inputs) for n in (2, 3, 5)]
    model = keras.Model(inputs, L.Dense(4, name="read")(L.Concatenate(name="all")(ends)))
    randomise(model)
    jobs = Surgeon(model)
    jobs.add_job("delete_channels", "end_2", channels=[0, 1])
    jobs.add_job("delete_channels", "end_5", channels=[-1, 0])
    new = jobs.operate()
    kernel, bias = model.get_layer("read").get_weights()
    same(new.get_layer("read"), [np.delete(kernel, [0, 1, 5, 9], 0), bias])
    assert [x.name for x in new.layers[1:]] == ["end_3", "end_5", "all", "read"]
    run_both(new, zeroed(model, "read", 0, [0, 1, 5, 9]))


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        (lambda: between(L.ReLU()), "made"),
        (lambda: two_branches(L.Add()), "conv_1"),
    ],
    ids=["chain", "addition"],
)
def test_the_only_branch_cannot_go(model, layer):
    with pytest.raises(RequestError, match="nothing would be left of an output"):
        delete_channels(model(), layer, range(5))


@pytest.mark.core
def test_channels_of_an_output():
    """What kerassurgeon allows: the model's output gets narrower."""
    inputs = keras.Input((3,))
    x = L.Dense(4, activation="relu", name="made")(inputs)
    model = keras.Model(inputs, [L.Dense(5, name="one")(x), L.Dense(2, name="other")(x)])
    randomise(model)
    new = delete_channels(model, "one", [1, -1])
    one, other = outputs(new, np.ones((2, 3), "float32"))
    old_one, old_other = outputs(model, np.ones((2, 3), "float32"))
    np.testing.assert_allclose(one, np.delete(old_one, [1, 4], -1), rtol=1e-6)
    np.testing.assert_allclose(other, old_other, rtol=1e-6)


def test_a_softmax_keeps_its_channels():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, L.Dense(5, activation="softmax", name="head")(inputs))
    with pytest.raises(FrozenChannelError, match="mixes all of them"):
        delete_channels(model, "head", [0])


def lenet(sequential: bool) -> keras.Model:
    layers = [
        L.Conv2D(2, 3, activation="relu", name="c1"),
        L.Conv2D(3, 3, activation="relu", name="c2"),
        L.Flatten(name="flat"),
        L.Dense(5, activation="relu", name="d1"),
        L.Dense(7, activation="relu", name="d2"),
    ]
    model = keras.Sequential([keras.Input((9, 8, 1)), *layers], name="lenet")
    if not sequential:
        model = keras.Model(model.inputs, model.outputs, name="lenet")
    randomise(model)
    return model


@pytest.mark.core
@pytest.mark.parametrize("sequential", [False, True])
def test_several_layers_at_once(sequential):
    model = lenet(sequential)
    jobs = Surgeon(model)
    for name, gone in {"c1": [0], "c2": [-1], "d1": [1, 3]}.items():
        jobs.add_job("delete_channels", name, channels=np.array(gone))
    new = jobs.operate()
    assert type(new) is type(model)
    assert new.name == "lenet"
    kernel, bias = model.get_layer("c2").get_weights()
    same(new.get_layer("c2"), [np.delete(np.delete(kernel, 0, 2), 2, 3), np.delete(bias, 2)])
    kernel, bias = model.get_layer("d1").get_weights()
    rows = rows_of((None, 5, 4, 3), -1, [2])
    same(
        new.get_layer("d1"),
        [np.delete(np.delete(kernel, rows, 0), [1, 3], 1), np.delete(bias, [1, 3])],
    )


def test_no_job_and_no_channel_is_a_copy():
    model = lenet(sequential=True)
    x = pictures(model)
    for new in (Surgeon(model).operate(), delete_channels(model, "c1", [])):
        assert new is not model
        np.testing.assert_array_equal(predict(new, x), predict(model, x))


def test_channels_of_a_nested_model():
    inner = keras.Sequential(
        [keras.Input((3,)), L.Dense(5, name="made"), L.Dense(4, name="read")], name="inner"
    )
    inputs = keras.Input((3,))
    model = keras.Model(inputs, L.Dense(2, name="head")(inner(inputs)))
    randomise(model)
    for wanted in (inner.get_layer("made"), "inner/made", "made"):
        new = delete_channels(model, wanted, [1])
        kernel, bias = inner.get_layer("read").get_weights()
        same(new.get_layer("inner").get_layer("read"), [np.delete(kernel, 1, 0), bias])
    with pytest.raises(RequestError, match=r"nested model.*'inner/made', 'inner/read'"):
        delete_channels(model, inner, [1])


def twice() -> keras.Model:
    """A shared layer with a reader of its own behind each call."""
    inputs = [keras.Input((3,), name=n) for n in ("left", "right")]
    shared = L.Dense(5, activation="relu", name="shared")
    ends = [L.Dense(n, name=f"read_{n}")(shared(x)) for n, x in zip((2, 4), inputs, strict=True)]
    model = keras.Model(inputs, ends)
    randomise(model)
    return model


@pytest.mark.core
def test_channels_of_a_shared_layer_go_at_all_calls():
    model = twice()
    new = delete_channels(model, "shared", [2])
    for n in (2, 4):
        kernel, bias = model.get_layer(f"read_{n}").get_weights()
        same(new.get_layer(f"read_{n}"), [np.delete(kernel, 2, 0), bias])
    assert [x.name for x in new.layers].count("shared") == 1


@pytest.mark.core
@pytest.mark.parametrize(("index", "cut", "whole"), [(0, 2, 4), (1, 4, 2)])
def test_channels_at_one_call_of_a_shared_layer(index, cut, whole):
    model = twice()
    before = snapshot(model)
    new = delete_channels(model, model.get_layer("shared"), [0, -1], node_indices=[index])
    assert snapshot(model) == before
    kernel, bias = model.get_layer("shared").get_weights()
    same(new.get_layer("shared"), [kernel, bias])
    same(
        new.get_layer("shared_delete_channels"),
        [np.delete(kernel, [0, 4], 1), np.delete(bias, [0, 4])],
    )
    kernel, bias = model.get_layer(f"read_{cut}").get_weights()
    same(new.get_layer(f"read_{cut}"), [np.delete(kernel, [0, 4], 0), bias])
    same(new.get_layer(f"read_{whole}"), model.get_layer(f"read_{whole}").get_weights())
    run_both(new, zeroed(model, f"read_{cut}", 0, [0, 4]))


def test_different_channels_at_the_calls_of_a_shared_layer():
    model = twice()
    jobs = Surgeon(model)
    jobs.add_job("delete_channels", "shared", channels=[0], node_indices=[0])
    jobs.add_job("delete_channels", "shared", channels=[1, 2], node_indices=[1])
    new = jobs.operate()
    names = {x.name for x in new.layers}
    assert {"shared_delete_channels", "shared_delete_channels_1"} < names
    assert "shared" not in names
    run_both(new, zeroed(zeroed(model, "read_2", 0, [0]), "read_4", 0, [1, 2]))


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ([5], "out of range"),
        ([-6], "out of range"),
        ([0, 0], "Repeated"),
        ([4, -1], "Repeated"),
        ([0.5], "whole numbers"),
        (3, "whole numbers"),
        (None, "needs `channels`"),
    ],
)
def test_channels_that_make_no_sense(channels, message):
    with pytest.raises(RequestError, match=message):
        delete_channels(between(L.ReLU()), "made", channels)


def test_the_names_of_the_interface():
    assert ridurre.surgeon is surgeon
    assert Surgeon.valid_jobs == (
        "delete_layer",
        "insert_layer",
        "replace_layer",
        "delete_channels",
    )
    with pytest.raises(UnknownLayerError, match="Did you mean 'made'"):
        delete_channels(between(L.ReLU()), "mode", [0])
    with pytest.raises(ValueError, match=r"has no layer 'stranger' \(Dense\)"):
        delete_channels(between(L.ReLU()), L.Dense(3, name="stranger"), [0])


def test_a_branch_within_a_nested_model():
    """The nested model keeps its other branch; the layer that reads it loses what is gone."""
    x = keras.Input((3,))
    both = L.Concatenate(name="both")([L.Dense(2, name="one")(x), L.Dense(4, name="other")(x)])
    inner = keras.Model(x, L.ReLU(name="relu")(both), name="inner")
    inputs = keras.Input((3,))
    model = keras.Model(inputs, L.Dense(3, name="read")(inner(inputs)))
    randomise(model)
    new = delete_channels(model, "inner/one", [0, 1])
    assert [x.name for x in new.get_layer("inner").layers[1:]] == ["other", "relu"]
    kernel, bias = model.get_layer("read").get_weights()
    same(new.get_layer("read"), [kernel[2:], bias])
    run_both(new, zeroed(model, "read", 0, [0, 1]))


def test_a_whole_branch_that_something_else_needs_stays():
    inputs = keras.Input((3,))
    x = L.Dense(2, name="made")(inputs)
    parts = [x, L.Dense(4, name="side")(inputs)]
    odd = own_layers.Remembers(name="odd")(x)
    model = keras.Model(inputs, L.Dense(3)(L.Concatenate()([*parts, odd])))
    with (
        pytest.warns(ridurre.RidurreWarning, match="'odd'"),
        pytest.raises(FrozenChannelError, match="no rule says"),
    ):
        delete_channels(model, "made", [0, 1])


def test_a_branch_before_an_operation_that_concatenates():
    inputs = keras.Input((3,))
    parts = [L.Dense(n, name=f"end_{n}")(inputs) for n in (2, 3, 4)]
    model = keras.Model(inputs, L.Dense(3, name="read")(keras.ops.concatenate(parts, axis=-1)))
    randomise(model)
    new = delete_channels(model, "end_3", range(3))
    kernel, bias = model.get_layer("read").get_weights()
    same(new.get_layer("read"), [np.delete(kernel, [2, 3, 4], 0), bias])
    run_both(new, zeroed(model, "read", 0, [2, 3, 4]))


def test_a_slice_that_loses_everything_is_refused():
    inputs = keras.Input((3,))
    left, right = keras.ops.split(L.Dense(5, name="made")(inputs), [2], axis=-1)
    parts = [left, right, L.Dense(2, name="whole")(inputs)]
    model = keras.Model(inputs, L.Dense(3)(keras.ops.concatenate(parts, axis=-1)))
    jobs = Surgeon(model)
    jobs.add_job("delete_channels", "made", channels=[0, 1])
    jobs.add_job("delete_channels", "whole", channels=[0, 1])
    with pytest.raises(RequestError, match="cannot do without"):
        jobs.operate()
