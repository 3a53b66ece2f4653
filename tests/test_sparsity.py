"""Single weights: which of them go, and how many."""

import json
from typing import Any

import keras
import numpy as np
import pytest
from builders import L, residual
from hypothesis import given, settings
from hypothesis import strategies as st

import ridurre
from ridurre import ChannelPrune, LevelPrune, Masks, ThresholdPrune
from ridurre.backend import to_numpy
from ridurre.criteria import CRITERIA, get, scores_weights
from ridurre.errors import ModelError, NothingToPruneError, PlanMismatchError, RequestError
from ridurre.levels import SCOPES, lowest
from ridurre.testing import randomise, snapshot
from ridurre.weights import prunable_layers, weights_of

pytestmark = pytest.mark.core
WEIGHT_CRITERIA = [name for name in CRITERIA if scores_weights(get(name))]


def net() -> keras.Model:
    """Odd sizes everywhere: 3 → 5 → 7 → 2."""
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            L.Conv2D(5, 3, activation="relu", name="first"),
            L.BatchNormalization(name="norm"),
            L.Conv2D(7, 2, activation="relu", name="second"),
            L.GlobalAveragePooling2D(),
            L.Dense(2, name="head"),
        ]
    )
    randomise(model)
    model.compile("sgd", "mse")
    return model


def dense(*kernels: Any) -> keras.Model:
    """Dense layers without bias, d0, d1, …, with these kernels."""
    arrays = [np.asarray(k, "float32") for k in kernels]
    layers = [L.Dense(k.shape[1], use_bias=False, name=f"d{i}") for i, k in enumerate(arrays)]
    model = keras.Sequential([keras.Input((len(arrays[0]),)), *layers])
    model.set_weights(arrays)
    model.compile("sgd", "mse")
    return model


def kernel(model: keras.Model, name: str = "d0") -> np.ndarray:
    return to_numpy(model.get_layer(name).kernel)


def data_for(model: keras.Model, samples: int = 16) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = [(samples, *t.shape[1:]) for t in (model.inputs[0], model.outputs[0])]
    x, y = (rng.normal(size=s).astype("float32") for s in shapes)
    return x, y


def gone(model: keras.Model) -> dict[str, int]:
    return {path.split("/")[-2]: k.size - int(k.sum()) for path, k in Masks.of(model).items()}


# --- which go -------------------------------------------------------------------------------------


def test_a_level_takes_the_smallest_by_magnitude_and_not_by_sign() -> None:
    model = dense([[-5, 1, 3], [0.5, -2, 4]])
    small = ridurre.prune(LevelPrune(0.5), model)
    np.testing.assert_array_equal(kernel(small), [[-5, 0, 3], [0, 0, 4]])
    np.testing.assert_array_equal(kernel(model), [[-5, 1, 3], [0.5, -2, 4]])


def test_a_threshold_takes_what_is_below_it() -> None:
    model = dense([[-5, 1, 3], [0.5, -2, -0.4]])
    small = ridurre.prune(ThresholdPrune(0.5), model)
    np.testing.assert_array_equal(kernel(small), [[-5, 1, 3], [0.5, -2, 0]])


def test_of_equal_weights_the_first_go() -> None:
    small = ridurre.prune(LevelPrune(0.5), dense([[1, -1, 1], [-1, 1, 1]]))
    np.testing.assert_array_equal(kernel(small), [[0, 0, 0], [-1, 1, 1]])


def test_what_is_zero_already_counts() -> None:
    model = dense([[0, 0, 9], [1, 2, 3], [4, 5, 6]])
    small = ridurre.prune(LevelPrune(0.4, criterion="random"), model)
    assert gone(small) == {"d0": 4}
    again = ridurre.prune(LevelPrune(0.2), small)
    assert gone(again) == {"d0": 4}  # nothing comes back


def test_global_ranks_kernels_together_and_local_each_for_itself() -> None:
    model = dense([[9, 8], [7, 6]], [[1, 2], [3, 4]])
    assert gone(ridurre.prune(LevelPrune(0.5), model)) == {"d0": 2, "d1": 2}
    assert gone(ridurre.prune(LevelPrune(0.5, scope="global"), model)) == {"d0": 0, "d1": 4}


def test_per_output_every_output_loses_the_same() -> None:
    model = dense([[1, 10], [2, 20], [3, 30], [4, 40]])
    small = ridurre.prune(LevelPrune(0.5, scope="output"), model)
    np.testing.assert_array_equal(kernel(small), [[0, 0], [0, 0], [3, 30], [4, 40]])


