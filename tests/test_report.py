"""Reports: what is compared, what is said of it, and in which forms."""

import dataclasses
import importlib
import json
import re
import sys

import keras
import numpy as np
import pytest
from keras import layers as L

import ridurre
from ridurre.errors import NotAModelError, PlanMismatchError, RequestError
from ridurre.history import Step
from ridurre.reports import figures
from ridurre.reports.layout import LEVELS, draw
from tests.models import two_residual_blocks

EVIL = "<img src=x onerror=alert(1)>"


def small(name: str = "net") -> keras.Model:
    """a makes 5 channels and b 7, both can be cut; the head's 3 are outputs."""
    inputs = keras.Input((4, 4, 2))
    x = L.ReLU(name="relu")(L.Conv2D(5, 3, name="a")(inputs))
    x = L.GlobalAveragePooling2D(name="pool")(L.Conv2D(7, 1, name="b")(x))
    return keras.Model(inputs, L.Dense(3, name="head")(x), name=name)


def compare(original: keras.Model, pruned: keras.Model, **options) -> ridurre.Report:
    return ridurre.compare(original, pruned, latency=False, **options)


def layer(report: ridurre.Report, name: str):
    return next(x for x in report.layers if x.name == name)


@pytest.fixture
def model() -> keras.Model:
    return small()


@pytest.fixture
def plan(model):
    return ridurre.DependencyGraph(model).get_pruning_plan("a", [1, 3])


@pytest.mark.core
def test_a_report_has_both_models_as_wholes(model, plan):
    report = ridurre.compare(model, plan.exec(), plan=plan)
    old, new = report.original, report.pruned
    size = ridurre.model_complexity(model)
    assert (old.parameters, old.macs) == (size.parameters, size.macs)
    assert old.parameters - new.parameters == plan.parameters
    assert old.activation_memory > new.activation_memory
    assert 0 < new.file_size < old.file_size
    for facts in (old, new):
        assert 0 < facts.latency.low <= facts.latency.median <= facts.latency.high


@pytest.mark.core
def test_a_report_says_of_every_layer_what_happened_and_why(model, plan):
    report = compare(model, plan.exec(), plan=plan)
    found = {x.name: (x.channels, x.status) for x in report.layers}
    assert found == {
        "a": ((5, 3), "cut"),
        "relu": ((None, None), "same"),
        "b": ((7, 7), "left"),
        "pool": ((None, None), "same"),
        "head": ((3, 3), "fixed"),
    }
    assert layer(report, "a").parameters == (95, 57)
    assert layer(report, "a").macs == (360, 216)
    assert "output of the model" in layer(report, "head").reason
    assert "left alone" in layer(report, "b").reason
    assert figures.share(report, layer(report, "a"), "parameters") == 38 / (38 + 14)


def test_a_protected_part_of_a_layer_is_explained(model):
    x = model.get_layer("b").output
    y = L.GlobalAveragePooling2D()(x[..., :2])
    other = keras.Model(model.inputs, [y, L.Dense(3, name="end")(L.Flatten()(x))])
    plan = ridurre.DependencyGraph(other).get_pruning_plan("b", [5])
    b = layer(compare(other, plan.exec(), plan=plan), "b")
    assert b.status == "cut"
    assert b.reason.startswith("2 of 7 cannot go: ")


def test_a_shared_layer_is_one_line_with_the_work_of_all_its_calls():
    inputs = keras.Input((4, 4, 5))
    twice = L.Conv2D(5, 1, name="twice")
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(twice(twice(inputs)))))
    report = compare(model, model)
    assert [x.name for x in report.layers].count("twice") == 1
    assert layer(report, "twice").parameters == (30, 30)
    assert layer(report, "twice").macs == (2 * 16 * 25, 2 * 16 * 25)
    assert [n.name for n in report.nodes].count("twice") == 2


