"""The classic interface and the loop behind it."""

import dataclasses
import inspect
import re
import time

import keras
import numpy as np
import pytest
from builders import (
    L,
    Scripted,
    chain,
    channels,
    columns,
    first,
    leave_it,
    pictures,
    predict,
    residual,
    scripted,
    set_filters,
    weakest,
    weights,
)

import ridurre
from ridurre.errors import ModelError, NothingToPruneError
from ridurre.testing import randomise, snapshot

METHODS = [ridurre.KMeansFilterPruning, ridurre.RandomFilterPruning]
TAIL = ["model_compile_fn", "model_finetune_fn", "nb_finetune_epochs"]


class Oops(Exception):
    """Something that goes wrong in a user's own function."""


# --- the interface, which is a contract -----------------------------------------------------------


def names(function):
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (
            ridurre.BasePruning,
            ["pruning_factor", *TAIL, "nb_trained_for_epochs", "maximum_prune_iterations"]
            + ["maximum_pruning_percent"],
        ),
        (
            ridurre.KMeansFilterPruning,
            ["clustering_factor", *TAIL, "maximum_prune_iterations", "maximum_pruning_percent"]
            + ["nb_trained_for_epochs"],
        ),
        (
            ridurre.RandomFilterPruning,
            ["removal_factor", *TAIL, "maximum_prune_iterations", "maximum_pruning_percent"]
            + ["nb_trained_for_epochs"],
        ),
        (
            ridurre.BasePruning.run_pruning,
            ["self", "model", "prune_factor_scheduler_fn", "custom_objects_inside_model"],
        ),
        (
            ridurre.BasePruning.define_prune_bins,
            ["self", "channel_number_bins", "pruning_factors_for_bins"],
        ),
        (
            ridurre.BasePruning.run_pruning_for_conv2d_layer,
            ["self", "pruning_factor", "layer", "layer_weight_mtx"],
        ),
    ],
)
def test_arguments_stand_in_the_classic_order(function, expected):
    assert names(function)[: len(expected)] == expected


def defaults(function):
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


@pytest.mark.parametrize("method", METHODS)
def test_defaults_are_the_classic_ones(method):
    assert defaults(method) == {
        "maximum_prune_iterations": None,
        "maximum_pruning_percent": 0.9,
        "nb_trained_for_epochs": 0,
    }
    assert set(defaults(ridurre.BasePruning)) == {
        *("layers", "protect", "seed", "verbose"),
        *("target", "evaluate_fn", "metric", "minimum_accuracy", "stop_fn"),
    }


def test_everything_newer_is_keyword_only():
    with pytest.raises(TypeError, match="positional"):
        Scripted({}, 0.5, leave_it, None, 0, 0, 1, None, "a")


@pytest.mark.parametrize("method", METHODS)
def test_positions_mean_the_same_for_both_methods(method):
    calls = []
    pruning = method(0.5, leave_it, lambda *args: calls.append(args), 6, 2, None, 4)
    model, epochs = pruning.run_pruning(chain())
    assert [(start, end) for _, start, end in calls] == [(4, 10), (10, 16)]
    assert epochs == 16
    assert channels(model, "b") == {True: 2, False: 2}[method is ridurre.KMeansFilterPruning]


def test_the_snippet_of_the_classic_readme():
    x, y = np.random.default_rng(0).normal(size=(8, 6, 8, 3)).astype("float32"), np.arange(8) % 2
    trained = []

    def compile_my_model(model):
        model.compile(optimizer="sgd", loss="sparse_categorical_crossentropy")

    def finetune_my_model(model, initial_epoch, finetune_epochs):
        done = model.fit(x, y, initial_epoch=initial_epoch, epochs=finetune_epochs, verbose=0)
        trained.append(done.epoch)

    model = chain()
    before = snapshot(model)
    pruning = ridurre.KMeansFilterPruning(
        0.6,
        compile_my_model,
        finetune_my_model,
        1,
        maximum_pruning_percent=0.4,
        maximum_prune_iterations=12,
    )
    smaller, nb_epochs = pruning.run_pruning(model)
    # 5 and 7 filters; then 3 and 5 (a third is gone); then 2 and 3, which is enough.
    assert trained == [[0], [1]]
    assert nb_epochs == 2
    assert smaller.compiled
    assert smaller(x).shape == (8, 2)
    assert (channels(smaller, "a"), channels(smaller, "b")) == (2, 3)
    assert snapshot(model) == before


