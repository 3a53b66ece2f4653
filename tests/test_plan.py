"""What a plan says, and what can be done with one."""

import dataclasses
import io
import json

import keras
import numpy as np
import pytest
from builders import L, chain, channels, pictures, predict, residual

import ridurre
from ridurre.errors import (
    FrozenChannelError,
    PlanMismatchError,
    RequestError,
    UnknownLayerError,
    VerificationError,
)
from ridurre.graph.names import by_own_paths, named_layers
from ridurre.testing import randomise, snapshot


def plan_of(model, layer="a", idxs=(0, 3), **options):
    return ridurre.DependencyGraph(model, **options).get_pruning_plan(layer, idxs)


def through_json(plan):
    return ridurre.PruningPlan.from_dict(json.loads(json.dumps(plan.to_dict())))


@pytest.fixture
def model():
    model = chain()
    randomise(model)
    return model


# --- as text --------------------------------------------------------------------------------------

TEXT = """\
a (Conv2D): 2 of 5 output channels [0, 3]: 56 parameters
bn (BatchNormalization): 2 of 5 channels [0, 3]: 4 parameters
b (Conv2D): 2 of 5 input channels [0, 3]: 126 parameters
186 parameters will be pruned"""


def test_a_plan_lists_every_layer_and_ends_with_the_total(model):
    assert str(plan_of(model)) == TEXT


def test_print_writes_the_same_text(model, capsys):
    plan = plan_of(model)
    plan.print()
    assert capsys.readouterr().out == TEXT + "\n"
    buffer = io.StringIO()
    plan.print(buffer)
    plan.print(file=buffer)
    assert buffer.getvalue() == 2 * (TEXT + "\n")
    assert capsys.readouterr().out == ""


def test_a_layer_that_loses_on_both_sides_has_one_line():
    request = {"stem": [0], "inner": [2, 6]}
    plan = ridurre.DependencyGraph(residual()).get_pruning_plan(request)
    assert str(plan).splitlines() == [
        "stem (Conv2D): 1 of 5 output channels [0]: 3 parameters",
        "inner (Conv2D): 2 of 7 output channels [2, 6]; 1 of 5 input channels [0]: 15 parameters",
        "outer (Conv2D): 1 of 5 output channels [0]; 2 of 7 input channels [2, 6]: 15 parameters",
        "head (Dense): 1 of 5 input channels [0]: 2 parameters",
        "35 parameters will be pruned",
    ]


def test_long_lists_are_cut_short():
    inputs = keras.Input((2, 2, 3))
    x = L.Flatten()(L.Conv2D(21, 1, name="wide")(inputs))
    model = keras.Model(inputs, L.Dense(2)(x))
    line = str(plan_of(model, "wide", range(17))).splitlines()[0]
    listed = ", ".join(map(str, range(16)))
    assert line == f"wide (Conv2D): 17 of 21 output channels [{listed}, …]: 68 parameters"
    line = str(plan_of(model, "wide", range(16))).splitlines()[0]
    assert f"[{listed}]" in line


def with_layer_norm():
    inputs = keras.Input((2, 2, 3))
    x = L.LayerNormalization(name="norm")(L.Conv2D(5, 1, name="a")(inputs))
    return keras.Model(inputs, L.Dense(2, name="head")(L.Flatten()(x)))


def test_a_plan_that_changes_statistics_says_so():
    model = with_layer_norm()
    plan = plan_of(model)
    assert not plan.exact
    assert plan.inexact == ("norm",)
    assert "Not exact: statistics across channels change in norm" in str(plan).splitlines()
    assert str(plan).splitlines()[-1].endswith("parameters will be pruned")
    with pytest.raises(VerificationError, match="not exact: norm compute statistics across"):
        ridurre.verify(model, plan.exec(), plan)


def test_other_plans_are_exact(model):
    plan = plan_of(model)
    assert plan.exact
    assert plan.inexact == ()


# --- its figures ----------------------------------------------------------------------------------


def test_removed_names_every_affected_variable(model):
    removed = plan_of(model, "a", [3, 0]).removed
    expected = {
        "a/kernel": {3: [0, 3]},
        "a/bias": {0: [0, 3]},
        "bn/gamma": {0: [0, 3]},
        "bn/beta": {0: [0, 3]},
        "bn/moving_mean": {0: [0, 3]},
        "bn/moving_variance": {0: [0, 3]},
        "b/kernel": {2: [0, 3]},
    }
    assert {p: {a: list(i) for a, i in x.items()} for p, x in removed.items()} == expected
    assert all(i.dtype.kind == "i" for axes in removed.values() for i in axes.values())
    assert removed.keys() <= {v.path for v in model.variables}


