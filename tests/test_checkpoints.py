"""Long runs survive: what is on disk, when, and what happens to a damaged or foreign folder."""

import errno
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from builders import L, chain, channels, columns, first, pictures, scripted, weakest

import ridurre
import ridurre.files
from ridurre.errors import CheckpointError, RequestError, RidurreError
from ridurre.targets import Filters
from ridurre.testing import randomise

KILLING = Path(__file__).with_name("killing.py")


class Killed(BaseException):
    """Stands for the end of a process, in the same process."""


def dropped():
    """A model with random layers and names of its own."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6, 6, 3), name="picture")
    x = L.ReLU(name="relu")(L.Conv2D(7, 3, name="a")(inputs))
    x = L.Conv2D(9, 3, name="b")(L.Dropout(0.4, name="dropout")(x))
    x = L.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, L.Dense(3, name="head")(x), name="dropped")


def compile_it(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    eager = keras.backend.backend() == "tensorflow"  # there the few batches are faster so
    model.compile("adam", loss, run_eagerly=eager)


def train(model, start, end):
    """Every source of randomness there is has a part in it."""
    x = pictures(model, 12)
    noise = np.random.normal(size=x.shape) + random.random()
    noise += keras.ops.convert_to_numpy(keras.random.normal(x.shape))
    x += 0.1 * noise.astype("float32")
    model.fit(x, np.arange(12) % 3, batch_size=4, initial_epoch=start, epochs=end, verbose=0)


def random_pruning(finetune_fn=train, seed=5, rounds=3, **options):
    return ridurre.RandomFilterPruning(
        0.2, compile_it, finetune_fn, 1, rounds, None, seed=seed, **options
    )


def files(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def values(model):
    return {v.path: keras.ops.convert_to_numpy(v) for v in model.weights}


def assert_same(one, two):
    assert one.keys() == two.keys()
    for path in one:
        np.testing.assert_array_equal(one[path], two[path], err_msg=path)


def facts(pruning):
    return [(s.step, s.filters, s.layers, s.epochs, s.accepted, s.stopped) for s in pruning.history]


# --- killed in earnest ----------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [3, pytest.param(24, marks=pytest.mark.slow)])
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="forks, which others refuse")
def test_killed_at_random_moments_a_run_ends_as_if_undisturbed(tmp_path, kills):
    env = os.environ | {
        "PYTHONPATH": str(Path(ridurre.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
        "TF_NUM_INTRAOP_THREADS": "1",
    }
    command = [sys.executable, str(KILLING), str(tmp_path), str(kills), str(kills)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert sum(report["kills"].values()) == kills
    assert report["runs"]
    assert all(report["runs"])
    if kills > 20:
        assert {"finetune", "save"} <= report["kills"].keys()


# --- killed at every single place -----------------------------------------------------------------

#: Everything that a run does to a folder, and the calls around it.
PLACES = (
    (ridurre.files, "sync"),
    (Path, "replace"),
    (Path, "unlink"),
    (Path, "write_text"),
    (keras.saving, "save_model"),
)


def until_killed(monkeypatch, moment, run):
    """Run until the given one of all calls at those places; whether it came to that."""
    count = [0]

    def guard(function):
        def guarded(*args, **kwargs):
            count[0] += 1
            if count[0] == moment:
                raise Killed
            return function(*args, **kwargs)

        return guarded

    with monkeypatch.context() as patch:
        for owner, name in PLACES:
            patch.setattr(owner, name, guard(getattr(owner, name)))
        try:
            run()
        except Killed:
            return True
    return False


def test_killed_before_any_step_of_saving_it_continues(tmp_path, monkeypatch):
    def run(folder):
        pruning = scripted(weakest, rounds=2)
        model, _ = pruning.run_pruning(dropped(), checkpoint_dir=folder)
        return model, facts(pruning)

    model, steps = run(tmp_path / "undisturbed")
    expected, moment = values(model), 0
    while True:
        moment += 1
        folder = tmp_path / str(moment)
        if not until_killed(monkeypatch, moment, lambda folder=folder: run(folder)):
            break
        model, again = run(folder)
        assert again == steps
        assert_same(values(model), expected)
        assert files(folder).keys() == {"original.keras", "run.json", "step_0002.keras"}
    assert moment > 15


@pytest.mark.parametrize("write", [(Path, "write_text"), (keras.saving, "save_model")], ids=str)
def test_killed_in_the_middle_of_a_file_it_continues(tmp_path, monkeypatch, write):
    owner, name = write
    whole = getattr(owner, name)
    killed_after(1, dropped(), tmp_path)

    def half(*args, **kwargs):
        whole(*args, **kwargs)
        path = next(a for a in args if isinstance(a, Path))
        path.write_bytes(path.read_bytes()[:99])
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, half)
        with pytest.raises(Killed):
            random_pruning().run_pruning(dropped(), checkpoint_dir=tmp_path)
    model, _ = random_pruning().run_pruning(dropped(), checkpoint_dir=tmp_path)
    other, _ = random_pruning().run_pruning(dropped(), checkpoint_dir=tmp_path / "other")
    assert_same(values(model), values(other))


@pytest.mark.parametrize("killed_in", [0, pytest.param(1, marks=pytest.mark.core), 2])
def test_killed_in_fine_tuning_it_continues_from_the_last_round(tmp_path, killed_in):
    undisturbed = random_pruning()
    model, epochs = undisturbed.run_pruning(dropped(), checkpoint_dir=tmp_path / "a")
    trained = []

    def train_until_killed(model, start, end):
        trained.append(start)
        train(model, start, end)
        if len(trained) == killed_in + 1:
            raise Killed

    with pytest.raises(Killed):
        random_pruning(train_until_killed).run_pruning(dropped(), checkpoint_dir=tmp_path / "b")
    np.random.default_rng().normal(size=3)
    keras.random.normal((3,))  # another process has another past
    trained += [None] * 9
    pruning = random_pruning(train_until_killed)
    again, more = pruning.run_pruning(dropped(), checkpoint_dir=tmp_path / "b")
    assert trained == [*range(killed_in + 1), *[None] * 9, *range(killed_in, 3)]
    assert_same(values(again), values(model))
    assert (more, facts(pruning)) == (epochs, facts(undisturbed))
    assert again.compiled


def test_the_same_object_continues_too(tmp_path):
    fail = [True]

    def train_or_fail(model, start, end):
        if end == 2 and fail[0]:
            raise OSError("the disk of the data is gone")
        train(model, start, end)

    pruning = random_pruning(train_or_fail)
    with pytest.raises(OSError, match="data is gone"):
        pruning.run_pruning(dropped(), checkpoint_dir=tmp_path)
    fail[0] = False
    model, epochs = pruning.run_pruning(dropped(), checkpoint_dir=tmp_path)
    other, _ = random_pruning().run_pruning(dropped(), checkpoint_dir=tmp_path / "other")
    assert epochs == 3
    assert_same(values(model), values(other))


def test_a_generator_of_ones_own_goes_on_where_it_was(tmp_path):
    def run(folder, train):
        pruning = random_pruning(train, seed=None)
        pruning.rng = np.random.default_rng(11)
        return pruning.run_pruning(dropped(), checkpoint_dir=folder)[0]

    def kill(model, start, end):
        if start == 1:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "b", kill)
    one, two = run(tmp_path / "a", lambda *_: None), run(tmp_path / "b", lambda *_: None)
    assert_same(values(one), values(two))


# --- what is on disk ------------------------------------------------------------------------------


def test_a_finished_run_comes_back_at_once(tmp_path):
    pruning = random_pruning()
    model, epochs = pruning.run_pruning(dropped(), checkpoint_dir=tmp_path)
    before = files(tmp_path)

    def refuse(*_):
        raise Killed

    again = random_pruning(refuse)
    again.run_pruning_for_conv2d_layer = refuse
    result, more = again.run_pruning(dropped(), checkpoint_dir=tmp_path)
    assert_same(values(result), values(model))
    assert result.compiled
    assert (more, facts(again), again.stopped) == (epochs, facts(pruning), pruning.stopped)
    assert again.history == pruning.history
    assert files(tmp_path) == before


def test_a_rejected_round_is_not_what_comes_back(tmp_path):
    def run():
        pruning = scripted(
            first, rounds=None, evaluate_fn=lambda m: channels(m, "a"), minimum_accuracy=4
        )
        return channels(pruning.run_pruning(columns(6), checkpoint_dir=tmp_path)[0], "a"), pruning

    keras.utils.set_random_seed(0)
    left, pruning = run()
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    again, resumed = run()
    assert left == again == 4
    assert resumed.history == pruning.history
    assert resumed.stopped == "accuracy"
    assert files(tmp_path).keys() == {"original.keras", "run.json", "step_0002.keras"}


def test_only_the_last_model_is_kept(tmp_path):
    seen = []

    def look(model, start, end):
        seen.append(sorted(files(tmp_path)))

    scripted(first, finetune_fn=look, rounds=3).run_pruning(chain(), checkpoint_dir=tmp_path)
    assert seen == [
        ["original.keras", "run.json"],
        ["original.keras", "run.json", "step_0001.keras"],
        ["original.keras", "run.json", "step_0002.keras"],
    ]


def test_other_files_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    scripted(first).run_pruning(chain(), checkpoint_dir=str(tmp_path))
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_the_folder_is_made(tmp_path):
    scripted(first).run_pruning(chain(), checkpoint_dir=tmp_path / "deep" / "er")
    assert files(tmp_path / "deep" / "er").keys() == {
        "original.keras",
        "run.json",
        "step_0001.keras",
    }


class Halve(L.Layer):
    def call(self, x):
        return x / 2


def halving():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 4, 3), name="picture")
    x = L.Conv2D(5, 1, name="b")(Halve(name="halve")(L.Conv2D(7, 1, name="a")(inputs)))
    return keras.Model(inputs, L.Dense(2, name="head")(L.Flatten(name="flat")(x)), name="halving")


@pytest.mark.filterwarnings("ignore::ridurre.RidurreWarning")
def test_custom_layers_are_loaded_by_name(tmp_path):
    def run(custom):
        pruning = scripted(first, rounds=1, layers="b")
        return pruning.run_pruning(halving(), None, custom, checkpoint_dir=tmp_path)[0]

    model = run({"Halve": Halve})
    assert_same(values(run({"Halve": Halve})), values(model))
    with pytest.raises(CheckpointError, match="custom_objects_inside_model"):
        run(None)


@pytest.mark.filterwarnings("ignore::ridurre.RidurreWarning")
def test_a_model_that_could_not_be_loaded_again_is_refused_before_any_work(tmp_path):
    inputs = keras.Input((4, 4, 3))
    x = L.Conv2D(5, 1)(L.Lambda(lambda x: 2 * x)(L.Conv2D(7, 1, name="a")(inputs)))
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))
    asked = []
    pruning = scripted(lambda *_: asked.append(1) or [0])
    with pytest.raises(CheckpointError, match="could not be loaded from a file again: .*Lambda"):
        pruning.run_pruning(model, checkpoint_dir=tmp_path)
    assert (asked, files(tmp_path)) == ([], {})


def killed_after(rounds, model, folder, **options):
    """A folder with so many rounds of a run of three."""
    done = []

    def kill(*arguments):
        if len(done) == rounds:
            raise Killed
        done.append(train(*arguments))

    with pytest.raises(Killed):
        random_pruning(kill, **options).run_pruning(model, checkpoint_dir=folder)
    return folder


# --- foreign and damaged --------------------------------------------------------------------------


def other_weights():
    model = dropped()
    randomise(model)
    return model


def other_rate():
    model = dropped()
    model.get_layer("dropout").rate = 0.5
    return model


@pytest.mark.parametrize("change", [other_weights, other_rate])
def test_the_folder_of_another_model_is_refused(tmp_path, change):
    before = files(killed_after(1, dropped(), tmp_path))
    with pytest.raises(CheckpointError, match="holds another run: model was .*another folder"):
        random_pruning().run_pruning(change(), checkpoint_dir=tmp_path)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 6}, "seed was 5, now it is 6"),
        ({"rounds": 4}, "maximum_prune_iterations was 3, now it is 4"),
        ({"layers": "a"}, "layers was"),
        ({"protect": "a"}, r"protect was \[\], now it is \['a'\]"),
        ({"target": Filters(3)}, r"target was \[\], now it is \['Filters\(3\)'\]"),
        ({"evaluate_fn": lambda _: 1, "minimum_accuracy": 0}, "minimum_accuracy was None"),
    ],
)
def test_other_settings_are_refused(tmp_path, options, message):
    before = files(killed_after(1, dropped(), tmp_path))
    with pytest.raises(CheckpointError, match=message):
        random_pruning(**options).run_pruning(dropped(), checkpoint_dir=tmp_path)
    assert files(tmp_path) == before


def test_another_method_or_factor_or_bin_is_refused(tmp_path):
    before = files(killed_after(1, dropped(), tmp_path))
    other = ridurre.KMeansFilterPruning(0.2, compile_it, train, 1, 3, None, seed=5)
    with pytest.raises(CheckpointError, match="method was 'RandomFilterPruning', now it is 'KM"):
        other.run_pruning(dropped(), checkpoint_dir=tmp_path)
    binned = random_pruning()
    binned.define_prune_bins([1, 5], [0.5])
    with pytest.raises(CheckpointError, match=r"bins was \[\], now it is \[\[1, 5, 0\.5\]\]"):
        binned.run_pruning(dropped(), checkpoint_dir=tmp_path)
    assert files(tmp_path) == before


def damage(path, how):
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        path.write_bytes({"short": data[:middle], "empty": b"", "flipped": flipped}[how])


@pytest.mark.parametrize("how", ["gone", "short", "empty", "flipped"])
@pytest.mark.parametrize("name", ["run.json", "step_0001.keras"])
def test_a_damaged_file_is_refused(tmp_path, name, how):
    killed_after(1, dropped(), tmp_path)
    damage(tmp_path / name, how)
    before = files(tmp_path)
    message = "no run.json" if (name, how) == ("run.json", "gone") else f"{name}' is damaged"
    with pytest.raises(CheckpointError, match=message) as caught:
        random_pruning().run_pruning(dropped(), checkpoint_dir=tmp_path)
    assert isinstance(caught.value, RidurreError)
    assert files(tmp_path) == before


@pytest.mark.parametrize("text", ["[]", "{}", "null", '{"format": 1}', '{"format": 2}', "\x00"])
def test_a_file_of_somebody_else_is_refused(tmp_path, text):
    (tmp_path / "run.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match="damaged or not one of ridurre's"):
        random_pruning().run_pruning(dropped(), checkpoint_dir=tmp_path)
    assert files(tmp_path) == {"run.json": text.encode()}


def test_a_number_that_was_changed_is_noticed(tmp_path):
    path = killed_after(1, dropped(), tmp_path) / "run.json"
    text = path.read_text(encoding="utf-8")
    assert text.count('"epochs": 1,') == 2  # in the record of the round, and for the run
    path.write_text(text.replace('"epochs": 1,', '"epochs": 7,'), encoding="utf-8")
    with pytest.raises(CheckpointError, match="its checksum is not the one that was saved"):
        random_pruning().run_pruning(dropped(), checkpoint_dir=tmp_path)


def test_a_newer_format_is_named(tmp_path):
    killed_after(1, dropped(), tmp_path)
    record = json.loads((tmp_path / "run.json").read_text(encoding="utf-8")) | {"format": 9}
    (tmp_path / "run.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(CheckpointError, match="its format is 9, expected 1"):
        random_pruning().run_pruning(dropped(), checkpoint_dir=tmp_path)


# --- disks that do not do as told -----------------------------------------------------------------


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("owner", "name"), [(keras.saving, "save_model"), (ridurre.files, "sync"), (Path, "replace")]
)
def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, owner, name):
    killed_after(1, dropped(), tmp_path)
    before = files(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        pruning = random_pruning()
        with pytest.raises(CheckpointError, match=r"step_0002.keras' could not be written.*space"):
            pruning.run_pruning(dropped(), checkpoint_dir=tmp_path)
    assert files(tmp_path) == before
    model, _ = random_pruning().run_pruning(dropped(), checkpoint_dir=tmp_path)
    other, _ = random_pruning().run_pruning(dropped(), checkpoint_dir=tmp_path / "other")
    assert_same(values(model), values(other))


def test_a_disk_that_fills_in_the_middle_of_a_file(tmp_path, monkeypatch):
    def half(model, path, **options):
        Path(path).write_bytes(b"PK half a file")
        full()

    killed_after(1, dropped(), tmp_path)
    before = files(tmp_path)
    monkeypatch.setattr(keras.saving, "save_model", half)
    with pytest.raises(CheckpointError, match="make the same call again"):
        random_pruning().run_pruning(dropped(), checkpoint_dir=tmp_path)
    assert files(tmp_path) == before


@pytest.mark.skipif(sys.platform != "linux", reason="sets a limit of the system")
def test_a_disk_that_really_takes_no_more(tmp_path):
    import resource

    killed_after(1, dropped(), tmp_path)
    before = files(tmp_path)
    room = max(len(data) for data in before.values()) // 2
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="could not be written.*File too large"):
            random_pruning().run_pruning(dropped(), checkpoint_dir=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(tmp_path) == before


def test_a_folder_that_cannot_be_written_is_named_before_any_work(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    asked = []
    pruning = scripted(lambda *_: asked.append(1) or [0])
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(CheckpointError, match=r"cannot be made: .*Expected checkpoint_dir"):
            pruning.run_pruning(chain(), checkpoint_dir=folder)
    assert asked == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux")
def test_a_read_only_folder_is_named_before_any_work():
    asked = []
    pruning = scripted(lambda *_: asked.append(1) or [0])
    with pytest.raises(CheckpointError, match=r"original\.keras' could not be written"):
        pruning.run_pruning(chain(), checkpoint_dir="/proc/self")
    assert asked == []


def test_a_floor_that_the_original_misses_leaves_no_run(tmp_path):
    pruning = scripted(first, evaluate_fn=lambda _: 0, minimum_accuracy=1)
    with pytest.raises(RequestError, match="from the start"):
        pruning.run_pruning(chain(), checkpoint_dir=tmp_path)
    assert files(tmp_path) == {}