def test_a_subclass_needs_only_the_hook():
    class Mine(ridurre.BasePruning):
        def run_pruning_for_conv2d_layer(self, pruning_factor, layer, layer_weight_mtx):
            return [1, 2]

    model, _ = Mine(0.5, leave_it, None, 0, 0, 1, 1.0).run_pruning(chain())
    assert (channels(model, "a"), channels(model, "b")) == (3, 5)


def test_without_the_hook_there_is_no_method():
    with pytest.raises(TypeError, match="abstract.*run_pruning_for_conv2d_layer"):
        ridurre.BasePruning(0.5, leave_it, None, 0, 0, 1, None)


# --- callbacks ------------------------------------------------------------------------------------


def test_callbacks_get_the_smaller_model_and_the_epochs():
    log = []
    pruning = scripted(
        first,
        compile_fn=lambda *args: log.append(("compile", args)),
        finetune_fn=lambda *args: log.append(("finetune", args)),
        epochs=6,
        trained=4,
        rounds=2,
    )
    model, epochs = pruning.run_pruning(chain())
    assert [what for what, _ in log] == ["compile", "finetune"] * 2
    (one,), (same, *times), (two,), (again, *later) = (args for _, args in log)
    assert one is same
    assert two is again is model
    assert [channels(m, "a") for m in (one, two)] == [4, 3]
    assert (times, later) == ([4, 10], [10, 16])
    assert epochs == 16


def test_without_a_finetune_function_no_epochs_are_counted():
    pruning = scripted(first, finetune_fn=None, epochs=6, trained=4, rounds=2)
    model, epochs = pruning.run_pruning(chain())
    assert epochs == 4
    assert channels(model, "a") == 3
    assert [step.epochs for step in pruning.history] == [4, 4]


def test_the_next_run_goes_on_where_the_last_one_stopped():
    pruning = scripted(first, finetune_fn=leave_it, epochs=3, trained=1)
    model, epochs = pruning.run_pruning(chain())
    model, more = pruning.run_pruning(model)
    assert (epochs, more) == (4, 7)
    assert channels(model, "a") == 3


@pytest.mark.parametrize("which", ["compile_fn", "finetune_fn"])
@pytest.mark.parametrize("good_rounds", [0, 2])
def test_a_callback_that_raises_leaves_the_last_good_model(which, good_rounds):
    seen = []

    def callback(model, *_):
        if len(seen) == good_rounds:
            raise Oops("no data")
        seen.append(model)

    original = chain()
    before = snapshot(original)
    pruning = scripted(first, rounds=5, **{which: callback})
    with pytest.raises(Oops, match="no data") as caught:
        pruning.run_pruning(original)
    (note,) = caught.value.__notes__
    assert f"Raised by model_{which} in pruning round {good_rounds}." in note
    assert "The last good model is in the attribute `model` of the pruning object" in note
    assert pruning.model is (seen[-1] if good_rounds else original)
    assert channels(pruning.model, "a") == 5 - good_rounds
    assert len(pruning.history) == good_rounds
    assert snapshot(original) == before


@pytest.mark.parametrize("good_rounds", [0, 2])
def test_a_scheduler_that_raises_leaves_the_last_good_model(good_rounds):
    def schedule(factor, step):
        if step == good_rounds:
            raise Oops("no plan")
        return factor

    pruning = scripted(first, rounds=5)
    with pytest.raises(Oops, match="no plan") as caught:
        pruning.run_pruning(chain(), schedule)
    assert "Raised by prune_factor_scheduler_fn" in caught.value.__notes__[0]
    assert channels(pruning.model, "a") == 5 - good_rounds


def test_a_hook_that_raises_leaves_the_last_good_model():
    def answer(layer, kernel):
        if kernel.shape[-1] == 4:
            raise Oops(layer.name)
        return [0]

    pruning = scripted(answer, rounds=5)
    with pytest.raises(Oops, match="^a$"):
        pruning.run_pruning(chain())
    assert channels(pruning.model, "a") == 4


