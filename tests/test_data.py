"""Data in every form that `model.fit` takes come out as the same batches."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest

from ridurre.data import Batches
from ridurre.errors import RequestError

X, Y = np.arange(14.0).reshape(7, 2), np.arange(7)


class Sequence(keras.utils.PyDataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rows = slice(3 * index, 3 * index + 3)
        return X[rows], Y[rows]


def generator() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    yield from (Sequence()[i] for i in range(3))


def tensorflow_dataset() -> Any:
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(3)


def torch_loader() -> Any:
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    return torch.utils.data.DataLoader(data, batch_size=3)


SOURCES = {
    "arrays": lambda: (X, Y),
    "tensors": lambda: (keras.ops.convert_to_tensor(X), keras.ops.convert_to_tensor(Y)),
    "PyDataset": Sequence,
    "generator": generator,
    "list of batches": lambda: list(generator()),
    "tf.data": tensorflow_dataset,
    "DataLoader": torch_loader,
    "batches": lambda: Batches((X, Y), batch_size=3, seed=None),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_the_same_batches_again_and_again(name: str) -> None:
    batches = Batches(SOURCES[name](), batch_size=3, seed=None)
    for _ in range(2):
        found = list(batches)
        assert [len(b) for b in found] == [3, 3, 1]
        np.testing.assert_array_equal(np.concatenate([b.x for b in found]), X)
        np.testing.assert_array_equal(np.concatenate([b.y for b in found]), Y)
    assert batches.labelled


def test_arrays_are_shuffled_by_the_seed() -> None:
    first, again, other = (
        np.concatenate([b.y for b in Batches((X, Y), seed=s)]) for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert sorted(first) == sorted(Y)
    assert (first != other).any()


@pytest.mark.parametrize("samples", [1, 3, 5, 7, 100])
def test_a_limit_on_samples(samples: int) -> None:
    found = list(Batches((X, Y), batch_size=3, samples=samples))
    assert sum(map(len, found)) == min(samples, 7)
    assert all(len(b.x) == len(b.y) for b in found)


def test_endless_data_need_a_limit_and_keep_what_they_gave() -> None:
    def endless() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        while True:
            yield X, Y

    batches = Batches(endless(), samples=10)
    assert [len(b) for b in batches] == [len(b) for b in batches] == [7, 3]


def test_other_batch_sizes() -> None:
    batches = Batches(SOURCES["PyDataset"]()).with_batch_size(2, 4)
    assert [b.y.tolist() for b in batches] == [[0, 1], [2], [3, 4], [5]]


def test_structures_stay_structures() -> None:
    data = ({"a": X, "b": Y}, [Y, X])
    batch = Batches(data, batch_size=3, seed=None).first()
    assert batch.x["a"].tolist() == X[:3].tolist()
    assert batch.y[1].tolist() == X[:3].tolist()
    several_inputs = Batches(([X, Y],), seed=None)
    assert not several_inputs.labelled
    assert [a.shape for a in several_inputs.first().x] == [(7, 2), (7,)]


def test_sample_weights_come_along() -> None:
    batch = Batches((X, Y, Y * 2.0), batch_size=2, seed=None).first()
    assert batch.sample_weight.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("pictures", "Expected data as model.fit takes them.*Received: str"),
        (7, "Received: int"),
        ((X, Y[:3]), r"as many samples each. Received shapes: \[\(7, 2\), \(3,\)\]"),
        ((X[:0], Y[:0]), "no samples"),
        (np.float32(3), "Received"),
    ],
)
def test_what_is_no_data_is_named(data: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Batches(data)


def test_an_empty_source_is_named() -> None:
    with pytest.raises(RequestError, match="no samples"):
        Batches(iter([])).first()
