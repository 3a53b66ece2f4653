"""What a recorder writes while `fit` runs, and what a recording reads."""

import os
import signal

import keras
import numpy as np
import pytest
from builders import L

import ridurre
from ridurre import files, snapshots
from ridurre.backend.training import attach_state
from ridurre.errors import CheckpointError, RequestError, RidurreWarning
from ridurre.snapshots import Histogram, Snapshot

pytestmark = pytest.mark.core


def network():
    """Kernels of 3·5 and 5·7 weights."""
    inputs = keras.Input((3,))
    x = L.Dense(5, activation="tanh", name="a")(inputs)
    return keras.Model(inputs, L.Dense(7, name="b")(x))


def fit(model, *callbacks, epochs=1, **options):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(12, 3)), rng.normal(size=(12, model.output_shape[1]))
    if not model.compiled:
        model.compile("sgd", "mse")
    options = {"batch_size": 4, "verbose": 0, "shuffle": False} | options
    return model.fit(x, y, epochs=epochs, callbacks=[*callbacks], **options)


class Watch(keras.callbacks.Callback):
    """The kernels at the end of every epoch, or of every batch."""

    def __init__(self, unit="epoch"):
        super().__init__()
        self.seen, self.unit = [], unit

    def look(self, unit):
        if unit == self.unit:
            attach_state(self.model)
            kernels = [np.array(x.kernel) for x in self.model.layers if hasattr(x, "kernel")]
            self.seen.append(kernels)

    def on_epoch_end(self, epoch, logs=None):
        self.look("epoch")

    def on_train_batch_end(self, batch, logs=None):
        self.look("batch")


def same_masks(record, kernels):
    return len(record) == len(kernels) and all(
        np.array_equal(k, value != 0) for k, value in zip(record.values(), kernels, strict=True)
    )


def test_every_epoch_is_recorded_as_it_was(tmp_path):
    watch, model = Watch(), network()
    pruning = ridurre.PruneDuringTraining(ridurre.LevelPrune(0.6), begin=1, end=2)
    history = fit(model, pruning, watch, ridurre.Recorder(tmp_path), epochs=4).history
    recording = ridurre.Recording(tmp_path)
    assert recording.epochs == [0, 1, 2, 3, 4]
    assert recording.masks(0).sparsity == 0
    for number, kernels in enumerate(watch.seen, 1):
        assert same_masks(recording.masks(number), kernels)
    assert recording.sparsity["a/kernel"] == pytest.approx([0, 0, 5 / 15, 9 / 15, 9 / 15], abs=0.1)
    assert recording.total_sparsity[-1] == pytest.approx(30 / 50)
    assert recording.logs[0] == {}
    assert [x["loss"] for x in recording.logs[1:]] == pytest.approx(history["loss"])
    assert "60.0%" in repr(recording)


def test_channels_without_weights_are_not_counted(tmp_path):
    model = network()
    keep = np.ones((3, 5), bool)
    keep[:, [1, 4]] = False
    keep[:2, 0] = False
    model.get_layer("a").kernel.assign(np.where(keep, np.array(model.get_layer("a").kernel), 0))
    fit(model, ridurre.KeepZeros(), ridurre.Recorder(tmp_path))
    assert ridurre.Recording(tmp_path).channels == {"a/kernel": [3, 3], "b/kernel": [7, 7]}


def test_steps_are_counted_over_epochs(tmp_path):
    watch = Watch("batch")
    strategy = ridurre.PruneDuringTraining(ridurre.LevelPrune(0.9), end=5, unit="step")
    model = network()
    fit(model, strategy, watch, ridurre.Recorder(tmp_path, every=2, unit="step"), epochs=2)
    recording = ridurre.Recording(tmp_path)
    assert recording.epochs == pytest.approx([0, 2 / 3, 1 + 1 / 3, 2])
    for number, step in ((1, 2), (2, 4), (3, 6)):
        assert same_masks(recording.masks(number), watch.seen[step - 1])


def test_epochs_are_recorded_without_asking_for_steps(tmp_path):
    asked = ridurre.Recorder(tmp_path).on_train_batch_end
    assert asked.__func__ is keras.callbacks.Callback.on_train_batch_end  # or Keras would wait


def test_every_third_epoch_and_the_last(tmp_path):
    fit(network(), ridurre.Recorder(tmp_path, every=3), epochs=5)
    assert ridurre.Recording(tmp_path).epochs == [0, 3, 5]


def test_more_training_is_added(tmp_path):
    model = network()
    fit(model, ridurre.Recorder(tmp_path), epochs=2)
    again = ridurre.Recorder(tmp_path)
    fit(model, again, epochs=3, initial_epoch=2)
    assert ridurre.Recording(tmp_path).epochs == [0, 1, 2, 3]
    fit(model, again)
    assert ridurre.Recording(tmp_path).epochs == [0, 1, 2, 3, 1]


