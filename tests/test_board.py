"""Entries for TensorBoard, read back from the files."""

import sys

import keras
import numpy as np
import pytest
from test_recording import fit, network

import ridurre
from ridurre.errors import RequestError

pytest.importorskip("tensorboardX")
accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
pytestmark = pytest.mark.core


def read(folder):
    events = accumulators.EventAccumulator(str(folder), {"histograms": 0, "scalars": 0})
    events.Reload()
    return events


def values(events, tag):
    return [(e.step, e.value) for e in events.Scalars(tag)]


def test_scalars_and_histograms(tmp_path):
    pruning = ridurre.PruneDuringTraining(ridurre.LevelPrune(0.6, scope="global"), begin=1)
    model = network()
    fit(model, pruning, ridurre.SparsityBoard(tmp_path / "logs"), epochs=3)
    kernels = {name: np.array(model.get_layer(name).kernel) for name in "ab"}
    events = read(tmp_path / "logs")
    assert sorted(events.Tags()["scalars"]) == [
        "channels/a/kernel",
        "channels/b/kernel",
        "sparsity/a/kernel",
        "sparsity/b/kernel",
        "total/channels",
        "total/nonzero",
        "total/sparsity",
    ]
    assert values(events, "total/nonzero") == [(0, 50), (1, 50), (2, 20), (3, 20)]
    assert [v for _, v in values(events, "total/sparsity")] == pytest.approx([0, 0, 0.6, 0.6])
    for name, kernel in kernels.items():
        assert values(events, f"sparsity/{name}/kernel")[-1][1] == pytest.approx(
            (kernel == 0).mean()
        )
        assert values(events, f"channels/{name}/kernel")[-1][1] == (kernel != 0).any(0).sum()
        found = events.Histograms(f"weights/{name}/kernel")
        assert [h.step for h in found] == [0, 1, 2, 3]
        last = found[-1].histogram_value
        assert last.num == np.count_nonzero(kernel)
        counts = np.array(last.bucket)
        limits = np.array(last.bucket_limit)
        at = int(np.searchsorted(limits, 0.25))
        assert counts[: at + 1].sum() == ((kernel != 0) & (kernel <= limits[at])).sum()
        assert last.min <= kernel[kernel != 0].min() < kernel[kernel != 0].max() <= last.max
        assert last.sum == pytest.approx(kernel.sum(), abs=0.2)


def test_every_second_epoch_without_histograms(tmp_path):
    board = ridurre.SparsityBoard(tmp_path, every=2, histograms=False)
    fit(network(), board, epochs=5)
    events = read(tmp_path)
    assert [step for step, _ in values(events, "total/sparsity")] == [0, 2, 4]
    assert events.Tags()["histograms"] == []


def test_training_that_goes_on(tmp_path):
    model, board = network(), ridurre.SparsityBoard(tmp_path)
    fit(model, board)
    fit(model, board, initial_epoch=1, epochs=2)
    assert [step for step, _ in values(read(tmp_path), "total/channels")] == [0, 1, 1, 2]


def test_a_dead_kernel_has_no_histogram(tmp_path):
    model = network()
    model.get_layer("a").kernel.assign(keras.ops.zeros((3, 5)))
    fit(model, ridurre.KeepZeros(), ridurre.SparsityBoard(tmp_path))
    events = read(tmp_path)
    assert values(events, "channels/a/kernel")[-1] == (1, 0)
    assert events.Tags()["histograms"] == ["weights/b/kernel"]


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    with pytest.raises(RequestError, match="every"):
        ridurre.SparsityBoard(tmp_path, every=0)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(RequestError, match="pip install tensorboardX"):
        ridurre.SparsityBoard(tmp_path)
