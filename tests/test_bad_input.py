"""Bad input gets a clear error, and nothing is lost."""

import re

import keras
import numpy as np
import pytest
from builders import L, chain, channels, columns, first, leave_it, scripted, set_filters

import ridurre
from ridurre.errors import (
    FrozenChannelError,
    ModelError,
    NothingToPruneError,
    RequestError,
    RidurreError,
    UnknownLayerError,
)
from ridurre.testing import snapshot

KMEANS, RANDOM = ridurre.KMeansFilterPruning, ridurre.RandomFilterPruning


def plan(layer, idxs, **options):
    return ridurre.DependencyGraph(chain(), **options).get_pruning_plan(layer, idxs)


def run(model):
    return scripted(first).run_pruning(model)


# --- the model ------------------------------------------------------------------------------------

ENTRANCES = {
    "run_pruning": run,
    "kmeans": lambda model: KMEANS(0.5, leave_it, None, 0).run_pruning(model),
    "graph": ridurre.DependencyGraph,
    "complexity": ridurre.model_complexity,
    "apply": lambda model: ridurre.apply(model, ridurre.PruningPlan({}, (), {})),
}
entrances = pytest.mark.parametrize("enter", ENTRANCES.values(), ids=ENTRANCES)


@entrances
@pytest.mark.parametrize(
    ("wrong", "received"),
    [
        (lambda: None, "builtins.NoneType"),
        (lambda: "model.keras", "builtins.str"),
        (lambda: L.Dense(2), r"keras\..*Dense"),
        (lambda: keras.Model, "builtins.type"),
        (lambda: chain().get_config(), "builtins.dict"),
    ],
    ids=["none", "path", "layer", "class", "configuration"],
)
def test_not_a_model(enter, wrong, received):
    message = rf"^Expected a Keras 3 model \(keras.Model, .*\)\. Received: {received}\.$"
    with pytest.raises(TypeError, match=message) as caught:
        enter(wrong())
    assert isinstance(caught.value, ModelError)


@entrances
def test_an_unbuilt_model(enter):
    message = (
        r"^The model 'new' is not built, so its layers have no channels yet\. Start it with "
        r"keras\.Input\(shape\), or call model\.build\(input_shape\) first\.$"
    )
    with pytest.raises(ModelError, match=message):
        enter(keras.Sequential([L.Conv2D(5, 3), L.Dense(2)], name="new"))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="mine")
        self.dense = L.Dense(2)

    def call(self, x):
        y = self.dense(x)
        self.last = y  # code that keeps its tensors is not looked into
        return y


@entrances
def test_a_subclassed_model_that_is_not_built(enter):
    message = (
        r"^The model 'mine' \(Subclassed\) is not built.*Call it once on a batch of data first"
    )
    with pytest.raises(ModelError, match=message):
        enter(Subclassed())


@entrances
def test_a_subclassed_model_whose_code_cannot_be_seen(enter):
    message = (
        r"^The model 'mine' \(Subclassed\) is Python code, and what it does to channels cannot be "
        r"seen: its code keeps tensors on itself, as 'last'\..*"
        r"rebuild it with keras\.Model\(inputs, outputs\)\.$"
    )
    model = Subclassed()
    model(np.ones((1, 3)))
    with pytest.raises(ModelError, match=message):
        enter(model)


def no_convolution():
    return keras.Sequential([keras.Input((3,)), L.Dense(5), L.Dense(2)], name="plain")


def only_outputs():
    return keras.Sequential([keras.Input((4, 4, 3)), L.Conv2D(5, 3)], name="plain")


def single_filters():
    layers = [keras.Input((4, 4, 3)), L.Conv2D(1, 3), L.Flatten(), L.Dense(2)]
    return keras.Sequential(layers, name="plain")


