"""The loop's limits and records: targets, accuracy floor, early stop, history."""

import dataclasses
import json
import logging

import keras
import numpy as np
import pytest
from builders import (
    chain,
    channels,
    columns,
    first,
    leave_it,
    pictures,
    predict,
    residual,
    scripted,
    weights,
)

import ridurre
from ridurre.errors import RequestError
from ridurre.targets import Filters, MACs, Params
from ridurre.testing import snapshot


def by_width(layer="a"):
    """A model is as accurate as it is wide: 1.0 with 10 channels."""
    return lambda model: channels(model, layer) / 10


# --- targets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "left"),
    [(Filters(4), 4), (Filters(0.5), 3), (Filters(7), 7), (Params(1), 1), (MACs(0.5), 3)],
    ids=repr,
)
def test_it_stops_at_the_target(target, left):
    # 7 columns of 1×1×3, six outputs each to two units: everything is proportional, but biases.
    pruning = scripted(first, rounds=None, target=target)
    model, _ = pruning.run_pruning(columns(7))
    assert channels(model, "a") == left
    if left == 7:
        assert (pruning.stopped, pruning.history) == ("target", [])
    else:
        assert pruning.stopped == ("target" if left > 1 else "nothing_left")
        assert pruning.history[-1].stopped == pruning.stopped


def test_all_targets_have_to_hold():
    for targets, left in (([Filters(5), MACs(0.5)], 3), ([Filters(2), MACs(0.5)], 2)):
        pruning = scripted(first, rounds=None, target=targets)
        assert channels(pruning.run_pruning(columns(7))[0], "a") == left


def test_other_limits_hold_beside_a_target():
    pruning = scripted(first, rounds=2, target=Filters(1))
    assert channels(pruning.run_pruning(columns(7))[0], "a") == 5
    assert pruning.stopped == "maximum_prune_iterations"


@pytest.mark.parametrize("wrong", [0.5, "half", [Filters(3), 5], Filters])
def test_what_is_no_target_is_refused(wrong):
    with pytest.raises(RequestError, match="Expected targets such as.*Received"):
        scripted(first, target=wrong)


# --- accuracy -------------------------------------------------------------------------------------


@pytest.mark.core
def test_the_last_model_that_held_the_floor_comes_back(caplog):
    trained = []
    pruning = scripted(
        first,
        rounds=None,
        evaluate_fn=by_width(),
        minimum_accuracy=0.7,
        finetune_fn=lambda model, start, end: trained.append(model),
        epochs=3,
    )
    with caplog.at_level(logging.WARNING, "ridurre"):
        model, epochs = pruning.run_pruning(columns(10))
    assert channels(model, "a") == 7  # exactly the floor is accepted
    assert model is pruning.model is trained[2]
    assert epochs == 9  # of the model that is returned, not of the one that was rejected
    assert [s.accepted for s in pruning.history] == [True, True, True, False]
    assert [s.stopped for s in pruning.history] == [None, None, None, "accuracy"]
    assert pruning.stopped == "accuracy"
    assert "Round 3 came to an accuracy of 0.6, below the minimum of 0.7" in caplog.text


def test_the_original_comes_back_if_the_first_round_falls_below():
    original = columns(10)
    pruning = scripted(
        first, rounds=None, finetune_fn=leave_it, epochs=3, trained=2,
        evaluate_fn=by_width(), minimum_accuracy=0.95,
    )  # fmt: skip
    assert pruning.run_pruning(original) == (original, 2)


def test_accuracy_counts_after_fine_tuning():
    tuned = []
    pruning = scripted(
        first,
        rounds=2,
        finetune_fn=lambda model, *_: tuned.append(model),
        evaluate_fn=lambda model: 0.9 if not tuned or tuned[-1] is model else 0.1,
        minimum_accuracy=0.8,
    )
    pruning.run_pruning(columns(5))
    assert [(s.accuracy_before_finetuning, s.accuracy) for s in pruning.history] == [
        (0.9, 0.9),
        (0.1, 0.9),
    ]
    assert all(s.accepted for s in pruning.history)


