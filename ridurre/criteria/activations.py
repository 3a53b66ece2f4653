"""Criteria from activations: what the layers that read a channel get to see of it."""

from __future__ import annotations

import abc
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ridurre.backend import to_numpy, view_of
from ridurre.criteria.base import (
    Criterion,
    Scores,
    Setting,
    criterion,
    relative,
    serializable,
    sum_by_unit,
    units_of,
)
from ridurre.forward import Forward, Step
from ridurre.graph import ChannelGraph, Labels, Value
from ridurre.graph.labels import WeightAxis, varying
from ridurre.progress import track


class Reading(NamedTuple):
    """What one call reads: sums over samples and positions, by channel of its input.

    Attributes:
        labels: ``(channels,)`` of the tensor.
        tensor: tells tensors apart; several calls may read the same one.
        weights: squared norm of the weights that read each channel, ``(channels,)``.
        values: number of values per channel.
        absolute, nonzero, total, square: sums of ``|x|``, ``x ≠ 0``, ``x`` and ``x²`` of each.
    """

    labels: Labels
    tensor: int
    weights: np.ndarray
    values: int
    absolute: np.ndarray
    nonzero: np.ndarray
    total: np.ndarray
    square: np.ndarray


def readings(graph: ChannelGraph, setting: Setting, samples: int) -> Iterator[Reading]:
    """Run the model on data and sum up what every layer with weights reads."""
    read: dict[str, list[WeightAxis]] = defaultdict(list)
    for weight in graph.trace.space.weights.values():
        if weight.role == "in":
            read[weight.layer].append(weight)
    data: Any = setting.data
    for step in track(Forward(graph.trace, data.first_samples(samples)), "Scoring", unit="layer"):
        for value in dict.fromkeys(step.call.inputs):
            axes = varying(value.labels)
            if axes and 0 not in axes:
                weights = _readers(graph, read[step.call.name], value.labels)
                if weights:
                    yield _reading(step, value, axes, weights)


def _readers(graph: ChannelGraph, weights: list[WeightAxis], labels: Labels) -> list[WeightAxis]:
    """Those weights of a layer that read the channels of this tensor."""
    solved = graph.solution.soft
    return [w for w in weights if np.isin(solved[w.labels], solved[labels]).any()]


def _reading(step: Step, value: Value, axes: list[int], weights: list[WeightAxis]) -> Reading:
    last = range(-len(axes), 0)
    labels = np.moveaxis(value.labels, axes, last).reshape([value.labels.shape[a] for a in axes])
    sums = np.zeros((4, labels.size))
    count = 0
    for batch in range(step.batches):
        x = to_numpy(step.tensor(value, batch)).astype("float32", copy=False)
        rows = np.moveaxis(x, axes, last).reshape(-1, labels.size)
        parts = (np.abs(rows), rows != 0, rows, np.square(rows))
        sums += [part.sum(axis=0, dtype="float64") for part in parts]
        count += len(rows)
    return Reading(labels.ravel(), id(value), _norms(weights, labels.shape), count, *sums)


def _norms(weights: list[WeightAxis], shape: tuple[int, ...]) -> np.ndarray:
    """Squared norm of the weights that read each channel of a tensor, over all its readers."""
    total = np.zeros(math.prod(shape))
    for variable in {id(w.variable): w.variable for w in weights}.values():
        reading = [w for w in weights if w.variable is variable]
        axes = sorted(w.axis for w in reading)
        sizes = tuple(variable.shape[a] for a in axes)
        if len(axes) > 1 and sizes == shape:  # a kernel that reads several axes at once
            others = tuple(a for a in range(len(variable.shape)) if a not in axes)
            squares = np.square(view_of(variable).astype("float64"))
            total += squares.sum(axis=others).ravel()
        else:
            groups = reading[-1].labels.shape[1] if len(shape) == 1 else 1
            total += _reader_norms(reading[-1], len(total), groups)
    return total


