"""Which single weights go: scores, a level and a scope make masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from ridurre.checks import check_choice
from ridurre.criteria.base import WeightScores
from ridurre.errors import RequestError
from ridurre.masks import Masks
from ridurre.weights import Weight


def lowest(scores: np.ndarray, count: int) -> np.ndarray:
    """Where the so many lowest scores are; of equal ones those that come first.

    Args:
        scores: of any shape.
        count: how many, from 0 to all.

    Returns:
        A boolean array of the same shape with exactly `count` True.
    """
    flat = scores.ravel()
    found = np.zeros(flat.size, bool)
    if count > 0:
        limit = np.partition(flat, count - 1)[count - 1]
        found = flat < limit
        ties = np.flatnonzero(flat == limit)
        found[ties[: count - np.count_nonzero(found)]] = True
    return found.reshape(scores.shape)


def goal(level: float, before: int, present: int) -> int:
    """How many of the present numbers go so that the level of the original ones is gone."""
    return min(present, max(0, rounded(level * before) - (before - present)))


def rounded(number: float) -> int:
    """The nearest whole number, from .5 upwards."""
    return math.floor(number + 0.5)


#: By path, how many numbers a weight had in the model that levels refer to.
Sizes: TypeAlias = Mapping[str, int]
Scope: TypeAlias = Callable[[list[Weight], WeightScores, float, Sizes], dict[str, np.ndarray]]


def local(
    weights: list[Weight], scores: WeightScores, level: float, sizes: Sizes
) -> dict[str, np.ndarray]:
    """The same level in every weight."""
    return {w.path: ~lowest(scores[w.path], goal(level, sizes[w.path], w.size)) for w in weights}


def ranked(
    weights: list[Weight], scores: WeightScores, level: float, sizes: Sizes
) -> dict[str, np.ndarray]:
    """One ranking of all."""
    flat = np.concatenate([scores[w.path].ravel() for w in weights])
    gone = lowest(flat, goal(level, sum(sizes[w.path] for w in weights), flat.size))
    ends = np.cumsum([w.size for w in weights])[:-1]
    parts = np.split(~gone, ends)
    return {w.path: part.reshape(w.shape) for w, part in zip(weights, parts, strict=True)}


def by_output(
    weights: list[Weight], scores: WeightScores, level: float, sizes: Sizes
) -> dict[str, np.ndarray]:
    """The same level for every output of a weight, as Wanda compares them."""
    found = {}
    for w in weights:
        columns = scores[w.path].reshape(-1, w.outputs)
        count = goal(level, -(-sizes[w.path] // w.outputs), len(columns))
        keep = np.stack([~lowest(column, count) for column in columns.T], axis=1)
        found[w.path] = keep.reshape(w.shape)
    return found


def erk(
    weights: list[Weight], scores: WeightScores, level: float, sizes: Sizes
) -> dict[str, np.ndarray]:
    """Erdős–Rényi-kernel densities: proportional to ``Σ dimensions / Π dimensions``, at most 1.

    Evci et al., "Rigging the Lottery", ICML 2020.
    """
    raw = [sum(w.shape) / w.size for w in weights]
    return _with_densities(weights, scores, level, sizes, raw, [0.0] * len(weights))


def uniform_plus(
    weights: list[Weight], scores: WeightScores, level: float, sizes: Sizes
) -> dict[str, np.ndarray]:
    """The same density everywhere, but the first kernel whole and at least 20 % of the last.

    Gale, Elsen & Hooker, "The State of Sparsity in Deep Neural Networks", 2019.
    """
    densities, least = [1.0] * len(weights), [0.0] * len(weights)
    if len(weights) > 1:
        least[0], least[-1] = 1.0, 0.2
    return _with_densities(weights, scores, level, sizes, densities, least)


def _with_densities(
    weights: list[Weight],
    scores: WeightScores,
    level: float,
    sizes: Sizes,
    raw: list[float],
    least: list[float],
) -> dict[str, np.ndarray]:
    """Densities proportional to `raw`, from `least` to 1, that meet the level as a whole."""
    before = np.array([sizes[w.path] for w in weights], float)
    shares = scaled(np.array(raw), before, np.array(least), (1 - level) * before.sum())
    ends = [rounded(x) for x in np.cumsum(shares * before)]
    counts = np.diff([0, *ends])
    return {
        w.path: ~lowest(scores[w.path], max(0, w.size - int(count)))
        for w, count in zip(weights, counts, strict=True)
    }


def scaled(raw: np.ndarray, sizes: np.ndarray, low: np.ndarray, wanted: float) -> np.ndarray:
    """``clip(factor · raw, low, 1)`` with the factor for which they keep what is wanted."""
    if wanted < (low * sizes).sum() - 0.5:
        raise RequestError(
            f"A level that leaves {wanted:.0f} of {sizes.sum():.0f} weights cannot be had in this "
            f"scope, which keeps at least {(low * sizes).sum():.0f}. Lower the level, or choose "
            "another scope."
        )
    a, b = 0.0, float((1 / raw).max())
    for _ in range(200):
        middle = (a + b) / 2
        kept = (np.clip(middle * raw, low, 1) * sizes).sum()
        a, b = (middle, b) if kept < wanted else (a, middle)
    return np.clip(b * raw, low, 1)


#: Every scope by name; a new one is a function and a row.
SCOPES: dict[str, Scope] = {
    "local": local,
    "global": ranked,
    "output": by_output,
    "erk": erk,
    "uniform+": uniform_plus,
}


def select(
    weights: list[Weight], scores: WeightScores, level: float, scope: str, sizes: Sizes
) -> Masks:
    """The masks that leave out the lowest scores.

    Args:
        weights: which are to be masked.
        scores: of every number in them.
        level: the fraction that goes.
        scope: a name of `SCOPES`.
        sizes: by path, how many numbers the weights had originally; the level is of these.
    """
    check_choice("scope", scope, SCOPES)
    return Masks(SCOPES[scope](weights, scores, level, sizes))


def threshold(weights: list[Weight], scores: WeightScores, limit: float) -> Masks:
    """The masks that leave out every score below a limit."""
    return Masks({w.path: scores[w.path] >= limit for w in weights})
