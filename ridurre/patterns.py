"""Masks with a structure that hardware can use: N of M along the inputs, and blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from ridurre.criteria.base import WeightScores
from ridurre.errors import RequestError
from ridurre.levels import Sizes, select
from ridurre.linear import DEPTHWISE
from ridurre.masks import Masks
from ridurre.weights import Weight

L = keras.layers
#: Layers whose last axis but one is not what they sum over.
_OTHER_LAYOUTS = (*DEPTHWISE, L.EinsumDense, L.Embedding, L.MultiHeadAttention)


@dataclass(frozen=True)
class NofM:
    """At most n of every m consecutive inputs of each output stay, as in "2:4".

    The inputs are the last axis but one of a kernel: of a dense layer, and of a convolution at each
    tap. Kernels whose inputs are no multiple of m are left alone, as hardware does.
    """

    n: int
    m: int

    def masks(self, weights: list[Weight], scores: WeightScores) -> Masks:
        """The n best of every m.

        Raises:
            RequestError: no weight has a multiple of m inputs.
        """
        fitting = [w for w in weights if self._fits(w)]
        if not fitting:
            raise RequestError(
                f"No weight has inputs (the last axis but one) in a multiple of {self.m}. "
                f"Received: { {w.path: w.shape for w in weights} }."
            )
        return Masks({w.path: self._keep(scores[w.path]) for w in fitting})

    def _fits(self, weight: Weight) -> bool:
        shape = weight.shape
        inside = len(shape) > 1 and not isinstance(weight.owner, _OTHER_LAYOUTS)
        return inside and shape[-2] % self.m == 0

    def _keep(self, scores: np.ndarray) -> np.ndarray:
        last = scores.swapaxes(-1, -2)
        parts = last.reshape(-1, self.m)
        order = np.argsort(parts, axis=1, kind="stable")
        keep = np.ones(parts.shape, bool)
        np.put_along_axis(keep, order[:, : self.m - self.n], False, axis=1)
        return keep.reshape(last.shape).swapaxes(-1, -2)


@dataclass(frozen=True, eq=False)
class _Blocked:
    """A weight seen as its blocks; stands in for a `Weight` where masks are selected."""

    weight: Weight
    block: tuple[int, int]

    @property
    def path(self) -> str:
        return self.weight.path

    @property
    def shape(self) -> tuple[int, ...]:
        *others, rows, columns = self.weight.shape
        return (*others, -(-rows // self.block[0]), -(-columns // self.block[1]))

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    @property
    def outputs(self) -> int:
        return self.shape[-1]

    def scores(self, scores: np.ndarray) -> np.ndarray:
        """Mean score of every block; blocks at the edge may be smaller."""
        total, count = self._sums(scores.astype("float64")), self._sums(np.ones(scores.shape))
        return total / count

    def _sums(self, values: np.ndarray) -> np.ndarray:
        for axis, size in ((-2, self.block[0]), (-1, self.block[1])):
            starts = np.arange(0, values.shape[axis], size)
            values = np.add.reduceat(values, starts, axis=axis)
        return values

    def spread(self, keep: np.ndarray) -> np.ndarray:
        """A mask of blocks as one of single weights."""
        for axis, size in ((-2, self.block[0]), (-1, self.block[1])):
            keep = np.repeat(keep, size, axis=axis)
        rows, columns = self.weight.shape[-2:]
        return keep[..., :rows, :columns]


def select_blocks(
    weights: list[Weight],
    scores: WeightScores,
    level: float,
    scope: str,
    sizes: Sizes,
    block: tuple[int, int],
) -> Masks:
    """As `ridurre.levels.select`, but blocks of inputs × outputs live or die together.

    The level is of the blocks; weights with one axis have none and are left alone.
    """
    blocked: list[Any] = [_Blocked(w, block) for w in weights if len(w.shape) > 1]
    if not blocked:
        raise RequestError(f"No weight has the two axes of a block of {block}.")
    found = {b.path: b.scores(scores[b.path]) for b in blocked}
    counts = {b.path: -(-b.size * sizes[b.path] // b.weight.size) for b in blocked}
    chosen = select(blocked, found, level, scope, counts)
    return Masks({b.path: b.spread(chosen[b.path]) for b in blocked})


def parse(pattern: Any) -> NofM | None:
    """A pattern such as "2:4", or None.

    Raises:
        RequestError: neither.
    """
    if pattern is None:
        return None
    found = re.fullmatch(r"(\d+):(\d+)", pattern) if isinstance(pattern, str) else None
    n, m = map(int, found.groups()) if found else (0, 0)
    if not 0 < n < m:
        raise RequestError(
            f'Expected a pattern "n:m" with 0 < n < m, such as "2:4". Received: {pattern!r}.'
        )
    return NofM(n, m)
