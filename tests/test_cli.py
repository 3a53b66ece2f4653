"""The command line as its users call it: a process of its own, on files."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from builders import L, chain
from click.testing import CliRunner, Result

import ridurre
from ridurre.cli import app, main
from ridurre.cli.inputs import TARGETS, parse_target, read_data
from ridurre.errors import RequestError
from ridurre.testing import randomise

SLOW_SAVING = """
import keras, os, time
def save(model, path, **options):
    with open(path, "wb") as file:
        file.write(b"half")
    open(os.environ["REACHED"], "w").close()
    time.sleep(60)
keras.Model.save = save
"""
CUSTOM_LAYER = """
import keras
@keras.saving.register_keras_serializable(package="mine")
class Twice(keras.layers.Layer):
    def call(self, x):
        return 2 * x
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled model, samples for it, a broken file, a model with code and one with a class."""
    path = tmp_path_factory.mktemp("files")
    model = chain()
    randomise(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])
    model.save(path / "model.keras")
    rng = np.random.default_rng(0)
    np.savez(
        path / "data.npz", x=rng.normal(size=(20, 6, 8, 3)).astype("float32"),
        y=rng.integers(0, 2, 20),
    )  # fmt: skip
    whole = (path / "model.keras").read_bytes()
    (path / "cut.keras").write_bytes(whole[: len(whole) // 2])
    (path / "flipped.keras").write_bytes(
        bytes(byte ^ 255 if i == len(whole) // 2 else byte for i, byte in enumerate(whole))
    )
    (path / "broken.keras").write_bytes(b"PK\x03\x04 and then nothing of use")
    inputs = keras.Input((3,))
    keras.Model(inputs, L.Dense(2)(L.Lambda(lambda t: t * 2)(inputs))).save(path / "code.keras")
    (path / "mine.py").write_text(CUSTOM_LAYER)
    (path / "slow.py").write_text(SLOW_SAVING)
    return path


def run(folder: Path, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """A process of its own, in the folder."""
    return subprocess.run(
        command(*arguments), cwd=folder, env=environment(folder), capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "ridurre_command", *map(str, arguments)]


def environment(folder: Path, **more: str) -> dict[str, str]:
    paths = [str(folder), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(paths), "KERAS_BACKEND": keras.backend.backend()}
    return os.environ | own | more


def call(folder: Path, *arguments: Any) -> Result:
    """The same in this process, which is faster."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        return CliRunner().invoke(main, list(map(str, arguments)), prog_name="ridurre")
    finally:
        os.chdir(before)


def complaint(done: subprocess.CompletedProcess[str] | Result, code: int) -> str:
    """The error in its one line."""
    status = done.exit_code if isinstance(done, Result) else done.returncode
    assert status == code, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- prune ----------------------------------------------------------------------------------------


