"""The contracts of methods and targets: a row for each, and no public one without a row."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from builders import residual
from models import two_residual_blocks, unet

import ridurre
from ridurre import BasePruning, Target
from ridurre.testing import randomise, snapshot

ARCHITECTURES = {f.__name__: f for f in (residual, two_residual_blocks, unet)}

#: A method, given how to compile and to train: two rounds of it.
METHODS: dict[str, Callable[..., BasePruning]] = {
    "ChannelPruning": lambda *train: ridurre.ChannelPruning(
        ridurre.ChannelPrune(0.4, steps=2), *train, 1, seed=0
    ),
    "KMeansFilterPruning": lambda *train: ridurre.KMeansFilterPruning(0.7, *train, 1, 2, seed=0),
    "RandomFilterPruning": lambda *train: ridurre.RandomFilterPruning(0.3, *train, 1, 2, seed=0),
}
#: A target that two rounds or so come down to.
TARGETS: dict[str, Target] = {
    "ActivationMemory": ridurre.ActivationMemory(0.8),
    "FileSize": ridurre.FileSize(0.98),
    "Filters": ridurre.Filters(0.8),
    "Latency": ridurre.Latency(milliseconds=10**6, repeats=1),
    "MACs": ridurre.MACs(0.7),
    "Params": ridurre.Params(0.7),
}


def public(base: type) -> set[str]:
    found = {name: getattr(ridurre, name) for name in ridurre.__all__}
    return {n for n, x in found.items() if isinstance(x, type) and issubclass(x, base)} - {
        base.__name__
    }


def test_every_method_and_every_target_has_a_row() -> None:
    assert set(METHODS) == public(BasePruning)
    assert set(TARGETS) == public(Target)


def training(model: keras.Model) -> tuple[Callable[..., Any], Callable[..., Any]]:
    rng = np.random.default_rng(0)
    x, y = (
        rng.normal(size=(4, *t.shape[1:])).astype("float32")
        for t in (model.inputs[0], model.outputs[0])
    )

    def compile_fn(model: keras.Model) -> None:
        model.compile("sgd", "mse")

    def train(model: keras.Model, initial_epoch: int, epochs: int) -> None:
        model.fit(x, y, initial_epoch=initial_epoch, epochs=epochs, verbose=0)

    return compile_fn, train


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", METHODS)
def test_a_method_prunes_and_its_model_is_saved_loaded_and_trained_on(
    name: str, architecture: str, tmp_path: Path
) -> None:
    model = ARCHITECTURES[architecture]()
    randomise(model)
    before = snapshot(model)
    compile_fn, train = training(model)
    pruning = METHODS[name](compile_fn, train)
    smaller, epochs = pruning.run_pruning(model)
    assert snapshot(model) == before
    assert epochs == 2 == len(pruning.history)
    assert smaller.count_params() < model.count_params()
    smaller.save(tmp_path / "smaller.keras")
    loaded = keras.saving.load_model(tmp_path / "smaller.keras")
    train(loaded, 2, 3)
    assert all(np.isfinite(w).all() for w in loaded.get_weights())


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_falls_with_the_model_ends_the_loop_and_is_saved(name: str) -> None:
    model, target = two_residual_blocks(), TARGETS[name]
    config = keras.saving.serialize_keras_object(target)
    assert keras.saving.deserialize_keras_object(config) == target
    pruning = ridurre.RandomFilterPruning(0.3, training(model)[0], None, 0, target=target, seed=0)
    smaller, _ = pruning.run_pruning(model)
    assert pruning.stopped == "target"
    assert target.measure(smaller) <= target.goal(target.measure(model))
    if name != "Latency":  # which depends on what else the machine does
        sizes = [
            target.measure(m) for m in (model, ridurre.prune(ridurre.ChannelPrune(0.5), model))
        ]
        assert sizes[1] < sizes[0]
