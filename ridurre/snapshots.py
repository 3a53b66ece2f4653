"""What a model's weights look like at one moment, small enough to be kept often."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ridurre.errors import CheckpointError
from ridurre.files import write_whole
from ridurre.masks import Masks
from ridurre.weights import Weight, weights_of

BINS = 128
#: How the names of the files of a recording look; sorted, they are in order.
PATTERN = f"record_{6 * '[0-9]'}.npz"
_FORMAT = 1
#: The range of a histogram of nothing: any other is wider.
_NO_RANGE = -64


@dataclass(frozen=True, eq=False)
class Histogram:
    """How many weights lie where; those that are exactly zero are not counted.

    The range is a power of two, so that a histogram can be turned exactly into one over a wider
    range, and those of different moments be drawn on the same axis.

    Attributes:
        counts: ``(BINS,)``, of bins of equal width.
        exponent: the range is from ``-2**exponent`` to ``2**exponent``.
    """

    counts: np.ndarray
    exponent: int

    @classmethod
    def of(cls, value: np.ndarray) -> Histogram:
        """The histogram of an array, over the narrowest range that holds it."""
        numbers = value[value != 0].astype("float32", copy=False)
        numbers = numbers[np.isfinite(numbers)]
        if not numbers.size:
            return cls(np.zeros(BINS, np.uint32), _NO_RANGE)
        exponent = math.frexp(float(np.abs(numbers).max()))[1]
        limit = 2.0**exponent
        counts, _ = np.histogram(numbers, BINS, (-limit, limit))
        return cls(counts.astype(np.uint32), exponent)

    def widened(self, exponent: int) -> Histogram:
        """The same weights over a wider range."""
        if self.exponent == _NO_RANGE:
            return Histogram(self.counts, exponent)
        counts = self.counts
        for _ in range(exponent - self.exponent):
            counts = np.pad(counts.reshape(-1, 2).sum(1), BINS // 4)
        return Histogram(counts, exponent)

    @property
    def edges(self) -> np.ndarray:
        """The limits of the bins, ``(BINS + 1,)``."""
        return np.linspace(-1, 1, BINS + 1) * 2.0**self.exponent


@dataclass(frozen=True, eq=False)
class Part:
    """One kernel at one moment.

    Attributes:
        shape: of the kernel.
        outputs: how many channels it makes.
        bits: which weights are not zero, eight in a byte.
        histogram: of the weights that are not zero.
    """

    shape: tuple[int, ...]
    outputs: int
    bits: np.ndarray
    histogram: Histogram

    @classmethod
    def of(cls, weight: Weight) -> Part:
        """What a weight looks like now."""
        value = weight.value
        return cls(weight.shape, weight.outputs, np.packbits(value != 0), Histogram.of(value))

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def keep(self) -> np.ndarray:
        """Which weights are not zero, an array of the kernel's shape."""
        return np.unpackbits(self.bits, count=self.size).astype(bool).reshape(self.shape)

    @property
    def kept(self) -> int:
        """How many weights are not zero."""
        return int(np.count_nonzero(np.unpackbits(self.bits, count=self.size)))

    @property
    def channels(self) -> int:
        """How many of the channels that it makes have a weight that is not zero."""
        return int(np.count_nonzero(self.keep.reshape(-1, self.outputs).any(0)))


@dataclass(frozen=True, eq=False)
class Snapshot:
    """All kernels of a model at one moment.

    Attributes:
        parts: by path.
        epoch: how many epochs it was trained for.
        logs: what training said of that moment.
    """

    parts: Mapping[str, Part]
    epoch: float = 0
    logs: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, model: keras.Model) -> Snapshot:
        """What a model looks like now.

        Raises:
            NothingToPruneError: it has no kernels.
        """
        return cls({w.path: Part.of(w) for w in weights_of(model)})

    @property
    def masks(self) -> Masks:
        """Which weights are not zero."""
        return Masks({path: part.keep for path, part in self.parts.items()})

    def looks_like(self, other: Snapshot) -> bool:
        """Whether both hold the same, whenever it was."""
        if self.parts.keys() != other.parts.keys():
            return False
        pairs = [(part, other.parts[path]) for path, part in self.parts.items()]
        return all(
            one.shape == two.shape
            and np.array_equal(one.bits, two.bits)
            and one.histogram.exponent == two.histogram.exponent
            and np.array_equal(one.histogram.counts, two.histogram.counts)
            for one, two in pairs
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file, whole or not at all; raises `OSError`."""
        names = [
            {
                "path": name,
                "shape": list(part.shape),
                "outputs": part.outputs,
                "exponent": part.histogram.exponent,
            }
            for name, part in self.parts.items()
        ]
        meta = {"format": _FORMAT, "epoch": self.epoch, "logs": dict(self.logs), "parts": names}
        arrays: dict[str, Any] = {
            "meta": np.array(json.dumps(meta)),
            "bits": np.concatenate([p.bits for p in self.parts.values()]),
            "counts": np.stack([p.histogram.counts for p in self.parts.values()]),
        }
        write_whole(path, lambda p: np.savez_compressed(p, **arrays))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Snapshot:
        """What `save` wrote.

        Raises:
            CheckpointError: the file cannot be read, or is not one of these.
        """
        try:
            with Path(path).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                meta = json.loads(str(file["meta"]))
                return cls(_parts(meta["parts"], file), meta["epoch"], meta["logs"])
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise CheckpointError(
                f"{str(path)!r} cannot be read: {error}. Expected a file that ridurre.Recorder "
                f"wrote. Delete {Path(path).name}, and the rest of the recording can be used."
            ) from error


def _parts(entries: list[dict[str, Any]], file: Any) -> dict[str, Part]:
    counts, bits = file["counts"], file["bits"]
    sizes = [(math.prod(e["shape"]) + 7) // 8 for e in entries]
    pieces = np.split(bits, np.cumsum(sizes)[:-1])
    return {
        e["path"]: Part(tuple(e["shape"]), e["outputs"], piece, Histogram(count, e["exponent"]))
        for e, piece, count in zip(entries, pieces, counts, strict=True)
    }
