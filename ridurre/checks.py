"""Checks of arguments: what was expected, what was received."""

from __future__ import annotations

import math
import numbers
import reprlib
from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np

from ridurre.errors import RequestError, nearest


def check_indices(indices: Iterable[int], size: int, what: str) -> np.ndarray:
    """Channel indices as a sorted array.

    Args:
        indices: whole numbers, each once.
        size: number of channels; indices are below it.
        what: names the layer in messages.

    Raises:
        RequestError: not whole numbers, out of range, or repeated.
    """
    try:
        array = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices))
    except (TypeError, ValueError):  # not iterable, or a list of lists of different lengths
        array = np.zeros((), object)
    if array.size == 0:
        return np.zeros(0, int)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise RequestError(
            f"Expected a flat list of whole numbers, the channels of {what}. Received: {indices!r}."
        )
    wrong = array[(array < 0) | (array >= size)]
    if wrong.size:
        raise RequestError(
            f"Channel index out of range for {what}, which has {size} channels (0 to {size - 1}). "
            f"Received: {wrong.tolist()}."
        )
    unique, counts = np.unique(array, return_counts=True)
    if len(unique) < len(array):
        raise RequestError(
            f"Every channel of {what} can be removed once. Repeated: {unique[counts > 1].tolist()}."
        )
    return unique


def check_fraction(name: str, value: Any, *, below_one: bool = False) -> float:
    """A number from 0 to 1 (or below 1); raises `RequestError`."""
    good = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not good or not 0 <= value <= 1 or (below_one and value == 1):
        raise RequestError(
            f"Expected {name} in [0, 1{')' if below_one else ']'}. Received: {value!r}."
        )
    return float(value)


def check_count(name: str, value: Any, least: int = 0) -> None:
    """A whole number from 0, or from another one; raises `RequestError`."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise RequestError(
            f"Expected {name} to be a whole number from {least}. Received: {value!r}."
        )


def check_list(name: str, value: Any) -> list[Any]:
    """Anything that can be made a list; raises `RequestError`."""
    try:
        return list(value)
    except TypeError as error:
        raise RequestError(f"Expected {name} to be a list. Received: {value!r}.") from error


def check_callable(name: str, value: Any) -> None:
    """A function; raises `RequestError`."""
    if not callable(value):
        raise RequestError(f"Expected {name} to be a function. Received: {value!r}.")


def check_choice(name: str, value: Any, choices: Collection[str]) -> str:
    """One of some words; raises `RequestError`."""
    if not isinstance(value, str) or value not in choices:
        hint = nearest(value, choices) if isinstance(value, str) else ""
        raise RequestError(
            f"Expected {name} to be one of {', '.join(map(repr, choices))}. "
            f"Received: {value!r}.{hint}"
        )
    return value


def check_optional(name: str, value: Any, check: Callable[[str, Any], Any]) -> None:
    """None, or what another check accepts; raises `RequestError`."""
    if value is not None:
        check(name, value)


def check_finite(name: str, value: Any) -> float:
    """A finite number; raises `RequestError`."""
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise RequestError(f"Expected {name}, a finite number. Received: {value!r}.")
    return float(value)


def check_bounds(values: Any, factors: Any) -> tuple[list[Any], list[Any]]:
    """Bounds of bins and their factors as lists; raises `RequestError`."""
    bounds = check_list("channel_number_bins", values)
    factors = check_list("pruning_factors_for_bins", factors)
    if len(bounds) != len(factors) + 1:
        raise RequestError(
            "Expected one channel number more than pruning factors (the bounds of the bins). "
            f"Received: {len(bounds)} channel numbers and {len(factors)} factors."
        )
    numeric = all(isinstance(b, numbers.Real) for b in bounds)
    if not numeric or not all(a < b for a, b in zip(bounds, bounds[1:], strict=False)):
        raise RequestError(f"Expected increasing channel numbers. Received: {bounds}.")
    return bounds, factors


def as_numbers(value: Any) -> np.ndarray | None:
    """An array of numbers to calculate with, none of them NaN; None if it is none."""
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "fiub" or array.dtype.itemsize < 4:
            array = array.astype("float64")
    except (TypeError, ValueError):
        return None
    return None if np.isnan(array).any() else array


def received(value: Any) -> str:
    """A value in an error message: of an array only what may be wrong with it."""
    shape = getattr(value, "shape", None)
    if shape is None:
        return reprlib.repr(value)
    text = f"{type(value).__name__} of the shape {tuple(shape)}"
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        text += f", {np.isnan(value).sum()} of {value.size} values NaN"
    return text
