"""Every Python listing in the README and in docs/ runs."""

import re
import shlex
from pathlib import Path

import keras
import numpy as np
import pytest
from click.testing import CliRunner

import ridurre
from ridurre.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def listings(page: Path) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL))


#: Packages that a page's reader has and not everybody who runs the tests.
NEEDED = {"deploy.md": ("ai_edge_litert", "onnxruntime", "tf2onnx", "openvino")}


def users_script() -> dict[str, object]:
    """What the reader of the README has before its first line."""
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


def commands(page: Path) -> list[list[str]]:
    """The command lines that a page shows, as arguments."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    return [shlex.split(line)[1:] for line in "".join(blocks).splitlines() if line]


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


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=lambda p: p.name)
def test_commands_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    for arguments in commands(page):
        done = CliRunner().invoke(main, arguments, prog_name="ridurre")
        assert done.exit_code == 0, (arguments, done.output)


def test_some_pages_show_commands() -> None:
    assert {"README.md", "command_line.md"} <= {p.name for p in PAGES if commands(p)}


@pytest.mark.parametrize("page", [p for p in PAGES if listings(p)], ids=lambda p: p.name)
def test_listings_run(  # noqa: PLR0912 - a branch for every page
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in NEEDED.get(page.name, ()):
        pytest.importorskip(package, reason="runtimes are optional")
    scope = users_script()
    try:
        exec(compile(listings(page), str(page), "exec"), scope)
    finally:
        if "GatedProjection" in scope:
            ridurre.unregister_rule(scope["GatedProjection"])
    if page.name == "README.md":
        assert scope["nb_epochs"] > 0
        assert "parameters will be pruned" in capsys.readouterr().out
        scope["SmallestFilters"](0.2, lambda m: None, None, 0, 0, 1, 0.5).run_pruning(
            scope["model"]
        )
    elif page.name == "strategies.md":
        assert (
            ridurre.model_complexity(scope["smaller"]).macs
            < 0.5 * ridurre.model_complexity(scope["model"]).macs
        )
    elif page.name == "weights.md":
        size = ridurre.model_complexity(scope["sparse"])
        assert size.parameters / size.nonzero == pytest.approx(3, rel=0.05)
        assert scope["smaller"].count_params() <= scope["model"].count_params()
    elif page.name == "sensitivity.md":
        assert scope["found"].complete
        assert scope["half"].count_params() < scope["model"].count_params()
    elif page.name == "reports.md":
        assert {p.suffix for p in scope["folder"].iterdir()} == {".html", ".md", ".json"}
        assert scope["report"].pruned.metrics["accuracy"] >= 0
        assert len(scope["fixed"]) == 1
    elif page.name == "pictures.md":
        names = {"conv1", "masks", "now", "rounds", "sparsity", "weights", "logs", "recording"}
        assert {path.stem for path in scope["folder"].iterdir()} == names
        assert scope["recording"].total_sparsity[-1] == pytest.approx(0.9, abs=0.01)
    elif page.name == "loop.md":
        assert scope["pruning"].history[-1].accuracy is not None
    elif page.name == "surgeon.md":
        names = [layer.name for layer in scope["changed"].layers]
        assert names[:2] == ["conv1", "conv2d"]
        assert scope["changed"].get_layer("conv1").filters == 21
        assert scope["deeper"].output_shape == (None, 5)
        assert "layers 'left' and 'right' are tied" in capsys.readouterr().out
    elif page.name == "deploy.md":
        names = {"model", "model.tflite", "model.onnx", "model.xml", "model.bin", "int8.tflite"}
        assert {path.name for path in scope["folder"].iterdir()} == names
        assert 1e-4 < scope["difference"] < 0.5
    elif page.name == "coming_from.md":
        assert scope["smaller"].get_layer("conv1").filters == 21
        assert scope["half"].get_layer("conv1").filters == 24
        assert scope["pruned"].count_params() < scope["model"].count_params()
        assert ridurre.Masks.of(scope["sparse"]).sparsity == pytest.approx(0.8, abs=0.01)
    else:
        assert "plans checked" in capsys.readouterr().out
