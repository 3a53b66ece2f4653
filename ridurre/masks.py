"""Masks: which single weights of a model stay."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from ridurre.errors import PlanMismatchError
from ridurre.tables import aligned
from ridurre.weights import Weight, Which, weights_of


class Masks(Mapping[str, np.ndarray]):
    """For some weights of a model, which of their numbers stay: keep-arrays by path.

    In a pruned model a weight is masked where it is exactly zero, so that its masks can always be
    read off (`Masks.of`), and need no room of their own.

    Args:
        keep: by the path of a weight a boolean array of its shape, True where it stays.
    """

    def __init__(self, keep: Mapping[str, np.ndarray]) -> None:
        self._keep = {path: np.asarray(k, bool) for path, k in keep.items()}
        for k in self._keep.values():
            k.flags.writeable = False

    @classmethod
    def of(cls, model: keras.Model, which: Which = "kernels") -> Masks:
        """The masks that a model's zeros are."""
        return cls({w.path: w.value != 0 for w in weights_of(model, None, which)})

    def __getitem__(self, path: str) -> np.ndarray:
        return self._keep[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keep)

    def __len__(self) -> int:
        return len(self._keep)

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(k.size for k in self.values())

    @property
    def kept(self) -> int:
        """Number of weights that stay."""
        return sum(int(np.count_nonzero(k)) for k in self.values())

    @property
    def sparsity(self) -> float:
        """Fraction of the weights that goes."""
        return 1 - self.kept / max(1, self.size)

    def assign(self, model: keras.Model) -> None:
        """Set what is masked to zero, in the model itself.

        Raises:
            PlanMismatchError: the masks are of another model.
        """
        for weight, keep in self.pairs(model):
            if not keep.all():
                weight.variable.assign(np.where(keep, weight.value, 0).astype(weight.value.dtype))

    def pairs(self, model: keras.Model) -> list[tuple[Weight, np.ndarray]]:
        """The weights of a model with their masks.

        Raises:
            PlanMismatchError: the masks are of another model.
        """
        weights = {w.path: w for w in weights_of(model, None, "all")}
        for path, keep in self.items():
            shape = weights[path].shape if path in weights else None
            if shape != keep.shape:
                raise PlanMismatchError(
                    f"The masks are not of the model {model.name!r}: expected a weight {path!r} of "
                    f"the shape {keep.shape}. Received: {shape or 'no weight of this name'}."
                )
        return [(weights[path], keep) for path, keep in self.items()]

    def to_dict(self) -> dict[str, Any]:
        """The masks as data that JSON can hold, one bit per weight."""
        return {
            path: {"shape": list(k.shape), "bits": _text(np.packbits(k))}
            for path, k in self.items()
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Masks:
        """The masks that `to_dict` wrote."""
        return cls({path: _unpacked(**entry) for path, entry in data.items()})

    def __or__(self, other: Masks) -> Masks:
        """What stays in either; where only one has a mask, everything."""
        return Masks({p: self[p] | other[p] for p in self._shared(other)})

    def __and__(self, other: Masks) -> Masks:
        """What stays in both; where only one has a mask, that one's."""
        return Masks({**self, **other, **{p: self[p] & other[p] for p in self._shared(other)}})

    def _shared(self, other: Masks) -> list[str]:
        """Paths in both; raises `PlanMismatchError` where the shapes differ."""
        paths = [p for p in self if p in other]
        for path in paths:
            if self[path].shape != other[path].shape:
                raise PlanMismatchError(
                    f"The masks are of different models: the weight {path!r} has the shape "
                    f"{self[path].shape} in one and {other[path].shape} in the other."
                )
        return paths

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Masks)
            and self.keys() == other.keys()
            and all(np.array_equal(k, other[p]) for p, k in self.items())
        )

    __hash__ = None  # type: ignore[assignment] # arrays inside

    def __str__(self) -> str:
        rows = [("weight", "shape", "kept", "of", "sparsity")]
        for path, k in self.items():
            kept = int(np.count_nonzero(k))
            rows.append((path, str(k.shape), str(kept), str(k.size), f"{1 - kept / k.size:.1%}"))
        rows.append(("total", "", str(self.kept), str(self.size), f"{self.sparsity:.1%}"))
        return aligned(rows)

    def __repr__(self) -> str:
        return f"Masks({len(self)} weights, {self.kept} of {self.size} numbers kept)"


def _text(data: np.ndarray) -> str:
    return base64.b64encode(data.tobytes()).decode("ascii")


def _unpacked(shape: list[int], bits: str) -> np.ndarray:
    packed = np.frombuffer(base64.b64decode(bits), np.uint8)
    return np.unpackbits(packed, count=math.prod(shape)).astype(bool).reshape(shape)
