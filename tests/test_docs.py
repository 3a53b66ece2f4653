"""Every listing and every command of the README and of docs/ runs; a page cannot evade this."""

import inspect
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from documents import PAGES, ROOT, Block, blocks, commands, listings, name

import ridurre
from ridurre.cli import main

#: How a block is dealt with, by its language. Without one it is what a program printed.
LANGUAGES = {"python": "run", "sh": "run", "bash": "run by .ci/run", "": "shown", "text": "shown"}
#: Pages that show no code.
TEXT_ONLY = {"CHANGELOG.md", "docs/reference/index.md", "docs/stability.md", "docs/command_line.md"}


#: Packages that a page's reader has and not everybody who runs the tests.
NEEDED = {"docs/deploy.md": ("ai_edge_litert", "onnxruntime", "tf2onnx", "openvino")}


def users_script() -> dict[str, Any]:
    """What the reader of a page has before its first line."""
    rng = np.random.default_rng(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(24, 3, name="conv1"),
            layers.ReLU(),
            layers.Conv2D(28, 3),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    return {
        "model": model,
        "x_train": rng.normal(size=(16, 8, 8, 1)).astype("float32"),
        "y_train": rng.integers(0, 10, 16),
    }


def users_folder(folder: Path) -> None:
    """What the reader of docs/command_line.md has: a model, samples, a finished run."""
    scope = users_script()
    model, x, y = scope["model"], scope["x_train"], scope["y_train"]
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.save(folder / "model.keras")
    np.savez(folder / "val.npz", x=x, y=y)
    ridurre.RandomFilterPruning(
        0.2, lambda m: m.compile("sgd", "mse"), None, 0, maximum_prune_iterations=2
    ).run_pruning(model, checkpoint_dir=folder / "run")


# --- no page and no block without a test ----------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_is_of_a_kind_that_is_dealt_with(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"what is {block.language!r}?"
        if block.language == "bash":
            assert block.before.startswith("<!-- command: "), "bash is for what .ci/run runs"
        if not block.language:
            assert not re.search(r"^(import |from \w+ import|pip |python )", block.text, re.M)


def test_every_page_with_listings_says_what_comes_out() -> None:
    expected = {name(p) for p in PAGES} - TEXT_ONLY
    expected -= {name(p) for p in PAGES if is_reference(p)}
    assert {name(p) for p in PAGES if listings(p)} == expected == set(OUTCOMES)


def is_reference(page: Path) -> bool:
    return page.parent.name == "reference"


def test_indented_code_is_not_used() -> None:
    """It would not be run."""
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)
        assert not re.search(r"\n\n {4,}\S", text), name(page)


def test_pages_are_short() -> None:
    lines = {name(p): len(p.read_text("utf-8").splitlines()) for p in PAGES}
    assert lines.pop("README.md") < 150
    assert max(lines.values()) < 250, lines


# --- commands -------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=name)
def test_commands_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if any(command == "ridurre" for command, *_ in commands(page)):
        users_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    for command, *arguments in commands(page):
        RUNNERS[command](arguments)


def run_ridurre(arguments: list[str]) -> None:
    done = CliRunner().invoke(main, arguments, prog_name="ridurre")
    assert done.exit_code == 0, (arguments, done.output)


def check_pip(arguments: list[str]) -> None:
    """Installing takes minutes (.ci/run does it); here, that there is such a thing to install."""
    verb, *wanted = arguments
    assert verb == "install"
    extras = re.findall(r'^        "(\w+)": ', (ROOT / "setup.py").read_text("utf-8"), re.M)
    for part in wanted:
        found = re.fullmatch(r"\.(?:\[([\w,]+)\])?|-e", part)
        assert found, part
        assert set((found[1] or "test").split(",")) <= set(extras)


def run_python(arguments: list[str]) -> None:
    arguments = [str(ROOT / a) if a.endswith(".py") else a for a in arguments]
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr


#: What a line of an `sh` block may begin with.
RUNNERS: dict[str, Callable[[list[str]], None]] = {
    "ridurre": run_ridurre,
    "pip": check_pip,
    "python": run_python,
}


def test_some_pages_show_commands() -> None:
    assert {"README.md", "docs/command_line.md"} <= {name(p) for p in PAGES if commands(p)}


# --- listings -------------------------------------------------------------------------------------

Scope = dict[str, Any]


def fewer(scope: Scope, *names: str) -> bool:
    size = scope["model"].count_params()
    return all(scope[n].count_params() < size for n in names)