def _reader_norms(weight: WeightAxis, channels: int, groups: int) -> np.ndarray:
    """Squared norm of the weights that read each channel; a group's weights read its own only."""
    value = np.moveaxis(view_of(weight.variable), weight.axis, 0).astype("float64")
    squares = np.square(value.reshape(len(value), -1, value.shape[-1])).sum(axis=1)
    by_group = squares.reshape(len(value), groups, -1).sum(axis=-1)
    return np.resize(by_group.T.ravel(), channels)


@dataclass(frozen=True)
class _Activation(Criterion):
    """What the criteria from activations share.

    Args:
        samples: how many are used at most.
        normalize: whether to divide by the mean score of the group.
    """

    needs: ClassVar[str] = "samples"
    samples: int = 512
    normalize: bool = True

    def scores(self, graph: ChannelGraph, setting: Setting) -> Scores:
        """Scores of single readings, brought together over all that reads the units."""
        found = list(self._distinct(readings(graph, setting, self.samples)))
        return {group: self._of(graph, group, found) for group in graph.groups}

    def _distinct(self, found: Iterator[Reading]) -> Iterator[Reading]:
        """Each tensor once; criteria that look at the readers' weights override this."""
        return iter({reading.tensor: reading for reading in found}.values())

    def _of(self, graph: ChannelGraph, group: Any, found: list[Reading]) -> np.ndarray:
        total: Any = defaultdict(float)
        for reading in found:
            units = units_of(graph, group, reading.labels)
            if (units >= 0).any():
                total["sum"] += sum_by_unit(group, units, self.value(reading))
                total["count"] += np.bincount(units[units >= 0], minlength=group.size)
        if not total:  # nothing with weights reads these channels
            return np.full(group.size, np.inf)
        scores = self.combine(total["sum"], total["count"])
        return relative(scores) if self.normalize else scores

    @abc.abstractmethod
    def value(self, reading: Reading) -> np.ndarray:
        """Score of every channel of one reading, ``(channels,)``."""

    def combine(self, total: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Score of every unit: the mean over all readings and positions."""
        return total / np.maximum(count, 1)


@criterion("mean_activation")
@serializable
@dataclass(frozen=True)
class MeanActivation(_Activation):
    """Mean of ``|x_c|`` over samples and positions, where the channel is read.

    Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference",
    ICLR 2017. Needs samples without labels; costs one forward pass.
    """

    def value(self, reading: Reading) -> np.ndarray:
        """Mean of absolute values."""
        return reading.absolute / reading.values


@criterion("apoz")
@serializable
@dataclass(frozen=True)
class APoZ(_Activation):
    """One minus the average percentage of zeros, where the channel is read.

    Hu et al., "Network Trimming", 2016. For networks with ReLU. Needs samples without labels;
    costs one forward pass.
    """

    def value(self, reading: Reading) -> np.ndarray:
        """Share of values that are not zero."""
        return reading.nonzero / reading.values


@criterion("wifv")
@serializable
@dataclass(frozen=True)
class WeightedVariance(_Activation):
    """Activation variance times reading weights: ``Σ_consumers Var(x_c)·‖W_:,c‖²``.

    The error of replacing the channel by its mean, which `ridurre.recover(how="mean")` does. An et
    al., "Fluctuation-based Adaptive Structured Pruning (FLAP)", AAAI 2024; Berisha et al.,
    "Variance-Based Pruning", ICCV 2025. Needs samples without labels; costs one forward pass.
    """

    def _distinct(self, found: Iterator[Reading]) -> Iterator[Reading]:
        return found

    def value(self, reading: Reading) -> np.ndarray:
        """Variance times the squared norm of what reads it."""
        mean = reading.total / reading.values
        variance = np.maximum(reading.square / reading.values - mean**2, 0)
        return variance * reading.weights

    def combine(self, total: np.ndarray, count: np.ndarray) -> np.ndarray:
        """The sum over all consumers."""
        del count
        return total