# --- factors --------------------------------------------------------------------------------------


def test_a_scheduled_factor_is_used_as_it_is():
    calls = []

    def schedule(factor, step):
        calls.append((factor, step))
        return 0.1 * (step + 1)

    pruning = scripted({"a": [0]}, factor=0.75, rounds=3, layers="a")
    pruning.run_pruning(chain(), schedule)
    assert calls == [(0.75, 0), (0.75, 1), (0.75, 2)]
    expected = [0.1, 0.2, 0.1 * 3]
    assert [factor for factor, _, _ in pruning.asked] == expected
    assert [step.factor for step in pruning.history] == expected


def test_without_a_scheduler_the_factor_stays():
    pruning = scripted({"a": [0]}, factor=0.75, rounds=3, layers="a")
    pruning.run_pruning(chain())
    assert [factor for factor, _, _ in pruning.asked] == [0.75] * 3


def widths(*filters):
    """Convolutions ``conv<n>`` of these widths in a row, and a head."""
    x = inputs = keras.Input((4, 4, 3))
    for n in filters:
        x = L.Conv2D(n, 1, name=f"conv{n}")(x)
    return keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(x)))


def test_bins_give_layers_of_different_width_different_factors():
    pruning = scripted({}, factor=0.5)
    pruning.define_prune_bins([3, 5, 9], [0.1, 0.2])
    pruning.run_pruning(widths(2, 3, 4, 5, 8, 9))
    factors = {name: factor for factor, name, _ in pruning.asked}
    assert factors == {
        "conv2": 0.5,  # below all bins
        "conv3": 0.1,  # the lower bound belongs to its bin
        "conv4": 0.1,
        "conv5": 0.2,  # the upper one to the next
        "conv8": 0.2,
        "conv9": 0.5,  # above all bins
    }


def test_bins_go_by_the_width_of_the_moment_and_outrank_the_scheduler():
    pruning = scripted({"a": [0]}, rounds=2, layers="a")
    pruning.define_prune_bins([5, 6], [0.1])
    pruning.run_pruning(chain(), lambda factor, step: 0.7)
    assert [factor for factor, _, _ in pruning.asked] == [0.1, 0.7]


def test_bins_reach_the_methods():
    pruning = ridurre.KMeansFilterPruning(1.0, leave_it, None, 0, 1, None, seed=0)
    pruning.define_prune_bins([6, 8], [0.4])
    model, _ = pruning.run_pruning(chain())
    assert (channels(model, "a"), channels(model, "b")) == (5, 3)


# --- custom objects -------------------------------------------------------------------------------


def with_custom_activation():
    def steep(x):
        return 3 * x

    inputs = keras.Input((2, 3, 3))
    x = L.Flatten()(L.Conv2D(5, 1, name="a")(inputs))
    return keras.Model(inputs, L.Dense(2, activation=steep, name="odd")(x)), {"steep": steep}


def with_custom_layer():
    class Double(L.Layer):
        def call(self, x):
            return 2 * x

    class Holder(L.Layer):
        def __init__(self, inner, **options):
            super().__init__(**options)
            self.inner = inner

        def call(self, x):
            return self.inner(x)

        def get_config(self):
            return super().get_config() | {"inner": keras.saving.serialize_keras_object(self.inner)}

        @classmethod
        def from_config(cls, config):
            inner = keras.saving.deserialize_keras_object(config.pop("inner"))
            return cls(inner, **config)

    inputs = keras.Input((2, 3, 3))
    x = L.Conv2D(5, 1, name="a")(Holder(Double(), name="odd")(inputs))
    return keras.Model(inputs, L.Dense(2)(L.Flatten()(x))), {"Double": Double}