@pytest.mark.parametrize("build", [no_convolution, only_outputs, single_filters])
def test_nothing_that_could_be_pruned(build):
    message = (
        r"^The model 'plain' has no convolution whose filters can be pruned\. Filters tied to the "
        "model's inputs or outputs, protected ones and those that flow into layers without a rule"
    )
    with pytest.raises(NothingToPruneError, match=message):
        run(build())


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"layers": "head"}, r" among the selected layers 'head'\."),
        ({"layers": []}, r" among the selected layers \[\]\."),
        ({"layers": "a", "protect": "bn"}, r" among the selected layers 'a'\."),
        ({"protect": ["a", "b"]}, r"\. .*protected ones"),
    ],
)
def test_nothing_left_by_the_users_choice(options, where):
    with pytest.raises(NothingToPruneError, match=f"filters can be pruned{where}"):
        scripted(first, **options).run_pruning(chain())


# --- amounts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [1, 1.0, 1.5, -0.1, float("nan"), float("inf"), "0.5", None])
def test_an_amount_to_remove_outside_its_range(wrong):
    message = rf"^Expected removal_factor in \[0, 1\)\. Received: {wrong!r}\.$"
    with pytest.raises(RequestError, match=message):
        RANDOM(wrong, leave_it, None, 0)


@pytest.mark.parametrize("wrong", [0, 0.0, 1.5, -0.1, float("nan"), float("inf"), "0.5", None])
def test_an_amount_to_keep_outside_its_range(wrong):
    received = "0" if wrong == 0 else repr(wrong)
    message = rf"^Expected clustering_factor in [(\[]0, 1\].* Received: {received}\.$"
    with pytest.raises(RequestError, match=message):
        KMEANS(wrong, leave_it, None, 0)


@pytest.mark.parametrize("wrong", [True, False, np.array([0.1, 0.2])], ids=repr)
@pytest.mark.parametrize("method", [KMEANS, RANDOM])
def test_an_amount_that_is_no_number(method, wrong):
    with pytest.raises(RequestError, match=r"Expected (clustering|removal)_factor in"):
        method(wrong, leave_it, None, 0)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), "0.5", None, [0.5]], ids=repr)
def test_any_methods_factor_is_a_finite_number(wrong):
    with pytest.raises(RequestError, match=r"^Expected a pruning factor, a finite number\. Rec"):
        scripted({}, factor=wrong)


@pytest.mark.parametrize(("method", "wrong"), [(KMEANS, 0.0), (RANDOM, 1.0)])
def test_a_scheduler_that_leaves_the_range(method, wrong):
    pruning = method(0.5, leave_it, None, 0, 3, None)
    with pytest.raises(RequestError, match="_factor in"):
        pruning.run_pruning(chain(), lambda factor, step: factor if step == 0 else wrong)
    assert channels(pruning.model, "b") == 4
    assert len(pruning.history) == 1


def test_a_scheduler_that_forgets_to_return():
    pruning = scripted(first)
    with pytest.raises(RequestError, match="Expected a pruning factor, .* Received: None"):
        pruning.run_pruning(chain(), lambda factor, step: None)


@pytest.mark.parametrize("wrong", [1.5, -0.1, float("nan"), "0.4", True])
def test_a_maximum_fraction_outside_its_range(wrong):
    message = rf"^Expected maximum_pruning_percent in \[0, 1\]\. Received: {wrong!r}\.$"
    with pytest.raises(RequestError, match=message):
        scripted({}, percent=wrong)


def test_a_maximum_given_in_percent():
    with pytest.raises(RequestError, match=r"maximum_pruning_percent in \[0, 1\]. Received: 40"):
        KMEANS(0.9, leave_it, None, 6, maximum_pruning_percent=40)


# --- other arguments ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "name", "wrong"),
    [
        (option, name, wrong)
        for option, name in (
            ("epochs", "nb_finetune_epochs"),
            ("trained", "nb_trained_for_epochs"),
            ("rounds", "maximum_prune_iterations"),
        )
        for wrong in (-1, 1.5, 2.0, "6", None, True, [6])
        if not (option == "rounds" and wrong is None)  # that means no limit
    ],
)
def test_a_number_that_counts_nothing(option, name, wrong):
    message = rf"^Expected {name} to be a whole number from 0\. Received: {re.escape(repr(wrong))}"
    with pytest.raises(RequestError, match=message):
        scripted({}, **{option: wrong})


