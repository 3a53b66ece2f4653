"""The arguments of a sensitivity: what makes sense, and the data in one piece."""

from __future__ import annotations

import numbers
from typing import Any

import keras
import numpy as np

from ridurre.checks import (
    check_callable,
    check_choice,
    check_count,
    check_finite,
    check_list,
    check_optional,
)
from ridurre.data import Batch, Batches
from ridurre.errors import RequestError

GRAINS = ("channels", "weights", "network")


def check_amounts(amounts: Any) -> list[float]:
    """Fractions in (0, 1), rising, each once; raises `RequestError`."""
    values = check_list("amounts", amounts)
    good = [
        isinstance(a, numbers.Real) and not isinstance(a, bool) and 0 < float(a) < 1 for a in values
    ]
    if not values or not all(good):
        raise RequestError(
            "Expected amounts, fractions to remove in (0, 1), such as (0.25, 0.5, 0.75). "
            f"Received: {amounts!r}."
        )
    return sorted({float(a) for a in values})


def check_arguments(
    grain: Any,
    evaluate_fn: Any,
    strategy: Any,
    max_seconds: Any,
    workers: Any,
    samples: Any,
    batch_size: Any,
) -> None:
    """Everything but the data; raises `RequestError`."""
    check_choice("grain", grain, GRAINS)
    check_optional("evaluate_fn", evaluate_fn, check_callable)
    check_optional("strategy", strategy, check_callable)
    if strategy is not None and grain != "network":
        raise RequestError(
            f"A strategy is for the whole model. Expected grain='network'. Received: {grain!r}."
        )
    if max_seconds is not None and check_finite("max_seconds", max_seconds) <= 0:
        raise RequestError(f"Expected max_seconds above 0, or None. Received: {max_seconds!r}.")
    if workers != "ray":
        check_count("workers", workers)
    check_optional("samples", samples, check_count)
    check_count("batch_size", batch_size)
    if workers == 0 or samples == 0 or batch_size < 1:
        raise RequestError(
            f"Expected workers, samples and batch_size from 1. Received: workers={workers!r}, "
            f"samples={samples}, batch_size={batch_size}."
        )


def gathered(data: Any, samples: int | None, seed: int | None) -> Batch | None:
    """All samples as arrays; in their own order, but where some of them are chosen.

    Raises:
        RequestError: no data at all, or none that can be put together.
    """
    if data is None:
        return None
    batches = list(Batches(data, samples=samples, seed=None if samples is None else seed))
    if not batches:
        raise RequestError("The data hold no samples. Expected at least one.")

    def joined(parts: list[Any]) -> Any:
        if parts[0] is None:
            return None
        return keras.tree.map_structure(lambda *arrays: np.concatenate(arrays), *parts)

    try:
        parts = ([b.x for b in batches], [b.y for b in batches], [b.sample_weight for b in batches])
        return Batch(*map(joined, parts))
    except ValueError as error:
        raise RequestError(
            "The batches cannot be put together, as their shapes differ. Expected samples of one "
            f"shape, or evaluate_fn=… and no data. Received: {error}."
        ) from error


def as_data(batch: Batch) -> tuple[Any, ...]:
    """Samples as `model.fit` takes them."""
    parts = (batch.x, batch.y, batch.sample_weight)
    return tuple(p for p in parts if p is not None)
