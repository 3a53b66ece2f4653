"""Entries for TensorBoard, read back from the files."""

import sys

import keras
import numpy as np
import pytest
from test_recording import fit, network

import ridurre
from ridurre.errors import RequestError

pytest.importorskip("tensorboardX")
pytestmark = pytest.mark.core


def read(folder):
    """All entries, ``{tag: [(step, value or histogram)]}``."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:  # the length, a checksum, as many bytes, a checksum
            length = int.from_bytes(content[:8], "little")
            event, content = Event.FromString(content[12 : 12 + length]), content[16 + length :]
            for entry in event.summary.value:
                kind = entry.WhichOneof("value")
                assert kind == ("histo" if entry.tag.startswith("weights/") else "simple_value")
                found.setdefault(entry.tag, []).append((event.step, getattr(entry, kind)))
    return found


def test_scalars_and_histograms(tmp_path):
    pruning = ridurre.PruneDuringTraining(ridurre.LevelPrune(0.6, scope="global"), begin=1)
    model = network()
    fit(model, pruning, ridurre.SparsityBoard(tmp_path / "logs"), epochs=3)
    kernels = {name: np.array(model.get_layer(name).kernel) for name in "ab"}
    events = read(tmp_path / "logs")
    assert sorted(events) == [
        "channels/a/kernel",
        "channels/b/kernel",
        "sparsity/a/kernel",
        "sparsity/b/kernel",
        "total/channels",
        "total/nonzero",
        "total/sparsity",
        "weights/a/kernel",
        "weights/b/kernel",
    ]
    assert events["total/nonzero"] == [(0, 50), (1, 50), (2, 20), (3, 20)]
    assert [v for _, v in events["total/sparsity"]] == pytest.approx([0, 0, 0.6, 0.6])
    for name, kernel in kernels.items():
        assert events[f"sparsity/{name}/kernel"][-1][1] == pytest.approx((kernel == 0).mean())
        assert events[f"channels/{name}/kernel"][-1][1] == (kernel != 0).any(0).sum()
        steps, found = zip(*events[f"weights/{name}/kernel"], strict=True)
        assert steps == (0, 1, 2, 3)
        last = found[-1]
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
    assert [step for step, _ in events["total/sparsity"]] == [0, 2, 4]
    assert not [tag for tag in events if tag.startswith("weights")]


def test_training_that_goes_on(tmp_path):
    model, board = network(), ridurre.SparsityBoard(tmp_path)
    fit(model, board)
    fit(model, board, initial_epoch=1, epochs=2)
    assert [step for step, _ in read(tmp_path)["total/channels"]] == [0, 1, 1, 2]


def test_a_dead_kernel_has_no_histogram(tmp_path):
    model = network()
    model.get_layer("a").kernel.assign(keras.ops.zeros((3, 5)))
    fit(model, ridurre.KeepZeros(), ridurre.SparsityBoard(tmp_path))
    events = read(tmp_path)
    assert events["channels/a/kernel"][-1] == (1, 0)
    assert [tag for tag in events if tag.startswith("weights")] == ["weights/b/kernel"]


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    with pytest.raises(RequestError, match="every"):
        ridurre.SparsityBoard(tmp_path, every=0)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(RequestError, match="pip install tensorboardX"):
        ridurre.SparsityBoard(tmp_path)