@pytest.mark.parametrize("wrong", ["train", 3, {}], ids=repr)
@pytest.mark.parametrize("option", ["compile_fn", "finetune_fn"])
def test_a_callback_that_is_no_function(option, wrong):
    message = rf"^Expected model_{option} to be a function\. Received: {re.escape(repr(wrong))}\.$"
    with pytest.raises(RequestError, match=message):
        scripted({}, **{option: wrong})


def test_a_compile_function_is_needed_and_a_finetune_function_is_not():
    with pytest.raises(RequestError, match="Expected model_compile_fn to be a function.*None"):
        scripted({}, compile_fn=None)
    model, epochs = scripted(first, finetune_fn=None, epochs=6).run_pruning(chain())
    assert (channels(model, "a"), epochs) == (4, 0)


@pytest.mark.parametrize("wrong", [0.5, "linear", [0.1, 0.2]], ids=repr)
def test_a_scheduler_that_is_no_function(wrong):
    pruning = scripted(first)
    message = "Expected prune_factor_scheduler_fn to be a function. Received: "
    with pytest.raises(RequestError, match=message + re.escape(repr(wrong))):
        pruning.run_pruning(chain(), wrong)
    assert pruning.asked == []


@pytest.mark.parametrize("wrong", [["Mine"], "Mine", L.Dense], ids=repr)
def test_custom_objects_that_are_no_dictionary(wrong):
    with pytest.raises(RequestError, match="Expected custom_objects_inside_model.*Received: "):
        scripted(first).run_pruning(chain(), None, wrong)


@pytest.mark.parametrize(
    ("bounds", "factors", "message"),
    [
        (
            [3, 5],
            [0.1, 0.2],
            "one channel number more .* Received: 2 channel numbers and 2 factors",
        ),
        ([3, 5, 7], [0.1], "one channel number more .* Received: 3 channel numbers and 1 factors"),
        ([], [], "one channel number more .* Received: 0 channel numbers and 0 factors"),
        ([3, 3], [0.1], r"Expected increasing channel numbers. Received: \[3, 3\]"),
        ([5, 7, 6], [0.1, 0.2], r"Expected increasing channel numbers. Received: \[5, 7, 6\]"),
        ([3, float("nan")], [0.1], r"Expected increasing channel numbers. Received: \[3, nan\]"),
        (["a", "b"], [0.1], r"Expected increasing channel numbers. Received: \['a', 'b'\]"),
        ([3, 5], [1.5], r"Expected removal_factor in \[0, 1\). Received: 1.5"),
        (3, [0.1], "Expected .*channel.number.* Received: 3"),
        ([3, 5], 0.1, "Expected .*factors.* Received: .*0.1"),
    ],
)
def test_bins_that_make_no_sense(bounds, factors, message):
    pruning = RANDOM(0.5, leave_it, None, 0, 1, None, seed=0)
    with pytest.raises(RequestError, match=message):
        pruning.define_prune_bins(bounds, factors)
    model, _ = pruning.run_pruning(chain())  # as if nothing had been said
    assert channels(model, "b") == 4


def test_a_maximum_number_of_channels_in_a_bin_may_be_infinite():
    pruning = RANDOM(0.5, leave_it, None, 0, 1, None)
    pruning.define_prune_bins([6, float("inf")], [0.0])
    model, _ = pruning.run_pruning(chain())
    assert (channels(model, "a"), channels(model, "b")) == (3, 7)