def test_a_smaller_model_is_compared_with_the_first_record(tmp_path):
    model = network()
    fit(model, ridurre.Recorder(tmp_path))
    smaller = ridurre.prune(ridurre.ChannelPrune(0.4), model)
    fit(smaller, ridurre.Recorder(tmp_path), initial_epoch=1, epochs=2)
    recording = ridurre.Recording(tmp_path)
    assert recording.epochs == [0, 1, 1, 2]
    assert recording.sparsity["a/kernel"] == pytest.approx([0, 0, 6 / 15, 6 / 15])
    assert recording.total_sparsity[2] == pytest.approx(20 / 50)
    assert recording.channels["a/kernel"] == [5, 5, 3, 3]
    assert recording.masks(-1)["b/kernel"].shape == (3, 7)
    with pytest.raises(CheckpointError, match="another model.*'a/kernel'.*another folder"):
        fresh = tmp_path / "fresh"
        fit(smaller, ridurre.Recorder(fresh))
        fit(model, ridurre.Recorder(fresh))


def test_another_model_is_refused(tmp_path):
    fit(network(), ridurre.Recorder(tmp_path))
    other = keras.Sequential([keras.Input((3,)), L.Dense(5, name="a")])
    with pytest.raises(CheckpointError, match="'b/kernel'.*no such kernel"):
        fit(other, ridurre.Recorder(tmp_path))
    assert len(ridurre.Recording(tmp_path)) == 2


def test_a_subclassed_model_is_recorded(tmp_path):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = L.Dense(5)

        def call(self, x):
            return self.dense(x)

    model = Own()
    model.compile("sgd", "mse")
    model.fit(np.ones((4, 3)), np.ones((4, 5)), verbose=0)
    model.fit(np.ones((4, 3)), np.ones((4, 5)), verbose=0, callbacks=[ridurre.Recorder(tmp_path)])
    assert len(ridurre.Recording(tmp_path)) == 2


def test_a_full_disk_does_not_end_training(tmp_path, monkeypatch):
    write = np.savez_compressed
    calls = []

    def fail_second(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise OSError("No space left")
        write(*args, **kwargs)

    monkeypatch.setattr(snapshots.np, "savez_compressed", fail_second)
    with pytest.warns(RidurreWarning, match="record_000001.*No space left"):
        fit(network(), ridurre.Recorder(tmp_path), epochs=3)
    assert ridurre.Recording(tmp_path).epochs == [0, 2, 3]


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="holds no records"):
        ridurre.Recording(tmp_path)
    fit(network(), ridurre.Recorder(tmp_path), epochs=2)
    path = tmp_path / "record_000001.npz"
    whole = path.read_bytes()
    for content in (b"", b"x", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="record_000001"):
            ridurre.Recording(tmp_path)
    path.unlink()
    assert ridurre.Recording(tmp_path).epochs == [0, 2]


def test_arguments_are_checked(tmp_path):
    for options in ({"every": 0}, {"every": 1.5}, {"unit": "batch"}):
        with pytest.raises(RequestError, match=next(iter(options))):
            ridurre.Recorder(tmp_path, **options)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="Expected a folder"):
        fit(network(), ridurre.Recorder(tmp_path / "file"))
    fit(network(), ridurre.Recorder(tmp_path))
    for at in (2, -3, "last"):
        with pytest.raises(RequestError, match="from 0 to 1"):
            ridurre.Recording(tmp_path).masks(at)


def test_a_histogram_over_a_wider_range_is_that_of_the_same_weights(rng):
    value = rng.normal(scale=0.1, size=(50, 7)).astype("float32")
    value[:5] = 0
    found = Histogram.of(value)
    assert found.counts.sum() == 45 * 7
    assert 2.0 ** (found.exponent - 1) <= abs(value).max() < 2.0**found.exponent
    for exponent in (found.exponent, found.exponent + 1, found.exponent + 3):
        wide = found.widened(exponent)
        expected, _ = np.histogram(value[value != 0], wide.edges)
        assert wide.counts.tolist() == expected.tolist()


def test_histograms_of_nothing_and_of_what_is_not_finite():
    assert Histogram.of(np.zeros((3, 5))).widened(0).counts.sum() == 0
    assert Histogram.of(np.array([np.nan, np.inf, 0.5, 0])).counts.sum() == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning")
def test_a_killed_run_leaves_readable_records(tmp_path, monkeypatch):
    model, sync, synced = network(), files.sync, []
    snapshot = Snapshot.of(model)

    def kill_in_the_third(path):
        synced.append(path)
        if len(synced) == 5:  # the file and the folder of every record
            os.kill(os.getpid(), signal.SIGKILL)
        sync(path)

    monkeypatch.setattr(files, "sync", kill_in_the_third)
    child = os.fork()
    if not child:
        try:
            for number in range(4):
                snapshot.save(tmp_path / f"record_{number:06d}.npz")
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert sorted(p.name[:15] for p in tmp_path.iterdir()) == [
        "record_000000.n",
        "record_000001.n",
        "unfinished_reco",
    ]
    assert len(ridurre.Recording(tmp_path)) == 2
    fit(model, ridurre.Recorder(tmp_path), epochs=2)
    assert ridurre.Recording(tmp_path).epochs == [0, 0, 1, 2]
