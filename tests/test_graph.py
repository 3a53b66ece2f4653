"""Groups, plans and rebuilt models of small networks for which the right answer is known."""

import keras
import numpy as np
from keras import layers as L

import ridurre
from ridurre.testing import check_model, randomise


def test_a_nested_model_takes_a_dictionary_in_any_order() -> None:
    a, b = keras.Input((3,), name="a"), keras.Input((5,), name="b")
    joined = L.Concatenate()([a, b])
    inner = keras.Model({"b": b, "a": a}, L.Dense(2, name="read")(joined), name="inner")
    inputs = keras.Input((4,))
    x, y = L.Dense(3, name="x")(inputs), L.Dense(5, name="y")(inputs)
    model = keras.Model(inputs, inner({"b": y, "a": x}))
    randomise(model)
    plan = ridurre.DependencyGraph(model).get_pruning_plan({"x": [1], "y": [0, 4]})
    assert plan.removed["read/kernel"][0].tolist() == [1, 3, 7]
    assert ridurre.verify(model, plan.exec(), plan) <= 1e-4


def test_trainable_flags_stay_where_they_were_when_an_operation_is_added() -> None:
    """What is left of a stride can be uneven; choosing it takes one more operation."""
    inputs = keras.Input((4,))
    q = L.Dense(3, name="q", trainable=False)(inputs)
    q = L.Dense(3, name="q_out")(L.ReLU()(q))
    x = L.Dense(7, name="x")(inputs)
    model = keras.Model(inputs, [q, L.Dense(3, name="x_out", trainable=False)(x[:, ::2])])
    smaller = ridurre.DependencyGraph(model).get_pruning_plan("x", [2]).exec()
    flags = {layer.name: layer.trainable for layer in model.layers}
    assert {layer.name: layer.trainable for layer in smaller.layers} == flags


def test_a_shared_flatten_takes_tensors_of_different_sizes() -> None:
    flatten = L.Flatten()
    inputs = keras.Input((4, 3))
    x, y = L.Conv1D(3, 2, name="x")(inputs), L.Conv1D(2, 1, name="y")(inputs)
    model = keras.Model(inputs, [L.Dense(2)(flatten(x)), L.Dense(3)(flatten(y))])
    randomise(model)
    assert [group.size for group in ridurre.DependencyGraph(model).groups] == [3, 2]
    assert check_model(model) == 6 + 2


def test_functions_of_ones_own_are_carried_over() -> None:
    def swish(x):
        return x * keras.ops.sigmoid(2 * x)

    def ones(shape, dtype=None):
        return keras.ops.ones(shape, dtype)

    inputs = keras.Input((3,))
    x = L.Dense(5, name="free")(inputs)
    x = L.Dense(4, activation=swish, kernel_initializer=ones, name="own")(x)
    model = keras.Model(inputs, L.Dense(2, activation=lambda x: 2 * x)(x))
    randomise(model)
    plan = ridurre.DependencyGraph(model).get_pruning_plan("free", [0, 3])
    smaller = plan.exec()
    assert ridurre.verify(model, smaller, plan) <= 1e-4
    assert smaller.get_layer("own").activation is swish
    assert smaller.get_layer("own").kernel_initializer is ones
    assert np.shape(smaller.get_layer("own").kernel) == (3, 4)