def test_accuracy_is_recorded_without_a_floor():
    pruning = scripted(first, rounds=2, evaluate_fn=by_width())
    pruning.run_pruning(columns(10))
    assert [s.accuracy for s in pruning.history] == [0.9, 0.8]
    assert pruning.stopped == "maximum_prune_iterations"


def test_an_original_below_the_floor_is_refused_before_any_work():
    original, asked = columns(5), []
    before = snapshot(original)
    pruning = scripted(
        lambda *_: asked.append(1) or [0],
        compile_fn=lambda model: model.compile("sgd", "mse"),
        evaluate_fn=by_width(),
        minimum_accuracy=0.6,
    )
    message = (
        r"original's accuracy is 0\.5, below the minimum_accuracy of 0\.6.* Expected a smaller"
    )
    with pytest.raises(RequestError, match=message):
        pruning.run_pruning(original)
    assert (asked, pruning.history, pruning.model) == ([], [], original)
    assert snapshot(original) == before
    assert not original.compiled


def test_not_a_number_is_below_every_floor():
    values = iter([1.0, 1.0, float("nan")])
    pruning = scripted(
        first, rounds=None, evaluate_fn=lambda _: next(values), minimum_accuracy=-5.0
    )
    assert channels(pruning.run_pruning(columns(5))[0], "a") == 4


def classifier_data(model):
    x = pictures(model, 12)
    return x, np.arange(12) % 2


def compile_classifier(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2)])


@pytest.mark.parametrize("form", ["arrays", "batches", "weighted"])
def test_a_compiled_metric_on_validation_data(form):
    model = chain()
    x, y = classifier_data(model)
    data = {
        "arrays": (x, y),
        "batches": keras_dataset(x, y),
        "weighted": (x, y, np.ones(12)),
    }[form]
    pruning = scripted(first, compile_fn=compile_classifier, minimum_accuracy=0.0)
    smaller, _ = pruning.run_pruning(model, validation_data=data)
    logits = keras.ops.convert_to_numpy(smaller(x, training=False))
    assert pruning.history[0].accuracy == pytest.approx(float((logits.argmax(1) == y).mean()))


def keras_dataset(x, y):
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            rows = slice(4 * index, 4 * index + 4)
            return x[rows], y[rows]

    return Batches()


@pytest.mark.core
def test_another_metric_counts():
    model = chain()
    pruning = scripted(
        first, compile_fn=compile_classifier, metric="sparse_top_k_categorical_accuracy",
        minimum_accuracy=1.0,
    )  # fmt: skip
    pruning.run_pruning(model, validation_data=classifier_data(model))
    assert pruning.history[0].accuracy == 1.0


def test_a_metric_that_is_not_there_is_named():
    model = chain()
    pruning = scripted(first, compile_fn=compile_classifier, metric="f1")
    with pytest.raises(RequestError, match=r"no metric 'f1'.*\['accuracy', 'loss', 'sparse"):
        pruning.run_pruning(model, validation_data=classifier_data(model))


def test_a_floor_needs_an_evaluation():
    with pytest.raises(RequestError, match="minimum_accuracy needs .* Received neither"):
        scripted(first, minimum_accuracy=0.5).run_pruning(chain())