def test_lamp_divides_by_what_is_not_smaller() -> None:
    scores = get("lamp").score_weights(*_asked(dense([[1, -2], [2, 0]])))
    (found,) = scores.values()
    np.testing.assert_allclose(found, [[1 / 9, 4 / 8], [4 / 4, 0]])


def _asked(model: keras.Model) -> tuple[keras.Model, list]:
    return model, weights_of(model)


def test_lamp_never_empties_a_kernel() -> None:
    model = dense([[100, 200], [300, 400]], [[0.1, 0.2], [0.3, 0.4]])
    assert gone(ridurre.prune(LevelPrune(0.75, scope="global"), model))["d1"] == 4
    by_lamp = ridurre.prune(LevelPrune(0.75, scope="global", criterion="lamp"), model)
    assert gone(by_lamp) == {"d0": 3, "d1": 3}


def test_wanda_is_weight_times_norm_of_input() -> None:
    model = dense([[1, 4], [2, 1], [3, 1]])
    x = np.array([[3, 0, 1], [-3, 0.1, 1]], "float32")
    (found,) = get("wanda").score_weights(*_asked(model), x).values()
    norms = np.sqrt(np.square(x).mean(axis=0))
    np.testing.assert_allclose(found, np.abs(kernel(model)) * norms[:, None], rtol=1e-5)
    small = ridurre.prune(LevelPrune(0.3, criterion="wanda", scope="output", data=x), model)
    np.testing.assert_array_equal(kernel(small), [[1, 4], [0, 0], [3, 1]])  # by |w|: 1, 1 and 1


def test_wanda_sees_the_taps_of_a_convolution() -> None:
    model = keras.Sequential([keras.Input((5, 5, 3)), L.Conv2D(2, 3, use_bias=False, name="d0")])
    x = np.zeros((4, 5, 5, 3), "float32")
    x[:, 0, 0, 1] = 2  # only ever under the first tap, of the second channel
    (found,) = get("wanda").score_weights(*_asked(model), x).values()
    assert np.count_nonzero(found) == 2
    assert (found[0, 0, 1] > 0).all()


def test_snip_is_weight_times_gradient() -> None:
    model = dense([[1], [2], [3]])
    x, y = np.array([[1, 0, 0.1]], "float32"), np.array([[0]], "float32")
    (found,) = get("snip").score_weights(*_asked(model), (x, y)).values()
    error = 2 * (x @ kernel(model) - y)  # derivative of the mean square
    np.testing.assert_allclose(found, np.abs(kernel(model) * (x.T @ error)), rtol=1e-5)


def test_obs_is_the_error_of_the_output_refitted_without_the_weight(rng: Any) -> None:
    model, x = dense(rng.normal(size=(4, 1))), rng.normal(size=(200, 4)).astype("float32")
    x[:, 1] += x[:, 0]
    (found,) = get("obs").score_weights(*_asked(model), x).values()
    y = x @ kernel(model)
    for j in range(4):
        rest = np.delete(x, j, axis=1)
        left = y - rest @ np.linalg.lstsq(rest, y, rcond=None)[0]
        np.testing.assert_allclose(found[j, 0], 0.5 * np.square(left).mean() / y.var(), rtol=0.05)


def test_obs_ranks_layers_by_shares_of_their_outputs(rng: Any) -> None:
    x = rng.normal(size=(200, 5)).astype("float32")
    first, second = rng.normal(size=(5, 7)), rng.normal(size=(7, 3))
    strategy = LevelPrune(0.4, criterion="obs", scope="global", data=x)
    keep = [strategy.masks(dense(a * first, second / a)) for a in (1, 100)]
    assert keep[0] == keep[1]
    assert len({m.mean() for m in keep[0].values()}) == 2  # not the same in every layer


def test_synflow_multiplies_paths() -> None:
    model = dense([[1, -2], [0, 3]], [[2], [-5]])
    first, second = get("synflow").score_weights(*_asked(model)).values()
    np.testing.assert_allclose(first, [[1 * 2, 2 * 5], [0, 3 * 5]], rtol=1e-5)
    np.testing.assert_allclose(second, [[1 * 2], [(2 + 3) * 5]], rtol=1e-5)


def test_synflow_ignores_nonlinearities_and_normalisation() -> None:
    model = net()
    scores = get("synflow").score_weights(*_asked(model))
    totals = [x.sum() for x in scores.values()]
    np.testing.assert_allclose(totals, totals[0], rtol=1e-4)  # flow is conserved
    norm = model.get_layer("norm")
    norm.gamma.assign(to_numpy(norm.gamma) * 7)
    for a, b in zip(scores.values(), get("synflow").score_weights(*_asked(model)).values(),
                    strict=True):  # fmt: skip
        np.testing.assert_allclose(a, b)