def macs(scope: Scope, smaller: str) -> float:
    whole, part = (ridurre.model_complexity(scope[n]).macs for n in ("model", smaller))
    return part / whole


def readme(scope: Scope, printed: str) -> None:
    assert scope["nb_epochs"] > 0
    assert "parameters will be pruned" in printed
    assert max(macs(scope, "half"), macs(scope, "better")) <= 0.5
    scope["SmallestFilters"](0.2, lambda m: None, None, 0, 0, 1, 0.5).run_pruning(scope["model"])


def accuracy_floor(scope: Scope, printed: str) -> None:
    assert fewer(scope, "smaller")
    assert scope["pruning"].history[-1].accuracy < 0


def budget(scope: Scope, printed: str) -> None:
    assert macs(scope, "half") <= 0.5
    assert scope["small"].count_params() <= 4000
    assert macs(scope, "smaller") <= 0.5
    assert [layer.filters % 4 for layer in scope["smaller"].layers[::2][:2]] == [0, 0]
    assert scope["smaller"].get_layer("conv1").filters == 24
    assert "Expected a larger target" in printed


def coming_from(scope: Scope, printed: str) -> None:
    assert scope["smaller"].get_layer("conv1").filters == 21
    assert scope["fewer"].get_layer("conv1").filters == 22
    assert scope["half"].get_layer("conv1").filters == 24
    assert fewer(scope, "pruned")
    assert ridurre.Masks.of(scope["sparse"]).sparsity == pytest.approx(0.8, abs=0.01)


def contributing(scope: Scope, printed: str) -> None:
    assert scope["halfway"](0, 4, 0.5) == 0.25


def loop(scope: Scope, printed: str) -> None:
    assert scope["pruning"].history[-1].accuracy is not None


def own_criterion(scope: Scope, printed: str) -> None:
    assert fewer(scope, "smaller")
    assert ridurre.Masks.of(scope["sparse"]).sparsity == pytest.approx(0.5, abs=0.01)
    means = [values.mean() for values in scope["scores"].values()]
    assert means == pytest.approx([1.0] * len(means))
    graph = ridurre.DependencyGraph(scope["model"])
    kernel = np.abs(np.asarray(scope["model"].get_layer("conv1").kernel)).max((0, 1, 2))
    group = next(g for g in graph.groups if "conv1" in g.producers)
    assert (scope["largest_weight"](graph, group) >= kernel).all()


def machines(scope: Scope, printed: str) -> None:
    assert scope["found"].complete
    assert fewer(scope, "smaller")


def own_layers(scope: Scope, printed: str) -> None:
    assert scope["smaller"].layers[1].attention.num_heads == 2
    assert isinstance(scope["half"], scope["Net"])
    assert scope["half"].hidden.units == 8


def pictures(scope: Scope, printed: str) -> None:
    names = {"conv1", "masks", "now", "rounds", "sparsity", "weights", "logs", "recording"}
    assert {path.stem for path in scope["folder"].iterdir()} == names
    assert scope["recording"].total_sparsity[-1] == pytest.approx(0.9, abs=0.01)


def reports(scope: Scope, printed: str) -> None:
    assert {p.suffix for p in scope["folder"].iterdir()} == {".html", ".md", ".json"}
    assert scope["report"].pruned.metrics["accuracy"] >= 0
    assert len(scope["fixed"]) == 1


