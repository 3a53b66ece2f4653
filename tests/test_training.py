"""Sparse training before the cut."""

import keras
import numpy as np
import pytest
from builders import L, chain, pictures, residual

import ridurre
from ridurre.criteria.weights import group_norms
from ridurre.errors import RequestError
from ridurre.testing import randomise

pytestmark = pytest.mark.core
to_numpy = keras.ops.convert_to_numpy


def weights(model):
    return {v.path: to_numpy(v).astype("float64").copy() for v in model.trainable_variables}


def still(model, rate=0.5):
    """Compile so that only penalties move weights: the loss is zero times the outputs."""
    model.compile(keras.optimizers.SGD(rate), lambda y, p: 0.0 * keras.ops.sum(p, axis=-1))
    return model


def one_step(model, *callbacks, epochs=1):
    x = pictures(model, 6)
    model.fit(x, np.zeros((6, 2)), batch_size=6, epochs=epochs, verbose=0, callbacks=[*callbacks])


def by_hand(model):
    """DepGraph's gradient for `residual`, whose groups are {stem, outer, head} and {inner}."""
    w = weights(model)
    owners = [
        [("stem/kernel", -1), ("outer/kernel", -1), ("inner/kernel", -2), ("head/kernel", 0)],
        [("inner/kernel", -1), ("outer/kernel", -2)],
    ]
    gradient = {path: np.zeros_like(value) for path, value in w.items()}
    for members in owners:
        squares = sum(np.moveaxis(w[p], a, -1).reshape(-1, w[p].shape[a]).__pow__(2).sum(0)
                      for p, a in members)  # fmt: skip
        s = np.sqrt(squares)
        factor = 2 ** (4 * (s.max() - s) / (s.max() - s.min()))
        for path, axis in members:
            shape = [1] * w[path].ndim
            shape[axis] = -1
            gradient[path] += factor.reshape(shape) * w[path]
    return gradient


def test_the_group_gradient_is_depgraphs():
    model = still(residual(), rate=0.5)
    randomise(model)
    before, gradient = weights(model), by_hand(model)
    one_step(model, ridurre.GroupSparsity(0.01))
    after = weights(model)
    for path, value in before.items():
        np.testing.assert_allclose(
            after[path], value - 0.5 * 0.01 * gradient[path], rtol=1e-4, atol=1e-6, err_msg=path
        )


def test_the_scales_gradient_is_a_sign():
    model = still(chain(), rate=0.5)
    gamma = model.get_layer("bn").gamma
    gamma.assign([1.0, -0.5, 0.25, 2.0, -1.0])
    before = weights(model)
    one_step(model, ridurre.BatchNormSparsity(0.1))
    after = weights(model)
    np.testing.assert_allclose(after.pop("bn/gamma"), [0.95, -0.45, 0.2, 1.95, -0.95], rtol=1e-5)
    for path, value in after.items():
        np.testing.assert_array_equal(value, before[path], err_msg=path)


def test_unimportant_channels_shrink_relative_to_the_others():
    def train(*callbacks):
        keras.utils.set_random_seed(0)
        model = chain()
        model.compile(keras.optimizers.SGD(0.05), "mse")
        x = pictures(model, 32)
        y = np.stack([x.mean((1, 2, 3)), x.std((1, 2, 3))], 1)
        model.fit(x, y, batch_size=8, epochs=8, verbose=0, callbacks=[*callbacks])
        graph = ridurre.DependencyGraph(model)
        return [np.sort(np.sum(group_norms(graph, g), axis=0)) for g in graph.groups]

    for plain, sparse in zip(train(), train(ridurre.GroupSparsity(0.02)), strict=True):
        assert sparse[0] / sparse[-1] < 0.7 * plain[0] / plain[-1]


CALLBACKS = [ridurre.GroupSparsity, ridurre.BatchNormSparsity]


@pytest.mark.parametrize("callback", CALLBACKS)
def test_after_training_nothing_is_left(callback):
    model = still(chain())
    randomise(model)
    one_step(model)  # it is compiled before; a stale function would know no penalty
    one_step(model, callback(0.1))
    changed = weights(model)
    one_step(model)
    for path, value in weights(model).items():
        np.testing.assert_array_equal(value, changed[path], err_msg=path)
    assert all(v.regularizer is None for v in model.variables)
    assert model.losses == []


@pytest.mark.parametrize("callback", CALLBACKS)
def test_a_compiled_model_learns_of_the_penalty(callback):
    model = still(chain())
    one_step(model)
    before = weights(model)
    one_step(model, callback(0.1))
    after = weights(model)
    assert any(not np.array_equal(after[path], before[path]) for path in before)


class Oops(Exception):
    pass