@pytest.mark.filterwarnings("ignore:Channels that flow into")
def test_a_layer_without_a_rule_is_named_with_the_way_to_mend_it():
    class Odd(L.Layer):
        def call(self, x):
            self.last = x * 2  # code that keeps its tensors is not looked into
            return self.last

    inputs = keras.Input((4, 4, 2))
    x = Odd(name="odd")(L.Conv2D(5, 3, name="a")(inputs))
    model = keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(x)))
    report = compare(model, model)
    assert "register_rule(Odd)" in layer(report, "odd").reason
    assert "register_rule(Odd)" in layer(report, "a").reason
    assert r"register\_rule(Odd)" in report.to_markdown()


def test_the_plan_says_which_units_went(model, plan):
    report = compare(model, plan.exec(), plan=plan)
    a, b = report.groups
    assert (a.layers, a.size, a.removed, b.removed) == (("a",), 5, 2, 0)
    assert (sum(a.histogram.kept), sum(a.histogram.removed)) == (3, 2)
    assert report.plan_known


@pytest.mark.core
def test_without_a_plan_the_two_models_say_how_many_units_went(model):
    graph = ridurre.DependencyGraph(model)
    pruned = graph.get_pruning_plan({"a": [0, 1, 2, 3], "b": [6]}).exec()
    report = compare(model, pruned)
    assert [g.removed for g in report.groups] == [4, 1]
    assert sum(report.groups[0].histogram.kept) == 5
    assert not report.plan_known


def test_as_many_units_lie_below_the_cut_as_went(model):
    kernel = np.zeros((3, 3, 2, 5), "float32")
    kernel[...] = [5, 1, 3, 4, 2]
    pruned = ridurre.DependencyGraph(model).get_pruning_plan("a", [0, 1]).exec()

    def score(graph, group):
        return kernel[0, 0, 0] if group.size == 5 else np.ones(7)

    report = compare(model, pruned, criterion=score)
    a, b = (g.histogram for g in report.groups)
    assert a.cut == 2.5
    assert b.cut is None
    assert sum(n for low, n in zip(a.edges, a.kept, strict=False) if low < a.cut) == 2


def test_a_unit_of_infinite_score_stands_in_no_bin(model, plan):
    def score(graph, group):
        return np.array([np.inf, *range(group.size - 1)])

    report = compare(model, plan.exec(), plan=plan, criterion=score)
    assert report.criterion == "score"
    histogram = report.groups[1].histogram
    assert histogram.infinite == 1
    assert sum(histogram.kept) == 6
    json.dumps(report.to_dict(), allow_nan=False)


def test_importances_can_be_left_out_or_fail_without_taking_the_rest_along(model, plan):
    pruned = plan.exec()
    assert compare(model, pruned, criterion=None).groups[0].histogram is None
    report = compare(model, pruned, criterion="taylor")
    assert report.groups[0].histogram is None
    assert any("importances" in note and "needs data" in note for note in report.notes)
    with pytest.raises(RequestError, match="criterion"):
        compare(model, pruned, criterion="importance")


@pytest.mark.core
@pytest.mark.parametrize("form", ["arrays", "generator", "batches"])
def test_compiled_models_are_evaluated_on_the_data(model, plan, rng, form):
    pruned = plan.exec()
    x, y = rng.normal(size=(6, 4, 4, 2)).astype("float32"), rng.integers(0, 3, 6)
    for m in (model, pruned):
        m.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True), metrics=["accuracy"])
    batches = [(x[:3], y[:3]), (x[3:], y[3:])]
    data = {"arrays": (x, y), "generator": iter(batches), "batches": batches}[form]
    report = compare(model, pruned, data=data)
    for facts, m in ((report.original, model), (report.pruned, pruned)):
        expected = m.evaluate(x, y, verbose=0, return_dict=True)
        assert facts.metrics == pytest.approx(expected, rel=1e-4)
    assert report.original.metrics["loss"] != report.pruned.metrics["loss"]


