"""Sensitivity: measured without cutting, and the same as if everything had been cut by hand."""

import csv
import functools
import importlib.util
import json
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
from builders import L, chain, predict, residual
from models import squeeze_and_excite, twins

import ridurre
from ridurre import ChannelPrune, LevelPrune
from ridurre.errors import CheckpointError, NothingToPruneError, RequestError
from ridurre.sensitivities import Sensitivity
from ridurre.sensitivities.bench import Bench, Gauge
from ridurre.sensitivities.journal import Journal
from ridurre.sensitivities.ranking import group_names, measured_scores
from ridurre.sensitivities.run import coarse_to_fine
from ridurre.testing import randomise, snapshot

pytestmark = pytest.mark.core

AMOUNTS = (0.2, 0.5, 0.8)
ERROR = functools.partial(
    keras.metrics.SparseCategoricalCrossentropy, name="error", from_logits=True
)
sensitivity = functools.partial(ridurre.sensitivity, verbose=0)


def samples(model: keras.Model, count: int = 24) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(count, *model.inputs[0].shape[1:])).astype("float32")
    return x, rng.integers(0, model.outputs[0].shape[-1], count)


def prepared(build: Callable[[], keras.Model], *metrics: Any) -> keras.Model:
    model = build()
    randomise(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=list(metrics))
    return model


def normalised() -> keras.Model:
    """A statistic across channels: setting some to zero is not cutting them."""
    inputs = keras.Input((4, 4, 3))
    x = L.LayerNormalization(name="norm")(L.Conv2D(7, 1, name="a")(inputs))
    x = L.ReLU()(L.Conv2D(5, 1, name="b")(x))
    return keras.Model(inputs, L.Dense(3, name="head")(L.GlobalAveragePooling2D()(x)))


def divided() -> keras.Model:
    """One over a channel, which is infinite where the channel is zero."""
    inputs = keras.Input((4, 4, 3))
    x = 1.0 / (L.Conv2D(5, 1, use_bias=False, name="a")(inputs) ** 2.0)
    x = keras.ops.log(x)
    return keras.Model(inputs, L.Dense(3, name="head")(L.GlobalAveragePooling2D()(x)))


def attention() -> keras.Model:
    inputs = keras.Input((4, 5))
    x = L.MultiHeadAttention(3, 5, name="attention")(inputs, inputs)
    x = L.Dense(7, activation="relu", name="dense")(x)
    return keras.Model(inputs, L.Dense(3, name="head")(L.GlobalAveragePooling1D()(x)))


MODELS = {
    f.__name__: f
    for f in (chain, residual, squeeze_and_excite, twins, normalised, divided, attention)
}


def record(**values: list[float | None]) -> Sensitivity:
    """Of an accuracy that was 0.9; groups of ten channels at the amounts 0.1, 0.2, …."""
    points = [
        ridurre.sensitivities.Point(name, (i + 1) / 10, i + 1, v, 1.0)
        for name, curve in values.items()
        for i, v in enumerate(curve)
    ]
    names = {n: ridurre.sensitivities.record.Names((n,), 10, tuple(range(10))) for n in values}
    return Sensitivity("channels", "accuracy", True, 0.9, "l1", tuple(points), names)


# --- every value is that of really cutting --------------------------------------------------------


@pytest.mark.parametrize("criterion", ["l1", None])
@pytest.mark.parametrize("name", MODELS)
def test_channels_are_as_if_cut_alone(name: str, criterion: str | None) -> None:
    model = prepared(MODELS[name])
    data, before = samples(model), snapshot(model)
    found = sensitivity(model, data, criterion=criterion, amounts=AMOUNTS)
    assert snapshot(model) == before
    assert found.complete
    assert (found.measured, found.higher_is_better) == ("loss", False)
    assert found.baseline == pytest.approx(model.evaluate(*data, verbose=0), rel=1e-5)
    graph = ridurre.DependencyGraph(model)
    assert list(found.names) == list(group_names(graph))
    for group_name, group in group_names(graph).items():
        for point in found.curve(group_name):
            gone = found.names[group_name].order[: point.removed]
            assert len(gone) == min(group.size - group.least, int(point.amount * group.size + 1e-9))
            cut = graph.get_pruning_plan(group, gone).exec(keep_compiled=True) if gone else model
            expected = cut.evaluate(*data, verbose=0)
            assert point.value == pytest.approx(expected, rel=1e-4, abs=1e-6), point


