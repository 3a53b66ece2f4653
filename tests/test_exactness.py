"""Pruned networks compute what the original computes with the removed slices set to zero."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import pytest
from keras import layers as L
from models import NETWORKS, resnet18, whole_numbers

import ridurre
from ridurre.errors import PlanMismatchError, VerificationError
from ridurre.testing import randomise, snapshot

APPLICATIONS = {
    "VGG16": 32,
    "ResNet50": 32,
    "ResNet50V2": 32,
    "DenseNet121": 32,
    "MobileNetV2": 32,
    "InceptionV3": 75,
    "Xception": 71,
}


def half_of_each_group(model: keras.Model) -> ridurre.PruningPlan:
    rng = np.random.default_rng(1)
    graph = ridurre.DependencyGraph(model)
    return graph.get_pruning_plan(
        {g: rng.choice(g.size, g.size // 2, replace=False) for g in graph.groups}
    )


def trainable(model: keras.Model) -> int:
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


@pytest.mark.parametrize("name", APPLICATIONS)
def test_an_application_loses_half_of_each_group(name: str) -> None:
    size = APPLICATIONS[name]
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classifier_activation=None, classes=7
    )
    randomise(model)
    before = snapshot(model)
    plan = half_of_each_group(model)
    smaller = plan.exec()
    assert plan.exact
    assert ridurre.verify(model, smaller, plan) <= 1e-4
    assert trainable(model) - trainable(smaller) == plan.parameters
    assert smaller.count_params() < 0.35 * model.count_params()
    assert snapshot(model) == before
    kernel = model.get_layer("predictions").kernel
    wrong = moved(plan, kernel.path, size=kernel.shape[0])
    with pytest.raises(VerificationError):
        ridurre.verify(model, smaller, wrong)


# --- the golden case ---------------------------------------------------------------------------


def test_the_golden_resnet18() -> None:
    model = resnet18()
    randomise(model)
    plan = ridurre.DependencyGraph(model).get_pruning_plan("conv1", idxs=[2, 6, 9])
    smaller = plan.exec()
    expected = {
        "conv1": 441,
        "bn1": 6,
        "stage1_block1_conv1": 1728,
        "stage1_block1_conv2": 1728,
        "stage1_block1_bn2": 6,
        "stage1_block2_conv1": 1728,
        "stage1_block2_conv2": 1728,
        "stage1_block2_bn2": 6,
        "stage2_block1_conv1": 3456,
        "stage2_block1_projection": 384,
    }
    assert plan.layer_parameters == expected
    *lines, last = str(plan).splitlines()
    assert {line.split(" ")[0]: int(line.split(" ")[-2]) for line in lines} == expected
    assert all("[2, 6, 9]" in line for line in lines)
    assert last == "11211 parameters will be pruned"
    assert trainable(model) - trainable(smaller) == 11211
    assert ridurre.verify(model, smaller, plan) <= 1e-4


# --- whole numbers leave no rounding to hide behind --------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("name", NETWORKS)
def test_whole_numbers_are_exact(name: str) -> None:
    model = NETWORKS[name]()
    whole_numbers(model)
    shape = (2, *model.inputs[0].shape[1:])
    inputs = np.random.default_rng(2).integers(-3, 4, shape).astype("float32")
    plan = half_of_each_group(model)
    smaller = plan.exec()
    assert ridurre.verify(model, smaller, plan, inputs=inputs, tolerance=0.0) == 0.0
    assert trainable(model) - trainable(smaller) == plan.parameters > 0


# --- a wrong plan does not pass ----------------------------------------------------------------


def with_removed(plan: ridurre.PruningPlan, removed: dict) -> ridurre.PruningPlan:
    return dataclasses.replace(plan, removed=removed)


def moved(plan: ridurre.PruningPlan, path: str, size: int = 7) -> ridurre.PruningPlan:
    """The neighbours of what goes, in one axis (of this size) of one weight."""
    axis, gone = next(iter(plan.removed[path].items()))
    neighbours = {axis: np.sort((gone + 1) % size)}
    return with_removed(plan, plan.removed | {path: plan.removed[path] | neighbours})


def lacking(plan: ridurre.PruningPlan, path: str) -> ridurre.PruningPlan:
    return with_removed(plan, {p: axes for p, axes in plan.removed.items() if p != path})


def chain() -> keras.Model:
    """With sigmoids, which don't send zero to zero: what a reader keeps shows."""
    inputs = keras.Input((4, 4, 3))
    x = L.Conv2D(7, 3, activation="sigmoid", name="a")(inputs)
    x = L.Conv2D(7, 1, activation="sigmoid", name="b")(x)
    model = keras.Model(inputs, L.Dense(2, name="head")(L.GlobalAveragePooling2D()(x)))
    randomise(model)
    return model


WRONG: dict[str, Callable[[ridurre.PruningPlan, ridurre.PruningPlan], ridurre.PruningPlan]] = {
    "another index of a reader": lambda plan, _: moved(plan, "b/kernel"),
    "a reader is missing": lambda plan, _: lacking(plan, "b/kernel"),
    "the plan of another layer": lambda _, other: other,
    "one layer more": lambda plan, other: with_removed(plan, plan.removed | other.removed),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_plan_does_not_verify(what: str) -> None:
    model = chain()
    graph = ridurre.DependencyGraph(model)
    plan, other = (graph.get_pruning_plan(name, [2, 5]) for name in ("a", "b"))
    smaller = plan.exec()
    assert ridurre.verify(model, smaller, plan) <= 1e-4
    with pytest.raises(VerificationError):
        ridurre.verify(model, smaller, WRONG[what](plan, other))


@pytest.mark.parametrize("path", ["a/kernel", "a/bias", "b/kernel"])
@pytest.mark.parametrize("change", [moved, lacking])
def test_a_plan_that_does_not_fit_together_is_not_applied(path: str, change: Callable) -> None:
    model = chain()
    plan = ridurre.DependencyGraph(model).get_pruning_plan("a", [2, 5])
    with pytest.raises(PlanMismatchError):
        ridurre.apply(model, change(plan, path))


def test_a_plan_of_another_model_is_not_applied() -> None:
    plan = half_of_each_group(NETWORKS["unet"]())
    model = chain()
    with pytest.raises(PlanMismatchError, match="does not fit the model"):
        ridurre.apply(model, plan)
    with pytest.raises(PlanMismatchError, match="does not have"):
        ridurre.verify(model, model, plan)


def test_a_pruned_model_with_two_weights_swapped_does_not_verify() -> None:
    model = chain()
    plan = ridurre.DependencyGraph(model).get_pruning_plan("a", [2, 5])
    smaller = plan.exec()
    bias = smaller.get_layer("a").bias
    bias.assign(bias.numpy()[[1, 0, 2, 3, 4]])
    with pytest.raises(VerificationError, match="belong together"):
        ridurre.verify(model, smaller, plan)