@pytest.mark.parametrize("option", ["layers", "protect"])
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ("hed", UnknownLayerError, r"^The model has no layer 'hed'\. Did you mean 'head'\? Layers"),
        ("conv_.*", UnknownLayerError, r"^The regular expression 'conv_\.\*' matches no layer\. L"),
        ("conv_(", RequestError, r"^'conv_\(' is no regular expression: missing \), untermin"),
        (99, UnknownLayerError, r"^Layer index 99 is out of range: there are 7 layers\."),
        (1.0, RequestError, r"^Expected a name, pattern, index, layer, pred.*Received: 1\.0"),
        (
            L.Dense(2, name="x"),
            UnknownLayerError,
            r"^The model has no layer 'x' \(Dense\)\. Layers",
        ),
    ],
    ids=["typo", "expression", "bad expression", "index", "float", "stranger"],
)
def test_layers_that_are_not_there(option, wrong, error, message):
    pruning = scripted(first, **{option: wrong})
    model = chain()
    with pytest.raises(error, match=message):
        pruning.run_pruning(model)
    assert pruning.model is model
    assert pruning.asked == []


# --- channels -------------------------------------------------------------------------------------

NO_LIST = r"^Expected a flat list of whole numbers, the channels of layer 'b'\. Received: "


@pytest.mark.parametrize(
    ("idxs", "message"),
    [
        (
            [7],
            r"index out of range for layer 'b', which has 7 channels \(0 to 6\)\. Rec.*: \[7\]\.",
        ),
        ([2, 9, 8], r"index out of range .* Received: \[9, 8\]\."),
        ([-1], r"index out of range .* Received: \[-1\]\."),
        ([1, 2, 1], r"^Every channel of layer 'b' can be removed once\. Repeated: \[1\]\."),
        ([1.0], NO_LIST + r"\[1\.0\]"),
        (np.array([0.5]), NO_LIST + r"array\(\[0\.5\]\)"),
        ([True, False] + [False] * 5, NO_LIST + r"\[True, False"),
        (np.eye(7)[0] > 0, NO_LIST + r"array\(\[ True, False"),
        ([[0], [1]], NO_LIST + r"\[\[0\], \[1\]\]"),
        (np.array([[0, 1], [2, 3]]), NO_LIST),
        ([[0], [1, 2]], NO_LIST + r"\[\[0\], \[1, 2\]\]"),
        (["a"], NO_LIST + r"\['a'\]"),
        ("ab", NO_LIST + "'ab'"),
        ([None], NO_LIST + r"\[None\]"),
        ([10**30], NO_LIST),
        (3, NO_LIST + "3"),
        (0, NO_LIST + "0"),
        (2.5, NO_LIST + r"2\.5"),
        ([], r"^No channel is named: expected at least one index to remove\.$"),
        (np.array([], int), r"^No channel is named: expected at least one index to remove\.$"),
        (
            range(7),
            r"every channel \(7 output channels\) of layer 'b' \(Conv2D\)\. At least one ha",
        ),
    ],
    ids=str,
)
def test_channels_that_cannot_be_meant(idxs, message):
    with pytest.raises(RequestError, match=message):
        plan("b", idxs)


def test_all_channels_but_one_may_go():
    assert channels(plan("b", range(6)).exec(), "b") == 1


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            "haed",
            r"^The model has no layer 'haed'\. Did you mean 'head'\? Layers: a, bn, relu, b, ",
        ),
        ("zzz", r"^The model has no layer 'zzz'\. Layers: a, bn, relu, b, pool, head\.$"),
        (1, r"^The model has no layer 1 \(int\)\. Layers: a, "),
        (None, r"^The model has no layer None \(NoneType\)\. Layers: a, "),
        (L.Dense(2, name="a"), r"^The model has no layer 'a' \(Dense\)\. Layers: a, "),
    ],
    ids=["typo", "nonsense", "number", "none", "stranger"],
)
def test_an_unknown_layer(wanted, message):
    with pytest.raises(UnknownLayerError, match=message):
        plan(wanted, [0])


def test_a_protected_channel():
    message = (
        r"^Channels \[1, 3\] of layer 'a' \(Conv2D\) cannot be removed: the user protected them at "
        r"'a' \(Conv2D\)\.$"
    )
    with pytest.raises(FrozenChannelError, match=message):
        plan("a", [3, 1], protect="a")


