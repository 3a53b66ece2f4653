"""Costs known beforehand are the costs measured afterwards, to the last number."""

import keras
import models
import numpy as np
import pytest
from builders import L, residual

import ridurre
from ridurre.costs import COSTS, cost_of
from ridurre.errors import RequestError
from ridurre.plan import Planner

MODELS = {
    "residual": residual,
    "residual blocks": models.two_residual_blocks,
    "dense block": models.dense_block,
    "padded shortcut": models.padded_shortcut,
    "unet": models.unet,
    "gate": models.squeeze_and_excite,
    "mobilenet": lambda: keras.applications.MobileNetV2(
        weights=None, input_shape=(32, 32, 3), alpha=0.35, classes=3
    ),
}


def separable() -> keras.Model:
    inputs = keras.Input((6, 6, 3))
    x = L.SeparableConv2D(5, 3, depth_multiplier=2, name="first")(inputs)
    x = L.Conv2D(6, 3, groups=3, name="grouped")(L.Conv2D(9, 1, name="wide")(x))
    return keras.Model(inputs, L.Dense(2)(L.Flatten()(L.DepthwiseConv2D(2)(x))))


MODELS["separable and grouped"] = separable


def two_axes() -> keras.Model:
    """Channels on two axes at once, of which whole rows or columns go."""
    inputs = keras.Input((5,))
    x = L.ReLU()(L.Reshape((3, 4))(L.Dense(12, name="wide")(inputs)))
    return keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))


MODELS["two axes"] = two_axes
MODELS["vit"] = models.vit
MODELS["bert"] = models.bert


def measured(model: keras.Model, kind: str) -> float:
    size = ridurre.model_complexity(model)
    return {
        "macs": size.macs,
        "parameters": size.parameters,
        "filters": size.filters,
        "memory": size.activation_memory,
        "file": sum(4 * int(np.prod(v.shape)) for v in model.variables),
    }[kind]


@pytest.mark.parametrize("kind", COSTS)
@pytest.mark.parametrize("name", MODELS)
def test_totals_are_what_is_measured(name: str, kind: str, rng: np.random.Generator) -> None:
    model = MODELS[name]()
    graph = ridurre.DependencyGraph(model)
    cost, planner = cost_of(graph, kind), Planner(graph)
    everything = np.ones(graph.trace.space.size, bool)
    assert cost.total(everything) == measured(model, kind)
    request = {
        g: rng.permutation(g.size)[: rng.integers(1, g.size - g.least + 1)]
        for g in graph.groups
        if g.size > g.least
    }
    alive = planner.alive(request)
    smaller = graph.get_pruning_plan(request).exec()
    assert cost.total(alive) == measured(smaller, kind)


@pytest.mark.parametrize("kind", COSTS)
@pytest.mark.parametrize("name", MODELS)
def test_savings_are_what_one_more_unit_saves(name: str, kind: str) -> None:
    graph = ridurre.DependencyGraph(MODELS[name]())
    cost, planner = cost_of(graph, kind), Planner(graph)
    first = {g: [0] for g in graph.groups if g.size > g.least + 1}
    before = planner.alive(first)
    savings = cost.savings(before)
    for group in first:
        after = planner.alive(first | {group: [0, 1]})
        assert cost.total(before) - cost.total(after) == pytest.approx(savings[group.index])


def test_an_unknown_cost_is_named() -> None:
    graph = ridurre.DependencyGraph(residual())
    with pytest.raises(RequestError, match="'macs'.*Received: 'mac'.*Did you mean 'macs'"):
        cost_of(graph, "mac")