def test_a_report_says_what_it_could_not_evaluate(model, plan, rng):
    x = rng.normal(size=(6, 4, 4, 2)).astype("float32")
    model.compile("sgd", "mse")
    report = compare(model, plan.exec(), data=(x, np.zeros((6, 3))))
    assert report.original.metrics
    assert not report.pruned.metrics
    assert any("not compiled" in note for note in report.notes)
    notes = compare(model, model, data=x).notes
    assert sum("no labels" in note for note in notes) == 2


@pytest.mark.core
def test_any_two_models_can_be_compared(model):
    other = keras.Sequential([keras.Input((2,)), L.Dense(5, name="a"), L.Dense(3, name="c")])
    report = compare(model, other)
    assert {x.name: x.status for x in report.layers if x.parameters != (0, None)} == {
        "a": "left", "b": "removed", "head": "removed", "c": "added",
    }  # fmt: skip
    assert "only in the pruned model" in report.to_markdown()


def test_a_model_may_have_grown(model, plan):
    report = compare(plan.exec(), model)
    assert {x.name: x.status for x in report.layers if x.channels[0]}["a"] == "grown"
    assert "1 gained channels" in str(report)
    assert "cut" not in {x.status for x in report.layers}
    assert any(g.removed is None for g in report.groups)
    assert "channels added" in report.to_markdown()
    assert report.to_html()


@pytest.mark.core
def test_a_model_without_a_graph_is_reported_as_far_as_it_goes(model):
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__(name="mine")
            self.dense = L.Dense(3)

        def call(self, x):
            self.last = self.dense(x)  # code that keeps its tensors is not looked into
            return self.last

    other = Subclassed()
    other(np.zeros((1, 5), "float32"))
    report = ridurre.compare(model, other)
    assert (report.pruned.parameters, report.pruned.macs) == (18, None)
    assert report.original.latency is not None
    assert report.pruned.latency is None
    assert any("is Python code" in note and "MACs" in note for note in report.notes)
    assert report.groups[0].removed is None
    backwards = compare(other, model)
    assert backwards.nodes == backwards.groups == ()
    for form in (str(report), report.to_markdown(), str(backwards), backwards.to_markdown()):
        assert "is Python code" in form


def test_a_model_that_cannot_run_has_no_latency(monkeypatch, model):
    def fail(_):
        raise ValueError("not today")

    module = importlib.import_module("ridurre.reports.compare")
    monkeypatch.setattr(module, "prediction", lambda m: lambda: fail(m))
    report = ridurre.compare(model, model)
    assert report.original.latency is None
    assert [n for n in report.notes if "latency: not today" in n] == list(report.notes)
    assert len(report.notes) == 2


def test_models_of_open_size_have_no_macs_and_no_latency():
    inputs = keras.Input((None, None, 2))
    model = keras.Model(inputs, L.GlobalAveragePooling2D()(L.Conv2D(3, 1)(inputs)))
    report = ridurre.compare(model, model)
    assert report.original.macs is None
    assert report.original.latency is None
    assert any("input size is open" in note for note in report.notes)
    assert any("latency" in note for note in report.notes)


def test_zeros_among_the_weights_are_shown_where_there_are_many(model):
    assert "nonzero" not in str(compare(model, model))
    sparse = ridurre.prune(ridurre.LevelPrune(0.5), model)
    assert "nonzero parameters" in str(compare(model, sparse))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"original": "model.keras"}, NotAModelError),
        ({"pruned": None}, NotAModelError),
        ({"history": [1]}, RequestError),
        ({"plan": "foreign"}, PlanMismatchError),
    ],
)
def test_bad_arguments_are_refused(model, plan, change, error):
    arguments = {"original": model, "pruned": model} | change
    if "plan" in arguments:
        blocks = ridurre.DependencyGraph(two_residual_blocks())
        arguments["plan"] = blocks.get_pruning_plan("stem", [0])
    with pytest.raises(error):
        ridurre.compare(arguments.pop("original"), arguments.pop("pruned"), **arguments)


# forms