def test_synflow_in_many_steps_leaves_every_layer_something() -> None:
    model = dense(*(np.ones((n, m)) for n, m in ((20, 20), (20, 20), (20, 2), (2, 20))))
    strategy = LevelPrune(0.9, criterion="synflow", scope="global", steps=30, schedule="geometric")
    small = ridurre.prune(strategy, model)
    assert all(k.any() for k in Masks.of(small).values())


def test_movement_keeps_what_grows() -> None:
    model = dense([[1], [1]])
    x = np.eye(2, dtype="float32")
    y = np.array([[2], [0]], "float32")  # the first weight has to grow, the second to vanish
    (found,) = get("movement").score_weights(*_asked(model), (x, y)).values()
    assert found[0, 0] > 0 > found[1, 0]
    np.testing.assert_array_equal(kernel(model), [[1], [1]])


def test_a_function_of_the_value_is_a_criterion() -> None:
    small = ridurre.prune(LevelPrune(0.5, criterion=lambda w: -np.abs(w)), dense([[1, 2], [3, 4]]))
    np.testing.assert_array_equal(kernel(small), [[1, 2], [0, 0]])


# --- the contract ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", WEIGHT_CRITERIA)
def test_every_criterion_in_every_scope_is_exact_and_leaves_the_model_alone(
    name: str, scope: str
) -> None:
    model = net()
    before = snapshot(model)
    strategy = LevelPrune(0.47, criterion=name, scope=scope, data=data_for(model))
    small = ridurre.prune(strategy, model)
    sizes = {w.layer: w.size for w in weights_of(model)}
    lost = gone(small)
    if scope == "local":
        assert lost == {n: int(np.floor(0.47 * size + 0.5)) for n, size in sizes.items()}
    elif scope == "output":
        outputs = {w.layer: w.outputs for w in weights_of(model)}
        per_output = {n: int(np.floor(0.47 * sizes[n] / outputs[n] + 0.5)) for n in sizes}
        assert lost == {n: per_output[n] * outputs[n] for n in sizes}
    else:
        assert sum(lost.values()) == int(np.floor(0.47 * sum(sizes.values()) + 0.5))
    assert snapshot(model) == before
    twice = ridurre.prune(strategy, model)
    assert Masks.of(twice) == Masks.of(small)


@pytest.mark.parametrize("name", WEIGHT_CRITERIA)
def test_weights_that_stay_are_not_touched(name: str) -> None:
    model = net()
    small = ridurre.prune(LevelPrune(0.5, criterion=name, data=data_for(model)), model)
    for a, b in zip(model.weights, small.weights, strict=True):
        a, b = to_numpy(a), to_numpy(b)
        np.testing.assert_array_equal(a[b != 0], b[b != 0])


@given(st.lists(st.sampled_from([0.0, 1.0, 1.5, 2.0]), min_size=1, max_size=40), st.data())
@settings(max_examples=200, deadline=None)
def test_lowest_is_exact_and_deterministic(values: list[float], data: Any) -> None:
    scores = np.array(values)
    count = data.draw(st.integers(0, len(values)))
    expected = np.zeros(len(values), bool)
    expected[sorted(range(len(values)), key=lambda i: (values[i], i))[:count]] = True
    np.testing.assert_array_equal(lowest(scores, count), expected)


@pytest.mark.parametrize("level", [0.0, 0.003, 0.3, 0.5, 0.97, 1.0])
def test_sparsity_is_exact_to_one_weight(level: float) -> None:
    model = net()
    small = ridurre.prune(LevelPrune(level, scope="global"), model)
    assert abs(sum(gone(small).values()) - level * Masks.of(model).size) <= 0.5


def test_steps_end_where_one_step_does() -> None:
    model = net()
    once = ridurre.prune(LevelPrune(0.8), model)
    for schedule in ("linear", "geometric", "cubic"):
        assert Masks.of(ridurre.prune(LevelPrune(0.8, steps=4, schedule=schedule), model)) == (
            Masks.of(once)
        )


def test_steps_go_by_the_schedule() -> None:
    model = net()
    found = [m.sparsity for _, m in LevelPrune(0.8, steps=4, schedule="geometric").each_step(model)]
    np.testing.assert_allclose(found, [1 - 0.2 ** (k / 4) for k in (1, 2, 3, 4)], atol=0.01)