@pytest.mark.core
def test_prune_as_a_user_calls_it(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "small.keras"
    done = run(folder, "prune", "model.keras", "-o", output, "--target", "macs=0.5", "--verify")
    assert done.returncode == 0, done.stderr
    assert "macs" in done.stdout
    assert "Verified" in done.stdout
    assert files(tmp_path) == {"small.keras"}
    before, after = (keras.saving.load_model(p) for p in (folder / "model.keras", output))
    assert 0.3 < _macs(after) / _macs(before) <= 0.5
    assert after.compiled
    by_hand = ridurre.prune(ridurre.ChannelPrune(target=ridurre.MACs(0.5)), before)
    for ours, theirs in zip(by_hand.get_weights(), after.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_an_optimizer_that_was_never_used_takes_no_space(folder: Path, tmp_path: Path) -> None:
    model = keras.saving.load_model(folder / "model.keras")
    model.compile("adam", "sparse_categorical_crossentropy")
    model.save(tmp_path / "fresh.keras")
    data = np.load(folder / "data.npz")
    model.fit(data["x"], data["y"], verbose=0)
    model.save(tmp_path / "trained.keras")
    states = []
    for name in ("fresh", "trained"):
        output = tmp_path / f"{name}_small.keras"
        done = call(folder, "prune", tmp_path / f"{name}.keras", "-o", output, "--amount", 0.4)
        assert done.exit_code == 0, done.stderr
        assert output.stat().st_size < (tmp_path / f"{name}.keras").stat().st_size
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Skipping variable loading for optimizer")
            states.append(keras.saving.load_model(output).optimizer)
    assert [int(keras.ops.convert_to_numpy(o.iterations)) for o in states] == [0, 1]
    assert any(np.any(keras.ops.convert_to_numpy(v)) for v in states[1].variables[2:])


def _macs(model: keras.Model) -> int:
    return ridurre.model_complexity(model).macs or 0


@pytest.mark.core
def test_every_option_of_prune_arrives(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "small.keras"
    done = call(
        folder, "prune", "model.keras", "-o", output, "--target", "params=60%", "--target",
        "macs=80%", "--criterion", "output_taylor", "--scope", "global", "--cost", "macs", "--data",
        "data.npz", "--recover", "least_squares", "--steps", 2, "--schedule", "cubic", "--streams",
        "leave", "--min-channels", 2, "--seed", 3, "--verify", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    model = keras.saving.load_model(folder / "model.keras")
    strategy = ridurre.ChannelPrune(
        target=[ridurre.Params(0.6), ridurre.MACs(0.8)], criterion="output_taylor",
        scope="global", cost="macs", data=read_data(folder / "data.npz", model),
        recover=["least_squares"], steps=2, schedule="cubic", streams="leave", min_channels=2,
        seed=3,
    )  # fmt: skip
    smaller, plan = strategy.run(model)
    facts = json.loads(done.stdout)
    assert facts["plan"] == plan.to_dict()
    assert facts["after"]["parameters"] == smaller.count_params() - 2 * 5 + 2 * _gone(plan)
    assert facts["verified"] < 1e-4
    saved = keras.saving.load_model(output)
    for ours, theirs in zip(smaller.get_weights(), saved.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def _gone(plan: ridurre.PruningPlan) -> int:
    """Channels of the batch norm that went: its moving statistics are no parameters."""
    return len(plan.removed["bn/gamma"][0]) if "bn/gamma" in plan.removed else 0


def test_layers_are_chosen_by_expressions(folder: Path, tmp_path: Path) -> None:
    kept = {}
    for option in ("--only", "--exclude"):
        output = tmp_path / f"{option}.keras"
        done = call(
            folder, "prune", "model.keras", "-o", output, "--amount", 0.4, option, "[a]", "--json"
        )
        assert done.exit_code == 0, done.stderr
        kept[option] = [keras.saving.load_model(output).get_layer(n).filters for n in "ab"]
    assert kept == {"--only": [3, 7], "--exclude": [5, 5]}


def test_what_stays_is_rounded(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "small.keras"
    done = call(
        folder, "prune", "model.keras", "-o", output, "--amount", 0.45, "--round-to", 4,
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert keras.saving.load_model(output).get_layer("b").filters == 4


def test_a_dry_run_writes_nothing(folder: Path, tmp_path: Path) -> None:
    before = files(folder)
    output = tmp_path / "small.keras"
    done = call(folder, "prune", "model.keras", "-o", output, "--amount", 0.4, "--dry-run")
    assert done.exit_code == 0
    assert "parameters will be pruned" in done.stdout
    assert "a (Conv2D): 2 of 5 output channels" in done.stdout
    assert files(tmp_path) == set()
    assert files(folder) == before


def test_a_dry_run_reports_what_would_go(folder: Path, tmp_path: Path) -> None:
    done = call(
        folder, "prune", "model.keras", "--target", "macs=0.6", "--dry-run", "--report",
        tmp_path / "page.json", "--verify", "--round-to", 2, "--exclude", "^b$", "--data",
        "data.npz", "--criterion", "apoz", "--scope", "global", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert files(tmp_path) == {"page.json"}
    facts, page = json.loads(done.stdout), json.loads((tmp_path / "page.json").read_text("utf-8"))
    assert facts["output"] is None
    assert page["pruned"]["macs"] == facts["after"]["macs"] < facts["before"]["macs"]
    assert {x["name"]: x["status"] for x in page["layers"]}["b"] == "left"


def test_code_in_a_model_file_does_not_run_unasked(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "small.keras"
    asked = ("prune", "code.keras", "-o", output, "--amount", 0.3)
    assert "--unsafe" in complaint(call(folder, *asked), 1)
    refused = complaint(call(folder, *asked, "--unsafe"), 1)  # loaded; only, it has no channels
    assert "no channel" in refused
    assert files(tmp_path) == set()


def test_classes_of_ones_own_are_imported(folder: Path, tmp_path: Path) -> None:
    source = (
        "import keras, mine; L = keras.layers; i = keras.Input((3,)); "
        "x = L.Dense(5, name='a')(mine.Twice()(i)); "
        "keras.Model(i, L.Dense(2)(x)).save('own.keras')"
    )
    subprocess.run(
        [sys.executable, "-c", source], cwd=folder, env=environment(folder), check=True,
        capture_output=True,
    )  # fmt: skip
    asked = ("prune", "own.keras", "-o", tmp_path / "small.keras", "--amount", 0.4)
    assert "--import" in complaint(call(folder, *asked), 1)
    done = run(folder, *asked, "--import", "mine")
    assert done.returncode == 0, done.stderr
    absent = call(folder, *asked, "--force", "--import", "nowhere")
    assert "'nowhere' cannot be imported" in complaint(absent, 1)


# --- inspect, compare, report ---------------------------------------------------------------------


@pytest.mark.core
def test_inspect_as_a_user_calls_it(folder: Path) -> None:
    done = run(folder, "inspect", "model.keras")
    assert done.returncode == 0, done.stderr
    for line in ("a      Conv2D", "2 groups of coupled channels, 12 channels", "head (Dense): "):
        assert line in done.stdout
    facts = json.loads(call(folder, "inspect", "model.keras", "--json").stdout)
    model = keras.saving.load_model(folder / "model.keras")
    size = ridurre.model_complexity(model)
    assert (facts["parameters"], facts["macs"]) == (size.parameters, size.macs)
    by_name = {layer["name"]: layer for layer in facts["layers"]}
    assert by_name["a"]["channels"] == 5
    assert by_name["a"]["group"] != by_name["b"]["group"] != []
    assert by_name["a"]["reason"] == ""
    assert "output" in by_name["head"]["reason"]
    assert sum(layer["parameters"] for layer in facts["layers"]) == size.parameters
    assert sorted((g["layers"], g["channels"]) for g in facts["groups"]) == [(["a"], 5), (["b"], 7)]


def test_compare_as_a_user_calls_it(folder: Path, tmp_path: Path) -> None:
    small, page = tmp_path / "small.keras", tmp_path / "page.md"
    call(folder, "prune", "model.keras", "-o", small, "--amount", 0.4)
    done = run(folder, "compare", "model.keras", small, "--data", "data.npz", "-o", page)
    assert done.returncode == 0, done.stderr
    assert "parameters" in done.stdout
    assert "accuracy" in done.stdout
    assert "a" in page.read_text("utf-8")
    facts = json.loads(call(folder, "compare", "model.keras", small, "--json").stdout)
    sizes = [ridurre.model_complexity(keras.saving.load_model(p)) for p in
             (folder / "model.keras", small)]  # fmt: skip
    assert [facts[k]["macs"] for k in ("original", "pruned")] == [s.macs for s in sizes]
    asked = ("compare", "model.keras", small, "-o", page)
    assert "--force" in complaint(call(folder, *asked), 1)
    assert "ends in .html" in complaint(call(folder, *asked[:-1], tmp_path / "page.pdf"), 1)


@pytest.mark.core
def test_a_run_is_reported_from_its_folder(folder: Path, tmp_path: Path) -> None:
    def compile_model(model: keras.Model) -> None:
        model.compile("sgd", "mse")

    pruning = ridurre.RandomFilterPruning(0.2, compile_model, None, 0, 2, None, seed=7)
    original = keras.saving.load_model(folder / "model.keras")
    smaller, _ = pruning.run_pruning(original, checkpoint_dir=tmp_path / "run")
    kept = files(tmp_path / "run")
    page = tmp_path / "page.json"
    done = run(
        folder, "report", tmp_path / "run", "-o", page, "--json", "--data", "data.npz", "--loss",
        "sparse_categorical_crossentropy", "--metric", "accuracy",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts == json.loads(page.read_text("utf-8"))
    assert [step["filters"] for step in facts["history"]] == [s.filters for s in pruning.history]
    sizes = [ridurre.model_complexity(m).parameters for m in (original, smaller)]
    assert [facts[k]["parameters"] for k in ("original", "pruned")] == sizes
    assert "accuracy" in facts["pruned"]["metrics"]
    assert files(tmp_path / "run") == kept
    assert "no run" in complaint(call(folder, "report", folder), 1)


def test_prune_writes_a_report(folder: Path, tmp_path: Path) -> None:
    output, page = tmp_path / "small.keras", tmp_path / "small.html"
    asked = ("prune", "model.keras", "-o", output, "--amount", 0.4, "--report", page)
    done = call(folder, *asked)
    assert done.exit_code == 0, done.stderr
    assert page.read_text("utf-8").startswith("<!doctype html>")
    output.unlink()
    assert "small.html' is there already" in complaint(call(folder, *asked), 1)
    assert not output.exists()


# --- sensitivity ----------------------------------------------------------------------------------


@pytest.mark.core
def test_sensitivity_as_a_user_calls_it(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    output = tmp_path / "out"
    asked = ("sensitivity", "model.keras", "--data", "data.npz", "-o", output,
             "--amounts", "0.3,0.6", "--metric", "loss")  # fmt: skip
    done = run(folder, *asked)
    assert done.returncode == 0, done.stderr
    assert "loss of channels cut" in done.stdout
    expected = {"sensitivity.json", "sensitivity.csv", "curves.png", "heatmap.png"}
    assert files(output) == {*expected, "sensitivity.jsonl"}
    model = keras.saving.load_model(folder / "model.keras")
    by_hand = ridurre.sensitivity(
        model, read_data(folder / "data.npz", model), amounts=(0.3, 0.6), metric="loss", verbose=0
    )
    saved = ridurre.Sensitivity.from_json(output / "sensitivity.json")
    values = [p.value for p in saved.points]
    assert values == pytest.approx([p.value for p in by_hand.points], rel=1e-6)
    assert "--force" in complaint(call(folder, *asked), 1)
    again = call(folder, *asked, "--force", "--json")
    assert again.exit_code == 0
    assert [p["value"] for p in json.loads(again.stdout)["points"]] == values


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["prune", "absent.keras", "-o", "x.keras", "--amount", "0.3"], 2, "does not exist"),
        (["prune", "broken.keras", "-o", "x.keras", "--amount", "0.3"], 1, "no whole .keras"),
        (["prune", "cut.keras", "-o", "x.keras", "--amount", "0.3"], 1, "no whole .keras file"),
        (["prune", "flipped.keras", "-o", "x.keras", "--amount", "0.3"], 1, "cannot load 'flip"),
        (["compare", "model.keras", "cut.keras"], 1, "no whole .keras file"),
        (["inspect", "."], 2, "is a directory"),
        (["prune", "data.npz", "-o", "x.keras", "--amount", "0.3"], 1, "cannot load 'data.npz'"),
        (["prune", "model.keras", "-o", "x.keras"], 2, "--target"),
        (["prune", "model.keras", "--amount", "0.3"], 2, "--output"),
        (["prune", "model.keras", "-o", "x.h5", "--amount", "0.3"], 1, "ends in .keras"),
        (["prune", "model.keras", "-o", "x.keras", "--amount", "3"], 1, "amount"),
        (["prune", "model.keras", "-o", "x.keras", "--target", "mac=1"], 2, "macs, memory"),
        (["prune", "model.keras", "-o", "x.keras", "--target", "macs=much"], 2, "a number"),
        (["prune", "model.keras", "-o", "x.keras", "--target", "macs=nan"], 2, "a number"),
        (["prune", "model.keras", "-o", "x.keras", "--target", "macs=0"], 2, "in (0, 1]"),
        (["prune", "model.keras", "-o", "x.keras", "--target", "macs=0.5", "--amount", "0.3"], 2,
         "not both"),
        (["prune", "model.keras", "--amount", "0.3", "--dry-run", "--report", "x.txt"], 1,
         "ends in .html"),
        (["report", ".", "--metric", "accuracy"], 2, "--metric needs --loss"),
        (["report", ".", "--loss", "mse"], 2, "--loss needs --data"),
        (["prune", "model.keras", "-o", "x.keras", "--target", "params=3"], 1, "reach"),
        (["prune", "model.keras", "-o", "model.keras", "--amount", "0.3"], 1, "--force"),
        (["prune", "model.keras", "-o", "no/x.keras", "--amount", "0.3"], 1, "does not exist"),
        (["prune", "model.keras", "-o", "x.keras", "--amount", "0.3", "--criterion", "apoz"], 1,
         "needs data"),
        (["prune", "model.keras", "-o", "x.keras", "--amount", "0.3", "--criterion", "best"], 2,
         "'best' is not one of"),
        (["prune", "model.keras", "-o", "x.keras", "--amount", "0.3", "--exclude", "nope"], 1,
         "nope"),
        (["prune", "model.keras", "-o", "x.keras", "--amount", "0.3", "--data", "broken.keras"], 1,
         "cannot be read"),
        (["prune", "model.keras", "-o", "x.keras", "--amount", "0.3", "--loss", "none_such",
          "--criterion", "taylor", "--data", "data.npz"], 1,
         "none_such"),
        (["sensitivity", "model.keras", "-o", "out"], 2, "--data"),
        (["sensitivity", "model.keras", "-o", "out", "--data", "data.npz", "--amounts", "a"], 2,
         "fractions"),
        (["sensitivity", "model.keras", "-o", "out", "--data", "data.npz", "--workers", "x"], 2,
         "number or ray"),
        (["sensitivity", "model.keras", "-o", "data.npz", "--data", "data.npz"], 1, "not exist"),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_a_line(
    folder: Path, arguments: list[str], code: int, message: str
) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert message in complaint(call(folder, *arguments), code)
    for path, content in before.items():
        assert path.read_bytes() == content
    assert not (folder / "x.keras").exists()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="there is no folder for sure")
@pytest.mark.parametrize("page", [None, "/proc/page.html"])
def test_a_file_that_cannot_be_written(folder: Path, tmp_path: Path, page: str | None) -> None:
    """Not even by the superuser; that is found out before any work."""
    output = tmp_path / "x.keras" if page else "/proc/small.keras"
    asked = ("prune", "broken.keras", "-o", output, "--amount", "0.3")
    done = run(folder, *asked, *(["--report", page] if page else []))
    assert "'/proc' cannot be written to" in complaint(done, 1)
    assert files(tmp_path) == set()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limits of a process")
@pytest.mark.parametrize(
    ("kilobytes", "left"), [(8, set()), (64, {"small.keras"})], ids=["model", "report"]
)
def test_a_full_disk(folder: Path, tmp_path: Path, kilobytes: int, left: set[str]) -> None:
    """As for a file that grows over the limit of its process, at any place of the writing."""
    small = tmp_path / "small.keras"
    asked = ("prune", "model.keras", "-o", small, "--amount", "0.4", "--report",
             tmp_path / "page.html")  # fmt: skip
    limited = ["bash", "-c", f'ulimit -f {kilobytes} && exec "$@"', "ridurre"]
    done = subprocess.run(
        [*limited, *command(*asked)], cwd=folder, env=environment(folder), capture_output=True,
        text=True, check=False, timeout=300,
    )  # fmt: skip
    name = "page.html" if left else "small.keras"
    assert f"{name}' could not be written: File too large" in complaint(done, 1)
    assert files(tmp_path) == left
    assert not left or keras.saving.load_model(small)


def test_debug_shows_where(folder: Path) -> None:
    done = run(folder, "prune", "broken.keras", "-o", "x.keras", "--amount", "0.3", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_nothing_but_the_error_is_said(folder: Path) -> None:
    done = run(folder, "inspect", "broken.keras")
    assert done.stderr.splitlines() == [complaint(done, 1)]


def test_the_package_runs_as_a_module(folder: Path) -> None:
    module = [sys.executable, "-m", "ridurre", "inspect", "model.keras"]
    done = subprocess.run(
        module, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    )
    assert done.stdout == run(folder, "inspect", "model.keras").stdout != ""


def test_help_and_version(folder: Path) -> None:
    done = run(folder, "--help")
    assert done.returncode == 0
    for name in main.commands:
        assert name in done.stdout
        shown = call(folder, name, "--help")
        assert shown.exit_code == 0
        assert "--json" in shown.stdout
    assert "Exit codes" in done.stdout


def test_the_shell_completes(folder: Path) -> None:
    asked = {"_RIDURRE_COMPLETE": "bash_complete", "COMP_WORDS": "ridurre pru", "COMP_CWORD": "1"}
    done = subprocess.run(
        command(), cwd=folder, env=environment(folder, **asked), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert "plain,prune" in done.stdout


# --- interrupted ----------------------------------------------------------------------------------


def interrupted(folder: Path, reached: Path, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """Ctrl-C as soon as a file is there."""
    process = subprocess.Popen(
        command(*arguments), cwd=folder, env=environment(folder, REACHED=str(reached)),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not reached.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    return subprocess.CompletedProcess(arguments, process.returncode, out, errors)


@pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")
def test_nothing_is_half_written(folder: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    done = interrupted(
        folder, tmp_path / "reached", "prune", "model.keras", "-o", small / "small.keras",
        "--amount", "0.3", "--import", "slow",
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert "Interrupted" in done.stderr
    assert "Traceback" not in done.stderr
    assert files(small) == set()


@pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")
def test_an_interrupted_sensitivity_goes_on(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    journal = tmp_path / "out" / "sensitivity.jsonl"
    many = ",".join(f"{i / 60:g}" for i in range(1, 60))
    asked = ("sensitivity", "model.keras", "--data", "data.npz", "-o", tmp_path / "out",
             "--grain", "weights", "--amounts", many)  # fmt: skip
    done = interrupted(folder, journal, *asked)
    assert done.returncode == 130, done.stderr
    assert files(tmp_path / "out") == {"sensitivity.jsonl"}
    finished = journal.read_bytes()
    again = call(folder, *asked)
    assert again.exit_code == 0, again.stderr
    assert journal.read_bytes().startswith(finished)
    assert "heatmap.png" in files(tmp_path / "out")


@pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")
def test_an_interruption_that_a_library_loses_is_repeated(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "AGAIN", 0.05)

    def deaf(*_: Any, **__: Any) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            time.sleep(5)  # as if it had been lost; the next one is not

    monkeypatch.setattr("ridurre.cli.looking.read_model", deaf)
    before = signal.getsignal(signal.SIGINT)
    done = call(folder, "inspect", "model.keras")
    assert done.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is before


# --- targets and data -----------------------------------------------------------------------------


def test_targets_are_read() -> None:
    assert parse_target("macs=0.5") == parse_target("macs=50%") == ridurre.MACs(0.5)
    assert parse_target("params=200000") == ridurre.Params(200_000)
    assert parse_target("ms=2.5") == ridurre.Latency(milliseconds=2.5)
    assert all(parse_target(f"{name}=0.5") for name in TARGETS)


def test_data_are_read(tmp_path: Path) -> None:
    model = chain()
    x, y = np.ones((2, 6, 8, 3)), np.arange(2)
    np.save(tmp_path / "x.npy", x)
    np.testing.assert_array_equal(read_data(tmp_path / "x.npy", model), x)
    for names in ({"x": x}, {"x": x, "y": y}, {"x": x, "y": y, "sample_weight": y}):
        np.savez(tmp_path / "d.npz", **names)
        found = read_data(tmp_path / "d.npz", model)
        for ours, theirs in zip(found if len(names) > 1 else [found], names.values(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    np.savez(tmp_path / "d.npz", picture=x, y=y)
    inputs, labels = read_data(tmp_path / "d.npz", model)
    np.testing.assert_array_equal(inputs["picture"], x)
    np.testing.assert_array_equal(labels, y)
    np.savez(tmp_path / "d.npz", images=x)
    with pytest.raises(RequestError, match=r"\['images'\].*\['picture'\]"):
        read_data(tmp_path / "d.npz", model)
    np.savez(tmp_path / "d.npz", x=np.array([print], object))
    with pytest.raises(RequestError, match="cannot be read"):
        read_data(tmp_path / "d.npz", model)
    assert read_data(None, model) is None


def test_click_is_there() -> None:
    """The command must not depend on what only tests install."""
    requirements = (Path(__file__).parents[1] / "requirements.txt").read_text()
    assert "click" in requirements.split()
    assert importlib.util.find_spec("click")