@pytest.mark.parametrize("build", [with_custom_activation, with_custom_layer])
def test_unregistered_custom_objects_are_handed_over(build):
    model, custom = build()
    randomise(model)
    smaller, _ = scripted({"a": [1]}).run_pruning(model, None, custom)
    assert channels(smaller, "a") == 4
    kernel = model.get_layer("a").kernel
    kept = kernel.numpy()
    kept[..., 1] = 0
    kernel.assign(kept)
    model.get_layer("a").bias.assign(model.get_layer("a").bias.numpy() * [1, 0, 1, 1, 1])
    x = pictures(model)
    np.testing.assert_allclose(predict(smaller, x), predict(model, x), rtol=1e-5, atol=1e-6)
    assert not custom.keys() & keras.saving.get_custom_objects().keys()


def test_without_its_custom_objects_a_layer_cannot_be_made_again():
    model, _ = with_custom_layer()
    with pytest.raises(ModelError, match="'odd' .* cannot be re-created from its configuration"):
        scripted({"a": [1]}).run_pruning(model)


# --- when it stops --------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_it_stops_after_so_many_rounds(rounds):
    pruning = scripted(first, rounds=rounds)
    model, _ = pruning.run_pruning(columns(7))
    assert channels(model, "a") == 7 - rounds
    assert len(pruning.history) == len(pruning.asked) == rounds


@pytest.mark.parametrize(("gone", "filters"), [(k, n) for n in (7, 10) for k in range(1, n - 1, 2)])
def test_it_stops_when_more_than_the_maximum_is_gone(gone, filters):
    pruning = scripted(first, rounds=None, percent=gone / filters)
    model, _ = pruning.run_pruning(columns(filters))
    assert filters - channels(model, "a") == gone + 1
    assert pruning.history[-2].pruned_fraction == pytest.approx(gone / filters)


def test_all_filters_of_the_original_count():
    # 1 of the 12 filters goes per round; `b` keeps its 7.
    pruning = scripted({"a": [0]}, rounds=None, percent=0.25)
    model, _ = pruning.run_pruning(chain())
    assert channels(model, "a") == 1
    assert [step.filters for step in pruning.history] == [11, 10, 9, 8]
    pruning = scripted({"a": [0]}, rounds=None, percent=0.2)
    model, _ = pruning.run_pruning(chain())
    assert channels(model, "a") == 2


def test_it_stops_when_nothing_is_left():
    pruning = scripted(first, rounds=None, percent=None)
    model, _ = pruning.run_pruning(chain())
    assert (channels(model, "a"), channels(model, "b")) == (1, 1)
    assert len(pruning.history) == 6
    assert all(kernel.shape[-1] > 1 for _, _, kernel in pruning.asked)


def test_it_stops_in_the_round_in_which_nobody_asks():
    pruning = scripted(lambda layer, kernel: [0] if kernel.shape[-1] > 5 else [], rounds=None)
    model, _ = pruning.run_pruning(chain())
    assert (channels(model, "a"), channels(model, "b")) == (5, 5)
    assert len(pruning.history) == 2


def test_if_nothing_is_ever_removed_the_model_comes_back():
    calls = []
    pruning = scripted(
        {}, compile_fn=calls.append, finetune_fn=leave_it, epochs=3, trained=4, rounds=None
    )
    model = chain()
    assert pruning.run_pruning(model) == (model, 4)
    assert pruning.model is model
    assert pruning.history == calls == []


# --- which layers ---------------------------------------------------------------------------------

SELECTORS = {
    "name": lambda model: "a",
    "expression": lambda model: "^a$",
    "pattern": lambda model: re.compile("^[a]$"),
    "index": lambda model: 1,
    "layer": lambda model: model.get_layer("a"),
    "predicate": lambda model: lambda layer: layer.name == "a",
    "identity": lambda model: lambda layer: layer is model.get_layer("a"),
    "list": lambda model: ["a"],
    "mixed list": lambda model: [re.compile("^a"), model.get_layer("a"), 1],
}


@pytest.mark.parametrize("selector", SELECTORS.values(), ids=SELECTORS)
def test_layers_are_chosen(selector):
    model = chain()
    pruning = scripted(first, rounds=2, layers=selector(model))
    smaller, _ = pruning.run_pruning(model)
    assert (channels(smaller, "a"), channels(smaller, "b")) == (3, 7)
    assert {name for _, name, _ in pruning.asked} == {"a"}


