"""Walking through a model call by call computes what the model computes."""

import keras
import numpy as np
import pytest
from builders import chain, pictures, predict
from keras import layers as L
from keras import ops
from models import NETWORKS, three_deep, two_residual_blocks

from ridurre.backend import to_numpy
from ridurre.data import Batches, random_inputs
from ridurre.errors import RequestError
from ridurre.forward import Forward
from ridurre.graph import ChannelGraph
from ridurre.testing import randomise

CALLS_OF_CHAIN = ["a", "bn", "relu", "b", "pool", "head"]


def walk(model, data, batch_size=3, **options):
    """The outputs of a walk over all samples, one array per output of the model."""
    batches = Batches((data,), batch_size=batch_size, seed=None)
    forward = Forward(ChannelGraph(model).trace, batches, **options)
    for _ in forward:
        pass
    outputs = [[to_numpy(y) for y in forward.outputs(i)] for i in range(forward.batches)]
    return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]


def check(model, data):
    expected = [to_numpy(y) for y in keras.tree.flatten(model(data, training=False))]
    received = walk(model, data)
    assert [y.dtype for y in received] == [y.dtype for y in expected]
    for a, b in zip(expected, received, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
    for a, b in zip(received, walk(model, data, memory=0), strict=True):
        np.testing.assert_array_equal(b, a)


def masked():
    inputs = keras.Input((5,), dtype="int32")
    x = L.Embedding(3, 7, mask_zero=True)(inputs)
    x = L.Dropout(0.5)(x)
    return keras.Model(inputs, L.Dense(2)(L.LSTM(3, unroll=True)(x)))


def two_inputs(structure):
    a, b = keras.Input((3,), name="a"), keras.Input((5,), name="b")
    x = L.Concatenate()([L.Dense(7)(b), L.BatchNormalization()(a)])
    inputs = {"list": [a, b], "dict": {"b": b, "a": a}}[structure]
    return keras.Model(inputs, {"sum": L.Dense(2)(x), "half": ops.mean(x, axis=1)})


@pytest.mark.core
@pytest.mark.parametrize("name", ["two_residual_blocks", "several_outputs_twice", "three_deep"])
def test_a_walk_computes_what_the_model_does(name):
    model = NETWORKS[name]()
    randomise(model)
    check(model, random_inputs(model, 7))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_walk_through_every_small_network(name):
    model = NETWORKS[name]()
    randomise(model)
    check(model, random_inputs(model, 4))


@pytest.mark.core
def test_masks_travel_along():
    model = masked()
    x = np.array([[1, 2, 0, 0, 0], [1, 0, 0, 0, 0], [2, 2, 1, 1, 2], [0, 1, 0, 2, 1]], "int32")
    check(model, x)
    no_mask = walk(model, np.maximum(x, 1))[0]
    assert not np.allclose(walk(model, x)[0][:2], no_mask[:2])


@pytest.mark.parametrize("given", ["list", "dict"])
@pytest.mark.parametrize("structure", ["list", "dict"])
def test_several_inputs_are_matched_as_keras_does(structure, given, rng):
    model = two_inputs(structure)
    data = {"a": rng.normal(size=(4, 3)), "b": rng.normal(size=(4, 5))}
    given = data if given == "dict" else [data["a"], data["b"]]
    if structure == "dict" and isinstance(given, list):
        given = [data["b"], data["a"]]  # the order of the dictionary
        given = dict(zip(("b", "a"), given, strict=True))
    check(model, given)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16", "float64"])
def test_other_number_formats_survive_spilling(policy):
    if policy == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX has 64-bit numbers only on request")
    keras.config.set_dtype_policy(policy)
    try:
        model = two_residual_blocks()
    finally:
        keras.config.set_dtype_policy("float32")
    x = pictures(model, 5)
    for a, b in zip(walk(model, x), walk(model, x, memory=0), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_inference_mode_even_where_the_call_says_training():
    inputs = keras.Input((3,))
    x = L.Dropout(0.5)(L.BatchNormalization(name="bn")(inputs, training=True), training=True)
    model = keras.Model(inputs, x)
    before = [to_numpy(v) for v in model.variables]
    check(model, np.ones((4, 3), "float32"))
    for a, b in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(a, to_numpy(b))


def test_steps_show_every_tensor_and_weights_may_change_before_the_call():
    model, names = chain(), []
    x = pictures(model, 7)
    forward = Forward(ChannelGraph(model).trace, Batches(x, batch_size=3, seed=None))
    for step in forward:
        names.append(step.call.name)
        assert [len(step.inputs(i)[0]) for i in range(step.batches)] == [3, 3, 1]
        if step.call.name == "b":
            assert not forward.knows(step.call.outputs[0])
            step.call.operation.kernel.assign(step.call.operation.kernel * 2)
        if step.call.name == "head":
            kernel, bias = map(to_numpy, step.call.operation.weights)
            seen = to_numpy(step.inputs(1)[0])
            np.testing.assert_allclose(to_numpy(step.outputs(1)[0]), seen @ kernel + bias, 1e-5)
    assert names == CALLS_OF_CHAIN
    result = np.concatenate([to_numpy(forward.outputs(i)[0]) for i in range(3)])
    np.testing.assert_allclose(result, predict(model, x), rtol=1e-5, atol=1e-6)


def test_tensors_are_dropped_after_their_last_use(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = chain()
    forward = Forward(ChannelGraph(model).trace, Batches(pictures(model)), memory=0)
    for step in forward:
        step.run()
        assert len(list(tmp_path.glob("ridurre-*/*"))) == 2  # what it reads, what it made
    with pytest.raises(RequestError, match="not known now"):
        forward.tensor(forward.trace.calls[0].outputs[0], 0)
    del forward, step
    assert list(tmp_path.iterdir()) == []


def test_a_shortcut_is_known_until_it_is_added():
    model = two_residual_blocks()
    trace = ChannelGraph(model).trace
    stem = trace.by_layer[id(model.get_layer("stem"))][0].outputs[0]
    forward = Forward(trace, Batches(pictures(model)))
    known = [step.call.name for step in forward if forward.knows(stem)]
    assert known[:2] == ["one_in", "one_bn"]
    assert known[-1].startswith("add")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((2, 6, 8, 4)), "Received: .*4"),
        (np.zeros((2, 6)), "do not fit the model 'chain'"),
        ([], "no samples"),
    ],
)
def test_data_that_do_not_fit(data, message):
    with pytest.raises(RequestError, match=message):
        Forward(ChannelGraph(chain()).trace, Batches(data))


def test_a_walk_is_made_once():
    model = three_deep()
    forward = Forward(ChannelGraph(model).trace, Batches(random_inputs(model)))
    list(forward)
    with pytest.raises(RequestError, match="once"):
        list(forward)
