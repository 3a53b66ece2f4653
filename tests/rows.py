"""What the contract tables of rules are made of (see `test_rules`)."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras

Tensor = Any
Build = Callable[[Tensor], Tensor]


class Row(NamedTuple):
    """What stands between the dense layers, the shape it takes, and how many plans there are."""

    build: Build
    shape: tuple[int, ...]
    plans: int
    axis: int = -1


def subsets(*widths: int) -> int:
    """Number of proper, non-empty subsets of so many channels, over all layers."""
    return sum(2**n - 2 for n in widths)


def blocks(rows: int, columns: int) -> int:
    """Number of subsets of a matrix that touch some, but not all of its rows."""
    return sum(math.comb(rows, n) * (2**columns - 1) ** n for n in range(1, rows))


def layer(cls: type[keras.Layer], *args: Any, **kwargs: Any) -> Build:
    """A fresh layer for every model."""

    def build(x: Tensor) -> Tensor:
        return cls(*args, **kwargs)(x)

    return build


def mix(x: Tensor, units: int = 3) -> Tensor:
    """A second tensor, with channels of its own."""
    return keras.layers.Dense(units)(x)