# --- densities, patterns, blocks ------------------------------------------------------------------


def test_erk_keeps_in_proportion_to_dimensions_over_size() -> None:
    model = dense(np.ones((30, 40)), np.ones((40, 10)), np.ones((10, 4)))
    masks = Masks.of(ridurre.prune(LevelPrune(0.75, scope="erk"), model))
    density = [k.mean() for k in masks.values()]
    assert density[2] == 1  # (10 + 4) / 40 would be more than everything
    np.testing.assert_allclose(density[0] / density[1], (70 / 1200) / (50 / 400), rtol=0.02)


def test_uniform_plus_spares_the_ends() -> None:
    model = dense(np.ones((5, 10)), np.ones((10, 40)), np.ones((40, 10)))
    first, middle, last = Masks.of(ridurre.prune(LevelPrune(0.8, scope="uniform+"), model)).values()
    assert first.all()
    assert last.mean() == pytest.approx(0.2, abs=0.01)
    assert middle.mean() == pytest.approx((0.2 * 850 - 50 - 80) / 400, abs=0.01)


def test_a_scope_that_keeps_more_than_asked_says_so() -> None:
    with pytest.raises(RequestError, match="cannot be had in this scope, which keeps at least"):
        ridurre.prune(LevelPrune(0.95, scope="uniform+"), dense(np.ones((9, 9)), np.ones((9, 2))))


def test_two_of_four_inputs_stay() -> None:
    model = dense([[1, 8], [2, 7], [3, 6], [4, 5], [-9, 1], [1, 1], [2, 3], [1, 2]])
    small = ridurre.prune(LevelPrune(pattern="2:4"), model)
    np.testing.assert_array_equal(
        kernel(small), [[0, 8], [0, 7], [3, 0], [4, 0], [-9, 0], [0, 0], [2, 3], [0, 2]]
    )


def test_n_of_m_goes_along_the_channels_that_a_convolution_reads(rng: Any) -> None:
    model = keras.Sequential(
        [keras.Input((5, 5, 3)), L.Conv2D(8, 3, name="rgb"), L.Conv2D(5, 3, name="d0")]
    )
    small = ridurre.prune(LevelPrune(pattern="4:8"), model)
    keep = kernel(small) != 0
    np.testing.assert_array_equal(keep.sum(axis=2), np.full((3, 3, 5), 4))
    assert (kernel(small, "rgb") != 0).all()  # three inputs are no multiple of eight


def test_a_pattern_that_fits_nowhere_says_so() -> None:
    with pytest.raises(RequestError, match="No weight has inputs .* in a multiple of 4"):
        ridurre.prune(LevelPrune(pattern="2:4"), dense(np.ones((3, 5))))


def test_blocks_live_or_die_together() -> None:
    model = dense([[9, 1, 1], [1, 1, 1], [2, 2, 2], [2, 2, 2], [0.1, 0.1, 7]])
    small = ridurre.prune(LevelPrune(0.5, block=(2, 2)), model)
    # means of blocks: 3, 1 | 2, 2 | 0.1, 7: the lowest three of six go, the first of equal ones
    np.testing.assert_array_equal(
        kernel(small), [[9, 1, 0], [1, 1, 0], [0, 0, 2], [0, 0, 2], [0, 0, 7]]
    )


# --- which weights are meant ----------------------------------------------------------------------


def test_kernels_only_unless_asked() -> None:
    model = net()
    small = ridurre.prune(LevelPrune(1.0), model)
    kernels = {id(w.variable) for w in weights_of(small)}
    for v in small.trainable_variables:
        assert (to_numpy(v) == 0).all() == (id(v) in kernels)
    small = ridurre.prune(LevelPrune(1.0, weights="all"), model)
    assert all((to_numpy(v) == 0).all() for v in small.trainable_variables)


def test_layers_can_be_chosen() -> None:
    model = net()
    lost = gone(ridurre.prune(LevelPrune(0.5, layers=["first", "he.d"]), model))
    assert lost == {"first": 68, "second": 0, "head": 7}
    by_layer = LevelPrune(0.5, layers=[model.get_layer("first"), model.layers[-1]])
    assert gone(ridurre.prune(by_layer, model)) == lost
    by_predicate = LevelPrune(0.5, weights=lambda v: len(v.shape) == 2)
    assert set(by_predicate.masks(model)) == {w.path for w in weights_of(model, "head")}


