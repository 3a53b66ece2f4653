"""The contract of every criterion, and for each a network that shows which channel goes first."""

from typing import Any

import keras
import numpy as np
import pytest
from builders import L, residual
from models import padded_shortcut, two_residual_blocks, unet

import ridurre
from ridurre.backend import to_numpy
from ridurre.backend.training import loss_of
from ridurre.criteria import CRITERIA, Criterion, get
from ridurre.criteria.gradients import gates, products
from ridurre.data import Batches
from ridurre.errors import ModelError, RequestError
from ridurre.testing import randomise, snapshot

pytestmark = pytest.mark.core

MODELS = {
    "residual": residual,
    "residual blocks": two_residual_blocks,
    "padded shortcut": padded_shortcut,
    "unet": unet,
}


def grouped() -> keras.Model:
    inputs = keras.Input((5, 5, 3))
    x = L.Conv2D(6, 1, activation="relu", name="wide")(inputs)
    x = L.Conv2D(9, 3, groups=3, activation="relu", name="grouped")(x)
    return keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))


MODELS["grouped, flattened"] = grouped


def compiled(name: str) -> keras.Model:
    model = MODELS[name]()
    randomise(model)
    model.compile(loss="mse")
    return model


def data_for(model: keras.Model, samples: int = 12, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    shapes = [(samples, *t.shape[1:]) for t in (model.inputs[0], model.outputs[0])]
    x, y = (rng.normal(size=s).astype("float32") for s in shapes)
    return x, y


def same(a: dict, b: dict, **tolerance: float) -> None:
    for x, y in zip(a.values(), b.values(), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


# --- the contract ---------------------------------------------------------------------------------


@pytest.mark.parametrize("model_name", [n for n in MODELS if n != "residual"])
@pytest.mark.parametrize("name", CRITERIA)
def test_scores_are_one_number_per_unit_and_leave_the_model_alone(
    name: str, model_name: str
) -> None:
    model = compiled(model_name)
    before = snapshot(model)
    graph, data = ridurre.DependencyGraph(model), data_for(model)
    scores = get(name).score(graph, data)
    assert list(scores) == graph.groups
    for group, values in scores.items():
        assert values.shape == (group.size,)
        assert values.dtype == "float64"
        assert (values >= 0).all()
        assert not np.isnan(values).any()
    same(scores, get(name).score(graph, data))  # the same seed, the same scores
    assert snapshot(model) == before


@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_is_a_value_that_keras_can_save(name: str) -> None:
    one = get(name)
    config = keras.saving.serialize_keras_object(one)
    assert keras.saving.deserialize_keras_object(config) == one
    assert type(one).from_config(one.get_config()) == one
    assert one in {one}


def permuted(model: keras.Model, order: list[int]) -> keras.Model:
    """The residual network with its inner channels in another order."""
    new = residual()
    for old, layer in zip(model.layers, new.layers, strict=True):
        layer.set_weights([to_numpy(w) for w in old.weights])
    inner, outer = new.get_layer("inner"), new.get_layer("outer")
    inner.kernel.assign(to_numpy(inner.kernel)[..., order])
    if inner.bias is not None:
        inner.bias.assign(to_numpy(inner.bias)[order])
    outer.kernel.assign(to_numpy(outer.kernel)[..., order, :])
    for layer in new.layers:
        if isinstance(layer, L.BatchNormalization) and layer.gamma.shape[0] == len(order):
            layer.set_weights([to_numpy(w)[order] for w in layer.weights])
    new.compile(loss="mse")
    return new


@pytest.mark.parametrize("name", [n for n in CRITERIA if n != "random"])
def test_scores_move_with_their_channels(name: str) -> None:
    model = compiled("residual")
    order = [3, 0, 6, 1, 5, 2, 4]
    other = permuted(model, order)
    x, y = data_for(model, 40)
    np.testing.assert_allclose(
        to_numpy(model(x)), to_numpy(other(x)), rtol=1e-4, atol=1e-4
    )  # it is the same network
    scores, moved = (
        {g.producers[0]: s for g, s in get(name).score(ridurre.DependencyGraph(m), (x, y)).items()}
        for m in (model, other)
    )
    np.testing.assert_allclose(scores["inner"][order], moved["inner"], rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("name", CRITERIA)
def test_missing_data_and_labels_are_named(name: str) -> None:
    model = compiled("residual")
    graph, (x, _) = ridurre.DependencyGraph(model), data_for(model)
    needs = get(name).needs
    if needs != "weights":
        with pytest.raises(RequestError, match="needs data"):
            get(name).score(graph)
    if needs == "labels":
        with pytest.raises(RequestError, match="needs labels"):
            get(name).score(graph, x)
    else:
        get(name).score(graph, x)


# --- which channel goes first ---------------------------------------------------------------------


def chain(kernel: Any = None, out: Any = None, *, norm: Any = None) -> keras.Model:
    """One input number, 5 hidden units (ReLU), one output; weights given by hand."""
    inputs = keras.Input((1,))
    x = L.Dense(5, use_bias=False, name="hidden")(inputs)
    if norm is not None:
        x = L.BatchNormalization(name="norm")(x)
    model = keras.Model(inputs, L.Dense(1, use_bias=False, name="out")(L.ReLU()(x)))
    model.get_layer("hidden").kernel.assign(np.reshape(kernel or [1.0] * 5, (1, 5)))
    model.get_layer("out").kernel.assign(np.reshape(out or [1.0] * 5, (5, 1)))
    if norm is not None:
        model.get_layer("norm").gamma.assign(norm)
    model.compile(loss="mse")
    return model


def scores_of(name: Any, model: keras.Model, data: Any = None) -> np.ndarray:
    graph = ridurre.DependencyGraph(model)
    (scores,) = get(name).score(graph, data).values()
    return scores


POSITIVE = (np.array([[1.0], [2.0], [3.0], [4.0]]), np.zeros((4, 1)))


def test_l1_and_l2_differ_where_they_should() -> None:
    model = chain([3, 2, 2, 4, 5], [0.1, 1.7, 2, 4, 5])
    assert scores_of("l1", model).argmin() == 0  # 3.1 < 3.7
    assert scores_of("l2", model).argmin() == 1  # 9.01 > 6.89
    raw = scores_of(ridurre.criteria.Magnitude(1, normalize=False), model)
    np.testing.assert_allclose(raw, [1.55, 1.85, 2, 4, 5])


def test_lamp_is_the_share_of_what_is_not_smaller() -> None:
    squares = np.array([1.0, 4, 9, 16, 25])
    model = chain(np.sqrt(squares).tolist(), [0.0] * 5)
    model.get_layer("out").kernel.assign(np.zeros((5, 1)))
    np.testing.assert_allclose(
        scores_of("lamp", model), [1 / 55, 4 / 54, 9 / 50, 16 / 41, 1], rtol=1e-6
    )


def test_bn_scale_looks_at_gamma_alone() -> None:
    model = chain([1, 2, 3, 4, 5], norm=[0.5, -2, 0.1, 3, -0.2])
    np.testing.assert_allclose(scores_of("bn_scale", model), [0.5, 2, 0.1, 3, 0.2], rtol=1e-6)


def test_without_batch_norm_bn_scale_keeps_everything() -> None:
    model = chain()
    assert np.isinf(scores_of("bn_scale", model)).all()
    assert ridurre.ChannelPrune(0.5, criterion="bn_scale").plan(model).removed == {}


def test_fpgm_is_the_sum_of_distances() -> None:
    weights = [0.0, 1, 2, 3, 10]
    model = chain(weights, [1.0] * 5)
    model.get_layer("hidden").kernel.assign(np.reshape(weights, (1, 5)))
    expected = np.abs(np.subtract.outer(weights, weights)).sum(axis=1)
    np.testing.assert_allclose(scores_of("fpgm", model), expected, rtol=1e-5, atol=1e-5)
    assert scores_of("fpgm", model).argmin() == 2  # the median


def test_similar_filters_are_redundant() -> None:
    inputs = keras.Input((2,))
    hidden = L.Dense(5, use_bias=False, name="hidden")(inputs)
    model = keras.Model(inputs, L.Dense(1)(L.ReLU()(hidden)))
    # 1 and 3 point the same way, 3 is the smaller; then 0 and 4 are nearest.
    model.get_layer("hidden").kernel.assign([[1, 0, 1, 0, 0.9], [0.1, 2, 1, 1, 0.4]])
    order = np.argsort(scores_of("cosine", model))
    assert order[0] == 3
    assert set(order[-2:]) <= {0, 1, 2, 4}
    assert scores_of("cosine", model)[3] == pytest.approx(0, abs=1e-6)


def test_kmeans_keeps_one_of_each_cluster() -> None:
    inputs = keras.Input((2,))
    model = keras.Model(inputs, L.Dense(1)(L.Dense(5, use_bias=False, name="hidden")(inputs)))
    model.get_layer("hidden").kernel.assign([[0, 0.1, 0.2, 5, 5.2], [1, 1, 1, 3, 3]])
    scores = scores_of(ridurre.criteria.KMeansRedundancy(clusters=0.4), model)
    kept = np.argsort(scores)[-2:]
    assert 1 in kept  # the middle of the first cluster
    assert {3, 4} & set(kept)


def test_activations_are_those_that_readers_see() -> None:
    model = chain([1, -1, 2, 0.5, 3])
    x = np.array([[1.0], [-2.0], [3.0], [2.0]])
    seen = np.maximum(x @ np.array([[1, -1, 2, 0.5, 3]]), 0)
    mean = scores_of(ridurre.criteria.MeanActivation(normalize=False), model, x)
    np.testing.assert_allclose(mean, seen.mean(axis=0), rtol=1e-6)
    apoz = scores_of(ridurre.criteria.APoZ(normalize=False), model, x)
    np.testing.assert_allclose(apoz, (seen > 0).mean(axis=0))


def test_wifv_is_variance_times_reading_weights() -> None:
    out = [1.0, 2, 0.5, 4, 0.1]
    model = chain([1, -1, 2, 0.5, 3], out)
    x = np.array([[1.0], [-2.0], [3.0], [2.0]])
    seen = np.maximum(x @ np.array([[1, -1, 2, 0.5, 3]]), 0)
    scores = scores_of(ridurre.criteria.WeightedVariance(normalize=False), model, x)
    np.testing.assert_allclose(scores, seen.var(axis=0) * np.square(out), rtol=1e-5)


def test_wifv_of_grouped_readers_counts_their_own_group_only() -> None:
    inputs = keras.Input((5, 5, 3))
    x = L.Conv2D(8, 1, activation="relu", name="wide")(inputs)
    x = L.Conv2D(4, 3, groups=4, name="grouped")(x)
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))
    kernel = np.zeros(model.get_layer("grouped").kernel.shape, "float32")
    kernel[..., 1, :1] = 1  # only the first group reads, and only the second of its two channels
    model.get_layer("grouped").kernel.assign(kernel)
    graph = ridurre.DependencyGraph(model)
    x, _ = data_for(model)
    scores = ridurre.criteria.WeightedVariance(normalize=False).score(graph, x)
    wide = next(g for g in graph.groups if "wide" in g.producers)
    units = next(m for m in wide.members if m.weight.layer == "wide").units
    assert units.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert (scores[wide] > 0).tolist() == [True, False, False, False]


def test_obs_is_the_error_of_the_readers_refitted_without_the_channel(rng: Any) -> None:
    inputs = keras.Input((3,))
    hidden = L.Dense(5, activation="relu", name="hidden")(inputs)
    model = keras.Model(inputs, L.Dense(2, name="out")(hidden))
    randomise(model)
    x = rng.normal(size=(60, 3)).astype("float32")
    scores = scores_of(ridurre.criteria.BlockOBS(ridge=1e-9), model, x)
    seen = np.maximum(x @ to_numpy(model.layers[1].kernel) + to_numpy(model.layers[1].bias), 0)
    seen = (seen - seen.mean(axis=0)).astype("float64")
    made = seen @ to_numpy(model.get_layer("out").kernel)
    errors = []
    for unit in range(5):
        rest = np.delete(seen, unit, axis=1)
        refitted = rest @ np.linalg.lstsq(rest, made, rcond=None)[0]
        errors.append(0.5 * np.square(made - refitted).sum())
    np.testing.assert_allclose(scores, np.array(errors) / np.square(made).sum(), rtol=1e-3)


def test_obs_takes_all_taps_of_a_channel_together(rng: Any) -> None:
    inputs = keras.Input((4, 3))
    hidden = L.Conv1D(5, 1, activation="relu", name="hidden")(inputs)
    model = keras.Model(inputs, L.Conv1D(2, 2, name="out")(hidden))
    randomise(model)
    x = rng.normal(size=(60, 4, 3)).astype("float32")
    scores = scores_of(ridurre.criteria.BlockOBS(ridge=1e-9), model, x)
    seen = np.asarray(to_numpy(keras.Model(inputs, hidden)(x)), "float64")
    patches = np.stack([seen[:, :-1], seen[:, 1:]], axis=2).reshape(-1, 2, 5)
    patches -= patches.mean(axis=0)
    made = np.einsum("rtc,tco->ro", patches, to_numpy(model.get_layer("out").kernel))
    errors = []
    for unit in range(5):
        rest = np.delete(patches, unit, axis=2).reshape(len(patches), -1)
        refitted = rest @ np.linalg.lstsq(rest, made, rcond=None)[0]
        errors.append(0.5 * np.square(made - refitted).sum())
    np.testing.assert_allclose(scores, np.array(errors) / np.square(made).sum(), rtol=1e-3)


def gate_derivatives(model: keras.Model, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``∂L/∂z`` of each hidden unit, by central differences of a gate on what reads it."""
    out = model.get_layer("out").kernel
    whole, found = to_numpy(out).copy(), []
    for unit in range(len(whole)):
        losses = []
        for step in (1e-2, -1e-2):
            gated = whole.copy()
            gated[unit] *= 1 + step
            out.assign(gated)
            losses.append(float(np.mean((to_numpy(model(x)) - y) ** 2)))
        found.append((losses[0] - losses[1]) / 2e-2)
    out.assign(whole)
    return np.array(found)


def batchwise(model: keras.Model, x: np.ndarray, y: np.ndarray, size: int) -> np.ndarray:
    parts = [slice(i, i + size) for i in range(0, len(x), size)]
    return np.array([gate_derivatives(model, x[p], y[p]) for p in parts])


@pytest.fixture
def regression(rng: np.random.Generator) -> tuple[keras.Model, np.ndarray, np.ndarray]:
    model = chain([1, -1, 2, 0.5, 3], [1.0, 2, -0.5, 1.5, 0.3])
    x, y = rng.normal(size=(12, 1)).astype("float32"), rng.normal(size=(12, 1)).astype("float32")
    return model, x, y


def test_gate_taylor_is_the_squared_derivative_by_a_gate(regression: Any) -> None:
    model, x, y = regression
    data = Batches((x, y), batch_size=4, seed=None)
    scores = scores_of(ridurre.criteria.GateTaylor(batch_size=4), model, data)
    expected = (batchwise(model, x, y, 4) ** 2).sum(axis=0)
    np.testing.assert_allclose(scores, expected, rtol=1e-2)
    assert scores_of(ridurre.criteria.GateTaylor(batches=1, batch_size=4), model, data) == (
        pytest.approx(batchwise(model, x, y, 4)[0] ** 2, rel=1e-2)
    )


def test_output_taylor_is_the_squared_jacobian_of_the_outputs(regression: Any) -> None:
    model, x, _ = regression  # a single output: the sign does not matter with single samples
    scores = scores_of(ridurre.criteria.OutputTaylor(batch_size=1), model, x)
    out = to_numpy(model.get_layer("out").kernel)
    seen = np.maximum(x @ to_numpy(model.get_layer("hidden").kernel), 0)
    np.testing.assert_allclose(scores, ((seen * out.T) ** 2).sum(axis=0), rtol=1e-4)


def test_the_gate_is_where_a_channel_is_read_whatever_comes_before(rng: Any) -> None:
    inputs = keras.Input((1,))
    hidden = L.Dense(5, activation="tanh", name="hidden")(inputs)
    model = keras.Model(inputs, L.Dense(1, use_bias=False, name="out")(hidden))
    randomise(model)
    model.compile(loss="mse")
    x, y = (rng.normal(size=(6, 1)).astype("float32") for _ in range(2))
    scores = scores_of("gate_taylor", model, (x, y))
    np.testing.assert_allclose(scores, gate_derivatives(model, x, y) ** 2, rtol=1e-2)


def test_group_fisher_is_the_same_sample_by_sample(regression: Any) -> None:
    model, x, y = regression
    scores = scores_of("group_fisher", model, (x, y))
    np.testing.assert_allclose(scores, (batchwise(model, x, y, 1) ** 2).sum(axis=0), rtol=1e-2)


def test_taylor_adds_up_all_members(regression: Any) -> None:
    # Both slices of a unit that passes ReLU have the same ⟨w, ∂L/∂w⟩: that of the gate.
    model, x, y = regression
    scores = scores_of(ridurre.criteria.Taylor(batch_size=4), model, (x, y))
    expected = 2 * np.abs(gate_derivatives(model, x, y))
    np.testing.assert_allclose(scores, expected, rtol=1e-2)


def test_jacobian_squares_members_and_batches(regression: Any) -> None:
    model, x, y = regression
    data = Batches((x, y), batch_size=4, seed=None)
    scores = scores_of(ridurre.criteria.Jacobian(batch_size=4), model, data)
    np.testing.assert_allclose(scores, 2 * (batchwise(model, x, y, 4) ** 2).sum(axis=0), rtol=1e-2)


def test_gates_at_the_readers_equal_gates_at_batch_norm() -> None:
    """γ∂γ + β∂β = ∂L/∂z for a gate right after batch norm: positively homogeneous in between."""
    model = compiled("residual blocks")
    graph = ridurre.DependencyGraph(model)
    inner = next(g for g in graph.groups if g.producers == ("one_in",))
    data = Batches(data_for(model), seed=None)
    (found,) = products(graph, loss_of(model), data)
    norm = [v for m, v in found[inner] if m.weight.role == "channel"]
    assert len(norm) == 2  # γ and β
    np.testing.assert_allclose(gates(found[inner]), np.sum(norm, axis=0), rtol=1e-3, atol=1e-4)


def test_random_is_seeded() -> None:
    graph = ridurre.DependencyGraph(residual())
    a, b, c = (get("random").score(graph, seed=s) for s in (1, 1, 2))
    same(a, b)
    assert any((x != y).any() for x, y in zip(a.values(), c.values(), strict=True))


# --- other ways in --------------------------------------------------------------------------------


def test_gradients_do_not_contain_regularisers(regression: Any) -> None:
    model, x, y = regression
    plain = scores_of("gate_taylor", model, (x, y))
    model.get_layer("out").kernel.regularizer = keras.regularizers.L2(10.0)
    np.testing.assert_allclose(scores_of("gate_taylor", model, (x, y)), plain, rtol=1e-3)


def test_frozen_layers_are_scored_all_the_same(regression: Any) -> None:
    model, x, y = regression
    plain = scores_of("gate_taylor", model, (x, y))
    model.trainable = False
    model.compile(loss="mse")
    np.testing.assert_allclose(scores_of("gate_taylor", model, (x, y)), plain, rtol=1e-5)
    assert not any(w.trainable for w in model.weights)


def test_a_batch_in_parts_gives_the_same(regression: Any, monkeypatch: Any) -> None:
    model, x, y = regression
    plain = scores_of("gate_taylor", model, (x, y))
    monkeypatch.setattr("ridurre.criteria.gradients.MEMORY", 100)
    np.testing.assert_allclose(scores_of("gate_taylor", model, (x, y)), plain, rtol=1e-4)


def test_a_loss_can_be_given(regression: Any) -> None:
    model, x, y = regression
    expected = scores_of("gate_taylor", model, (x, y))
    bare = keras.Model(model.inputs, model.outputs)
    graph = ridurre.DependencyGraph(bare)
    with pytest.raises(ModelError, match="not compiled with a loss"):
        get("gate_taylor").score(graph, (x, y))
    for loss in ("mse", lambda a, b: keras.ops.mean((a - b) ** 2)):
        (scores,) = get("gate_taylor").score(graph, (x, y), loss=loss).values()
        np.testing.assert_allclose(scores, expected, rtol=1e-4)


def test_several_outputs_have_losses_of_their_own() -> None:
    inputs = keras.Input((3,))
    x = L.Dense(5, activation="relu", name="shared")(inputs)
    model = keras.Model(inputs, {"a": L.Dense(2, name="a")(x), "b": L.Dense(1, name="b")(x)})
    model.compile(loss={"a": "mse", "b": "mae"}, loss_weights={"a": 1.0, "b": 0.5})
    rng = np.random.default_rng(0)
    y = {"a": rng.normal(size=(8, 2)), "b": rng.normal(size=(8, 1))}
    assert (scores_of("gate_taylor", model, (rng.normal(size=(8, 3)), y)) > 0).any()


def test_a_function_is_a_criterion() -> None:
    model = chain()
    scores = scores_of(lambda graph, group: np.arange(group.size), model)
    assert scores.tolist() == [0, 1, 2, 3, 4]
    plan = ridurre.ChannelPrune(0.4, criterion=lambda graph, group: -np.arange(5)).plan(model)
    assert plan.removed["hidden/kernel"][1].tolist() == [3, 4]


@pytest.mark.parametrize("answer", [[1, 2], None, "abc", [np.nan] * 5])
def test_useless_scores_are_refused(answer: Any) -> None:
    with pytest.raises(RequestError, match=r"no usable scores. Expected 5 numbers"):
        scores_of(lambda graph, group: answer, chain())


@pytest.mark.parametrize("spec", ["l3", 7, None, Criterion])
def test_an_unknown_criterion_is_named(spec: Any) -> None:
    with pytest.raises(RequestError, match="Expected a criterion: one of 'mean_activation'"):
        get(spec)
    with pytest.raises(RequestError, match="Did you mean 'taylor'"):
        get("tailor")


def test_weights_that_are_not_finite_are_named() -> None:
    model = chain([1, np.nan, 1, 1, 1])
    with pytest.raises(RequestError, match="training has probably diverged"):
        scores_of("l1", model)