@pytest.mark.parametrize("criterion", ["l1", "l2", None])
def test_channels_are_as_with_the_strategy_on_that_layer_alone(criterion: str | None) -> None:
    model = prepared(chain)
    data = samples(model)
    found = sensitivity(model, data, criterion=criterion, amounts=AMOUNTS)
    for p in found.points:
        strategy = ChannelPrune({p.name: p.amount}, criterion=criterion, data=data)
        cut = ridurre.prune(strategy, model)
        assert p.value == pytest.approx(cut.evaluate(*data, verbose=0), rel=1e-4)


@pytest.mark.parametrize("criterion", [None, "taylor"])
@pytest.mark.parametrize("name", ["chain", "attention"])
def test_weights_are_as_with_levels_on_that_layer_alone(name: str, criterion: str | None) -> None:
    model = prepared(MODELS[name])
    data, kernel = samples(model), model.layers[1].weights[0]
    keep = np.random.default_rng(0).random(kernel.shape) > 0.3
    kernel.assign(np.where(keep, keras.ops.convert_to_numpy(kernel), 0))
    before = snapshot(model)
    found = sensitivity(model, data, grain="weights", criterion=criterion, amounts=(0.2, 0.7))
    assert snapshot(model) == before
    assert found.complete
    assert found.criterion_name == (criterion or "l1")
    kernels = {w.path: w for w in ridurre.weights.weights_of(model)}
    assert list(found.names) == list(kernels)
    for p in found.points:
        kernel = kernels[p.name]
        strategy = LevelPrune(
            p.amount, criterion=criterion or "l1", data=data if criterion else None,
            layers=kernel.layer, weights=lambda v, wanted=kernel.variable.path: v.path == wanted,
        )  # fmt: skip
        cut = ridurre.prune(strategy, model)
        masks = ridurre.Masks.of(cut)
        assert p.value == pytest.approx(cut.evaluate(*data, verbose=0), rel=1e-4)
        zeros = np.count_nonzero(kernel.value == 0)  # some were there before
        assert masks[p.name].size - masks[p.name].sum() == max(p.removed, zeros)


@pytest.mark.parametrize("name", ["chain", "normalised"])
def test_a_network_is_as_with_a_global_ranking(name: str) -> None:
    model = prepared(MODELS[name])
    data = samples(model)
    found = sensitivity(model, data, grain="network", criterion="l1", amounts=AMOUNTS)
    for p in found.points:
        cut = ridurre.prune(ChannelPrune(p.amount, scope="global"), model)
        assert p.value == pytest.approx(cut.evaluate(*data, verbose=0), rel=1e-4)
    assert set(found.suggest(100.0)) == {"network"}


def test_a_network_by_a_strategy() -> None:
    model = prepared(chain)
    data = samples(model)
    found = sensitivity(
        model, data, grain="network", amounts=(0.5, 0.9),
        strategy=lambda a: LevelPrune(a, scope="global"),
    )  # fmt: skip
    kernels = sum(w.size for w in ridurre.weights.weights_of(model))
    for p in found.points:
        cut = ridurre.prune(LevelPrune(p.amount, scope="global"), model)
        assert p.value == pytest.approx(cut.evaluate(*data, verbose=0), rel=1e-4)
        assert p.removed == pytest.approx(p.amount * kernels, abs=1)


class Subclassed(keras.Model):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.one, self.two = L.Dense(5), L.Dense(3)

    def build(self, shape: Any) -> None:
        self.one.build(shape)
        self.two.build((None, 5))

    def call(self, x: Any) -> Any:
        return self.two(self.one(x))

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name}

    def get_build_config(self) -> dict[str, Any]:
        return {"input_shape": (None, 3)}


def test_weights_of_a_model_without_a_graph(tmp_path: Any) -> None:
    model = Subclassed()
    model.build((None, 3))
    before = model.get_weights()
    options = {"grain": "weights", "amounts": (0.4,), "folder": tmp_path}
    found = sensitivity(model, evaluate_fn=counting(), **options)
    for p, kernel in zip(found.points, before[::2], strict=True):
        gone = np.sort(np.abs(kernel).ravel())[: p.removed].sum()
        assert p.value == pytest.approx(found.baseline - gone, rel=1e-5)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    sensitivity(model, evaluate_fn=(again := counting()), **options)
    assert len(again.calls) == 1