def test_frozen_layers_are_pruned_and_stay_frozen() -> None:
    model = net()
    model.get_layer("first").trainable = False
    small = ridurre.prune(LevelPrune(0.5), model)
    assert gone(small)["first"] == 68
    assert not small.get_layer("first").trainable


def test_subclassed_models_can_be_pruned() -> None:
    model = Subclassed()
    model.build((None, 3))
    small = ridurre.prune(LevelPrune(0.5), model)
    assert isinstance(small, Subclassed)
    assert gone(small) == {"Dense_0": 8, "Dense_1": 5}
    assert gone(model) == {"Dense_0": 0, "Dense_1": 0}
    assert gone(ridurre.prune(LevelPrune(0.5, layers=model.one.name), model))["Dense_1"] == 0
    assert LevelPrune(0.5).masks(model) == Masks.of(small)


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.one, self.two = L.Dense(5), L.Dense(2)

    def build(self, shape: Any) -> None:
        self.one.build(shape)
        self.two.build((None, 5))

    def call(self, x: Any) -> Any:
        return self.two(self.one(x))


def test_every_kind_of_kernel_is_found() -> None:
    inputs = keras.Input((6,), dtype="int32")
    x = L.Embedding(9, 4, name="table")(inputs)
    x = L.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = L.Bidirectional(L.LSTM(3, return_sequences=True), name="both")(x)
    x = L.SeparableConv1D(5, 3, name="separable")(x)
    x = L.LayerNormalization()(x)
    model = keras.Model(inputs, L.Dense(2, name="head")(x))
    found: dict[str, int] = {}
    for w in weights_of(model):
        found[w.layer] = found.get(w.layer, 0) + 1
    assert found == {"table": 1, "attention": 4, "both": 4, "separable": 2, "head": 1}
    small = ridurre.prune(LevelPrune(0.5), model)
    assert Masks.of(small).sparsity == pytest.approx(0.5, abs=0.01)


def test_prunable_layers_are_those_that_make_channels() -> None:
    inputs = keras.Input((6, 6, 3))
    x = L.Conv2D(5, 3, name="a")(inputs)
    x = L.DepthwiseConv2D(3, name="depthwise")(x)
    x = L.SeparableConv2D(7, 2, name="b")(x)
    model = keras.Model(inputs, L.Dense(2, name="head")(L.Flatten()(x)))
    space = ridurre.DependencyGraph(model).trace.space
    makers = list(dict.fromkeys(w.layer for w in space.weights.values() if w.role == "out"))
    assert prunable_layers(model) == makers == ["a", "b", "head"]


# --- lists, mixtures, stages ----------------------------------------------------------------------


def test_a_list_is_one_strategy_per_layer() -> None:
    model = net()
    small = ridurre.prune([LevelPrune(0.4), LevelPrune(0.6), LevelPrune(0.7)], model)
    assert gone(small) == {"first": 54, "second": 84, "head": 10}
    small = ridurre.prune([None, LevelPrune(0.6), None], model)
    assert gone(small) == {"first": 0, "second": 84, "head": 0}


def test_a_dictionary_names_layers() -> None:
    small = ridurre.prune({"first": LevelPrune(0.4), "he.d": ThresholdPrune(0.0)}, net())
    assert gone(small) == {"first": 54, "second": 0, "head": 0}
    model = net()
    small = ridurre.prune({model.get_layer("head"): LevelPrune(0.5)}, model)
    assert gone(small) == {"first": 0, "second": 0, "head": 7}


def test_channels_and_levels_mix() -> None:
    model = dense(np.eye(10) + 1, np.ones((10, 8)), np.arange(1, 25).reshape(8, 3))
    small = ridurre.prune([ChannelPrune(0.3), ChannelPrune(0.5), LevelPrune(0.75)], model)
    assert [kernel(small, f"d{i}").shape for i in range(3)] == [(10, 7), (7, 4), (4, 3)]
    # a quarter of the original 24 weights stays, the largest of those whose inputs are left
    left = kernel(small, "d2")
    assert np.count_nonzero(left) == 6
    assert set(left[left != 0]) == set(range(19, 25))


def test_a_level_below_what_the_neighbours_took_takes_nothing() -> None:
    model = dense(np.eye(10) + 1, np.ones((10, 3)))
    small = ridurre.prune([ChannelPrune(0.5), LevelPrune(0.4)], model)
    assert kernel(small, "d1").shape == (5, 3)
    assert (kernel(small, "d1") != 0).all()


