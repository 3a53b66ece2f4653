"""Masks from importances: which weights go, how many, and the classes that users write."""

from typing import Any

import keras
import numpy as np
import pytest
from builders import L, pictures, predict
from builders import chain as convolutions

import ridurre
from ridurre import strategies
from ridurre.errors import (
    NotAModelError,
    NothingToPruneError,
    PlanMismatchError,
    RequestError,
    UnknownLayerError,
)
from ridurre.strategies import (
    ActivationMixin,
    ActivationNormChannelPruning,
    GlobalMagAct,
    GlobalMagGrad,
    GlobalMagWeight,
    GlobalPruning,
    GradientMixin,
    LayerMagAct,
    LayerMagGrad,
    LayerMagWeight,
    LayerPruning,
    Pruning,
    RandomPruning,
    VisionPruning,
    WeightNormChannelPruning,
    activation_importance,
    channel_norms,
    flatten_importances,
    fraction_mask,
    fraction_threshold,
    importance_masks,
    map_importances,
    threshold_mask,
)
from ridurre.testing import randomise, snapshot

pytestmark = pytest.mark.core

SINGLE = (
    RandomPruning,
    GlobalMagWeight,
    LayerMagWeight,
    GlobalMagGrad,
    LayerMagGrad,
    GlobalMagAct,
    LayerMagAct,
)
CHANNELS = (WeightNormChannelPruning, ActivationNormChannelPruning)
SIZES = {"d0": 15, "d1": 35, "head": 14}  # kernels of `dense`, and 14 biases: 78 in all


def dense(**options: Any) -> keras.Model:
    """Two hidden layers of 5 and 7 units that read 3 numbers; kernels are ±1 … ±50 in disorder."""
    inputs = keras.Input((3,))
    x = L.Dense(5, name="d0", **options)(inputs)
    x = L.Dense(7, name="d1", **options)(x)
    model = keras.Model(inputs, L.Dense(2, name="head")(x), name="dense")
    randomise(model)
    values = np.random.default_rng(1).permutation(np.arange(1.0, 51)) * np.tile([1, -1], 25)
    model.get_layer("d0").kernel.assign(values[:15].reshape(3, 5))
    model.get_layer("d1").kernel.assign(values[15:].reshape(5, 7))
    return model


def samples(model: keras.Model, count: int = 9) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    shapes = [(count, *t.shape[1:]) for t in (model.inputs[0], model.outputs[0])]
    x, y = (rng.normal(size=s).astype("float32") for s in shapes)
    return x, y


def values(model: keras.Model, layer: str, name: str = "kernel") -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(getattr(model.get_layer(layer), name)))


def kept(masks: ridurre.Masks, layer: str, name: str = "kernel") -> np.ndarray:
    (path,) = [p for p in masks if p.endswith(f"{layer}/{name}")]
    return masks[path]


def largest(scores: np.ndarray, count: int) -> np.ndarray:
    """True for the so many largest; no two are equal."""
    order = np.argsort(scores, axis=None)[::-1][:count]
    found = np.zeros(scores.size, bool)
    found[order] = True
    return found.reshape(scores.shape)


def check_global(masks: ridurre.Masks, scores: dict[str, np.ndarray], count: int) -> None:
    expected = largest(np.concatenate([s.ravel() for s in scores.values()]), count)
    found = np.concatenate([kept(masks, layer).ravel() for layer in scores])
    np.testing.assert_array_equal(found, expected)


def check_layers(masks: ridurre.Masks, scores: dict[str, np.ndarray], **counts: int) -> None:
    for layer, score in scores.items():
        np.testing.assert_array_equal(kept(masks, layer), largest(score, counts[layer]))


# --- which weights go -----------------------------------------------------------------------------


def test_global_magnitude_ranks_all_layers_together() -> None:
    model = dense()
    # 78 / 2 = 39 parameters remain, 14 of the head's kernel and 14 biases among them.
    masks = GlobalMagWeight(model, compression=2).masks()
    assert masks.kept == 11
    for layer in ("d0", "d1"):
        np.testing.assert_array_equal(kept(masks, layer), np.abs(values(model, layer)) >= 40)


def test_layer_magnitude_takes_the_same_fraction_everywhere() -> None:
    model = dense()
    model.get_layer("d0").kernel.assign(values(model, "d0") / 1000)
    masks = LayerMagWeight(model, compression=2).masks()
    scores = {layer: np.abs(values(model, layer)) for layer in ("d0", "d1")}
    check_layers(masks, scores, d0=3, d1=8)  # 0.22 · 15 = 3.3, 0.22 · 50 = 11


