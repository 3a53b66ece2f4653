"""Random architectures, and every failure that they ever found."""

import random

import hypothesis
import keras
import pytest
from architectures import (
    STEPS,
    Program,
    build,
    describe,
    programs,
    random_program,
    sequence_program,
)
from keras import layers as L
from keras import ops
from random_checks import Failed, Outcome, check, run, smallest

import ridurre
from ridurre.testing import randomise

PARTS, EXAMPLES = 10, 21


@pytest.mark.parametrize("part", range(PARTS))
def test_what_must_hold_for_every_model(part):
    total = Outcome()

    @hypothesis.seed(part)
    @hypothesis.settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        derandomize=False,
        phases=[hypothesis.Phase.generate],  # `smallest` shrinks faster, by whole steps
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(programs())
    def models(program):
        try:
            total.add(run(program))
        except Failed as failure:
            program, failure = smallest(program, failure)
            pytest.fail(f"{failure}\n{describe(program)}")

    models()
    assert total.models == EXAMPLES
    assert total.prunable > 0.8 * total.models  # so that the test is not vacuous
    assert total.removable > 0.5 * total.made
    assert total.exact > 0.8 * total.plans > 1.6 * total.models
    assert total.channels > 3 * total.plans


@pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask")
@pytest.mark.parametrize("seed", range(6))
def test_what_must_hold_for_sequences(seed):
    program = sequence_program(seed, most=6)
    try:
        assert run(program).plans > 0
    except Failed as failure:
        program, failure = smallest(program, failure)
        pytest.fail(f"{failure}\n{describe(program)}")


@pytest.mark.parametrize("draw", [random_program, sequence_program])
def test_a_seed_gives_the_same_model_again(draw):
    one, two = (build(draw(3))[0] for _ in range(2))
    assert one.get_config() == two.get_config()
    assert all((a == b).all() for a, b in zip(one.get_weights(), two.get_weights(), strict=True))


@pytest.mark.parametrize("name", STEPS)
def test_every_step_finds_something_to_do(name):
    """A step that never applies would test nothing."""
    before = ("conv", "conv", "dense", "flatten")
    for seed in range(40):
        steps = (*((kind, seed) for kind in before[: seed % 5]), (name, seed))
        model, taken = build(Program(seed % 7, seed, steps))
        if name in taken:
            assert model.count_params() > 0
            return
    pytest.fail(f"{name} was never taken")


REGRESSIONS = []


def regression(build_model):
    """Decorator: a model that something was wrong with once."""
    REGRESSIONS.append(build_model)
    return build_model


@regression
def numbers_and_integers_as_inputs():
    """`verify` made a tensor of one input and an array of the other, which Keras refuses."""
    numbers, words = keras.Input((5,)), keras.Input((3,), dtype="int32")
    x = L.Concatenate()([L.Dense(3)(numbers), L.Flatten()(L.Embedding(2, 5)(words))])
    return keras.Model([numbers, words], L.Dense(2)(x))


@regression
def layer_normalisation_whose_axes_keras_sorts():
    """Keras sorts the axes as they were written, so gamma is channels × height for [1, -1]."""
    inputs = keras.Input((4, 5, 2))
    x = L.LayerNormalization(axis=[1, -1])(L.Conv2D(3, 1)(inputs))
    return keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))


@regression
def layer_normalisation_over_as_many_positions_as_channels():
    inputs = keras.Input((4, 3))
    x = L.LayerNormalization(axis=[1, -1])(L.Dense(4)(inputs))
    return keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))


@regression
def nested_model_that_takes_a_dictionary():
    """The order of the keys in a call need not be the one in which the model was made."""
    left, right = keras.Input((3,), name="left"), keras.Input((5,), name="right")
    nested = keras.Model({"left": left, "right": right}, L.Dense(4)(left) + L.Dense(4)(right))
    inputs = keras.Input((7,))
    x = nested({"right": L.Dense(5)(inputs), "left": L.Dense(3)(inputs)})
    return keras.Model(inputs, L.Dense(2)(x))


@regression
def uneven_slice_and_a_frozen_layer():
    """What is left of every other channel is no slice; the operation put in its place changed the
    order of the layers, and trainable flags went by that order."""
    inputs = keras.Input((6, 2))
    x = L.Dense(3)(inputs)
    y = L.Concatenate()([x, L.Dense(2)(inputs), L.Dense(3)(x)])
    frozen = L.Conv1D(2, 3, padding="same", trainable=False)(L.Dense(2)(inputs))
    outputs = [L.GlobalAveragePooling1D()(z) for z in (frozen + 0.5, y[..., 1::2])]
    return keras.Model(inputs, L.Dense(2)(L.Concatenate()(outputs)))


@regression
def gate_on_channels_that_were_units():
    """Every position has labels of its own; the gate has one for all positions."""
    inputs = keras.Input((5,))
    x = L.Reshape((2, 1, 3))(L.Dense(6)(inputs))
    y = L.Dense(5, activation="relu")(L.GlobalAveragePooling2D()(x))
    x = L.Multiply()([x, L.Dense(3, activation="sigmoid")(y)])
    return keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(x)))


@regression
def maximum_over_positions_that_were_units():
    inputs = keras.Input((3,))
    x = L.Reshape((2, 3))(L.Dense(6)(inputs))
    y = ops.max(L.Dense(3)(x), axis=1, keepdims=True)
    return keras.Model(inputs, L.Dense(2)(L.Flatten()(ops.maximum(y, x))))


@pytest.mark.parametrize("build_model", REGRESSIONS, ids=lambda build_model: build_model.__name__)
def test_what_was_wrong_once(build_model):
    model = build_model()
    randomise(model)
    graph = ridurre.DependencyGraph(model)
    for group in graph.groups:
        plan = graph.get_pruning_plan(group, [0])
        if plan.exact:
            ridurre.verify(model, plan.exec(), plan)
    for seed in range(5):
        check(model, random.Random(seed), batch_size=7)
