"""The example, as a user would call it: a short run, and the mistakes that end it early."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / "example" / "prune_cnn.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=environment
    )


def test_an_npz_file_of_colour_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 12, 12, 3), dtype=np.uint8)
    labels = np.arange(60) % 3
    data = tmp_path / "colours.npz"
    np.savez(data, x_train=images, y_train=labels[:, None], x_test=images, y_test=labels)
    short = ("--epochs", 1, "--finetune-epochs", 1, "--max-steps", 1, "--verbose", 0)
    done = run("--data", data, "--model", "vgg", "--output", tmp_path / "out", *short)
    assert done.returncode == 0, done.stderr
    assert "filters" in done.stdout
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "baseline.keras",
        "pruned.keras",
        "history.json",
        "history.png",
    }
    assert json.loads((tmp_path / "out" / "history.json").read_text())


@pytest.mark.parametrize(("content", "message"), [(None, "There is no data file"), (b"x", "npz")])
def test_a_bad_data_file_is_refused_before_training(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    data = tmp_path / "bad.npz"
    if content is not None:
        data.write_bytes(content)
    done = run("--data", data, "--output", tmp_path / "out")
    assert done.returncode == 2
    assert re.search(message, done.stderr, re.IGNORECASE), done.stderr
    assert "Epoch" not in done.stdout