@pytest.mark.parametrize("selector", SELECTORS.values(), ids=SELECTORS)
def test_layers_are_protected(selector):
    model = chain()
    pruning = scripted(first, rounds=2, protect=selector(model))
    smaller, _ = pruning.run_pruning(model)
    assert (channels(smaller, "a"), channels(smaller, "b")) == (5, 5)
    assert {name for _, name, _ in pruning.asked} == {"b"}


@pytest.mark.parametrize("option", ["layers", "protect"])
def test_several_layers_are_named(option):
    model, _ = scripted(first, **{option: ["a", "b"]}).run_pruning(widths_ab())
    expected = (4, 6, 3) if option == "layers" else (5, 7, 2)
    assert tuple(channels(model, name) for name in "abc") == expected


def widths_ab():
    inputs = keras.Input((2, 2, 3))
    x = inputs
    for name, filters in (("a", 5), ("b", 7), ("c", 3)):
        x = L.Conv2D(filters, 1, name=name)(x)
    return keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))


def test_layers_tied_to_a_selected_one_shrink_along():
    pruning = scripted({"stem": [1, 3]}, layers="stem")
    model, _ = pruning.run_pruning(residual())
    assert (channels(model, "stem"), channels(model, "outer"), channels(model, "inner")) == (
        3,
        3,
        7,
    )
    assert {name for _, name, _ in pruning.asked} == {"stem"}


def test_layers_tied_to_a_protected_one_stay():
    pruning = scripted(first, protect="stem")
    model, _ = pruning.run_pruning(residual())
    assert (channels(model, "stem"), channels(model, "outer"), channels(model, "inner")) == (
        5,
        5,
        6,
    )
    assert {name for _, name, _ in pruning.asked} == {"inner"}


# --- what the hook is given -----------------------------------------------------------------------


def kernels_of(layer, input_shape):
    inputs = keras.Input(input_shape)
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(layer(inputs))))
    pruning = scripted({})
    pruning.run_pruning(model)
    ((_, name, kernel),) = pruning.asked
    assert name == layer.name
    return kernel


@pytest.mark.parametrize(
    ("layer", "input_shape", "expected"),
    [
        (lambda: L.Conv2D(7, (2, 4)), (5, 5, 3), lambda x: x.kernel),
        (lambda: L.Conv1D(7, 2), (5, 3), lambda x: x.kernel[None]),
        (
            lambda: L.Conv3D(7, (2, 3, 4)),
            (5, 5, 5, 3),
            lambda x: keras.ops.reshape(x.kernel, (6, 4, 3, 7)),
        ),
        (
            lambda: L.Conv2DTranspose(7, (2, 4)),
            (5, 5, 3),
            lambda x: keras.ops.transpose(x.kernel, (0, 1, 3, 2)),
        ),
        (
            lambda: L.Conv1DTranspose(7, 2),
            (5, 3),
            lambda x: keras.ops.transpose(x.kernel, (0, 2, 1))[None],
        ),
        (
            lambda: L.SeparableConv2D(7, (2, 4), depth_multiplier=2),
            (5, 5, 3),
            lambda x: x.pointwise_kernel,
        ),
        (lambda: L.SeparableConv1D(7, 2), (5, 3), lambda x: x.pointwise_kernel[None]),
        (lambda: L.Conv2D(4, (2, 3), groups=2), (5, 5, 6), lambda x: x.kernel),
    ],
)
def test_the_kernel_is_height_width_in_out(layer, input_shape, expected):
    layer = layer()
    kernel = kernels_of(layer, input_shape)
    assert isinstance(kernel, np.ndarray)
    np.testing.assert_array_equal(kernel, keras.ops.convert_to_numpy(expected(layer)[...]))
    assert kernel.shape[-1] == layer.filters


def test_depthwise_convolutions_make_no_filters_of_their_own():
    inputs = keras.Input((5, 5, 3))
    x = L.DepthwiseConv2D(2, depth_multiplier=2, name="depthwise")(L.Conv2D(5, 1, name="a")(inputs))
    pruning = scripted(first)
    model, _ = pruning.run_pruning(keras.Model(inputs, L.Dense(2)(L.Flatten()(x))))
    assert [name for _, name, _ in pruning.asked] == ["a"]
    assert model.get_layer("depthwise").kernel.shape == (2, 2, 4, 2)


