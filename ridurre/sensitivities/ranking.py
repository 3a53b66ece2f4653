"""Measured losses as scores of units, so that selection can use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import keras
import numpy as np

from ridurre.criteria import Criterion
from ridurre.criteria.base import Scores, Setting
from ridurre.errors import RequestError
from ridurre.graph import ChannelGraph, Group


def group_names(graph: ChannelGraph) -> dict[str, Group]:
    """Names for the groups of a graph: the layers that make their channels, numbered if need be."""
    found: dict[str, Group] = {}
    for group in graph.groups:
        name = plain = "+".join(group.producers) or "padding"
        number = 1
        while name in found:
            number += 1
            name = f"{plain} ({number})"
        found[name] = group
    return found


def measured_scores(
    drops: Sequence[tuple[int | None, float | None]], order: Sequence[int]
) -> list[float]:
    """Scores of units whose sums along an order are the measured losses.

    Args:
        drops: numbers of removed units and what removing them cost; None where the result was not
            finite, which counts as ten times the worst.
        order: the units in the order in which they went.

    Returns:
        By unit its score. Sums are exact at the corners of the curve's lower convex hull.
    """
    known = [d for _, d in drops if d is not None]
    worst = 10 * max([1e-6, *known])
    curve = {0: 0.0} | {int(n or 0): worst if d is None else d for n, d in drops}
    counts = np.array(sorted(curve))
    losses = np.maximum.accumulate([max(0.0, curve[n]) for n in counts])
    corners = _lower_hull(counts, losses)
    slopes = np.diff(losses[corners]) / np.diff(counts[corners])
    steps = np.repeat(slopes, np.diff(counts[corners]))
    steps = np.append(steps, np.full(len(order) - len(steps), slopes[-1]))
    # Units of one straight piece keep their order by a difference that does not count otherwise.
    steps += np.arange(1, len(order) + 1) * 1e-9 * max(float(losses[-1]), 1e-6) / len(order)
    scores = np.zeros(len(order))
    scores[list(order)] = steps
    return scores.tolist()


def _lower_hull(x: np.ndarray, y: np.ndarray) -> list[int]:
    """Indices of the points that no straight line between two others runs below."""
    hull: list[int] = []
    for i in range(len(x)):
        while len(hull) > 1:
            a, b = hull[-2:]
            if (y[b] - y[a]) * (x[i] - x[a]) < (y[i] - y[a]) * (x[b] - x[a]):
                break
            hull.pop()
        hull.append(i)
    return hull


@keras.saving.register_keras_serializable(package="ridurre")
@dataclass(frozen=True)
class MeasuredCriterion(Criterion):
    """Scores that were measured, see `ridurre.Sensitivity.criterion`.

    Args:
        measured: by the name of a group the scores of its units.
    """

    measured: Mapping[str, Sequence[float]] = field(repr=False)

    def scores(self, graph: ChannelGraph, setting: Setting) -> Scores:
        """The measured scores; infinity for groups that were not measured."""
        del setting
        return {group: self._scores(name, group) for name, group in group_names(graph).items()}

    def _scores(self, name: str, group: Group) -> np.ndarray:
        known = self.measured.get(name)
        if known is None:
            return np.full(group.size, np.inf)
        if len(known) != group.size:
            raise RequestError(
                f"The sensitivity was measured on a model in which {name!r} had {len(known)} "
                f"channels. Expected the same model, and steps=1. Received: {group.size} channels."
            )
        return np.asarray(known, float)