class Break(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        raise Oops


@pytest.mark.parametrize("callback", CALLBACKS)
def test_an_error_in_training_leaves_nothing_behind(callback):
    model = still(chain())
    with pytest.raises(Oops), callback(0.1) as sparsity:
        one_step(model, sparsity, Break())
    assert all(v.regularizer is None for v in model.variables)
    before = weights(model)
    one_step(model)
    for path, value in weights(model).items():
        np.testing.assert_array_equal(value, before[path], err_msg=path)


def test_used_again_after_an_error_the_penalty_counts_once():
    model = still(chain(), rate=1.0)
    sparsity = ridurre.BatchNormSparsity(0.1)
    model.get_layer("bn").gamma.assign(np.ones(5))
    with pytest.raises(Oops):
        one_step(model, sparsity, Break())
    model.get_layer("bn").gamma.assign(np.ones(5))
    one_step(model, sparsity)
    np.testing.assert_allclose(to_numpy(model.get_layer("bn").gamma), 0.9 * np.ones(5), rtol=1e-5)
    assert all(v.regularizer is None for v in model.variables)


def test_other_regularisers_go_on_counting_and_come_back():
    inputs = keras.Input((4, 4, 3))
    x = L.Conv2D(5, 1, name="a", kernel_regularizer=keras.regularizers.L2(0.05))(inputs)
    x = L.BatchNormalization(name="bn", gamma_regularizer=keras.regularizers.L2(0.5))(x)
    model = still(keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(x))), rate=1.0)
    own = {v.path: v.regularizer for v in model.variables}
    kernel = weights(model)["a/kernel"]
    one_step(model, ridurre.BatchNormSparsity(0.1))
    # 1 − 2·0.5·1 − 0.1, and 1 − 2·0.05 of the kernel
    np.testing.assert_allclose(to_numpy(model.get_layer("bn").gamma), -0.1 * np.ones(5), atol=1e-6)
    np.testing.assert_allclose(weights(model)["a/kernel"], 0.9 * kernel, rtol=1e-5)
    assert {v.path: v.regularizer for v in model.variables} == own
    kernel = weights(model)["a/kernel"]
    one_step(model, ridurre.GroupSparsity(0.0))
    np.testing.assert_allclose(weights(model)["a/kernel"], 0.9 * kernel, rtol=1e-5)
    assert {v.path: v.regularizer for v in model.variables} == own


def test_both_callbacks_at_once():
    model = still(chain())
    randomise(model)
    one_step(model, ridurre.GroupSparsity(0.01), ridurre.BatchNormSparsity(0.01), epochs=2)
    assert all(v.regularizer is None for v in model.variables)


def test_validation_after_training_knows_no_penalty():
    model = still(chain())
    x = pictures(model, 6)
    model.fit(
        x, np.zeros((6, 2)), validation_data=(x, np.zeros((6, 2))), verbose=0,
        callbacks=[ridurre.GroupSparsity(10.0)],
    )  # fmt: skip
    assert model.evaluate(x, np.zeros((6, 2)), verbose=0) == 0


def test_frozen_weights_stay_and_do_not_count():
    model = residual()
    randomise(model)
    model.get_layer("stem").trainable = False
    still(model)
    before = weights(model) | {"stem/kernel": to_numpy(model.get_layer("stem").kernel).copy()}
    one_step(model, ridurre.GroupSparsity(0.01))
    np.testing.assert_array_equal(to_numpy(model.get_layer("stem").kernel), before["stem/kernel"])
    assert not np.array_equal(weights(model)["outer/kernel"], before["outer/kernel"])


def test_channels_that_are_alike_shrink_alike():
    model = still(residual(), rate=1.0)
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape))
    one_step(model, ridurre.GroupSparsity(0.1))
    values = weights(model)
    np.testing.assert_allclose(values["stem/kernel"], 0.9, rtol=1e-5)
    np.testing.assert_allclose(values["inner/kernel"], 0.8, rtol=1e-5)  # in two groups


def test_models_without_anything_to_penalise_are_refused():
    with pytest.raises(RequestError, match="no batch normalisation with a trainable scale"):
        one_step(still(residual()), ridurre.BatchNormSparsity(0.1))
    inputs = keras.Input((4, 4, 3))
    model = keras.Model(inputs, L.GlobalAveragePooling2D()(L.Conv2D(2, 1)(inputs)))
    with pytest.raises(RequestError, match="no trainable channels that could be pruned"):
        one_step(still(model), ridurre.GroupSparsity(0.1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ridurre.GroupSparsity(-1.0), "not to be negative. Received: -1.0"),
        (lambda: ridurre.BatchNormSparsity("much"), "strength, a finite number. Received: 'much'"),
        (lambda: ridurre.GroupSparsity(0.1, float("nan")), "alpha, a finite number"),
    ],
)
def test_wrong_strengths_are_refused(call, message):
    with pytest.raises(RequestError, match=message):
        call()