def gradients(model: keras.Model, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Of the mean of ⟨y, f(x)⟩ over samples, f linear; worked out by hand."""
    w1, w2 = values(model, "d1"), values(model, "head")
    hidden = x @ values(model, "d0") + values(model, "d0", "bias")
    return {
        "d0": x.T @ (y @ w2.T @ w1.T) / len(x),
        "d1": hidden.T @ (y @ w2.T) / len(x),
    }


def inner_product(y_true: Any, y_pred: Any) -> Any:
    return keras.ops.sum(y_true * y_pred, axis=-1)


def test_gradients_are_those_of_all_samples() -> None:
    model = dense()
    x, y = samples(model, 33)  # the batches of fit would be 32 and 1
    strategy = GlobalMagGrad(model, x, y, loss=inner_product)
    found, expected = strategy.params_gradients(), gradients(model, x, y)
    for layer in ("d0", "d1"):
        gradient = found[model.get_layer(layer)]["kernel"]
        np.testing.assert_allclose(gradient, expected[layer], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(strategy.module_param_gradients(layer)["kernel"], gradient)
    assert list(found) == strategy.prunable
    assert model.get_layer("head") in strategy.param_gradients(only_prunable=False)


def test_gradients_times_weights() -> None:
    model = dense()
    x, y = samples(model)
    options = {"compression": 2, "loss": inner_product}
    expected = gradients(model, x, y)
    scores = {layer: np.abs(values(model, layer) * g) for layer, g in expected.items()}
    check_global(GlobalMagGrad(model, x, y, **options).masks(), scores, 11)
    check_layers(LayerMagGrad(model, x, y, **options).masks(), scores, d0=3, d1=8)


def test_activations_times_weights() -> None:
    model = dense(activation="relu")
    x, _ = samples(model)
    hidden = np.maximum(x @ values(model, "d0") + values(model, "d0", "bias"), 0)
    outputs = np.maximum(hidden @ values(model, "d1") + values(model, "d1", "bias"), 0)
    scores = {
        "d0": np.abs(values(model, "d0")) * hidden.mean(axis=0),
        "d1": np.abs(values(model, "d1")) * outputs.mean(axis=0),
    }
    assert len(np.unique(scores["d1"])) > 11
    check_global(GlobalMagAct(model, x, compression=2).masks(), scores, 11)
    check_layers(LayerMagAct(model, x, compression=2).masks(), scores, d0=3, d1=8)


def test_activations_of_layers() -> None:
    model = convolutions()
    randomise(model)
    x = pictures(model, 35)  # more than go through the model at once
    strategy = GlobalMagAct(model, x)
    inputs, outputs = strategy.module_activations("a")
    assert inputs.shape == (35, 6, 8, 3)
    assert outputs.shape == (35, 4, 6, 5)
    np.testing.assert_array_equal(inputs, x)
    inner = keras.Model(model.input, model.get_layer("a").output)
    np.testing.assert_allclose(outputs, predict(inner, x), rtol=1e-4, atol=1e-5)
    assert list(strategy.activations()) == strategy.prunable
    assert model.get_layer("head") in strategy.activations(only_prunable=False)
    means = strategy.channel_activations()[model.get_layer("a")]
    np.testing.assert_allclose(means, np.abs(outputs).mean(axis=(0, 1, 2)), rtol=1e-4)


def test_random_weights_by_seed() -> None:
    model = dense()
    first, again, other = (RandomPruning(model, compression=2, seed=s).masks() for s in (3, 3, 4))
    assert first == again
    assert first != other
    assert first.kept == other.kept == 11
    small = largest(np.abs(np.concatenate([values(model, n).ravel() for n in ("d0", "d1")])), 11)
    assert not np.array_equal(np.concatenate([k.ravel() for k in first.values()]), small)


def test_random_pruning_is_even() -> None:
    model = dense()
    times = [RandomPruning(model, compression=2, seed=s).masks() for s in range(200)]
    share = np.mean([kept(m, "d1") for m in times], axis=0)
    assert share.shape == (5, 7)
    assert 0.1 < share.min() < share.max() < 0.36  # 0.22 and four standard deviations


def test_filters_of_smallest_norm() -> None:
    model = convolutions()
    randomise(model)
    sizes = {"a": [5, 1, 4, 2, 3], "b": [0.3, 0.7, 0.1, 0.6, 0.2, 0.5, 0.4]}
    for name, norms in sizes.items():
        kernel = model.get_layer(name).kernel
        kernel.assign(np.broadcast_to(norms, kernel.shape))
    # a channel of a has 28 weights, one of b 46; bn has 10, the head 16: 488 in all
    strategy = WeightNormChannelPruning(model, compression=488 / (26 + 3 * 28 + 4 * 46))
    masks = strategy.masks()
    for layer, gone in (("a", [1, 3]), ("b", [2, 4, 0])):
        keep = np.ones(len(sizes[layer]), bool)
        keep[gone] = False
        np.testing.assert_array_equal(kept(masks, layer, "bias"), keep)
        np.testing.assert_array_equal(
            kept(masks, layer),
            np.broadcast_to(keep, (3, 3, 1, keep.size)) & np.ones(kept(masks, layer).shape, bool),
        )
    assert masks.kept == 3 * 28 + 4 * 46
    inner = strategy.apply()
    outputs = predict(keras.Model(inner.input, inner.get_layer("a").output), pictures(model))
    np.testing.assert_array_equal((outputs == 0).all(axis=(0, 1, 2)), [0, 1, 0, 1, 0])


def test_filters_by_the_norm_that_is_asked_for() -> None:
    inputs = keras.Input((3,))
    model = keras.Model(inputs, L.Dense(2)(L.Dense(2, use_bias=False, name="d0")(inputs)))
    model.get_layer("d0").kernel.assign([[3, 2], [0, 2], [0, 0]])  # L1 3 and 4, L2 3 and 2.8
    for norm, expected in ((1, [False, True]), (2, [True, False])):
        masks = WeightNormChannelPruning(model, compression=12 / 9, norm=norm).masks()
        np.testing.assert_array_equal(kept(masks, "d0")[0], expected)


def test_channels_of_smallest_activation() -> None:
    model = dense()
    x, _ = samples(model)
    outputs = x @ values(model, "d0") + values(model, "d0", "bias")
    strategy = ActivationNormChannelPruning(model, x, compression=1.5, norm=2)
    masks, means = strategy.masks(), strategy.channel_activations()[model.get_layer("d0")]
    np.testing.assert_allclose(means, np.sqrt(np.square(outputs).mean(axis=0)), rtol=1e-4)
    keep = kept(masks, "d0", "bias")
    np.testing.assert_array_equal(keep, largest(np.square(outputs).mean(axis=0), keep.sum()))
    np.testing.assert_array_equal(kept(masks, "d0"), np.tile(keep, (3, 1)))
    assert 0 < keep.sum() < 5


@pytest.mark.parametrize(
    ("layer", "kernel"),
    [
        (L.DepthwiseConv2D(3, depth_multiplier=2, name="a"), (3, 3, 3, 2)),
        (L.Conv2DTranspose(5, 3, name="a"), (3, 3, 5, 3)),
        (L.Conv2D(6, 3, groups=3, name="a"), (3, 3, 1, 6)),
    ],
)
@pytest.mark.parametrize("cls", CHANNELS)
def test_channels_of_other_convolutions_are_silenced(cls: Any, layer: Any, kernel: Any) -> None:
    inputs = keras.Input((6, 8, 3))
    x = type(layer).from_config(layer.get_config())(inputs)
    model = keras.Model(inputs, L.Dense(2, name="head")(L.GlobalAveragePooling2D()(x)))
    randomise(model)
    x = pictures(model)
    total = model.count_params()
    strategy = cls(model, x, compression=total / (total - 2 * (np.prod(kernel) // 6 + 1)))
    masks, pruned = strategy.masks(), strategy.apply()
    keep = kept(masks, "a", "bias")
    outputs = predict(keras.Model(pruned.input, pruned.get_layer("a").output), x)
    np.testing.assert_array_equal((outputs == 0).all(axis=(0, 1, 2)), ~keep)
    assert 0 < keep.sum() < keep.size
    whole = predict(keras.Model(model.input, model.get_layer("a").output), x)
    np.testing.assert_allclose(outputs[..., keep], whole[..., keep], rtol=1e-4, atol=1e-5)
    if cls is ActivationNormChannelPruning:
        np.testing.assert_array_equal(keep, largest(np.abs(whole).mean((0, 1, 2)), keep.sum()))


def test_activations_find_the_channels_of_depthwise_kernels() -> None:
    inputs = keras.Input((6, 8, 3))
    x = L.DepthwiseConv2D(3, depth_multiplier=2, name="a")(inputs)
    model = keras.Model(inputs, L.Dense(2, name="head")(L.GlobalAveragePooling2D()(x)))
    randomise(model)
    x = pictures(model)
    strategy = LayerMagAct(model, x, compression=1.5)
    kernel, (_, outputs) = values(model, "a"), strategy.module_activations("a")
    means = np.abs(outputs).mean(axis=(0, 1, 2)).reshape(3, 2)  # by input, by multiple of it
    expected = largest(np.abs(kernel) * means, strategy.masks().kept)
    np.testing.assert_array_equal(kept(strategy.masks(), "a"), expected)


# --- how many -------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [1, 1.3, 2, 2.5, 2.71])
@pytest.mark.parametrize("cls", SINGLE)
def test_the_compression_is_met_to_one_weight(cls: Any, compression: float) -> None:
    model = dense()
    model.compile(loss="mse")
    before = snapshot(model)
    strategy = cls(model, *samples(model), compression=compression)
    pruned = strategy.apply()
    # By zeros in the result, among weights none of which was zero.
    zeros = sum(int((keras.ops.convert_to_numpy(w) == 0).sum()) for w in pruned.weights)
    assert abs(78 - zeros - 78 / compression) <= 0.5
    assert zeros == strategy.masks().size - strategy.masks().kept
    assert strategy.fraction == pytest.approx((78 / compression - 28) / 50)
    np.testing.assert_array_equal(values(pruned, "head"), values(model, "head"))
    assert snapshot(model) == before
    assert pruned.compiled


@pytest.mark.parametrize("cls", SINGLE)
def test_equal_scores_are_told_apart(cls: Any) -> None:
    model = dense()
    for layer in ("d0", "d1"):
        model.get_layer(layer).kernel.assign(np.ones(values(model, layer).shape))
    masks = cls(model, np.ones((4, 3)), np.ones((4, 2)), compression=2, loss="mse").masks()
    assert masks.kept == 11


def test_of_equal_weights_the_first_go() -> None:
    model = dense()
    model.get_layer("d0").kernel.assign(np.full((3, 5), 60))
    model.get_layer("d1").kernel.assign(np.full((5, 7), 60))
    masks = GlobalMagWeight(model, compression=2).masks()
    assert not kept(masks, "d0").any()
    np.testing.assert_array_equal(kept(masks, "d1").ravel(), np.arange(35) >= 24)


@pytest.mark.parametrize("cls", SINGLE)
def test_what_is_zero_goes_first(cls: Any) -> None:
    model = dense()
    model.compile(loss="mse")
    zero = np.arange(35).reshape(5, 7) % 3 == 0
    model.get_layer("d1").kernel.assign(np.where(zero, 0, values(model, "d1")))
    masks = cls(model, *samples(model), compression=78 / 62).masks()
    assert masks.kept == 34
    if cls not in (LayerMagWeight, LayerMagGrad, LayerMagAct):
        assert not kept(masks, "d1")[zero].any()


@pytest.mark.parametrize("compression", [1, 1.2, 2, 3, 4.8])
@pytest.mark.parametrize("cls", CHANNELS)
def test_channels_meet_the_compression_to_one_channel(cls: Any, compression: float) -> None:
    model = convolutions()
    randomise(model)
    before = snapshot(model)
    strategy = cls(model, pictures(model), compression=compression)
    masks, pruned = strategy.masks(), strategy.apply()
    remaining = 488 - masks.size + masks.kept
    assert abs(remaining - 488 / compression) <= 46 / 2
    for layer, total in (("a", 5), ("b", 7)):
        share = kept(masks, layer, "bias").sum()
        assert abs(share - strategy.fraction * total) <= 1
        assert share >= 1
        columns = kept(masks, layer).reshape(-1, total)
        np.testing.assert_array_equal(columns.all(axis=0), columns.any(axis=0))
    np.testing.assert_array_equal(values(pruned, "head"), values(model, "head"))
    np.testing.assert_array_equal(values(pruned, "bn", "gamma"), values(model, "bn", "gamma"))
    assert snapshot(model) == before


def test_the_classifier_and_other_weights_when_asked_for() -> None:
    model = dense()
    assert [x.name for x in GlobalMagWeight(model).prunable] == ["d0", "d1"]
    everything = GlobalMagWeight(model, compression=39, classifier=True, weights="all")
    assert [x.name for x in everything.prunable] == ["d0", "d1", "head"]
    assert everything.masks().kept == 2
    assert everything.masks().size == 78
    names = {layer.name: list(own) for layer, own in everything.params().items()}
    assert names == dict.fromkeys(SIZES, ["kernel", "bias"])


def test_the_classifier_is_found_in_the_graph() -> None:
    inputs = keras.Input((6, 8, 3))
    x = L.Conv2D(5, 3, name="a")(inputs)
    early = L.Dense(2, name="early")(L.GlobalAveragePooling2D()(x))
    inner_inputs = keras.Input((4, 6, 5))
    y = L.Conv2D(7, 3, name="b")(inner_inputs)
    y = L.Conv2D(3, 1, name="last")(y)
    inner = keras.Model(inner_inputs, L.GlobalAveragePooling2D()(y), name="inner")
    model = keras.Model(inputs, [L.Softmax()(inner(x)), L.ReLU()(early)])
    assert [x.name for x in GlobalMagWeight(model).prunable] == ["a", "b"]
    pruned = GlobalMagWeight(model, compression=1.5).apply()
    old, new = (m.get_layer("inner").get_layer("last").kernel for m in (model, pruned))
    np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (old, new)))


def test_other_layers_than_those_of_vision() -> None:
    class GlobalMagnitude(GlobalPruning):
        def importances(self) -> Any:
            return map_importances(np.abs, self.params())

    inputs = keras.Input((5, 3))
    x = L.MultiHeadAttention(3, 5, name="mha")(inputs, inputs)
    model = keras.Model(inputs, L.Dense(2, name="head")(x))
    randomise(model)
    with pytest.raises(NothingToPruneError, match="finds no layer to prune"):
        GlobalMagWeight(model)
    strategy = GlobalMagnitude(model, compression=2)
    names = {"kernel", "kernel_1", "kernel_2", "kernel_3"}
    assert strategy.module_params("mha").keys() == names
    remaining = model.count_params() - strategy.masks().size + strategy.masks().kept
    assert remaining == round(model.count_params() / 2)


@keras.saving.register_keras_serializable()
class Subclassed(keras.Model):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.first, self.second = L.Dense(5), L.Dense(2)

    def call(self, x: Any) -> Any:
        return self.second(self.first(x))

    def build(self, shape: Any) -> None:
        self.first.build(shape)
        self.second.build((None, 5))


def test_a_model_without_a_graph() -> None:
    model = Subclassed()
    model.build((None, 3))
    with pytest.raises(RequestError, match="classifier cannot be told"):
        GlobalMagWeight(model, compression=2)
    pruned = GlobalMagWeight(model, compression=2, classifier=True).apply()
    zeros = sum(int((keras.ops.convert_to_numpy(w) == 0).sum()) for w in pruned.weights)
    assert zeros == 16 + 7  # 32 parameters, 7 of them biases that are zero from the start


# --- classes that users write ---------------------------------------------------------------------


def test_the_ancestors_first_listing() -> None:
    class GlobalMagWeight(VisionPruning):
        def model_masks(self):  # type: ignore[no-untyped-def]
            importances = map_importances(np.abs, self.params())
            flat_importances = flatten_importances(importances)
            threshold = fraction_threshold(flat_importances, self.fraction)
            masks = importance_masks(importances, threshold)
            return masks

    for compression in (1, 1.3, 2, 2.71):
        own = GlobalMagWeight(dense(), compression=compression).masks()
        assert own == strategies.GlobalMagWeight(dense(), compression=compression).masks()


def test_the_ancestors_second_listing() -> None:
    class LayerMagWeight(LayerPruning, VisionPruning):
        def layer_masks(self, module):  # type: ignore[no-untyped-def]
            params = self.module_params(module)
            importances = {param: np.abs(value) for param, value in params.items()}
            masks = {
                param: fraction_mask(importances[param], self.fraction)
                for param, value in params.items()
                if value is not None
            }
            return masks

    own = LayerMagWeight(dense(), compression=2).masks()
    assert own == strategies.LayerMagWeight(dense(), compression=2).masks()


def test_the_ancestors_listing_with_gradients() -> None:
    class GlobalMagGrad(GradientMixin, VisionPruning):
        def model_masks(self):  # type: ignore[no-untyped-def]
            params = self.params()
            grads = self.param_gradients()
            importances = {
                mod: {p: np.abs(params[mod][p] * grads[mod][p]) for p in mod_params}  # noqa: PLR1733
                for mod, mod_params in params.items()
            }
            flat_importances = flatten_importances(importances)
            threshold = fraction_threshold(flat_importances, self.fraction)
            return importance_masks(importances, threshold)

    model = dense()
    data = samples(model)
    own = GlobalMagGrad(model, *data, compression=2, loss="mse").masks()
    assert own == strategies.GlobalMagGrad(model, *data, compression=2, loss="mse").masks()


BASES = [
    (GradientMixin, ActivationMixin, LayerPruning, VisionPruning),
    (VisionPruning, LayerPruning, ActivationMixin, GradientMixin),
    (LayerPruning, GradientMixin, VisionPruning, ActivationMixin),
]


@pytest.mark.parametrize("bases", BASES)
@pytest.mark.parametrize("kind", [float, bool, int])
def test_bases_in_any_order(bases: Any, kind: type) -> None:
    def layer_masks(self: Any, layer: keras.Layer) -> Any:
        inputs, _ = self.module_activations(layer)
        assert self.module_param_gradients(layer)["kernel"].shape == layer.kernel.shape
        seen = np.abs(inputs).mean(axis=0)[:, None]
        kernel = self.module_params(layer)["kernel"]
        return {"kernel": fraction_mask(np.abs(kernel) * seen, self.fraction).astype(kind)}

    cls = type("InputsTimesWeights", bases, {"layer_masks": layer_masks})
    model = dense()
    x, y = samples(model)
    masks = cls(model, x, y, compression=2, loss="mse").masks()
    expected = largest(np.abs(values(model, "d0") * np.abs(x).mean(axis=0)[:, None]), 3)
    np.testing.assert_array_equal(kept(masks, "d0"), expected)


def test_layers_of_ones_own_choice() -> None:
    class OnlyHead(GlobalMagWeight):
        def can_prune(self, layer: keras.Layer) -> bool:
            return layer.name == "head"

    model = dense()
    pruned = OnlyHead(model, compression=78 / 71).apply()
    np.testing.assert_array_equal(values(pruned, "d1"), values(model, "d1"))
    assert np.count_nonzero(values(pruned, "head")) == 7


def test_what_strategies_may_look_at() -> None:
    model = dense()
    strategy = GlobalMagWeight(model, compression=2)
    assert [x.name for x in strategy.params()] == ["d0", "d1"]
    whole = strategy.params(only_prunable=False)
    assert {x.name: own["kernel"].size for x, own in whole.items()} == SIZES
    kernel = strategy.module_params(model.get_layer("d0"))["kernel"]
    np.testing.assert_array_equal(kernel, values(model, "d0"))
    with pytest.raises(ValueError, match="read-only"):
        kernel[0, 0] = 1
    assert GlobalMagWeight(convolutions()).module_params("relu") == {}


# --- helpers --------------------------------------------------------------------------------------


def test_helpers() -> None:
    array = np.array([[0.1, -3, 2], [0.5, -0.2, 7]])
    assert fraction_threshold(array, 0.5) == 0.5  # 7, 2, 0.5
    assert fraction_threshold(array, 1) == -3
    assert fraction_threshold(array, 0) == np.inf
    expected = [[False, True, True], [True, False, True]]
    np.testing.assert_array_equal(threshold_mask(array, 0.5), expected)
    np.testing.assert_array_equal(fraction_mask(np.abs(array), 4 / 6), expected)
    np.testing.assert_array_equal(fraction_mask(np.ones(5), 0.4), [0, 0, 0, 1, 1])
    np.testing.assert_allclose(channel_norms(array), [0.6, 3.2, 9])
    np.testing.assert_allclose(channel_norms(array, 2), np.linalg.norm(array, axis=0))
    nested = {"a": {"kernel": array}, "b": {"kernel": np.arange(3), "bias": np.ones(1)}}
    np.testing.assert_array_equal(flatten_importances(nested)[-4:], [0, 1, 2, 1])
    doubled = map_importances(lambda x: 2 * x, nested)
    np.testing.assert_array_equal(doubled["b"]["kernel"], [0, 2, 4])
    masks = importance_masks(nested, 1)
    np.testing.assert_array_equal(masks["b"]["kernel"], [False, True, True])
    np.testing.assert_array_equal(masks["b"]["bias"], [True])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64"])
@pytest.mark.parametrize("fraction", [0, 0.1, 1 / 3, 0.5, 0.77, 1])
def test_a_threshold_keeps_exactly_so_many(dtype: str, fraction: float) -> None:
    array = (np.random.default_rng(0).permutation(105).reshape(3, 5, 7) + 1).astype(dtype) / 7
    masks = importance_masks({0: {"w": array}}, fraction_threshold(array, fraction))
    assert masks[0]["w"].sum() == np.floor(fraction * 105 + 0.5)
    np.testing.assert_array_equal(masks[0]["w"], fraction_mask(array, fraction))


def test_activation_importance() -> None:
    weight = np.array([[1.0, -2, 3], [-4, 5, -6]])
    activation = np.array([[[1.0, 0, -2]], [[-3, 0, 2]]])
    expected = np.abs(weight) * [2, 0, 2]
    np.testing.assert_allclose(activation_importance(weight, activation), expected)
    np.testing.assert_allclose(activation_importance(weight, np.array([2, 0, -2])), expected)
    with pytest.raises(RequestError, match="output channels"):
        activation_importance(weight, np.ones((4, 5)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fraction_threshold([1, np.nan], 0.5), "without NaN"),
        (lambda: fraction_threshold([], 0.5), "cannot be ranked"),
        (lambda: fraction_threshold([1.0], 1.5), r"fraction in \[0, 1\]. Received: 1.5"),
        (lambda: fraction_mask([1, np.nan], 0.5), "without NaN"),
        (lambda: fraction_mask(["a"], 0.5), "array of numbers"),
        (lambda: threshold_mask([1.0], np.nan), "Expected a threshold"),
        (lambda: importance_masks({"a": {"w": np.array([np.nan])}}, 1), "without NaN"),
        (lambda: channel_norms(np.ones((2, 2)), 0), "norm such as 1 or 2"),
        (lambda: channel_norms(1.0), "channels in its last axis"),
    ],
)
def test_helpers_refuse_nonsense(call: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        call()


# --- reports --------------------------------------------------------------------------------------


def test_summary_and_repr() -> None:
    strategy = GlobalMagWeight(dense(), compression=2)
    lines = [line.split() for line in strategy.summary().splitlines()]
    assert lines[0] == ["weight", "shape", "prunable", "kept", "of", "compression"]
    d1 = int(kept(strategy.masks(), "d1").sum())
    row = ["d1/kernel", "(5,", "7)", "yes", str(d1), "35", f"{35 / d1:.2f}"]
    assert row in lines
    assert ["head/bias", "(2,)", "no", "2", "2", "1.00"] in lines
    assert lines[-1] == ["total", "39", "78", "2.00"]
    assert repr(strategy) == "GlobalMagWeight(compression=2)"
    other = WeightNormChannelPruning(dense(), compression=1.5, norm=2, classifier=True)
    assert repr(other) == "WeightNormChannelPruning(compression=1.5, classifier=True, norm=2)"


def test_masks_of_another_model_do_not_fit() -> None:
    masks = GlobalMagWeight(dense(), compression=2).masks()
    assert ridurre.Masks.from_dict(masks.to_dict()) == masks
    with pytest.raises(PlanMismatchError):
        masks.assign(convolutions())


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compression": 0.5}, "compression from 1 up.*Received: 0.5"),
        ({"compression": "4"}, "compression, a finite number. Received: '4'"),
        ({"compression": np.nan}, "compression, a finite number"),
        ({"compression": 4}, "28 of the model's 78 parameters stay.*Expected 2.78571 at most"),
        ({"weights": "biases"}, "weights to be 'kernels', 'all'"),
        ({"norm": 0}, "norm such as 1 or 2"),
    ],
)
def test_arguments_that_make_no_sense(options: Any, message: str) -> None:
    cls = WeightNormChannelPruning if "norm" in options else GlobalMagWeight
    with pytest.raises(RequestError, match=message):
        cls(dense(), **options)


def test_the_largest_compression_can_be_had() -> None:
    assert GlobalMagWeight(dense(), compression=78 / 28).masks().kept == 0
    least = 28 - 12 + 4 + 6  # a channel of each layer stays
    masks = WeightNormChannelPruning(dense(), compression=78 / least).masks()
    assert masks.kept == 4 + 6
    with pytest.raises(RequestError, match="Expected 3 at most"):
        WeightNormChannelPruning(dense(), compression=3.5)


def test_models_that_cannot_be_pruned() -> None:
    inputs = keras.Input((3,))
    with pytest.raises(NotAModelError, match="Expected a Keras 3 model"):
        GlobalMagWeight("model", compression=2)
    with pytest.raises(NothingToPruneError, match="classifier=True"):
        GlobalMagWeight(keras.Model(inputs, L.Dense(2)(inputs)), compression=2)


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (GlobalMagGrad, (), "needs samples. Expected inputs"),
        (GlobalMagGrad, (np.ones((4, 3)),), "needs labels for gradients. Expected outputs"),
        (GlobalMagGrad, (np.ones((4, 3)), np.ones((4, 2))), "not compiled with a loss"),
        (GlobalMagGrad, (np.ones((4, 3)), np.ones((5, 2))), "as many samples"),
        (GlobalMagGrad, (np.ones((4, 3)), [1, 2]), "inputs and outputs to be arrays"),
        (LayerMagAct, (), "needs samples. Expected inputs"),
        (LayerMagAct, (np.ones((4, 5)),), "data do not fit the model"),
        (ActivationNormChannelPruning, (), "needs samples. Expected inputs"),
        (ActivationNormChannelPruning, ("pictures",), "Expected data as model.fit takes"),
    ],
)
def test_data_that_are_missing(cls: Any, arguments: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        cls(dense(), *arguments, compression=1.5).apply()


def test_data_sets_may_hold_labels() -> None:
    model = dense()
    x, y = samples(model)
    own = GlobalMagGrad(model, (x, y), compression=2, loss="mse").masks()
    assert own == GlobalMagGrad(model, x, y, compression=2, loss="mse").masks()


@pytest.mark.parametrize("cls", [*SINGLE[1:], *CHANNELS])
def test_weights_that_are_not_finite(cls: Any) -> None:
    model = dense()
    model.get_layer("d0").kernel.assign(np.full((3, 5), np.nan))
    strategy = cls(model, *samples(model), compression=1.5, loss="mse")
    with pytest.raises(RequestError, match=r"'d0'.*\n?.*without NaN"):
        strategy.masks()


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (lambda d0: None, "should return {layer: {param: mask}}. Received: None"),
        (lambda d0: {d0: np.ones((3, 5))}, "should return"),
        (lambda d0: {d0: {"kernel": np.ones((5, 3))}}, r"the shape \(3, 5\).*shape \(5, 3\)"),
        (lambda d0: {d0: {"kernel": np.full((3, 5), 0.5)}}, "0 where it goes"),
        (lambda d0: {d0: {"kernel": np.full((3, 5), np.nan)}}, "no usable mask"),
        (lambda d0: {d0: {"kernel": None}}, "no usable mask.*Received: None"),
        (lambda d0: {d0: {"bias": np.ones(5)}}, "'bias' of 'd0'. Expected some of .'kernel'."),
        (lambda d0: {"d0": {"kernel": np.ones((3, 5))}}, "not prunable. Expected some of"),
    ],
)
def test_masks_that_make_no_sense(masks: Any, message: str) -> None:
    class Own(VisionPruning):
        def model_masks(self) -> Any:
            return masks(self.prunable[0])

    with pytest.raises(RequestError, match=message.replace("{", r"\{").replace("}", r"\}")):
        Own(dense(), compression=2).apply()


def test_importances_that_make_no_sense() -> None:
    class Own(GlobalPruning, VisionPruning):
        def importances(self) -> Any:
            return {layer: {"kernel": np.ones(3)} for layer in self.prunable}

    with pytest.raises(RequestError, match=r"importances of 'kernel' of 'd0'.*shape \(3, 5\)"):
        Own(dense(), compression=2).masks()


def test_layers_that_are_not_there() -> None:
    inputs = keras.Input((3,))
    x = L.Dropout(0.5, name="drop")(L.Dense(5, name="d0")(inputs))
    model = keras.Model(inputs, L.Dense(2, name="head")(x))
    strategy = GlobalMagAct(model, np.ones((4, 3)))
    with pytest.raises(UnknownLayerError, match="Did you mean .*'d0'"):
        strategy.module_params("d")
    with pytest.raises(RequestError, match=r"has weights, one of \['d0', 'head'\]"):
        strategy.module_activations("drop")


def test_a_layer_that_is_called_on_different_shapes() -> None:
    inputs = keras.Input((6, 8, 3))
    shared = L.Conv2D(3, 1, name="a")
    x = [L.GlobalAveragePooling2D()(y) for y in (shared(inputs), shared(L.MaxPool2D()(inputs)))]
    model = keras.Model(inputs, L.Dense(2)(L.Add()(x)))
    randomise(model)
    strategy = GlobalMagAct(model, pictures(model), compression=1.2)
    with pytest.raises(RequestError, match="'a' is called on tensors of different shapes"):
        strategy.activations()
    assert strategy.masks().kept < 9


def test_what_has_to_be_overridden() -> None:
    for cls in (Pruning, VisionPruning, LayerPruning):
        with pytest.raises(TypeError, match="abstract"):
            cls(dense())