def test_an_output_channel():
    message = (
        r"^Channels \[0\] of layer 'head' \(Dense\) cannot be removed: they are an output of the "
        r"model at 'chain'"
    )
    with pytest.raises(FrozenChannelError, match=message):
        plan("head", [0])


class Mystery(L.Layer):
    def call(self, x):
        self.last = x  # code that keeps its tensors is not looked into
        return keras.ops.flip(x, axis=-1)


def with_mystery():
    layers = [keras.Input((4, 4, 3)), L.Conv2D(5, 3, name="a"), Mystery(name="odd")]
    return keras.Sequential([*layers, L.Conv2D(7, 1, name="b"), L.Flatten(), L.Dense(2)])


def test_a_channel_that_flows_into_an_unknown_layer():
    with pytest.warns(ridurre.RidurreWarning, match=r"flow into 'odd' \(Mystery\) cannot be prune"):
        graph = ridurre.DependencyGraph(with_mystery())
    message = (
        r"^Channels \[0\] of layer 'a' \(Conv2D\) cannot be removed: no rule says .* at 'odd' "
        r"\(Mystery\); describe it with @ridurre\.register_rule\(Mystery\) \(its "
        r"code keeps tensors on itself, as 'last'\)\.$"
    )
    with pytest.raises(FrozenChannelError, match=message):
        graph.get_pruning_plan("a", [0])


@pytest.mark.filterwarnings("ignore:Channels that flow into 'odd':ridurre.RidurreWarning")
def test_the_loop_goes_around_an_unknown_layer():
    model, _ = scripted(first).run_pruning(with_mystery())
    assert (channels(model, "a"), channels(model, "b")) == (5, 6)


# --- what a method returns ------------------------------------------------------------------------

ANSWER = r"layer 'a' \(as returned by run_pruning_for_conv2d_layer\)"
NO_ANSWER = rf"Expected a (flat )?list of .*the channels of {ANSWER}\. Received: "


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, NO_ANSWER + "None"),
        (2, NO_ANSWER + "2"),
        (2.5, NO_ANSWER + r"2\.5"),
        ("ab", NO_ANSWER + "'ab'"),
        (["0", "1"], NO_ANSWER + r"\['0', '1'\]"),
        ([0.0, 1.0], NO_ANSWER + r"\[0\.0, 1\.0\]"),
        (np.array([0.5]), NO_ANSWER + r"array\(\[0\.5\]\)"),
        ([float("nan")], NO_ANSWER + r"\[nan\]"),
        ([None], NO_ANSWER + r"\[None\]"),
        ([[0, 1], [2, 3]], NO_ANSWER + r"\[\[0, 1\], \[2, 3\]\]"),
        ([[0], [1, 2]], NO_ANSWER + r"\[\[0\], \[1, 2\]\]"),
        ([True, False, False, False, False], NO_ANSWER + r"\[True, False"),
        (np.array([True, False, False, False, False]), NO_ANSWER + r"array\(\[ True"),
        ([5], rf"out of range for {ANSWER}, which has 5 channels \(0 to 4\)\. Received: \[5\]\."),
        ([-1, 0], r"out of range .* Received: \[-1\]\."),
        ([1, 1], rf"^Every channel of {ANSWER} can be removed once\. Repeated: \[1\]\."),
        (
            [0, 1, 2, 3, 4],
            r"^run_pruning_for_conv2d_layer returned all 5 filters of layer 'a'; at least one has",
        ),
    ],
    ids=str,
)
def test_a_method_that_returns_rubbish(answer, message):
    model = chain()
    before = snapshot(model)
    pruning = scripted({"a": answer})
    with pytest.raises(RequestError, match=message):
        pruning.run_pruning(model)
    assert pruning.model is model
    assert pruning.history == []
    assert snapshot(model) == before