def test_zeros_that_make_infinities_are_cut_in_earnest(monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepared(divided)
    asked = []
    sound = Bench.sound

    def watched(self: Bench, changed: frozenset[str]) -> bool:
        asked.append(sound(self, changed))
        return asked[-1]

    monkeypatch.setattr(Bench, "sound", watched)
    found = sensitivity(model, samples(model), criterion="l1")
    assert asked
    assert not any(asked)
    assert all(np.isfinite(p.value) for p in found.points)


def test_layers_and_streams_of_batches() -> None:
    model = prepared(chain)
    x, y = samples(model)
    whole = sensitivity(model, (x, y), criterion="l1", amounts=(0.5,))
    batches = [(x[i : i + 7], y[i : i + 7]) for i in range(0, len(x), 7)]
    once = (b for b in batches)
    part = sensitivity(model, once, criterion="l1", amounts=(0.5,), layers="^b$")
    assert list(part.names) == ["b"]
    assert part.points[0].value == pytest.approx(whole.curve("b")[0].value, rel=1e-5)
    assert part.baseline == pytest.approx(whole.baseline, rel=1e-5)
    by_layer = sensitivity(model, (x, y), amounts=(0.5,), layers=model.get_layer("a"))
    assert list(by_layer.names) == ["a"]


# --- what is measured -----------------------------------------------------------------------------


def test_an_accuracy_comes_first() -> None:
    model = prepared(chain, ERROR(), "accuracy")
    data = samples(model)
    found = sensitivity(model, data, criterion="l1", amounts=AMOUNTS)
    assert (found.measured, found.higher_is_better) == ("accuracy", True)
    for p in found.points:
        cut = ridurre.prune(ChannelPrune({p.name: p.amount}), model)
        assert p.value == cut.evaluate(*data, verbose=0, return_dict=True)["accuracy"]


def test_another_metric_and_the_loss_can_be_asked_for() -> None:
    model = prepared(chain, ERROR(), "accuracy")
    data = samples(model)
    results = model.evaluate(*data, verbose=0, return_dict=True)
    for metric in ("error", "loss"):
        found = sensitivity(model, data, metric=metric, amounts=(0.5,))
        assert (found.measured, found.higher_is_better) == (metric, False)
        assert found.baseline == pytest.approx(results[metric], rel=1e-5)
    with pytest.raises(RequestError, match=r"no metric 'f1'.*accuracy"):
        sensitivity(model, data, metric="f1")


def test_a_loss_for_a_model_that_is_not_compiled() -> None:
    model = chain()
    randomise(model)
    x, y = samples(model)
    y = np.eye(2)[y]
    found = sensitivity(model, (x, y), loss="mse", criterion="l1", amounts=(0.5,))
    assert found.baseline == pytest.approx(
        np.mean((model.predict(x, verbose=0) - y) ** 2), rel=1e-4
    )
    assert not model.compiled
    with pytest.raises(RequestError, match="not compiled"):
        sensitivity(model, (x, y))
    with pytest.raises(RequestError, match="only its loss"):
        sensitivity(model, (x, y), loss="mse", metric="mae")


def test_a_function_of_the_users() -> None:
    model = chain()
    randomise(model)
    x, _ = samples(model)

    def spread(m: keras.Model) -> Any:
        return keras.ops.std(m(x))  # a tensor will do

    found = sensitivity(model, evaluate_fn=spread, amounts=AMOUNTS)
    assert (found.measured, found.higher_is_better, found.criterion_name) == ("spread", True, "l1")
    assert not sensitivity(
        model, evaluate_fn=spread, amounts=(0.5,), higher_is_better=False
    ).higher_is_better
    for p in found.points:
        cut = ridurre.prune(ChannelPrune({p.name: p.amount}), model)
        assert p.value == pytest.approx(np.std(predict(cut, x)), rel=1e-4)
    assert sensitivity(model, x, evaluate_fn=spread).criterion_name == "output_taylor"


def test_sample_weights_and_a_number_of_samples() -> None:
    model = prepared(chain)
    x, y = samples(model)
    weight = np.arange(24.0)
    found = sensitivity(model, (x, y, weight), amounts=(0.5,), criterion="l1")
    expected = model.evaluate(x, y, sample_weight=weight, batch_size=24, verbose=0)
    assert found.baseline == pytest.approx(expected, rel=1e-5)
    part = sensitivity(model, (x, y), amounts=(0.5,), samples=5)
    losses = [model.evaluate(x[i : i + 1], y[i : i + 1], verbose=0) for i in range(24)]
    chosen = np.random.default_rng(0).permutation(24)[:5]
    assert part.baseline == pytest.approx(np.mean([losses[i] for i in chosen]), rel=1e-4)


def test_what_is_no_number_is_measured_and_none() -> None:
    model = chain()
    randomise(model)
    whole = model.get_layer("b").get_weights()[0]

    def picky(m: keras.Model) -> float:
        same = np.array_equal(m.get_layer("b").get_weights()[0], whole)
        return 1.0 if same else float("nan")

    found = sensitivity(model, evaluate_fn=picky, amounts=(0.5,))
    assert [p.value for p in found.points] == [None, None]
    assert found.complete
    assert "nan" in str(found)
    assert found.suggest(5.0) == {"a": 0.0, "b": 0.0}
    assert ridurre.prune(ChannelPrune(0.4, criterion=found.criterion()), model)
    with pytest.raises(RequestError, match="no finite value"):
        sensitivity(model, evaluate_fn=lambda m: float("nan"))


def test_a_model_from_a_file(tmp_path: Any) -> None:
    """Keras names the variables of a Sequential model otherwise after saving and loading."""
    layers = [keras.Input((6, 8, 3)), L.Conv2D(5, 3, name="a"), L.GlobalAveragePooling2D()]
    model = prepared(lambda: keras.Sequential([*layers, L.Dense(2)]), "accuracy")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    found = [sensitivity(m, samples(m), amounts=AMOUNTS, metric="loss") for m in (model, loaded)]
    values = [[p.value for p in one.points] for one in found]
    assert values[1] == pytest.approx(values[0], rel=1e-6)


# --- budgets, kills, workers ----------------------------------------------------------------------


def counting(limit: float = np.inf) -> Any:
    """An evaluation that is interrupted when it was called too often."""
    calls = []

    def evaluate(model: keras.Model) -> float:
        calls.append(1)
        if len(calls) > limit:
            raise KeyboardInterrupt
        return float(sum(np.abs(w).sum() for w in model.get_weights()))

    evaluate.calls = calls  # type: ignore[attr-defined]
    return evaluate


def plain(found: Sensitivity) -> Any:
    """All but the time."""
    data = json.loads(json.dumps(found.to_dict()))
    for p in data["points"]:
        assert p.pop("seconds") is not None
    return data


def test_every_cut_is_evaluated_once() -> None:
    evaluate = counting()
    found = sensitivity(chain(), evaluate_fn=evaluate)
    removed = {(p.name, p.removed) for p in found.points if p.removed}
    assert len(removed) < len(found.points)  # nine amounts of five channels
    assert len(evaluate.calls) == 1 + len(removed)


@pytest.mark.parametrize("grain", ["channels", "weights", "network"])
def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Any, grain: str) -> None:
    model = chain()
    randomise(model)
    options = {"grain": grain, "amounts": AMOUNTS, "folder": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        sensitivity(model, evaluate_fn=counting(3), **options)
    second = counting()
    found = sensitivity(model, evaluate_fn=second, **options)
    expected = sensitivity(model, evaluate_fn=(alone := counting()), grain=grain, amounts=AMOUNTS)
    assert plain(found) == plain(expected)
    assert len(second.calls) == len(alone.calls) - 2
    third = counting()
    assert plain(sensitivity(model, evaluate_fn=third, **options)) == plain(expected)
    assert len(third.calls) == 1


def test_a_kill_may_come_at_any_byte(tmp_path: Any) -> None:
    run = {"model": "m", "amounts": [0.5]}
    journal = Journal(tmp_path / "whole", run)
    results = {
        ("a+ü", 1): (0.5, None, 0.25),
        ("b", 0.5): (None, 7, 1.0),
        ("c", 3): (1.0, None, 0.0),
    }
    for key, result in results.items():
        journal.add(key, result)
    content = journal.path.read_bytes()
    for length in range(len(content) + 1):
        folder = tmp_path / str(length)
        folder.mkdir()
        (folder / journal.path.name).write_bytes(content[:length])
        again = Journal(folder, run)
        lines = content[:length].count(b"\n")
        assert again.done == dict(list(results.items())[: max(0, lines - 1)])
        for key, result in list(results.items())[len(again.done) :]:
            again.add(key, result)
        assert again.path.read_bytes() == content


def test_a_foreign_folder_is_refused(tmp_path: Any) -> None:
    model = prepared(chain)
    x, y = samples(model)
    options = {"criterion": "l1", "amounts": (0.5,), "folder": tmp_path}
    sensitivity(model, (x, y), **options)
    content = (tmp_path / "sensitivity.jsonl").read_bytes()
    for change in ({"criterion": "l2"}, {"amounts": (0.4,)}, {"grain": "weights"}, {"samples": 5}):
        with pytest.raises(CheckpointError, match="holds another run"):
            sensitivity(model, (x, y), **options | change)
    with pytest.raises(CheckpointError, match="data was"):
        sensitivity(model, (x + 1, y), **options)
    model.get_layer("a").bias.assign(np.ones(5))
    with pytest.raises(CheckpointError, match="model was"):
        sensitivity(model, (x, y), **options)
    assert (tmp_path / "sensitivity.jsonl").read_bytes() == content


@pytest.mark.parametrize(
    "content", ["something else", "{}\n", "[]\n", "no\n", '{"format": 1}\n3\n']
)
def test_a_damaged_folder_is_refused(tmp_path: Any, content: str) -> None:
    (tmp_path / "sensitivity.jsonl").write_text(content)
    with pytest.raises(CheckpointError, match=r"damaged|another run"):
        sensitivity(chain(), evaluate_fn=counting(), folder=tmp_path)
    assert (tmp_path / "sensitivity.jsonl").read_text() == content
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be used"):
        sensitivity(chain(), evaluate_fn=counting(), folder=tmp_path / "file")


def test_a_time_limit_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    now = [0.0]
    monkeypatch.setattr("ridurre.sensitivities.run.time.monotonic", lambda: now[0])

    def slow(model: keras.Model) -> float:
        now[0] += 10
        return now[0]

    found = sensitivity(chain(), evaluate_fn=slow, max_seconds=45, folder=tmp_path)
    assert now[0] == 40  # the baseline and three points; a fourth would have been too late
    assert not found.complete
    done = [(p.name, p.amount) for p in found.points if p.measured]
    assert {("a", 0.5), ("b", 0.5)} <= set(done)  # the middle first
    assert "incomplete" in str(found)
    assert any(p.value is None and p.seconds is None for p in found.points)
    now[0] = 0.0
    more = sensitivity(chain(), evaluate_fn=slow, max_seconds=45)
    assert sum(p.measured for p in more.points) == sum(p.measured for p in found.points)


def test_the_order_is_coarse_to_fine() -> None:
    probes = [types.SimpleNamespace(amount=a / 10, name=n) for n in "xy" for a in range(1, 10)]
    order = [p.amount for p in coarse_to_fine(probes) if p.name == "y"]
    assert order == [0.5, 0.2, 0.7, 0.1, 0.3, 0.6, 0.8, 0.4, 0.9]
    assert [p.name for p in coarse_to_fine(probes)][:4] == ["x", "y", "x", "y"]


@pytest.mark.skipif(not importlib.util.find_spec("joblib"), reason="joblib is optional")
def test_workers_give_the_same(tmp_path: Any) -> None:
    model = prepared(chain, "accuracy")
    options = {"amounts": (0.3, 0.6), "metric": "loss"}
    one = sensitivity(model, samples(model), **options)
    two = sensitivity(model, samples(model), workers=2, folder=tmp_path, **options)
    assert [p.removed for p in one.points] == [p.removed for p in two.points]
    assert [p.value for p in two.points] == pytest.approx([p.value for p in one.points], rel=1e-6)
    again = sensitivity(model, samples(model), folder=tmp_path, **options)
    assert plain(again) == plain(two)


@pytest.mark.skipif(not importlib.util.find_spec("joblib"), reason="joblib is optional")
def test_workers_need_a_model_that_can_be_loaded() -> None:
    inputs = keras.Input((4, 4, 3))
    x = L.Lambda(lambda t: t * 2)(L.Conv2D(5, 1, name="a")(inputs))
    model = keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(x)))
    with pytest.raises(RequestError, match=r"cannot be loaded(.*\n)*.*workers=1"):
        sensitivity(model, evaluate_fn=counting(), layers="dense", grain="weights", workers=2)