def test_stages_are_of_the_original() -> None:
    model = dense(np.eye(10) + 1, np.ones((10, 20)), np.arange(1, 61).reshape(20, 3))
    stages = [
        [ChannelPrune(0.1), ChannelPrune(0.1), LevelPrune(0.4)],
        [ChannelPrune(0.2), ChannelPrune(0.3), LevelPrune(0.7)],
    ]
    widths: list[list[int]] = []

    def finetune(candidate: keras.Model) -> bool:
        widths.append([kernel(candidate, f"d{i}").shape[1] for i in range(2)])
        return len(widths) != 2  # the second stage needs two tries

    small = ridurre.iterative_prune(finetune, stages, model, max_tries=5)
    assert widths == [[9, 18], [8, 14], [8, 14]]
    assert np.count_nonzero(kernel(small, "d2")) == 18
    assert kernel(model, "d0").shape == (10, 10)


def test_the_calls_that_users_write() -> None:
    model = net()

    def finetune(candidate: keras.Model) -> bool:
        return candidate is not model

    small = ridurre.prune(ridurre.LevelPrune(0.7), model)
    assert gone(small) == {"first": 95, "second": 98, "head": 10}
    small = ridurre.prune(ridurre.ThresholdPrune(0.5), model)
    for w in weights_of(small):
        before = to_numpy(model.get_layer(w.layer).kernel)
        np.testing.assert_array_equal(w.value, np.where(np.abs(before) < 0.5, 0, before))
    small = ridurre.prune(
        [ridurre.LevelPrune(0.4), ridurre.LevelPrune(0.6), ridurre.LevelPrune(0.7)], model
    )
    assert gone(small) == {"first": 54, "second": 84, "head": 10}
    small = ridurre.prune(
        [ridurre.ChannelPrune(0.3), ridurre.ChannelPrune(0.4), ridurre.LevelPrune(0.8)], model
    )
    assert {w.layer: w.shape[-1] for w in weights_of(small)} == {"first": 4, "second": 5, "head": 2}
    assert np.count_nonzero(kernel(small, "head")) == 3
    stages = [
        [ridurre.ChannelPrune(0.1), ridurre.ChannelPrune(0.1), ridurre.LevelPrune(0.4)],
        [ridurre.ChannelPrune(0.2), ridurre.ChannelPrune(0.3), ridurre.LevelPrune(0.7)],
    ]
    small = ridurre.iterative_prune(finetune, stages, model, max_tries=5)
    assert {w.layer: w.shape[-1] for w in weights_of(small)} == {"first": 4, "second": 5, "head": 2}
    assert np.count_nonzero(kernel(small, "head")) == 4


def test_targets_of_stages_are_of_the_original() -> None:
    model = residual()
    stages = [ChannelPrune(target=ridurre.Params(0.8)), ChannelPrune(target=ridurre.Params(0.6))]
    small = ridurre.iterative_prune(lambda m: True, stages, model)
    whole, part = (ridurre.model_complexity(m).parameters for m in (model, small))
    assert 0.45 * whole < part <= 0.6 * whole


def test_a_stage_that_fails_gives_the_one_before() -> None:
    tries: list[float] = []

    def finetune(candidate: keras.Model) -> bool:
        tries.append(Masks.of(candidate).sparsity)
        return tries[-1] < 0.5

    model = net()
    with pytest.warns(ridurre.RidurreWarning, match="Stage 2 of 3 was not good enough after 3"):
        small = ridurre.iterative_prune(
            finetune, [LevelPrune(0.3), LevelPrune(0.6), LevelPrune(0.9)], model, max_tries=3
        )
    assert len(tries) == 4
    assert Masks.of(small).sparsity == pytest.approx(0.3, abs=0.01)
    with pytest.warns(ridurre.RidurreWarning, match="Stage 1 of 1"):
        same = ridurre.iterative_prune(lambda m: False, [LevelPrune(0.3)], model, max_tries=1)
    assert Masks.of(same).sparsity == 0
    assert same is not model


