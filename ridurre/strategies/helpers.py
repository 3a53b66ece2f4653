"""From importances to masks: plain functions of NumPy arrays, for strategies of your own.

Parameters, importances and masks are dictionaries, ``{layer: {name of the parameter: array}}``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from ridurre.checks import as_numbers, check_finite, check_fraction
from ridurre.errors import RequestError
from ridurre.levels import lowest, rounded

#: ``{layer: {name of the parameter: array}}``.
Nested: TypeAlias = dict[Any, dict[str, np.ndarray]]


def map_importances(fn: Callable[[np.ndarray], Any], params: Mapping[Any, Any]) -> Nested:
    """A function of every array: ``map_importances(np.abs, self.params())``.

    Args:
        fn: takes one array; what it returns stands in its place.
        params: ``{layer: {param: array}}``.
    """
    return {
        layer: {name: np.asarray(fn(value)) for name, value in values.items()}
        for layer, values in params.items()
    }


def flatten_importances(importances: Mapping[Any, Any]) -> np.ndarray:
    """All numbers of all arrays, one after the other, ``(numbers,)``."""
    found = [np.ravel(value) for values in importances.values() for value in values.values()]
    return np.concatenate(found) if found else np.zeros(0)


def fraction_threshold(array: Any, fraction: float) -> float:
    """The k-th largest element with ``k = round(fraction · n)``; infinity where none stays.

    As it is an element, ``array >= threshold`` keeps exactly k of them where no two are equal.

    Args:
        array: importances, of any shape.
        fraction: to keep, in [0, 1].

    Raises:
        RequestError: there are no importances, or some are NaN.
    """
    flat = checked(array).ravel()
    count = _kept(flat.size, fraction)
    if count == 0:
        return np.inf
    return float(np.partition(flat, flat.size - count)[flat.size - count])


def threshold_mask(array: Any, threshold: float) -> np.ndarray:
    """True but for what lies inside ``(-threshold, threshold)``.

    Raises:
        RequestError: importances or the threshold are NaN.
    """
    if np.isnan(threshold):
        raise RequestError(f"Expected a threshold, a number. Received: {threshold!r}.")
    # in float64: a threshold of another type would be rounded to the importances' own
    return np.abs(checked(array).astype("float64", copy=False)) >= threshold


def fraction_mask(array: Any, fraction: float) -> np.ndarray:
    """True for the ``round(fraction · n)`` largest; of equal ones those that come first go.

    Args:
        array: importances, of any shape.
        fraction: to keep, in [0, 1].

    Raises:
        RequestError: there are no importances, or some are NaN.
    """
    numbers = checked(array)
    return ~lowest(numbers, numbers.size - _kept(numbers.size, fraction))


def importance_masks(importances: Mapping[Any, Any], threshold: float) -> Nested:
    """The same threshold for all, see `threshold_mask`: ``{layer: {param: mask}}``."""
    return map_importances(lambda value: threshold_mask(value, threshold), importances)


def channel_norms(array: Any, norm: float = 1) -> np.ndarray:
    """``(Σ |x|^p)^(1/p)`` over all axes but the last, the channels of Keras: ``(channels,)``.

    Args:
        array: a kernel, or activations ``(samples, …, channels)``.
        norm: p, 1 or 2 as a rule.

    Raises:
        RequestError: p is not positive, or there are no channels.
    """
    powers = np.abs(_rows(array)) ** check_norm(norm)
    return powers.sum(axis=0) ** (1 / norm)


def activation_importance(weight: Any, activation: Any) -> np.ndarray:
    """``|w| · mean |a_c|``, a_c what the weight's output channel c gives, in the weight's shape.

    Args:
        weight: ``(…, channels)``.
        activation: of the layer that the weight belongs to, ``(samples, …, channels)``; or the
            means, ``(channels,)``.

    Raises:
        RequestError: the numbers of channels differ.
    """
    weight, rows = np.asarray(weight), _rows(activation)
    if weight.shape[-1:] != rows.shape[-1:]:
        raise RequestError(
            "Expected activations of the weight's output channels, which stand in the last axis of "
            f"both. Received shapes: {weight.shape} and {np.shape(activation)}."
        )
    return np.abs(weight) * np.abs(rows).mean(axis=0)


def check_norm(norm: Any) -> float:
    """The p of an Lp norm; raises `RequestError`."""
    if check_finite("norm", norm) <= 0:
        raise RequestError(f"Expected a norm such as 1 or 2. Received: {norm!r}.")
    return norm


def _rows(array: Any) -> np.ndarray:
    """Whatever has channels last as a matrix of float64, ``(…, channels)``."""
    array = np.asarray(array)
    if array.ndim == 0:
        raise RequestError(f"Expected an array with channels in its last axis. Received: {array}.")
    return array.reshape(-1, array.shape[-1]).astype("float64")


def _kept(size: int, fraction: float) -> int:
    return min(size, rounded(check_fraction("fraction", fraction) * size))


def checked(
    array: Any, what: str = "importances", shape: tuple[int, ...] | None = None
) -> np.ndarray:
    """Importances that can be compared with each other.

    Args:
        array: anything.
        what: names them in messages.
        shape: which they have to be of.

    Raises:
        RequestError: not numbers, none at all, some NaN, or of another shape.
    """
    numbers = as_numbers(array)
    if numbers is None or not numbers.size or shape not in (None, numbers.shape):
        of = "" if shape is None else f" of the shape {shape}"
        raise RequestError(
            f"The {what} cannot be ranked. Expected an array{of} of numbers without NaN. Received: "
            f"{array!r}. If weights or gradients are not finite, training has probably diverged."
        )
    return numbers