@pytest.fixture
def cluster() -> Iterator[None]:
    """A local Ray of two workers."""
    ray = pytest.importorskip("ray", reason="ray is optional")
    with warnings.catch_warnings():  # of Ray's own, about what it will do in the future
        warnings.simplefilter("ignore")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
        yield
        ray.shutdown()


def test_a_cluster_gives_the_same(cluster: None, tmp_path: Any) -> None:
    model = prepared(chain, "accuracy")
    options = {"amounts": (0.3, 0.6), "metric": "loss"}
    one = sensitivity(model, samples(model), **options)
    two = sensitivity(model, samples(model), workers="ray", folder=tmp_path, **options)
    assert [(p.name, p.amount, p.removed) for p in one.points] == [
        (p.name, p.amount, p.removed) for p in two.points
    ]
    assert [p.value for p in two.points] == pytest.approx([p.value for p in one.points], rel=1e-6)
    again = sensitivity(model, samples(model), folder=tmp_path, **options)
    assert plain(again) == plain(two)


def test_what_fails_on_a_cluster_is_told(cluster: None) -> None:
    here = os.getpid()

    def fails_elsewhere(model: keras.Model) -> float:
        if os.getpid() != here:
            raise ZeroDivisionError("the user's own mistake")
        return 1.0

    with pytest.raises(ZeroDivisionError, match="the user's own mistake"):
        sensitivity(chain(), evaluate_fn=fails_elsewhere, workers="ray")