def test_the_hook_gets_the_layer_itself():
    model = chain()
    seen = []
    scripted(lambda layer, kernel: seen.append(layer) or []).run_pruning(model)
    assert seen == [model.get_layer("a"), model.get_layer("b")]


def test_the_kernel_is_a_copy():
    def spoil(layer, kernel):
        kernel[:] = 99.0
        return [0]

    model = chain()
    before, kept = snapshot(model), weights(model)
    smaller, _ = scripted(spoil).run_pruning(model)
    assert snapshot(model) == before
    np.testing.assert_array_equal(smaller.get_layer("a").kernel, kept["a/kernel"][..., 1:])


# --- what comes out -------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [chain, residual])
def test_the_original_is_untouched(build):
    model = build()
    randomise(model)
    before = snapshot(model)
    x = pictures(model)
    expected = predict(model, x)

    def train(smaller, *_):
        smaller.compile("sgd", "mse")
        smaller.train_on_batch(x, np.ones((2, 2)))

    smaller, _ = scripted(weakest, compile_fn=train, rounds=2).run_pruning(model)
    assert smaller is not model
    assert snapshot(model) == before
    np.testing.assert_array_equal(predict(model, x), expected)


def test_a_sequential_model_comes_back_sequential():
    model = keras.Sequential(
        [keras.Input((4, 4, 3)), L.Conv2D(5, 3, name="a"), L.Flatten(), L.Dense(2)], name="row"
    )
    smaller, _ = scripted(first, rounds=2).run_pruning(model)
    assert isinstance(smaller, keras.Sequential)
    assert (smaller.name, channels(smaller, "a")) == ("row", 3)


def test_convolutions_of_nested_models_are_pruned():
    block = keras.Sequential([keras.Input((4, 4, 5)), L.Conv2D(7, 1, name="b")], name="block")
    inputs = keras.Input((4, 4, 3))
    x = block(L.Conv2D(5, 1, name="a")(inputs))
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))
    smaller, _ = scripted(first, rounds=2, layers="block/b").run_pruning(model)
    assert channels(smaller, "a") == 5
    assert channels(smaller.get_layer("block"), "b") == 5


@pytest.mark.parametrize("name", ["twice", "block/twice"])
def test_a_layer_that_stands_in_two_places_goes_by_either_name(name):
    twice = L.Conv2D(5, 1, name="twice")
    inputs = keras.Input((4, 4, 5))
    block = keras.Model(inputs, twice(inputs), name="block")
    inputs = keras.Input((4, 4, 3))
    x = block(twice(L.Conv2D(5, 1, name="a")(inputs)))
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))
    pruning = scripted(first, layers=name)
    smaller, _ = pruning.run_pruning(model)
    assert [asked for _, asked, _ in pruning.asked] == ["twice"]
    assert (channels(smaller, "a"), channels(smaller, "twice")) == (4, 4)


def test_every_round_is_recorded():
    pruning = scripted(
        first, factor=0.25, finetune_fn=lambda *_: time.sleep(0.02), epochs=3, trained=1, rounds=2
    )
    pruning.run_pruning(chain())
    one, two = pruning.history
    # By hand: (3·3·3 + 1)·a + 2·a + (3·3·a + 1)·b + 2·b + 2, at 4·6 and 2·4 positions.
    assert (one.filters, one.parameters, one.macs) == (10, 356, 24 * 108 + 8 * 216 + 12)
    assert (two.filters, two.parameters, two.macs) == (8, 242, 24 * 81 + 8 * 135 + 10)
    assert (one.pruned_fraction, two.pruned_fraction) == pytest.approx((2 / 12, 4 / 12))
    assert [(s.step, s.factor, s.epochs) for s in (one, two)] == [(0, 0.25, 4), (1, 0.25, 7)]
    assert all(0.02 <= s.seconds < 60 for s in (one, two))
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.step = 3