def resume(scope: Scope, printed: str) -> None:
    whole, epochs = scope["run"](scope["model"], scope["folder"] / "whole")
    assert epochs == scope["epochs"] == 3
    for a, b in zip(whole.get_weights(), scope["resumed"].get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def rules(scope: Scope, printed: str) -> None:
    ridurre.unregister_rule(scope["GatedProjection"])
    assert "plans checked" in printed


def sensitivity(scope: Scope, printed: str) -> None:
    assert scope["found"].complete
    assert fewer(scope, "half")


def start(scope: Scope, printed: str) -> None:
    assert macs(scope, "small") <= 0.5
    accuracies = re.findall(r"^(0\.\d+) \d+ MACs$", printed, re.M)
    assert len(accuracies) == 2
    assert min(map(float, accuracies)) > 0.85


def strategies(scope: Scope, printed: str) -> None:
    assert macs(scope, "smaller") < 0.5


def surgeon(scope: Scope, printed: str) -> None:
    names = [layer.name for layer in scope["changed"].layers]
    assert names[:2] == ["conv1", "conv2d"]
    assert scope["changed"].get_layer("conv1").filters == 21
    assert scope["deeper"].output_shape == (None, 5)
    assert "layers 'left' and 'right' are tied" in printed


def thinking(scope: Scope, printed: str) -> None:
    assert [g.size for g in scope["graph"].groups] == [5, 7]
    assert scope["smaller"].get_layer("back").filters == 3


def deploy(scope: Scope, printed: str) -> None:
    names = {"model", "model.tflite", "model.onnx", "model.xml", "model.bin", "int8.tflite"}
    assert {path.name for path in scope["folder"].iterdir()} == names
    assert 1e-4 < scope["difference"] < 0.5


def weights(scope: Scope, printed: str) -> None:
    size = ridurre.model_complexity(scope["sparse"])
    assert size.parameters / size.nonzero == pytest.approx(3, rel=0.05)
    assert scope["smaller"].count_params() <= scope["model"].count_params()


def while_training(scope: Scope, printed: str) -> None:
    assert fewer(scope, "cut", "smaller")
    assert ridurre.Masks.of(scope["sparse"]).sparsity == pytest.approx(0.8, abs=0.01)


def front(scope: Scope, printed: str) -> None:
    assert macs(scope, "half") <= 0.5


#: What has to be there after the listings of a page ran; a new page is a row.
OUTCOMES: dict[str, Callable[[Scope, str], None]] = {
    "README.md": readme,
    "CONTRIBUTING.md": contributing,
    "docs/index.md": front,
    **{
        f"docs/{check.__name__}.md": check
        for check in (
            accuracy_floor, budget, coming_from, deploy, loop, machines, own_criterion, own_layers,
            pictures, reports, resume, rules, sensitivity, start, strategies, surgeon, thinking,
            weights, while_training,
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("page", [p for p in PAGES if listings(p)], ids=name)
def test_listings_run(
    page: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for package in NEEDED.get(name(page), ()):
        pytest.importorskip(package, reason="runtimes are optional")
    monkeypatch.chdir(tmp_path)
    scope = users_script()
    scope["model"].save("model.keras")
    exec(compile(listings(page), str(page), "exec"), scope)
    OUTCOMES[name(page)](scope, capsys.readouterr().out)


# --- pictures, the reference, the names that stay -------------------------------------------------


def test_the_pictures_are_what_the_script_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = runpy.run_path(str(ROOT / "docs/draw.py"))
    script["main"](tmp_path)
    drawn = {p.name: p.read_text("utf-8") for p in tmp_path.iterdir()}
    kept = {p.name: p.read_text("utf-8") for p in (ROOT / "docs/drawn").iterdir()}
    assert drawn == kept, "run python docs/draw.py"


def test_the_reference_has_every_public_name() -> None:
    shown = set()
    for page in (ROOT / "docs/reference").iterdir():
        shown |= set(re.findall(r"^::: ridurre\.(\w+)$", page.read_text("utf-8"), re.M))
    assert shown == set(ridurre.__all__)


def promised() -> list[str]:
    page: list[Block] = blocks(ROOT / "docs/stability.md")
    return next(b.text for b in page if b.before == "<!-- promised -->").splitlines()


@pytest.mark.parametrize("line", promised())
def test_promised_names_take_the_promised_arguments(line: str) -> None:
    path, arguments = re.fullmatch(r"([\w.]+)\((.*)\)", line).groups()
    promise = eval(f"lambda {arguments}: None")
    found: Any = ridurre
    for part in path.split("."):
        found = getattr(found, part)
    here = [p for n, p in inspect.signature(found).parameters.items() if n != "self"]
    assert_keeps(list(inspect.signature(promise).parameters.values()), here)


def assert_keeps(promise: list[inspect.Parameter], here: list[inspect.Parameter]) -> None:
    """Promised arguments come first, in their order; what was added is optional, by keyword."""
    by_name = {p.name: p for p in here}
    positional = [p.name for p in promise if p.kind is p.POSITIONAL_OR_KEYWORD]
    for parameter in promise:
        found = by_name.pop(parameter.name)
        assert found.default == parameter.default, parameter
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            assert here[positional.index(parameter.name)].name == parameter.name
            assert found.kind is found.POSITIONAL_OR_KEYWORD
    for added in by_name.values():
        optional = added.kind is added.KEYWORD_ONLY and added.default is not added.empty
        assert optional or added.kind is added.VAR_KEYWORD, added