def test_parameters_are_counted_as_keras_counts_trainable_ones(model):
    plan = plan_of(model)
    assert plan.layer_parameters == {"a": 56, "bn": 4, "b": 126}
    assert plan.parameters == 186

    def trainable(x):
        return sum(int(np.prod(v.shape)) for v in x.trainable_variables)

    assert trainable(model) - trainable(plan.exec()) == 186


def test_frozen_layers_count_too(model):
    model.trainable = False
    assert plan_of(model).parameters == 186


def test_a_variable_cut_on_both_axes_is_counted_once():
    request = {"stem": [0, 1], "inner": [0, 1, 2]}
    plan = ridurre.DependencyGraph(residual()).get_pruning_plan(request)
    assert plan.layer_parameters["inner"] == 5 * 7 - 3 * 4


# --- ways to ask ----------------------------------------------------------------------------------


def test_a_layer_may_be_given_itself(model):
    assert plan_of(model, model.get_layer("a")) == plan_of(model)


@pytest.mark.parametrize(
    "idxs",
    [
        (0, 3),
        [3, 0],
        range(0, 4, 3),
        {0, 3},
        np.array([0, 3]),
        np.array([3, 0], "uint8"),
        [np.int64(0), np.int32(3)],
        (i for i in [0, 3]),
    ],
    ids=["tuple", "list", "range", "set", "array", "uint8", "numpy", "generator"],
)
def test_indices_may_come_in_many_forms(model, idxs):
    assert plan_of(model, "a", idxs) == plan_of(model)


def test_a_single_zero_in_an_array_is_an_index(model):
    assert plan_of(model, "a", np.array([0])) == plan_of(model, "a", [0])


def test_indices_of_a_mapping_may_be_arrays(model):
    graph = ridurre.DependencyGraph(model)
    assert graph.get_pruning_plan({"a": np.array([0])}) == graph.get_pruning_plan("a", [0])


def test_a_mapping_asks_for_several_layers_at_once(model):
    graph = ridurre.DependencyGraph(model)
    both = graph.get_pruning_plan({"a": [0], model.get_layer("b"): [2, 4], "bn": [3]})
    smaller = both.exec()
    assert (channels(smaller, "a"), channels(smaller, "b")) == (3, 5)
    step_by_step = plan_of(plan_of(model, "a", [0, 3]).exec(), "b", [2, 4]).exec()
    x = pictures(model)
    np.testing.assert_array_equal(predict(smaller, x), predict(step_by_step, x))


def test_layers_without_indices_in_a_mapping_lose_nothing(model):
    graph = ridurre.DependencyGraph(model)
    assert graph.get_pruning_plan({"a": [0, 3], "b": []}) == plan_of(model)


def test_a_group_is_asked_by_its_units():
    model = residual()
    graph = ridurre.DependencyGraph(model)
    group = next(g for g in graph.groups if "stem" in g.producers)
    plan = graph.get_pruning_plan(group, [0, 4])
    assert plan == graph.get_pruning_plan("outer", [0, 4])
    assert channels(plan.exec(), "stem") == 3


def test_a_group_of_another_graph_is_refused(model):
    (group, *_) = ridurre.DependencyGraph(residual()).groups
    with pytest.raises(RequestError, match="group.*graph"):
        ridurre.DependencyGraph(model).get_pruning_plan(group, [1])


@pytest.mark.parametrize(
    "arguments", [("a",), ("a", None), ({"a": [1]}, [1]), ({"a": [1]}, [])], ids=repr
)
def test_a_layer_needs_indices_and_a_mapping_has_its_own(model, arguments):
    with pytest.raises(RequestError, match="Expected a layer and the indices of its channels, or"):
        ridurre.DependencyGraph(model).get_pruning_plan(*arguments)


@pytest.mark.parametrize("request_", [{}, {"a": []}, {"a": [], "b": []}], ids=repr)
def test_an_empty_request_is_refused(model, request_):
    with pytest.raises(RequestError, match="No channel is named: expected at least one index"):
        ridurre.DependencyGraph(model).get_pruning_plan(request_)


def test_a_plan_respects_what_is_protected(model):
    with pytest.raises(FrozenChannelError, match="the user protected them at 'bn'"):
        plan_of(model, protect="bn")


def test_unknown_layers_are_refused(model):
    with pytest.raises(UnknownLayerError, match="no layer 'haed'. Did you mean 'head'"):
        plan_of(model, "haed")


# --- carried out ----------------------------------------------------------------------------------