def test_a_cluster_needs_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RequestError, match="pip install ray"):
        sensitivity(chain(), evaluate_fn=counting(), workers="ray")


def test_workers_need_joblib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "joblib", None)
    with pytest.raises(RequestError, match="pip install joblib"):
        sensitivity(chain(), evaluate_fn=counting(), workers=2)


# --- what to make of it ---------------------------------------------------------------------------


def test_the_largest_amount_within_a_tolerance() -> None:
    found = record(a=[0.9, 0.89, 0.85, 0.895, 0.5], b=[0.7, None], c=[0.95, 0.91])
    assert found.suggest(0.01) == {"a": 0.4, "b": 0.0, "c": 0.2}
    assert found.suggest(0) == {"a": 0.1, "b": 0.0, "c": 0.2}
    assert found.suggest(0.2)["b"] == 0.1
    for wrong in (-0.1, float("nan")):
        with pytest.raises(RequestError, match="tolerance from 0"):
            found.suggest(wrong)


@pytest.mark.parametrize("name", ["chain", "residual", "twins", "attention"])
def test_a_suggestion_can_be_cut(name: str) -> None:
    model = prepared(MODELS[name])
    data = samples(model)
    found = sensitivity(model, data, amounts=AMOUNTS)
    amounts = found.suggest(0.05)
    smaller = ridurre.prune(ChannelPrune(amounts, criterion=found.criterion()), model)
    least = {n: g.least for n, g in group_names(ridurre.DependencyGraph(model)).items()}
    expected = []
    for group, known in found.names.items():
        best = max(
            (p.amount for p in found.curve(group) if p.value <= found.baseline + 0.05), default=0
        )
        lost = int(best * known.size + 1e-9)
        expected.append(max(least[group], known.size - lost))
    left = sorted(g.size for g in ridurre.DependencyGraph(smaller).groups)
    assert left == sorted(n for n in expected if n > 1)  # of one unit there is no group


