"""Criteria that need nothing but the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from ridurre.backend import view_of
from ridurre.criteria.base import (
    Criterion,
    Scores,
    Setting,
    WeightScores,
    criterion,
    parameters,
    relative,
    serializable,
    sum_by_unit,
)
from ridurre.graph import ChannelGraph, Group
from ridurre.weights import Weight

#: Norms of slices by weight, axis and power; a weight may be in many groups.
Norms = dict[tuple[int, int, float], np.ndarray]


def group_norms(
    graph: ChannelGraph, group: Group, p: float = 1.0, known: Norms | None = None
) -> list[np.ndarray]:
    """Sum of ``|w|^p`` of every unit over each of the parameters that it owns.

    Args:
        graph: of the model.
        group: one of its groups.
        p: the power.
        known: filled here; pass the same for all groups, as a weight may be in many.

    Returns:
        For every parameter in the group ``(units,)``.
    """
    known = {} if known is None else known
    found = []
    for member in parameters(graph, group):
        weight = member.weight
        key = (id(weight.variable), weight.axis, p)
        if key not in known:
            known[key] = _slice_norms(view_of(weight.variable), weight.axis, p)
        found.append(sum_by_unit(group, member.units, known[key]))
    return found


def _slice_norms(value: np.ndarray, axis: int, p: float, block: int = 1 << 20) -> np.ndarray:
    """Sum of ``|w|^p`` over all axes but one, without a copy of a large weight."""
    rows = value.reshape(-1, value.shape[-1])
    parts = np.array_split(rows, -(-rows.size // block))
    if axis == value.ndim - 1:
        return np.sum([_power(x, p).sum(axis=0, dtype="float64") for x in parts], axis=0)
    sums = np.concatenate([_power(x, p).sum(axis=1, dtype="float64") for x in parts])
    others = tuple(a for a in range(value.ndim - 1) if a != axis)
    return sums.reshape(value.shape[:-1]).sum(axis=others)


def _power(x: np.ndarray, p: float) -> np.ndarray:
    x = np.abs(x)
    return x if p == 1 else np.square(x, dtype="float32") if p == 2 else x**p


@criterion("random")
@serializable
@dataclass(frozen=True)
class Random(Criterion):
    """Random numbers from 0 to 1: the control that every other criterion has to beat.

    Needs nothing; costs nothing.
    """

    def scores(self, graph: ChannelGraph, setting: Setting) -> Scores:
        """Uniform random numbers."""
        return {group: setting.rng.random(group.size) for group in graph.groups}

    def weight_scores(
        self, model: keras.Model, weights: list[Weight], setting: Setting
    ) -> WeightScores:
        """Uniform random numbers."""
        del model
        return {w.path: setting.rng.random(w.shape, "float32") for w in weights}


@criterion("l2", p=2)
@criterion("l1", p=1)
@serializable
@dataclass(frozen=True)
class Magnitude(Criterion):
    """Group magnitude: mean over the coupled weights of the unit's ``‖w‖_p^p``.

    Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, over the whole dependency group
    as in Fang et al., "DepGraph", CVPR 2023. Needs the weights; costs milliseconds. The weights of
    a convolution before batch norm have no scale of their own, so different layers compare badly;
    `normalize` divides by the group's mean.

    Args:
        p: 1 (``"l1"``) or 2 (``"l2"``), or another power.
        normalize: whether to divide by the mean score of the group.
    """

    p: float = 1
    normalize: bool = True

    def scores(self, graph: ChannelGraph, setting: Setting) -> Scores:
        """Mean of the norms over the members of the group."""
        del setting
        known: Norms = {}
        found = {}
        for group in graph.groups:
            mean = np.mean(group_norms(graph, group, self.p, known), axis=0)
            found[group] = relative(mean) if self.normalize else mean
        return found

    def weight_scores(
        self, model: keras.Model, weights: list[Weight], setting: Setting
    ) -> WeightScores:
        """``|w|^p``, as it is."""
        del model, setting
        return {w.path: _power(w.value, self.p) for w in weights}


@criterion("bn_scale")
@serializable
@dataclass(frozen=True)
class BatchNormScale(Criterion):
    """Sum of ``|γ|`` over the batch norms that a channel passes.

    Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017.
    Needs the weights, best after training with `ridurre.BatchNormSparsity`; costs milliseconds.
    Groups without batch norm cannot be judged and are kept whole.
    """

    def scores(self, graph: ChannelGraph, setting: Setting) -> Scores:
        """Sum of absolute scales."""
        del setting
        return {group: self._of(graph, group) for group in graph.groups}

    def _of(self, graph: ChannelGraph, group: Group) -> np.ndarray:
        scales = [m for m in parameters(graph, group, "channel") if self._is_scale(graph, m)]
        if not scales:
            return np.full(group.size, np.inf)
        values = [np.abs(view_of(m.weight.variable)).astype("float64") for m in scales]
        sums = [sum_by_unit(group, m.units, v) for m, v in zip(scales, values, strict=True)]
        return np.sum(sums, axis=0)

    def _is_scale(self, graph: ChannelGraph, member: Any) -> bool:
        gamma = getattr(graph.layers[member.weight.layer], "gamma", None)
        return "BatchNormalization" in member.weight.kind and member.weight.variable is gamma


@criterion("lamp")
@serializable
@dataclass(frozen=True)
class LAMP(Criterion):
    """Layer-adaptive magnitude: ``I_c / Σ I_j`` over the units j that are at least as large.

    I is the group's squared L2 norm. Lee et al., "Layer-adaptive Sparsity for the Magnitude-based
    Pruning", ICLR 2021; there, and here for single weights, I is ``w²``. Needs the weights; costs
    milliseconds. The largest unit of every group (weight of every kernel) scores 1, so that none is
    emptied by a global ranking.
    """

    def scores(self, graph: ChannelGraph, setting: Setting) -> Scores:
        """Squared norms over the sum of those that are not smaller."""
        del setting
        known: Norms = {}
        return {g: self._of(np.sum(group_norms(graph, g, 2, known), axis=0)) for g in graph.groups}

    def weight_scores(
        self, model: keras.Model, weights: list[Weight], setting: Setting
    ) -> WeightScores:
        """``w²`` over the sum of those in the same kernel that are not smaller."""
        del model, setting
        squares = {w.path: np.square(w.value, dtype="float64") for w in weights}
        return {path: self._of(x.ravel()).reshape(x.shape) for path, x in squares.items()}

    def _of(self, norms: np.ndarray) -> np.ndarray:
        order = np.argsort(norms, kind="stable")
        at_least = np.cumsum(norms[order][::-1])[::-1]
        scores = np.empty_like(norms)
        scores[order] = norms[order] / np.where(at_least > 0, at_least, 1)
        return scores