def test_training_in_a_stage_keeps_zeros_and_changes_the_rest() -> None:
    model = net()
    x, y = data_for(model)

    def finetune(candidate: keras.Model) -> bool:
        candidate.compile(keras.optimizers.SGD(0.05, momentum=0.9, weight_decay=0.1), "mse")
        candidate.fit(x, y, epochs=2, verbose=0)
        return True

    untrained = ridurre.prune(LevelPrune(0.5), model)
    small = ridurre.iterative_prune(finetune, [LevelPrune(0.5)], model)
    assert Masks.of(small) == Masks.of(untrained)
    assert not np.allclose(kernel(small, "first"), kernel(untrained, "first"))
    small.fit(x, y, verbose=0)
    assert Masks.of(small).sparsity < 0.1  # and afterwards nothing is left of the guard


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, [LevelPrune(0.5)]), "finetune to be a function"),
        ((lambda m: None, [LevelPrune(0.5)]), "to return True .* or False. Received: None"),
        ((lambda m: 0.93, [LevelPrune(0.5)]), "Received: 0.93"),
        ((lambda m: True, 3), "stages to be a list"),
        ((lambda m: True, [0.5]), "Expected a strategy"),
    ],
)
def test_stages_that_make_no_sense(arguments: tuple, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        ridurre.iterative_prune(*arguments, net())
    with pytest.raises(RequestError, match="max_tries"):
        ridurre.iterative_prune(lambda m: True, [], net(), max_tries=0)


# --- recovery -------------------------------------------------------------------------------------


def test_least_squares_refits_around_the_zeros(rng: Any) -> None:
    model = dense(rng.normal(size=(6, 3)))
    x = (rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6))).astype("float32")
    masks = LevelPrune(0.5).masks(model)
    pruned = ridurre.prune(LevelPrune(0.5), model)
    fixed = ridurre.recover(pruned, model, masks, x, ridge=1e-9)
    (keep,) = masks.values()
    expected = np.zeros((6, 3))
    for o in range(3):
        at = keep[:, o]
        y = x.astype("float64") @ kernel(model)[:, o]
        expected[at, o] = np.linalg.lstsq(x[:, at].astype("float64"), y, rcond=None)[0]
    np.testing.assert_allclose(kernel(fixed), expected, rtol=1e-3, atol=1e-3)


def test_repair_between_steps_helps_and_keeps_the_masks() -> None:
    model = net()
    x, _ = data_for(model, 200)

    def error(**options: Any) -> float:
        small = ridurre.prune(LevelPrune(0.7, data=x, **options), model)
        assert sum(gone(small).values()) == sum(
            gone(ridurre.prune(LevelPrune(0.7), model)).values()
        )
        return float(np.square(small.predict(x, verbose=0) - model.predict(x, verbose=0)).mean())

    plain, repaired = error(), error(recover="least_squares")
    stepwise = error(criterion="obs", recover="least_squares", steps=3)
    assert stepwise < repaired < plain


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "strategy",
    [
        LevelPrune(0.7),
        LevelPrune(0.7, criterion=get("l2"), scope="global", layers=["a", "b"]),
        LevelPrune(pattern="2:4", steps=2),
        LevelPrune(0.5, block=(4, 1), recover={"how": "mean", "samples": 7}),
        ThresholdPrune(0.5, criterion="lamp"),
        ChannelPrune(0.3),
        ChannelPrune({"a": 0.5, "b": 0.25}),
        ChannelPrune(target=ridurre.MACs(0.5), scope="global", cost="macs"),
        ChannelPrune(target=[ridurre.Params(0.5), ridurre.FileSize(0.25)], criterion="fpgm"),
        ChannelPrune(ridurre.Bins((1, 8, 16), (0.1, 0.5))),
    ],
)
def test_strategies_are_values(strategy: Any) -> None:
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(strategy)))
    again = keras.saving.deserialize_keras_object(config)
    assert again == strategy
    assert hash(again) == hash(strategy)
    assert repr(again) == repr(strategy)
    assert strategy not in (LevelPrune(0.1), ChannelPrune(0.1), ThresholdPrune(0.1))


def test_strategies_print_as_they_are_written() -> None:
    assert repr(LevelPrune(0.7)) == "LevelPrune(0.7)"
    assert repr(ThresholdPrune(0.5, criterion="lamp")) == "ThresholdPrune(0.5, criterion='lamp')"
    data = np.ones((2, 3))
    assert repr(ChannelPrune(0.3, scope="global", data=data)) == "ChannelPrune(0.3, scope='global')"


def test_masks_are_values() -> None:
    masks = LevelPrune(0.5).masks(net())
    assert Masks.from_dict(json.loads(json.dumps(masks.to_dict()))) == masks
    assert "50." in str(masks).splitlines()[-1]
    assert masks & Masks.of(net()) == masks
    assert masks | Masks.of(net()) == Masks.of(net())
    with pytest.raises(ValueError, match="read-only"):
        next(iter(masks.values()))[:] = True


def test_a_pruned_model_can_be_verified() -> None:
    model = net()
    masks = LevelPrune(0.5).masks(model)
    pruned = ridurre.prune(LevelPrune(0.5), model)
    assert ridurre.verify(model, pruned, masks) == 0
    with pytest.raises(ridurre.RidurreError, match="differs from the original"):
        ridurre.verify(model, pruned, LevelPrune(0.6).masks(model))