def test_levels_that_can_be_pruned() -> None:
    model = prepared(chain)
    data = samples(model)
    found = sensitivity(model, data, grain="weights", criterion="taylor", amounts=AMOUNTS)
    with pytest.raises(RequestError, match="needs data"):
        found.suggest(0.1)
    levels = found.suggest(0.1, data=data)
    assert levels
    masks = ridurre.Masks.of(ridurre.prune(levels, model))
    for name, strategy in levels.items():
        kept = masks[f"{name}/kernel"]
        assert 1 - kept.mean() == pytest.approx(strategy.level, abs=1 / kept.size)
    with pytest.raises(RequestError, match="Only the sensitivity of channels"):
        found.criterion()
    own = sensitivity(model, data, grain="weights", criterion=lambda v: v**2, amounts=(0.2,))
    with pytest.raises(RequestError, match="criterion=…"):
        own.suggest(10.0)
    assert set(own.suggest(10.0, criterion="l2")) == {"a", "b", "head"}


def test_scores_add_up_to_what_was_measured() -> None:
    order = [3, 0, 4, 1, 2]
    scores = np.array(measured_scores([(1, 0.1), (2, 0.3), (4, 1.0)], order))
    assert np.argsort(scores).tolist() == order
    assert np.cumsum(scores[order]) == pytest.approx([0.1, 0.3, 0.65, 1.0, 1.35], abs=1e-6)
    # What improves costs nothing; a curve that bends down is replaced by the straight line below.
    scores = np.array(measured_scores([(1, -0.5), (2, 0.6), (4, 0.8)], order))
    assert np.argsort(scores).tolist() == order
    assert np.cumsum(scores[order])[[0, 3]] == pytest.approx([0, 0.8], abs=1e-6)
    assert np.isfinite(measured_scores([(2, None)], order)).all()


