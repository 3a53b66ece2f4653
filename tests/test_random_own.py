"""Random transformers and random classes, and every failure that they ever found."""

import random

import keras
import numpy as np
import pytest
import random_lines  # noqa: F401 - what it registers
from architectures import _NAMES as NAMES
from architectures import Program, build, describe
from keras import layers as L
from random_checks import Failed, Outcome, check, run, smallest
from random_classes import LINES, Writer, class_of, made
from random_own import BLOCKS, DRAWS, own_program, source_of, transformer_program

from ridurre.backend import to_numpy
from ridurre.testing import randomise

pytestmark = [
    # Keras says so of every layer with sub-layers and without a `build` that it loads.
    pytest.mark.filterwarnings("ignore:.build\\(\\). was called on layer:UserWarning"),
    pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask"),
    pytest.mark.filterwarnings("ignore:Layer .* does not support masking"),
]


def passes(program):
    """What happened to a random model; a failure tells the smallest program that fails."""
    try:
        return run(program)
    except Failed as failure:
        program, failure = smallest(program, failure, tries=20)
        pytest.fail(f"{failure}\n{describe(program)}")


@pytest.mark.parametrize("kind, seeds", [("own", range(8)), ("transformers", range(5))])
def test_what_must_hold_for_every_model(kind, seeds):
    total = Outcome()
    for seed in seeds:
        total.add(passes(DRAWS[kind](seed)))
    assert total.prunable >= 0.6 * total.models  # so that the test is not vacuous
    assert total.removable > 0.3 * total.made
    assert total.exact > 0.7 * total.plans > 0.7 * total.models


@pytest.mark.parametrize("draw", [own_program, transformer_program])
def test_a_seed_gives_the_same_model_again(draw):
    one, two = (build(draw(3))[0] for _ in range(2))
    assert one.get_config() == two.get_config()
    assert all((a == b).all() for a, b in zip(one.get_weights(), two.get_weights(), strict=True))


@pytest.mark.parametrize("name", sorted(set(BLOCKS) - set(NAMES)))
def test_every_step_finds_something_to_do(name):
    """A step that never applies would test nothing."""
    programs = (Program(0, seed, (("patches", seed), (name, seed + 1))) for seed in range(9))
    assert any(name in build(program)[1] for program in programs)


@pytest.mark.parametrize("name", LINES)
def test_every_line_makes_a_class_that_runs(name):
    for seed in range(20):
        writer = Writer(random.Random(seed), (4,), 6)
        if writer.run(name, seed):
            layer = made(writer.finish(random.Random(seed)))()
            x = np.random.default_rng(0).normal(size=(2, 4, 6)).astype("float32")
            assert np.isfinite(to_numpy(keras.tree.flatten(layer(x))[0])).all()
            return
    pytest.fail(f"{name} was never taken")


def test_the_text_of_a_class_is_all_there_is():
    """What a failure prints can be pasted."""
    source, _, _ = source_of(own_program(1))
    text = source.whole()
    assert text.count("class Own") == 1 + len(source.needs)
    assert class_of(source.text, tuple(made(s) for s in source.needs)) is made(source)


# --- what was wrong once --------------------------------------------------------------------------

REGRESSIONS = []


def regression(build_model):
    """Decorator: a model that something was wrong with once."""
    REGRESSIONS.append(build_model)
    return build_model


@regression
def channels_where_einsum_dense_is_told_of_an_open_size():
    """The rule said that there are three of them, Keras that nobody knows."""
    inputs = keras.Input((4, 5))
    x = L.Permute((2, 1))(L.Dense(3)(inputs))
    x = L.EinsumDense("abc,cd->abd", (None, 2), bias_axes="d")(x) + L.Dense(2)(x)
    return keras.Model(inputs, [L.Dense(2)(x), L.Dense(2)(L.Dense(5)(inputs))])


@keras.saving.register_keras_serializable(package="test_random_own")
class Rows(L.Layer):
    def build(self, shape):
        self.table = self.add_weight(shape=(6, shape[-1]), name="table")

    def call(self, x):
        return x + self.table[: x.shape[1]] * self.table[None, 1:5]


@regression
def rows_of_a_weight():
    """Keras' symbolic tensors take ``[:4, :]`` and not ``[:4]``, so that nothing could go."""
    inputs = keras.Input((4, 5))
    return keras.Model(inputs, L.Dense(2)(Rows()(L.Dense(3)(inputs))))


@pytest.mark.parametrize("build_model", REGRESSIONS, ids=lambda build_model: build_model.__name__)
def test_what_was_wrong_once(build_model):
    model = build_model()
    randomise(model)
    for seed in range(3):
        assert check(model, random.Random(seed), batch_size=7).plans