def test_exec_makes_a_smaller_model_and_leaves_the_original(model):
    before = snapshot(model)
    plan = plan_of(model)
    smaller = plan.exec()
    assert snapshot(model) == before
    assert [x.name for x in smaller.layers] == [x.name for x in model.layers]
    kernel = model.get_layer("a").kernel.numpy()
    np.testing.assert_array_equal(smaller.get_layer("a").kernel, kernel[..., [1, 2, 4]])
    assert ridurre.verify(model, smaller, plan) <= 1e-6


def test_exec_can_be_repeated(model):
    plan = plan_of(model)
    one, two = plan.exec(), plan.exec()
    assert one is not two
    x = pictures(model)
    np.testing.assert_array_equal(predict(one, x), predict(two, x))


def test_exec_takes_the_weights_of_the_moment(model):
    plan = plan_of(model)
    model.get_layer("a").bias.assign([1, 2, 3, 4, 5])
    np.testing.assert_array_equal(plan.exec().get_layer("a").bias, [2, 3, 5])


def test_a_plan_is_frozen(model):
    plan = plan_of(model)
    for name in ("removed", "cuts", "layer_parameters", "inexact", "parameters"):
        with pytest.raises((dataclasses.FrozenInstanceError, AttributeError)):
            setattr(plan, name, {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.cuts[0].size = 3
    with pytest.raises(TypeError, match="unhashable"):
        hash(plan)


# --- saved and loaded -----------------------------------------------------------------------------


def test_a_plan_survives_json(model):
    plan = plan_of(model)
    loaded = through_json(plan)
    assert loaded == plan
    assert str(loaded) == str(plan)
    assert loaded.parameters == plan.parameters
    for path, axes in plan.removed.items():
        for axis, indices in axes.items():
            np.testing.assert_array_equal(loaded.removed[path][axis], indices)
            assert loaded.removed[path][axis].dtype.kind == "i"
    inexact = plan_of(with_layer_norm())
    assert through_json(inexact).inexact == ("norm",)


def test_the_dictionary_holds_plain_data_only(model):
    data = plan_of(model).to_dict()
    assert set(data) == {"format", "removed", "cuts", "layer_parameters", "inexact"}
    assert data["removed"]["a/kernel"] == {"3": [0, 3]}
    assert json.loads(json.dumps(data)) == data


def test_from_dict_also_reads_what_to_dict_made_before_json(model):
    plan = plan_of(model)
    assert ridurre.PruningPlan.from_dict(plan.to_dict()) == plan


def test_equality_is_about_what_goes(model):
    plan = plan_of(model)
    assert plan == plan_of(model)
    assert plan != plan_of(model, "a", [1, 2])
    assert plan != plan_of(model, "b", [0, 3])
    assert plan != "a plan"


def test_what_a_plan_shows_holds_no_model(model):
    plan = plan_of(model)
    assert "execute" not in repr(plan)
    assert "function" not in repr(plan)
    assert through_json(plan)._execute is None


def test_a_loaded_plan_knows_no_model(model):
    with pytest.raises(RequestError, match=r"holds no model\. Use ridurre\.apply\(model, plan\)"):
        through_json(plan_of(model)).exec()


def test_a_loaded_plan_is_applied_to_a_loaded_model(model, tmp_path):
    plan = plan_of(model)
    expected = plan.exec()
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    before = snapshot(again)
    smaller = ridurre.apply(again, through_json(plan))
    assert snapshot(again) == before
    x = pictures(model)
    np.testing.assert_array_equal(predict(smaller, x), predict(expected, x))


def test_an_empty_plan_copies_the_model(model):
    plan = ridurre.PruningPlan({}, (), {})
    assert str(plan) == "0 parameters will be pruned"
    copy = ridurre.apply(model, plan)
    x = pictures(model)
    assert copy is not model
    np.testing.assert_array_equal(predict(copy, x), predict(model, x))


def sequential():
    """Keras names its variables otherwise once it was saved and loaded."""
    layers = [keras.Input((6, 6, 3)), L.Conv2D(5, 3, name="a"), L.BatchNormalization(name="bn")]
    layers += [L.Conv2D(7, 3, name="b"), L.GlobalAveragePooling2D(), L.Dense(2, name="head")]
    return keras.Sequential(layers, name="line")


def test_a_plan_fits_the_model_after_it_was_saved_and_loaded(tmp_path):
    model = sequential()
    randomise(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for one, other in ((model, loaded), (loaded, model)):
        plan = plan_of(one, "a", (1, 3))
        smaller = ridurre.apply(other, plan)
        assert channels(smaller, "a") == 3
        assert ridurre.verify(other, smaller, plan) < 1e-4
        rate = ridurre.retraining_rate(one, plan, 0.1, 10).peak
        assert ridurre.retraining_rate(other, plan, 0.1, 10).peak == pytest.approx(rate)


def test_what_a_path_stands_for_is_not_guessed():
    model = residual()  # its variables are called by their layers alone
    known = {"line/stem/kernel": 1, "path/of/inner/kernel": 2, "nobody/kernel": 3}
    assert by_own_paths(known, named_layers(model)) == {
        "stem/kernel": 1, "path/of/inner/kernel": 2, "nobody/kernel": 3,
    }  # fmt: skip
    twins = keras.Sequential([keras.Input((4,)), _dense("x"), _dense("y")])
    assert by_own_paths({"z/inner/kernel": 1}, named_layers(twins)) == {"z/inner/kernel": 1}


def _dense(name):
    return keras.Sequential([keras.Input((4,)), L.Dense(4, name="inner")], name=name)


@pytest.mark.parametrize(
    ("layer", "idxs", "message"),
    [
        ("a", (0, 3), "does not fit the model 'residual': it removes positions of axis 3 of 'a/"),
        ("head", (1,), "which the model does not have"),
    ],
)
def test_a_plan_for_another_model_is_refused(layer, idxs, message):
    inputs = keras.Input((4, 5, 3))
    x = L.Conv2D(5, 1, use_bias=False, name="a")(inputs)
    x = L.Dense(9, use_bias=False, name="head")(L.Flatten()(x))
    plan = plan_of(keras.Model(inputs, L.Dense(2)(x)), layer, idxs)
    with pytest.raises(PlanMismatchError, match=message):
        ridurre.apply(residual(), plan)


def test_a_plan_for_a_wider_model_is_refused():
    inputs = keras.Input((4, 5, 3))
    x = L.Conv2D(7, 1, use_bias=False, name="stem")(inputs)
    wide = keras.Model(inputs, L.Dense(2, name="head")(L.GlobalAveragePooling2D()(x)))
    with pytest.raises(PlanMismatchError, match="positions of axis 3 of 'stem/kernel'"):
        ridurre.apply(residual(), plan_of(wide, "stem", [5]))
    with pytest.raises(PlanMismatchError, match="coupled positions are missing in"):
        ridurre.apply(residual(), plan_of(wide, "stem", [4]))


def edited(plan, edit):
    data = plan.to_dict()
    edit(data["removed"])
    return ridurre.PruningPlan.from_dict(data)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r.pop("b/kernel"), r"coupled positions are missing in \['b/kernel'\]"),
        (lambda r: r["bn/gamma"].update({"0": [1]}), "coupled positions are missing in"),
        (lambda r: r["b/kernel"].update({"2": [1, 4]}), "coupled positions are missing in"),
        (lambda r: r["a/kernel"].update({"3": [-1, 1]}), "coupled positions|does not fit"),
        (lambda r: r["a/kernel"].update({"3": [1, 99]}), "does not fit the model 'chain'"),
        (lambda r: r["a/kernel"].update({"0": [1]}), "does not fit the model 'chain'"),
        (lambda r: r.update({"zz/kernel": {"0": [1]}}), "'zz/kernel', which the model does not"),
        (lambda r: r.update({"head/kernel": {"1": [1]}}), "cannot be removed"),
        (lambda r: r["a/kernel"].update({"3": [0, 1, 2, 3, 4]}), "remove every channel"),
    ],
)
def test_an_edited_plan_is_refused(model, edit, message):
    before = snapshot(model)
    with pytest.raises(PlanMismatchError, match=message):
        ridurre.apply(model, edited(plan_of(model), edit))
    assert snapshot(model) == before


@pytest.mark.parametrize(
    "data",
    [
        {},
        None,
        [],
        "plan",
        {"format": 1},
        {"format": 99, "removed": {}, "cuts": [], "layer_parameters": {}, "inexact": []},
        {"format": 1, "removed": [], "cuts": [], "layer_parameters": {}, "inexact": []},
        {"format": 1, "removed": {}, "cuts": [["a"]], "layer_parameters": {}, "inexact": []},
    ],
    ids=repr,
)
def test_other_data_are_no_plan(data):
    with pytest.raises(
        PlanMismatchError, match=r"Expected the dictionary that PruningPlan.to_dict"
    ):
        ridurre.PruningPlan.from_dict(data)


def test_verify_finds_a_wrong_plan(model):
    smaller, other = plan_of(model).exec(), plan_of(model, "a", [1, 2])
    with pytest.raises(VerificationError, match="differs from the original with the removed"):
        ridurre.verify(model, smaller, other)
    with pytest.raises(PlanMismatchError, match="weights that 'residual' does not have"):
        ridurre.verify(residual(), smaller, other)