def test_the_knapsack_spends_where_it_costs_least() -> None:
    model = prepared(chain)
    data = samples(model)
    found = sensitivity(model, data)
    target = ridurre.MACs(0.5)
    strategy = ChannelPrune(target=target, scope="knapsack", criterion=found.criterion())
    smaller = ridurre.prune(strategy, model)
    assert target.measure(smaller) <= 0.5 * target.measure(model)
    assert (
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(strategy))
        == strategy
    )
    graph = ridurre.DependencyGraph(model)
    for name, scores in zip(found.names, strategy.criterion.score(graph).values(), strict=True):
        assert np.argsort(scores, kind="stable").tolist() == list(found.names[name].order)
    with pytest.raises(RequestError, match="Expected the same model"):
        strategy.plan(smaller)


def test_a_knapsack_by_hand() -> None:
    inputs = keras.Input((3, 3, 3))
    x = L.Conv2D(10, 1, name="a")(inputs)
    x = L.Conv2D(10, 1, name="b")(x)
    model = keras.Model(inputs, L.Dense(3, name="head")(L.GlobalAveragePooling2D()(x)))
    cheap, dear = [0.9] * 9, [0.9 - 0.05 * i for i in range(1, 10)]
    for a, b in ((cheap, dear), (dear, cheap)):
        criterion = record(a=a, b=b).criterion()
        plan = ChannelPrune(
            target=ridurre.Filters(0.7), scope="knapsack", criterion=criterion
        ).plan(model)
        lost = {name: len(plan.removed.get(f"{name}/bias", {0: []})[0]) for name in "ab"}
        assert lost["a" if a is cheap else "b"] > 0
        assert lost["b" if a is cheap else "a"] == 0


# --- exports --------------------------------------------------------------------------------------


def test_exports_round_trip(tmp_path: Any) -> None:
    found = record(a=[0.9, None, 0.5], b=[0.1, 0.2, 0.3])
    assert Sensitivity.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    found.to_json(tmp_path / "found.json")
    assert Sensitivity.from_json(tmp_path / "found.json") == found
    found.to_csv(tmp_path / "found.csv")
    with (tmp_path / "found.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["name"], float(r["amount"])) for r in rows] == [
        (p.name, p.amount) for p in found.points
    ]
    assert rows[1]["value"] == ""
    assert {p.name for p in tmp_path.iterdir()} == {"found.json", "found.csv"}
    for wrong in ({}, {"format": 2}, {**found.to_dict(), "points": [3]}, {"format": 1}):
        with pytest.raises(RequestError, match=r"Sensitivity.to_dict"):
            Sensitivity.from_dict(wrong)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(RequestError, match="not JSON"):
        Sensitivity.from_json(tmp_path / "bad.json")


def test_the_table() -> None:
    lines = str(record(first=[0.9, None], b=[0.125, 0.2])).splitlines()
    assert lines == [
        "accuracy of channels cut (higher is better); whole: 0.9",
        "       size     0.1     0.2",
        "first    10  0.9000     nan",
        "b        10  0.1250  0.2000",
    ]


def test_a_data_frame_needs_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    found = record(a=[0.9, None])
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(RequestError, match="pip install pandas"):
        found.to_frame()
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=lambda rows: rows))
    assert found.to_frame()[1] == {
        "name": "a", "amount": 0.2, "removed": 2, "value": None, "seconds": 1.0
    }  # fmt: skip