def test_masks_of_another_model_are_refused() -> None:
    one, other = (LevelPrune(0.5).masks(dense(np.ones((n, 5)))) for n in (3, 4))
    for both in (lambda: one & other, lambda: one | other):
        with pytest.raises(PlanMismatchError, match="has the shape"):
            both()
    masks = LevelPrune(0.5).masks(dense(np.ones((3, 5))))
    with pytest.raises(PlanMismatchError, match="not of the model"):
        masks.assign(net())


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LevelPrune(1.5), r"level in \[0, 1\]. Received: 1.5"),
        (lambda: LevelPrune(-0.1), "Received: -0.1"),
        (lambda: LevelPrune("half"), "Received: 'half'"),
        (LevelPrune, "Expected a level"),
        (lambda: LevelPrune(0.5, pattern="2:4"), "Expected a level"),
        (lambda: LevelPrune(pattern="4:2"), "0 < n < m"),
        (lambda: LevelPrune(pattern=24), "Received: 24"),
        (lambda: LevelPrune(0.5, block=3), "Expected a block"),
        (lambda: LevelPrune(0.5, block=(0, 1)), "Expected a block"),
        (lambda: LevelPrune(0.5, scope="globl"), "Did you mean 'global'"),
        (lambda: LevelPrune(0.5, criterion="l3"), "Expected a criterion"),
        (lambda: LevelPrune(0.5, criterion="fpgm"), "FPGM scores channels, not single weights"),
        (lambda: LevelPrune(0.5, criterion="wanda"), "Wanda needs data"),
        (lambda: LevelPrune(0.5, steps=1.5), "steps"),
        (lambda: LevelPrune(0.5, schedule="slow"), "Expected a schedule"),
        (lambda: LevelPrune(0.5, data="pictures"), "Expected data as model.fit takes them"),
        (lambda: ThresholdPrune(-1), "Received: -1"),
        (lambda: ThresholdPrune("small"), "Received: 'small'"),
    ],
    ids=range(18),
)
def test_arguments_that_make_no_sense(make: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make()


def test_models_and_data_that_make_no_sense() -> None:
    model = net()
    x, y = data_for(model)
    before = snapshot(model)
    for strategy, message in (
        (LevelPrune(0.5, layers="nowhere"), "no layer 'nowhere'"),
        (LevelPrune(0.5, weights="biases"), "Expected weights to be"),
        (LevelPrune(0.5, criterion=lambda w: w * np.nan), "scores.* 135 of 135 values NaN. If"),
        (LevelPrune(0.5, criterion=lambda w: w[0]), r"no usable scores.*the shape \(3, 3, 5\)"),
        (LevelPrune(0.5, criterion="snip", data=x), "needs labels"),
        ([LevelPrune(0.5)], "one strategy per layer, 3 in all"),
        ({"first": 0.5}, "Received: 0.5"),
    ):
        with pytest.raises(ridurre.RidurreError, match=message):
            ridurre.prune(strategy, model)
    assert snapshot(model) == before
    model.compile()
    with pytest.raises(ModelError, match="not compiled with a loss"):
        ridurre.prune(LevelPrune(0.5, criterion="snip", data=(x, y)), model)
    with pytest.raises(NothingToPruneError, match="no weights to prune"):
        inputs = keras.Input((3,))
        ridurre.prune(LevelPrune(0.5), keras.Model(inputs, L.ReLU()(inputs)))


def test_quantised_weights_are_refused() -> None:
    model = dense(np.ones((4, 4)))
    model.layers[0].quantize("int8")
    with pytest.raises(ModelError, match="quantised"):
        ridurre.prune(LevelPrune(0.5), model)


def test_kernels_that_cannot_be_looked_at_are_named() -> None:
    inputs = keras.Input((5, 3))
    model = keras.Model(inputs, L.Dense(2)(L.LSTM(4, name="cells")(inputs)))
    x = np.ones((4, 5, 3), "float32")
    with pytest.raises(RequestError, match="Wanda cannot score these weights: .*cells"):
        ridurre.prune(LevelPrune(0.5, criterion="wanda", data=x), model)


def test_flow_that_does_not_arrive_is_named() -> None:
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.ops.softmax(L.Dense(2)(inputs)))
    with pytest.raises(RequestError, match="Synaptic flow does not get through"):
        ridurre.prune(LevelPrune(0.5, criterion="synflow"), model)