@pytest.fixture
def report(model, plan):
    steps = [
        Step(0, 0.2, 12, 150, 400, 0.1, 1, 2.5, accuracy=0.75, phases={"cut": 0.5}),
        Step(1, 0.2, 10, 130, 360, 0.2, 2, 2.0, accuracy=float("nan"), stopped="target"),
    ]
    return compare(model, plan.exec(), plan=plan, history=steps)


def test_a_report_survives_json(report):
    text = json.dumps(report.to_dict(), allow_nan=False)
    again = ridurre.Report.from_dict(json.loads(text))
    steps = (report.history[0], dataclasses.replace(report.history[1], accuracy=None))
    assert again == dataclasses.replace(report, history=steps)


@pytest.mark.parametrize(
    "data", [{}, {"format": 1}, {"format": 0}, None, {"format": 1, "nodes": 3}]
)
def test_other_data_are_no_report(data):
    with pytest.raises(RequestError, match=r"Report.to_dict"):
        ridurre.Report.from_dict(data)


def test_the_short_form_is_readable(report):
    lines = str(report).splitlines()
    assert lines[0].split() == ["before", "after", "change"]
    assert re.match(r"parameters +161 +109 +−32.3 %", lines[1])
    assert (
        lines[-1] == "layers: 1 lost channels, 1 could have and were left alone, 1 cannot lose any"
    )
    assert repr(report) == "Report('net': 161 → 109 parameters)"


@pytest.mark.parametrize("ending", ["json", "md", "HTML"])
def test_the_ending_decides_on_the_form(report, tmp_path, ending):
    path = tmp_path / f"report.{ending}"
    path.write_text("before")
    report.save(path)
    begin = {"json": "{", "md": "# Pruning report: `net`", "HTML": "<!doctype html>"}[ending]
    assert path.read_text("utf-8").startswith(begin)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["report.pdf", "report"])
def test_another_ending_is_refused(report, tmp_path, name):
    with pytest.raises(RequestError, match=r"\.html, \.md, \.json"):
        report.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_and_nothing_is_written(report, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    path = tmp_path / "report.html"
    path.write_text("before")
    with pytest.raises(RequestError, match="pip install jinja2"):
        report.save(path)
    assert path.read_text() == "before"
    report.save(tmp_path / "report.md")


def test_markdown_has_every_section_and_no_broken_row(report):
    text = report.to_markdown()
    for head in ("# Pruning report", "## Layers", "## Run", "## Groups of coupled channels"):
        assert head in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count(" | ") for line in table.splitlines()}) == 1


def test_names_are_never_markup():
    inputs = keras.Input((4, 4, 2))
    x = L.Conv2D(3, 1, name="`|` <script>alert(1)<\\script>")(inputs)
    evil = keras.Model(inputs, L.Dense(2, name=EVIL)(L.Flatten()(x)), name=EVIL)
    report = compare(evil, evil)
    page, text = report.to_html(), report.to_markdown()
    body = page[: page.index('<script type="application/json"')]
    assert "<img" not in page.replace("<image", "")[: len(body)]
    assert "&lt;img src=x onerror=alert(1)&gt;" in body
    assert "<script>alert" not in page
    json_part = re.search(r'<script type="application/json" id="charts">(.*?)</script>', page)[1]
    assert "<" not in json_part
    assert EVIL in {n["layer"] for n in json.loads(json_part)["network"]["datasets"]["nodes"]}
    assert f"`{EVIL}`" in text
    assert "`` `\\|` <script>alert(1)<\\script> ``" in text
    assert EVIL not in re.sub(r"(`+).*?\1", "", text)


def test_the_page_is_whole_without_a_network(report):
    page = report.to_html()
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", page)
    assert "default-src 'none'" in page


def test_what_is_no_finite_number_breaks_no_chart(report):
    def refuse(constant):
        raise AssertionError(constant)

    page = report.to_html()
    charts = re.search(r'id="charts">(.*?)</script>', page)[1]
    rows = json.loads(charts, parse_constant=refuse)["accuracy"]["datasets"]["rows"]
    assert [row["accuracy"] for row in rows] == [0.75, None]