def test_pictures(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    found = record(**{"_a$b$c": [0.9, None, 0.3], "b": [0.1, 0.2, 0.3]})
    lines = found.plot(tmp_path / "curves.png").axes[0].get_lines()
    assert lines[0].get_xydata().tolist() == [[0, 0.9], [0.1, 0.9], [0.3, 0.3]]
    image = found.heatmap(tmp_path / "heat.svg").axes[0].get_images()[0]
    assert np.ma.filled(image.get_array(), -1).tolist() == [[0.9, -1, 0.3], [0.1, 0.2, 0.3]]
    assert (tmp_path / "curves.png").stat().st_size > 1000
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(RequestError, match="pip install matplotlib"):
        found.plot()


def test_the_bar_can_be_switched_off(capsys: pytest.CaptureFixture[str]) -> None:
    sensitivity(chain(), evaluate_fn=counting(), amounts=(0.5,))
    assert capsys.readouterr() == ("", "")
    ridurre.sensitivity(chain(), evaluate_fn=counting(), amounts=(0.5,))
    out, err = capsys.readouterr()
    assert out == ""
    assert "2/2" in err


# --- what cannot be -------------------------------------------------------------------------------

WRONG = [
    ({"amounts": (0.0,)}, "amounts"),
    ({"amounts": (1.0,)}, "amounts"),
    ({"amounts": (0.5, 1.5)}, "amounts"),
    ({"amounts": ()}, "amounts"),
    ({"amounts": ("0.5",)}, "amounts"),
    ({"amounts": 0.5}, "amounts"),
    ({"grain": "filters"}, "grain"),
    ({"evaluate_fn": 3}, "evaluate_fn"),
    ({"evaluate_fn": lambda m: "good"}, r"return a number.*'good'"),
    ({"evaluate_fn": lambda m: None}, r"return a number.*None"),
    ({"max_seconds": 0}, "max_seconds"),
    ({"workers": 0}, "workers"),
    ({"samples": 0}, "samples"),
    ({"batch_size": 0}, "batch_size"),
    ({"strategy": LevelPrune}, "grain='network'"),
    ({"layers": "unknown"}, "no layer 'unknown'"),
    ({"criterion": "unknown"}, "criterion"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_nonsense_is_refused(change: dict[str, Any], message: str) -> None:
    model = prepared(chain)
    before = snapshot(model)
    with pytest.raises(RequestError, match=message):
        sensitivity(model, samples(model), **change)
    assert snapshot(model) == before


def test_something_has_to_say_how_good_a_model_is() -> None:
    model = prepared(chain)
    x, _ = samples(model)
    with pytest.raises(RequestError, match=r"evaluate_fn.*samples only"):
        sensitivity(model, x)
    with pytest.raises(RequestError, match=r"evaluate_fn.*no data"):
        sensitivity(model)
    with pytest.raises(RequestError, match="no samples"):
        sensitivity(model, [])
    ragged = [(x, np.zeros(24)), (x[:, :4], np.zeros(24))]
    with pytest.raises(RequestError, match="one shape"):
        sensitivity(model, ragged)


def test_there_has_to_be_something_to_cut() -> None:
    inputs = keras.Input((3,))
    single = keras.Model(inputs, L.Dense(2, name="head")(inputs))
    with pytest.raises(NothingToPruneError, match="no channels"):
        sensitivity(single, evaluate_fn=counting())
    with pytest.raises(NothingToPruneError, match=r"no channels.*head"):
        sensitivity(chain(), evaluate_fn=counting(), layers="head")
    with pytest.raises(NothingToPruneError, match="no weights"):
        sensitivity(chain(), evaluate_fn=counting(), layers="relu", grain="weights")
    with pytest.raises(RequestError, match=r"one of \['a'\]"):
        record(a=[0.9]).curve("b")


def test_an_error_leaves_the_working_copy_whole() -> None:
    model = prepared(chain)
    bench = Bench(ridurre.surgery.duplicate(model), None, Gauge(counting(), None, None), 8)
    before = [np.array(w) for w in bench.model.get_weights()]
    with pytest.raises(ZeroDivisionError), bench.without({"a/kernel": {3: np.array([1])}}):
        assert not bench.model.get_layer("a").get_weights()[0][..., 1].any()
        raise ZeroDivisionError
    assert all(np.array_equal(a, b) for a, b in zip(before, bench.model.get_weights(), strict=True))