def test_rubbish_in_a_later_round_leaves_the_last_good_model():
    compiled = []
    pruning = scripted(
        lambda layer, kernel: [0] if kernel.shape[-1] > 4 else [99],
        compile_fn=compiled.append,
        rounds=None,
    )
    with pytest.raises(RequestError, match=r"which has 4 channels \(0 to 3\). Received: \[99\]"):
        pruning.run_pruning(chain())
    assert pruning.model is compiled[-1]
    assert channels(pruning.model, "a") == 4


@pytest.mark.parametrize(
    "answer", [[], (), set(), np.array([], int), np.array([]), range(0)], ids=repr
)
def test_an_empty_answer_in_any_form_is_no_rubbish(answer):
    model = columns(5)
    assert scripted({"a": answer}).run_pruning(model)[0] is model


@pytest.mark.parametrize(
    "answer", [[0, 3], (3, 0), {0, 3}, np.array([3, 0], "uint8"), range(0, 4, 3)], ids=repr
)
def test_an_answer_may_have_many_forms(answer):
    model = columns(5)
    kernel = model.get_layer("a").kernel.numpy()
    smaller, _ = scripted({"a": answer}).run_pruning(model)
    np.testing.assert_array_equal(smaller.get_layer("a").kernel, kernel[..., [1, 2, 4]])


# --- weights --------------------------------------------------------------------------------------

METHODS = {
    "kmeans": lambda: KMEANS(0.5, leave_it, None, 0),
    "random": lambda: RANDOM(0.5, leave_it, None, 0),
    "own": lambda: scripted(first),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(method, value):
    model = chain()
    kernel = model.get_layer("b").kernel.numpy()
    kernel[1, 2, 3, 4] = value
    model.get_layer("b").kernel.assign(kernel)
    pruning = method()
    message = (
        r"^The kernel of layer 'b' holds values that are not finite \(NaN or infinity\); its "
        r"filters cannot be ranked\. Training has probably diverged\.$"
    )
    with pytest.raises(RequestError, match=message):
        pruning.run_pruning(model)
    assert pruning.model is model


def test_weights_that_diverge_in_training_leave_the_last_good_model():
    def diverge(model, *_):
        if channels(model, "a") == 3:
            set_filters(model, "a", [1, np.nan, 1])

    pruning = scripted(first, finetune_fn=diverge, rounds=None)
    with pytest.raises(RequestError, match="layer 'a' holds values that are not finite"):
        pruning.run_pruning(chain())
    assert len(pruning.history) == 2


# --- whatever went wrong --------------------------------------------------------------------------


def breaking(kind):
    """A run that fails for a reason, and its model."""
    model = chain()
    if kind == "selector":
        return scripted(first, layers="zzz"), model
    if kind == "answer":
        return scripted({"a": [99]}), model
    if kind == "weights":
        set_filters(model, "b", [np.nan] * 7)
        return scripted(first), model

    def fail(*_):
        raise RuntimeError("no")

    return scripted(first, **{kind: fail}), model


@pytest.mark.parametrize("kind", ["selector", "answer", "weights", "compile_fn", "finetune_fn"])
def test_nothing_is_lost(kind):
    pruning, model = breaking(kind)
    before = snapshot(model)
    with pytest.raises((RidurreError, RuntimeError)):
        pruning.run_pruning(model)
    assert pruning.model is model
    assert pruning.history == []
    assert snapshot(model) == before


def test_after_a_failure_the_same_object_can_be_used_again():
    failures = ["once"]

    def train(model):
        if failures:
            raise RuntimeError(failures.pop())

    pruning = scripted(first, compile_fn=train, rounds=2)
    with pytest.raises(RuntimeError, match="once"):
        pruning.run_pruning(chain())
    model, _ = pruning.run_pruning(pruning.model)
    assert channels(model, "a") == 3


@pytest.mark.parametrize(
    ("error", "builtin"),
    [(ModelError, ValueError), (RequestError, ValueError), (FrozenChannelError, ValueError)],
)
def test_every_error_is_ours_and_a_builtin_one(error, builtin):
    assert issubclass(error, RidurreError)
    assert issubclass(error, builtin)