def test_two_evaluations_are_one_too_many():
    pruning = scripted(first, evaluate_fn=by_width())
    with pytest.raises(RequestError, match="Both evaluate_fn and validation_data are given"):
        pruning.run_pruning(chain(), validation_data=(1, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minimum_accuracy": "high"}, "minimum_accuracy, a finite number. Received: 'high'"),
        ({"minimum_accuracy": float("nan")}, "finite number. Received: nan"),
        ({"evaluate_fn": 0.5}, "Expected evaluate_fn to be a function. Received: 0.5"),
        ({"stop_fn": True}, "Expected stop_fn to be a function. Received: True"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(RequestError, match=message):
        scripted(first, **options)


def test_an_evaluation_that_gives_no_number_is_refused():
    pruning = scripted(first, evaluate_fn=lambda model: {"accuracy": 1})
    with pytest.raises(RequestError, match=r"Expected evaluate_fn\(model\) to be a number") as e:
        pruning.run_pruning(chain())
    assert "Raised by the evaluation in pruning round 0" in e.value.__notes__[0]


# --- early stop and history -----------------------------------------------------------------------


def test_a_function_may_stop_it():
    asked = []
    pruning = scripted(first, rounds=None, stop_fn=lambda s: asked.append(s) or s.filters <= 5)
    assert channels(pruning.run_pruning(columns(7))[0], "a") == 5
    assert pruning.stopped == pruning.history[-1].stopped == "stop_fn"
    assert [s.step for s in asked] == [0, 1]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rounds": 0}, "maximum_prune_iterations"),
        ({"rounds": 2}, "maximum_prune_iterations"),
        ({"rounds": None, "percent": 0.3}, "maximum_pruning_percent"),
        ({"rounds": None}, "nothing_left"),
    ],
)
def test_it_says_why_it_stopped(options, reason):
    pruning = scripted(first, **options)
    assert pruning.stopped is None
    pruning.run_pruning(chain())
    assert pruning.stopped == reason
    assert [s.stopped for s in pruning.history[-1:]] == [reason] * bool(pruning.history)


@pytest.mark.core
def test_a_record_is_plain_data():
    def train(model, *_):
        model.compile("sgd", "mse")

    pruning = scripted(
        {"stem": [1, 3], "outer": [1, 3], "inner": [0]}, finetune_fn=train, evaluate_fn=lambda m: 1
    )
    pruning.run_pruning(residual(), lambda factor, step: np.float64(0.25))
    (record,) = [dataclasses.asdict(step) for step in pruning.history]
    assert json.loads(json.dumps(record)) == record
    assert record["layers"] == {"stem": [5, 3], "inner": [7, 6], "outer": [5, 3]}
    assert record["amount"] == pytest.approx(5 / 17)
    assert record["pruned_fraction"] == pytest.approx(5 / 17)
    assert record["phases"].keys() == {"cut", "compile", "finetune", "evaluate"}
    assert 0 < sum(record["phases"].values()) <= record["seconds"]
    assert record["factor"] == 0.25


def test_the_amount_is_of_the_round():
    pruning = scripted(first, rounds=3)
    pruning.run_pruning(columns(7))
    assert [s.amount for s in pruning.history] == pytest.approx([1 / 7, 1 / 6, 1 / 5])
    assert [s.layers for s in pruning.history] == [{"a": [7, 6]}, {"a": [6, 5]}, {"a": [5, 4]}]


def test_nothing_of_a_failed_run_is_left_for_the_next():
    pruning = scripted(first, rounds=None, target=Filters(3))
    pruning.run_pruning(columns(5))
    with pytest.raises(ridurre.errors.ModelError):
        pruning.run_pruning("no model")
    assert (pruning.history, pruning.stopped, pruning.model) == ([], None, "no model")


# --- the original is not harmed -------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("cut", ["pruning", "unpruned"])
def test_training_the_result_leaves_the_original_alone(cut):
    """On JAX a layer that lost nothing once shared its arrays with the original, and training
    the result deleted them."""
    model = chain()
    before = weights(model)
    if cut == "pruning":
        smaller = ridurre.DependencyGraph(model).get_pruning_plan("a", [1]).exec()
    else:
        smaller = ridurre.surgery.duplicate(model)
    compile_classifier(smaller)
    smaller.fit(*classifier_data(model), verbose=0)
    after = {v.path: keras.ops.convert_to_numpy(v) for v in model.variables}
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value, err_msg=path)
    kernel = keras.ops.convert_to_numpy(smaller.get_layer("head").kernel)
    assert not np.array_equal(kernel, before["head/kernel"])


@pytest.mark.core
def test_a_duplicate_computes_the_same():
    model = residual()
    copy = ridurre.surgery.duplicate(model)
    x = pictures(model)
    np.testing.assert_array_equal(predict(copy, x), predict(model, x))
    assert not copy.compiled
    assert not {id(v) for v in copy.variables} & {id(v) for v in model.variables}
