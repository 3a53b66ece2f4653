"""Every Python listing in the README and in docs/ runs."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest

import ridurre

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def listings(page: Path) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL))


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


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_listings_run(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    elif page.name == "pictures.md":
        names = {"conv1", "masks", "now", "rounds", "sparsity", "weights", "logs", "recording"}
        assert {path.stem for path in scope["folder"].iterdir()} == names
        assert scope["recording"].total_sparsity[-1] == pytest.approx(0.9, abs=0.01)
    elif page.name == "loop.md":
        assert scope["pruning"].history[-1].accuracy is not None
    else:
        assert "plans checked" in capsys.readouterr().out
