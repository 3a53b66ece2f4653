"""Transformers: heads, their sizes, the MLPs and the width of the residual stream."""

import math
from collections.abc import Callable
from typing import Any

import keras
import models
import numpy as np
import pytest
from keras import layers as L

import ridurre
from ridurre.backend import attention_parts, to_numpy
from ridurre.costs import cost_of
from ridurre.errors import RequestError
from ridurre.selection import topology
from ridurre.testing import randomise

MODELS: dict[str, Callable[[], keras.Model]] = {"vit": models.vit, "bert": models.bert}


def made(name: str) -> keras.Model:
    model = MODELS[name]()
    randomise(model)
    return model


def samples(model: keras.Model, count: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (tokens 0 are padding) and targets."""
    rng = np.random.default_rng(1)
    shape = (count, *model.input_shape[1:])
    x = rng.integers(0, 11, shape) if model.name == "bert" else rng.normal(size=shape)
    y = rng.normal(size=(count, model.output_shape[-1]))
    return x.astype("int32" if model.name == "bert" else "float32"), y.astype("float32")


def group(graph: ridurre.DependencyGraph, weight: str, axis: int) -> ridurre.Group:
    """The group that owns an axis of a weight, by the end of its path."""
    (found,) = (
        g
        for g in graph.groups
        if any(m.weight.variable.path.endswith(weight) and m.weight.axis == axis for m in g.members)
    )
    return found


@pytest.mark.core
@pytest.mark.parametrize("name", MODELS)
def test_all_but_the_width_is_exact(name: str, tmp_path: Any) -> None:
    model = made(name)
    x, _ = samples(model)
    graph = ridurre.DependencyGraph(model)
    heads, size, wide = (
        group(graph, w, a)
        for w, a in (("one_attention/query/kernel", 1), ("two_attention/query/kernel", 2),
                     ("one_wide/kernel", 1))
    )  # fmt: skip
    assert [g.size for g in (heads, size, wide)] == ([3, 4, 20] if name == "vit" else [2, 3, 14])
    plan = graph.get_pruning_plan({heads: [0], size: [1], wide: [2, 3, 5]})
    assert plan.exact
    smaller = plan.exec()
    assert ridurre.verify(model, smaller, plan, inputs=x) <= 1e-4
    one, two = (smaller.get_layer(f"{n}_attention") for n in ("one", "two"))
    assert (one.num_heads, one.key_dim, one.value_dim) == (heads.size - 1, size.size, size.size)
    assert (two.num_heads, two.key_dim, two.value_dim) == (heads.size, size.size - 1, size.size - 1)
    smaller.save(tmp_path / "smaller.keras")
    loaded = keras.saving.load_model(tmp_path / "smaller.keras")
    np.testing.assert_allclose(loaded.predict(x), smaller.predict(x), atol=1e-5)


def norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-3) * gamma + beta


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def block(x: np.ndarray, w: list[np.ndarray], kept: np.ndarray, before: bool) -> np.ndarray:
    """A transformer's block on the channels that are kept, as the papers have it.

    `w` are the whole block's weights: the order is that in which the layers were made.
    """
    (g1, b1), (g2, b2) = (w[0:2], w[10:12]) if before else (w[8:10], w[14:16])
    qw, qb, kw, kb, vw, vb, ow, ob = w[2:10] if before else w[0:8]
    w1, c1, w2, c2 = w[12:16] if before else w[10:14]

    def attend(x: np.ndarray) -> np.ndarray:
        q, k, v = (
            np.einsum("btc,cnh->btnh", x, m[kept]) + b
            for m, b in ((qw, qb), (kw, kb), (vw, vb))
        )  # fmt: skip
        scores = np.einsum("btnh,bsnh->bnts", q, k) / math.sqrt(q.shape[-1])
        mixed = np.einsum("bnts,bsnh->btnh", softmax(scores), v)
        return np.einsum("btnh,nhc->btc", mixed, ow[..., kept]) + ob[kept]

    def mlp(x: np.ndarray) -> np.ndarray:
        return np.tanh(x @ w1[kept] + c1) @ w2[:, kept] + c2[kept]

    if before:
        x = x + attend(norm(x, g1[kept], b1[kept]))
        return x + mlp(norm(x, g2[kept], b2[kept]))
    x = norm(x + attend(x), g1[kept], b1[kept])
    return norm(x + mlp(x), g2[kept], b2[kept])


@pytest.mark.parametrize("before", [True, False])
def test_width_leaves_the_formula_of_what_is_kept(before: bool, rng: np.random.Generator) -> None:
    inputs = keras.Input((3, 4))
    x = L.Dense(7, name="make")(inputs)
    x = models.encoder(x, 2, 3, 5, "block", before=before)
    model = keras.Model(inputs, L.Dense(2, name="read")(x))
    model.get_layer("block_wide").activation = keras.activations.tanh
    randomise(model)
    plan = ridurre.DependencyGraph(model).get_pruning_plan("make", [0, 4])
    assert plan.inexact == ("block_attention_norm", "block_mlp_norm")

    kept = np.array([1, 2, 3, 5, 6])
    x = rng.normal(size=(2, 3, 4)).astype("float32")
    kernel, bias = (to_numpy(v) for v in model.get_layer("make").weights)
    read, offset = (to_numpy(v) for v in model.get_layer("read").weights)
    own = [to_numpy(v) for n in model.layers if n.name.startswith("block") for v in n.weights]
    expected = block(x @ kernel[:, kept] + bias[kept], own, kept, before) @ read[kept] + offset
    np.testing.assert_allclose(to_numpy(plan.exec()(x)), expected, rtol=1e-4, atol=1e-5)


def attention(**options: Any) -> keras.Model:
    inputs = keras.Input((5, 6))
    x = L.Dense(7, name="make")(inputs)
    layer = L.MultiHeadAttention(2, 4, name="attention", **options)
    model = keras.Model(inputs, L.Dense(3)(layer(x, x)))
    randomise(model)
    return model


@pytest.mark.core
def test_queries_make_up_for_the_scale() -> None:
    model = attention()
    graph = ridurre.DependencyGraph(model)
    smaller = graph.get_pruning_plan(group(graph, "query/kernel", 2), [1]).exec()
    old, new = (attention_parts(m.get_layer("attention")) for m in (model, smaller))
    kept = [0, 2, 3]
    for variable in ("kernel", "bias"):
        before, after = (to_numpy(getattr(p.query, variable)) for p in (old, new))
        np.testing.assert_allclose(after, before[..., kept] * math.sqrt(3 / 4), rtol=1e-6)
        before, after = (to_numpy(getattr(p.key, variable)) for p in (old, new))
        np.testing.assert_array_equal(after, before[..., kept])


@pytest.mark.core
def test_scaled_in_two_steps_is_scaled_once() -> None:
    model = attention()
    steps = [model]
    for gone in ([0], [1]):
        graph = ridurre.DependencyGraph(steps[-1])
        steps.append(graph.get_pruning_plan(group(graph, "query/kernel", 2), gone).exec())
    graph = ridurre.DependencyGraph(model)
    plan = graph.get_pruning_plan(group(graph, "query/kernel", 2), [0, 2])
    assert ridurre.verify(model, steps[-1], plan) <= 1e-4


@pytest.mark.parametrize("output_shape", [None, 7])
def test_a_name_means_the_channels_that_the_layer_makes(output_shape: int | None) -> None:
    model = attention(output_shape=output_shape)
    plan = ridurre.DependencyGraph(model).get_pruning_plan("attention", [0, 5, 6])
    smaller = plan.exec()
    assert plan.removed["attention/attention_output/kernel"][2].tolist() == [0, 5, 6]
    assert smaller.get_layer("attention").get_config()["output_shape"] == (4,)
    assert ridurre.verify(model, smaller, plan) <= 1e-4


def test_in_a_residual_stream_the_width_stays_implicit() -> None:
    model = made("bert")
    smaller = ridurre.DependencyGraph(model).get_pruning_plan("words", [0, 3]).exec()
    assert smaller.get_layer("one_attention").get_config()["output_shape"] is None
    assert smaller.get_layer("one_attention").query_dense.kernel.shape[0] == 8


@pytest.mark.core
def test_two_positions_of_a_head_stay() -> None:
    """Keras on TensorFlow adds a bias of shape (heads, 1) along the wrong axis."""
    model = attention()
    graph = ridurre.DependencyGraph(model)
    size = group(graph, "query/kernel", 2)
    assert (size.size, size.least) == (4, 2)
    assert group(graph, "query/kernel", 1).least == 1
    with pytest.raises(RequestError, match="At least 2 of 4 have to stay"):
        graph.get_pruning_plan(size, [0, 1, 2])
    smaller = ridurre.prune(ridurre.ChannelPrune(0.9, criterion="l1"), model)
    assert smaller.get_layer("attention").key_dim == 2
    without = ridurre.DependencyGraph(attention(use_bias=False))
    assert group(without, "query/kernel", 2).least == 1


@pytest.mark.core
def test_a_head_of_keys_goes_with_all_its_queries() -> None:
    inputs = keras.Input((4, 5))
    layer = L.GroupQueryAttention(2, 6, 3, name="attention")
    model = keras.Model(inputs, L.Dense(3)(layer(inputs, inputs)))
    randomise(model)
    graph = ridurre.DependencyGraph(model)
    plan = graph.get_pruning_plan(group(graph, "key/kernel", 1), [1])
    assert plan.removed["attention/query/kernel"][1].tolist() == [2, 3]
    assert plan.removed["attention/key/kernel"][1].tolist() == [1]
    smaller = plan.exec().get_layer("attention")
    assert (smaller.num_query_heads, smaller.num_key_value_heads) == (4, 2)
    assert ridurre.verify(model, plan.exec(), plan) <= 1e-4


def test_work_of_attention() -> None:
    """Three projections and one back, scores and their sums with the values."""
    inputs = keras.Input((5, 6))
    memory = keras.Input((7, 3))
    outputs = L.MultiHeadAttention(2, 4, value_dim=3, dropout=0.1)(inputs, memory)
    complexity = ridurre.model_complexity(keras.Model([inputs, memory], outputs))
    projections = 5 * 6 * 8 + 7 * 3 * 8 + 7 * 3 * 6 + 5 * 6 * 6
    assert complexity.macs == projections + 2 * 5 * 7 * (4 + 3)


def test_heads_sizes_mlps_and_width_are_ranked_apart() -> None:
    graph = ridurre.DependencyGraph(made("vit"))
    classes = {topology(g) for g in graph.groups}
    assert (len(graph.groups), len(classes)) == (7, 4)


@pytest.mark.parametrize("name", MODELS)
def test_half_of_the_work(name: str) -> None:
    model = made(name)
    strategy = ridurre.ChannelPrune(target=ridurre.MACs(0.5), scope="isomorphic")
    smaller = ridurre.prune(strategy, model)
    whole, left = (ridurre.model_complexity(m).macs for m in (model, smaller))
    graph = ridurre.DependencyGraph(smaller)
    everything = np.ones(graph.trace.space.size, bool)
    unit = max(x.max() for x in cost_of(graph, "macs").savings(everything)[:, None])
    assert 0.5 * whole - max(0.01 * whole, 2 * unit) <= left <= 0.5 * whole


CRITERIA = ("l1", "gate_taylor", "wifv", "taylor", "group_fisher", "jacobian", "obs")


@pytest.mark.parametrize("criterion", CRITERIA)
def test_criteria_score_heads_and_mlps(criterion: str) -> None:
    model = made("bert")
    model.compile("sgd", "mse")
    graph = ridurre.DependencyGraph(model)
    scores = ridurre.criteria.get(criterion).score(graph, samples(model))
    assert {g: s.shape for g, s in scores.items()} == {g: (g.size,) for g in graph.groups}
    assert all(np.isfinite(scores[g]).all() for g in graph.groups if g.producers == ("one_wide",))
    # What a head makes is read inside the layer: criteria of readers' inputs do not see it.
    seen = criterion not in ("wifv", "obs")
    assert np.isfinite(scores[group(graph, "one_attention/query/kernel", 1)]).all() == seen


@pytest.mark.parametrize("how", ["mean", "least_squares"])
@pytest.mark.parametrize("name", MODELS)
def test_readers_of_mlps_are_refitted_and_attention_is_left_alone(name: str, how: str) -> None:
    model = made(name)
    x, _ = samples(model)
    graph = ridurre.DependencyGraph(model)
    plan = graph.get_pruning_plan(
        {group(graph, "one_wide/kernel", 1): [0, 2, 7],
         group(graph, "one_attention/query/kernel", 1): [1]}
    )  # fmt: skip
    smaller = plan.exec()
    better = ridurre.recover(smaller, model, plan, x, how=how)
    expected = model.predict(x)
    errors = [np.square(m.predict(x) - expected).mean() for m in (smaller, better)]
    assert errors[1] < errors[0]
    changed = {
        v.path for v, w in zip(smaller.variables, better.variables, strict=True)
        if np.abs(to_numpy(v) - to_numpy(w)).max() > 1e-6
    }  # fmt: skip
    assert "one_narrow/bias" in changed
    assert not any("attention" in path for path in changed)


def test_training_goes_on(rng: np.random.Generator) -> None:
    model = made("vit")
    model.compile("adam", "mse")
    x, y = samples(model)
    model.fit(x, y, epochs=1, verbose=0)
    graph = ridurre.DependencyGraph(model)
    plan = graph.get_pruning_plan(group(graph, "one_attention/query/kernel", 1), [0])
    smaller = plan.exec(keep_compiled=True)
    assert np.isfinite(smaller.fit(x, y, epochs=1, verbose=0).history["loss"]).all()
