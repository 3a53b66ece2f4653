"""What is compared is computed in full precision, whatever the device does out of the box."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from builders import L

import ridurre
from ridurre.backend import infer
from ridurre.backend.precision import full_precision
from ridurre.smaller import Smaller

pytestmark = pytest.mark.core


def settings() -> list:
    """What the backend in use says of its float32 products."""
    if keras.backend.backend() == "torch":
        from torch import backends, get_float32_matmul_precision

        kinds = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
        return [get_float32_matmul_precision(), *(kind.fp32_precision for kind in kinds)]
    if keras.backend.backend() == "jax":
        import jax

        return [jax.config.jax_default_matmul_precision]
    import tensorflow as tf

    return [tf.config.experimental.tensor_float_32_execution_enabled()]


EXACT = {
    "torch": ["highest", "ieee", "ieee", "ieee"],
    "jax": ["highest"],
    "tensorflow": [False],
}


@keras.saving.register_keras_serializable("tests")
class Witness(L.Dense):
    """Says what was set when it computed."""

    seen: list = []

    def call(self, x):
        if not isinstance(x, keras.KerasTensor):
            Witness.seen.append(settings())
        return super().call(x)


@pytest.fixture
def model() -> keras.Model:
    x = inputs = keras.Input((5,))
    for units in (7, 3):
        x = Witness(units)(x)
    Witness.seen.clear()
    return keras.Model(inputs, x)


def test_inside_products_are_exact_and_after_it_all_is_as_before():
    before = settings()
    assert before != EXACT[keras.backend.backend()]
    with pytest.raises(ZeroDivisionError), full_precision():
        assert settings() == EXACT[keras.backend.backend()]
        _ = 1 / 0
    assert settings() == before


def test_models_are_compared_in_full_precision(model):
    masks = ridurre.Masks({model.layers[1].kernel.path: np.arange(35).reshape(5, 7) % 3 > 0})
    pruned = keras.models.clone_model(model)
    pruned.set_weights(model.get_weights())
    masks.assign(pruned)
    ridurre.verify(model, pruned, masks)
    assert len(Witness.seen) >= 4
    assert all(seen == EXACT[keras.backend.backend()] for seen in Witness.seen)


def test_calls_of_layers_are_computed_in_full_precision(model, rng):
    infer(model.layers[1], (keras.ops.convert_to_tensor(rng.normal(size=(2, 5))),), {})
    assert Witness.seen == [EXACT[keras.backend.backend()]]


@keras.saving.register_keras_serializable("tests")
class Twice(L.Layer):
    """Holds a layer, so that its code is looked into."""

    def __init__(self, units, **options):
        super().__init__(**options)
        self.units = units
        self.inner = Witness(units)

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return 2 * self.inner(x)

    def get_config(self):
        return super().get_config() | {"units": self.units}


def test_smaller_layers_are_compared_in_full_precision(monkeypatch):
    computes, seen = Smaller._computes, []

    def watched(*args):
        Witness.seen.clear()
        fits = computes(*args)
        seen.append(list(Witness.seen))
        return fits

    monkeypatch.setattr(Smaller, "_computes", watched)
    monkeypatch.setattr(Smaller, "_looks_right", lambda *_: False)
    inputs = keras.Input((5,))
    model = keras.Model(inputs, L.Dense(3)(Twice(7, name="twice")(inputs)))
    smaller = ridurre.DependencyGraph(model).get_pruning_plan("twice/witness", [1]).exec()
    assert smaller.get_layer("twice").units == 6
    assert max(map(len, seen)) >= 2  # what is wanted and what is found
    assert sum(seen, []) == [EXACT[keras.backend.backend()]] * sum(map(len, seen))


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="PyTorch has two ways to say it")
@pytest.mark.parametrize(
    "user",
    ["torch.set_float32_matmul_precision('medium')", "torch.backends.fp32_precision = 'tf32'"],
)
def test_what_a_user_set_is_put_back(user):
    """In a process of its own each, as PyTorch remembers that both ways were used."""
    code = f"""
import torch
from ridurre.backend.precision import full_precision
from torch import backends as b

def told(read):
    try:
        return read()
    except RuntimeError:
        return "both ways were used"

def state():
    kinds = (b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.matmul, b.mkldnn.conv, b.mkldnn.rnn)
    older = (lambda: b.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision)
    return [k.fp32_precision for k in kinds], [told(read) for read in older]

{user}
before = state()
with full_precision():
    assert state() == (["ieee"] * 6, [False, "highest"]), state()
assert state() == before, (before, state())
"""
    subprocess.run([sys.executable, "-c", code], check=True)