def test_a_page_has_a_row_a_node_and_a_histogram_for_everything_in_a_deep_model():
    inputs = x = keras.Input((4, 4, 3))
    for i in range(100):
        y = L.ReLU()(L.Conv2D(3, 1, name=f"conv{i}")(x))
        x = L.Add()([y, x]) if i % 3 else y
    model = keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling2D()(x)))
    report = compare(model, model)
    page = report.to_html()
    assert page.count("<tr data-name=") == 101
    charts = json.loads(re.search(r'id="charts">(.*?)</script>', page)[1])
    assert len(charts["network"]["datasets"]["nodes"]) == len(report.nodes) > 260
    groups = {row["group"] for row in charts["importances"]["datasets"]["rows"]}
    assert len(groups) == len(report.groups)


def test_the_picture_runs_from_top_to_bottom_and_on_in_the_next_column():
    inputs = x = keras.Input((4, 4, 3))
    for i in range(LEVELS):
        x = L.ReLU(name=f"r{i}")(x)
    x = L.Add(name="sum")([x, L.Conv2D(3, 1, name="side")(inputs)])
    report = compare(*[keras.Model(inputs, x)] * 2, criterion=None)
    names = [n.name for n in report.nodes]
    drawn = draw(report.nodes)
    places = dict(zip(names, drawn.places, strict=True))
    assert drawn.columns == 2
    assert [places[f"r{i}"].y for i in range(LEVELS)] == list(range(LEVELS))
    assert (int(places["r0"].x), int(places["sum"].x), places["sum"].y) == (0, 1, 0)
    # Every connection begins and ends at its nodes; two of them go on in the next column.
    assert len(drawn.lines) == sum(len(n.inputs) for n in report.nodes) + 2
    at = {(p.x, p.y) for p in drawn.places}
    whole = [line for line in drawn.lines if {line[0], line[-1]} <= at]
    assert len(whole) == len(drawn.lines) - 4
    assert all(0 <= p.x < 2 and p.room > 0 for p in drawn.places)


# runs


class Weakest(ridurre.BasePruning):
    def run_pruning_for_conv2d_layer(self, pruning_factor, layer, layer_weight_mtx):
        return [0] if layer_weight_mtx.shape[-1] > 3 else []


@pytest.mark.core
def test_a_run_reports_on_itself(model, rng):
    pruning = Weakest(0.1, lambda m: m.compile("sgd", "mse", metrics=["mae"]), None, 0, 0, 2, None)
    with pytest.raises(RequestError, match="run_pruning"):
        _ = pruning.report
    pruned, _ = pruning.run_pruning(model)
    report = pruning.report
    assert report.original.parameters == model.count_params()
    assert report.pruned.parameters == pruned.count_params()
    assert [s.step for s in report.history] == [0, 1]
    assert layer(report, "b").channels == (7, 5)
    assert report.groups == compare(model, pruned).groups
    assert "| 1 |" in report.to_markdown()


def test_a_run_with_validation_data_reports_the_metrics_of_both(model, rng):
    def compiled(m):
        m.compile("sgd", "mse", metrics=["mae"])
        return m

    data = (rng.normal(size=(6, 4, 4, 2)).astype("float32"), np.zeros((6, 3)))
    pruning = Weakest(0.1, compiled, None, 0, 0, 1, None, metric="mae")
    pruning.run_pruning(compiled(model), validation_data=data)
    report = pruning.report
    assert report.original.metrics["mae"] > 0
    assert report.pruned.metrics["mae"] == pytest.approx(report.history[0].accuracy)


def test_a_resumed_run_still_knows_its_original(model, tmp_path):
    def run():
        pruning = Weakest(0.1, lambda m: m.compile("sgd", "mse"), None, 0, 0, 2, None)
        pruning.run_pruning(model, checkpoint_dir=tmp_path)
        return pruning.report

    assert run().layers == run().layers
