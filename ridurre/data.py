"""Whatever `model.fit` takes as data, as NumPy batches that can be gone through again and again."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from ridurre.backend import to_numpy
from ridurre.backend.models import inputs_of
from ridurre.errors import RequestError


@dataclass(frozen=True)
class Batch:
    """Some samples; `y` and `sample_weight` are None where the data have none.

    Multi-input and multi-output models have structures of arrays.
    """

    x: Any
    y: Any = None
    sample_weight: Any = None

    def __len__(self) -> int:
        return len(keras.tree.flatten(self.x)[0])

    def slice(self, start: int, stop: int) -> Batch:
        """Some of the samples."""

        def part(structure: Any) -> Any:
            return keras.tree.map_structure(lambda a: a[start:stop], structure)

        return Batch(
            *(None if s is None else part(s) for s in (self.x, self.y, self.sample_weight))
        )


class Batches:
    """A data set in batches; every round over it gives the same samples if the source does.

    Args:
        data: anything that `model.fit` takes: arrays ``x``, tuples ``(x, y)`` and
            ``(x, y, sample_weight)`` of arrays (or of structures of arrays: ``([a, b],)`` for two
            inputs without labels),
            a `tf.data.Dataset`, a `keras.utils.PyDataset`, a PyTorch `DataLoader`, a generator or
            any other iterable of batches. What a generator gives is kept, as it gives it once.
        batch_size: samples per batch, for arrays. Other sources have their own batches.
        samples: at most that many samples; None for all. Needed where the data never end.
        seed: arrays are gone through in an order shuffled with this seed (they may be sorted by
            class); None for their own order.

    Raises:
        RequestError: none of these kinds, arrays of different lengths, or no samples at all.
    """

    def __init__(
        self,
        data: Any,
        *,
        batch_size: int = 32,
        samples: int | None = None,
        seed: int | None = 0,
    ) -> None:
        self._batch_size = batch_size
        self._samples = samples
        self._kept: list[Batch] = []
        self._once: Iterator[Any] | None = None
        self._arrays: Batch | None = None
        self._source: Iterable[Any] = ()
        if isinstance(data, Batches):
            self._source = data
        elif is_arrays(data):
            self._arrays = _check_lengths(_batch(data))
            count = len(self._arrays)
            self._order = np.arange(count) if seed is None else _shuffled(count, seed)
        elif isinstance(data, keras.utils.PyDataset):
            self._source = _Indexed(data)
        elif isinstance(data, Iterator):
            self._once = data
        elif isinstance(data, Iterable) and not isinstance(data, str | bytes | dict):
            self._source = data
        else:
            raise RequestError(
                "Expected data as model.fit takes them: arrays, (x, y), a tf.data.Dataset, a "
                "keras.utils.PyDataset, a PyTorch DataLoader or an iterable of batches. Received: "
                f"{type(data).__name__}."
            )

    def __iter__(self) -> Iterator[Batch]:
        left = self._samples
        for batch in self._all():
            if left is not None:
                batch = batch.slice(0, left)
                left -= len(batch)
            if len(batch):
                yield batch
            if left == 0:
                return

    def __length_hint__(self) -> int:
        """How many batches there are, if that is known without looking; else 0."""
        if self._arrays is None:
            return 0 if self._samples else operator.length_hint(self._source)
        samples = min(len(self._order), self._samples or len(self._order))
        return -(-samples // self._batch_size)

    def first_samples(self, samples: int) -> Batches:
        """The same data, ending after so many samples."""
        return Batches(self, samples=samples)

    def with_batch_size(self, batch_size: int, batches: int) -> Batches:
        """The same data in batches of (at most) this size, ending after so many batches."""
        return Batches(_Rebatched(self, batch_size, batches))

    def first(self) -> Batch:
        """The first batch; raises `RequestError` if there is none."""
        for batch in self:
            return batch
        raise RequestError("The data hold no samples. Expected at least one batch.")

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return self.first().y is not None

    def _all(self) -> Iterator[Batch]:
        if self._arrays is not None:
            yield from self._slices(self._arrays)
        elif self._once is not None:
            yield from self._kept
            for item in self._once:
                self._kept.append(_batch(item))
                yield self._kept[-1]
        else:
            for item in self._source:
                yield item if isinstance(item, Batch) else _batch(item)

    def _slices(self, arrays: Batch) -> Iterator[Batch]:
        for start in range(0, len(self._order), self._batch_size):
            rows = self._order[start : start + self._batch_size]

            def part(structure: Any, rows: np.ndarray = rows) -> Any:
                return keras.tree.map_structure(lambda a: a[rows], structure)

            whole = (arrays.x, arrays.y, arrays.sample_weight)
            yield Batch(*(None if s is None else part(s) for s in whole))


class _Rebatched:
    """Batches of another size, cut from those of other data; none is put together from two."""

    def __init__(self, data: Batches, batch_size: int, batches: int) -> None:
        self._data, self._batch_size, self._batches = data, batch_size, batches

    def __length_hint__(self) -> int:
        return min(self._batches, operator.length_hint(self._data) or self._batches)

    def __iter__(self) -> Iterator[Batch]:
        parts = (
            batch.slice(start, start + self._batch_size)
            for batch in self._data
            for start in range(0, len(batch), self._batch_size)
        )
        return itertools.islice(parts, self._batches)


class _Indexed:
    """A `PyDataset` as an iterable."""

    def __init__(self, data: keras.utils.PyDataset) -> None:
        self._data = data

    def __length_hint__(self) -> int:
        return self._data.num_batches or 0

    def __iter__(self) -> Iterator[Any]:
        index = 0
        while self._data.num_batches is None or index < self._data.num_batches:
            yield self._data[index]
            index += 1


def is_arrays(data: Any) -> bool:
    """Arrays of all samples, and not batches of them."""
    if isinstance(data, list) and data and isinstance(data[0], tuple):
        return False
    if not isinstance(data, dict | list | tuple) and not hasattr(data, "__array__"):
        return False
    leaves = [leaf for leaf in keras.tree.flatten(data) if leaf is not None]
    return bool(leaves) and all(hasattr(leaf, "__array__") for leaf in leaves)


def _batch(item: Any) -> Batch:
    """One item of a data set, as `model.fit` reads it."""
    x, y, weight = keras.utils.unpack_x_y_sample_weight(item)
    parts = [None if s is None else keras.tree.map_structure(_array, s) for s in (x, y, weight)]
    return Batch(*parts)


def _array(value: Any) -> np.ndarray:
    """An array or a tensor of any library, on any device."""
    try:
        return np.asarray(value)
    except (TypeError, RuntimeError):
        return to_numpy(value)


def _check_lengths(batch: Batch) -> Batch:
    parts = [s for s in (batch.x, batch.y, batch.sample_weight) if s is not None]
    shapes = [a.shape for a in keras.tree.flatten(parts)]
    lengths = {shape[0] if shape else None for shape in shapes}
    if len(lengths) > 1 or None in lengths:
        raise RequestError(f"Expected arrays with as many samples each. Received shapes: {shapes}.")
    if lengths == {0}:
        raise RequestError("The data hold no samples. Expected at least one.")
    return batch


def _shuffled(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)


def random_inputs(
    model: keras.Model,
    batch_size: int = 2,
    input_shape: tuple[int, ...] | None = None,
    open_size: int = 64,
    seed: int = 0,
) -> Any:
    """Random inputs in the structure that the model takes.

    Args:
        model: its inputs give structure, shapes and types; integers are 0 or 1, the first of
            several in a row 1 (a row of nothing but padding may have no mean).
        batch_size: samples, where the batch size is open.
        input_shape: shape of one sample, for models with one input.
        open_size: size of axes that the model leaves open.
        seed: of the random numbers.
    """
    rng = np.random.default_rng(seed)

    def one(tensor: keras.KerasTensor) -> Any:
        sample = input_shape or tuple(n or open_size for n in tensor.shape[1:])
        shape = (tensor.shape[0] or batch_size, *sample)
        if "int" in tensor.dtype or tensor.dtype == "bool":
            found = rng.integers(0, 2, shape)
            if shape[-1] > 1:
                found[..., 0] = 1
            return found.astype(tensor.dtype)
        return to_numpy(keras.ops.cast(rng.normal(size=shape).astype("float32"), tensor.dtype))

    return keras.tree.map_structure(one, inputs_of(model))