def test_macs_are_unknown_where_the_input_size_is_open():
    inputs = keras.Input((None, None, 3))
    x = L.GlobalAveragePooling2D()(L.Conv2D(5, 3, name="a")(inputs))
    pruning = scripted(first)
    pruning.run_pruning(keras.Model(inputs, L.Dense(2)(x)))
    assert pruning.history[0].macs is None
    assert pruning.history[0].filters == 4


def test_the_history_is_of_the_last_run():
    pruning = scripted(first, rounds=2)
    pruning.run_pruning(chain())
    pruning.run_pruning(columns(3))
    assert [step.filters for step in pruning.history] == [2, 1]


def test_the_bar_shows_the_rounds_and_what_is_left(capsys):
    scripted(first, compile_fn=lambda _: time.sleep(0.06), rounds=3, verbose=1).run_pruning(chain())
    out, err = capsys.readouterr()
    assert out == ""
    shown = dict(re.findall(r"(\d)/3[^\r]*filters=(\d+)", err))
    assert shown == {"1": "10", "2": "8", "3": "6"}


def test_it_is_quiet_unless_asked(capsys):
    scripted(first, rounds=2).run_pruning(chain())
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_result(method):
    model = chain()
    randomise(model)

    def run(seed):
        pruning = method(0.5, leave_it, None, 0, 2, None, seed=seed)
        return weights(pruning.run_pruning(model)[0])

    one, two = run(3), run(3)
    assert one.keys() == two.keys()
    for path, value in one.items():
        np.testing.assert_array_equal(value, two[path])


def test_another_seed_gives_another_result():
    model = chain()
    randomise(model)

    def kernel(seed):
        pruning = ridurre.RandomFilterPruning(0.5, leave_it, None, 0, 1, seed=seed)
        return pruning.run_pruning(model)[0].get_layer("b").kernel.numpy().tobytes()

    assert len({kernel(seed) for seed in range(5)}) > 1


# --- a residual network, worked out by hand -------------------------------------------------------


def two_weakest(layer, kernel):
    return np.argsort(np.abs(kernel).sum((0, 1, 2)))[:2].tolist()


@pytest.mark.parametrize(
    ("heavy_in_head", "gone"),
    [
        # `stem` would lose 0 and 1, `outer` 1 and 4. Both say 1; between 0 and 4, each with one
        # vote, the norms of stem, outer, inner's inputs and the head decide: 1 + 5 < 5 + 2.
        (None, [0, 1]),
        # The head reads channel 0 with large weights, so 4 is the smaller one.
        (0, [1, 4]),
    ],
)
def test_a_residual_network_loses_the_channels_that_the_rule_names(heavy_in_head, gone):
    model = residual()
    set_filters(model, "stem", [1, 2, 3, 4, 5])
    set_filters(model, "outer", [5, 1, 4, 3, 2])
    set_filters(model, "inner", [7, 1, 6, 2, 5, 3, 4])
    head = np.ones((5, 2))
    if heavy_in_head is not None:
        head[heavy_in_head] = 9
    model.get_layer("head").kernel.assign(head)
    before = weights(model)
    smaller, _ = scripted(two_weakest).run_pruning(model)
    after = weights(smaller)

    stay, inner = np.setdiff1d(np.arange(5), gone), [0, 2, 4, 5, 6]
    expected = {
        "stem/kernel": before["stem/kernel"][..., stay],
        "inner/kernel": before["inner/kernel"][:, :, stay][..., inner],
        "outer/kernel": before["outer/kernel"][:, :, inner][..., stay],
        "head/kernel": before["head/kernel"][stay],
    }
    assert after.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(after[path], value, err_msg=path)


def test_a_residual_network_shrinks_until_nothing_is_left():
    pruning = scripted(weakest, rounds=None)
    model, _ = pruning.run_pruning(residual())
    assert (channels(model, "stem"), channels(model, "outer"), channels(model, "inner")) == (
        1,
        1,
        1,
    )
    assert len(pruning.history) == 6


def test_a_model_whose_filters_are_all_bound_is_refused():
    inputs = keras.Input((4, 4, 3))
    model = keras.Model(inputs, L.Conv2D(5, 1)(inputs))
    with pytest.raises(NothingToPruneError, match="no convolution whose filters can be pruned"):
        scripted(first).run_pruning(model)
