"""Give layers the statistics that they had, or should have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from ridurre.backend import keras_mask, to_numpy
from ridurre.forward import Step
from ridurre.recovery.fitting import sites
from ridurre.recovery.pair import Pair
from ridurre.recovery.sites import Site, all_rows, set_values

L = keras.layers


def variance(pair: Pair) -> None:
    """Give every layer's outputs the mean and the variance that they have in the original.

    Per output channel ``y ← (y − μ_p) · σ_d / σ_p + μ_d``, folded into kernel and bias. Where no
    constant can be added, the root mean squares take the place of σ, and μ is 0.

    Source: REPAIR (Jordan et al. 2023); the statistics correction of Optimal Brain Compression
    (Frantar et al. 2022). Meant for networks without batch norm. Needs samples, no labels. Cost: a
    forward pass of each model.
    """
    for site, old, new in sites(pair, "of variances"):
        made, wanted = Moments(site.after.outputs), Moments(site.after.outputs)
        for part in site.rows(old, new, pair.settings.max_rows, whole=False):
            made.add(site.after(part.inputs))
            wanted.add(part.wanted)
        if site.movable:
            _correct(site, made.mean, wanted.mean, made.std, wanted.std)
        else:
            zero = np.zeros(site.after.outputs)
            _correct(site, zero, zero, made.rms, wanted.rms)


def _correct(
    site: Site, mean_p: np.ndarray, mean_d: np.ndarray, std_p: np.ndarray, std_d: np.ndarray
) -> None:
    dead = std_p <= 1e-6 * std_d
    factor = np.where(dead, 1, std_d / np.where(dead, 1, std_p))
    linear = site.after
    matrices = linear.matrices * linear.split(factor[None] - 1)
    # What is added to (x·W)·factor + b, where the bias b was part of the mean.
    offset = mean_d - mean_p * factor + linear.bias * (factor - 1)
    site.change(matrices, offset)


class Moments:
    """Mean and variance per column, of rows that come in chunks.

    Sums are taken about the first chunk's mean, so that large means cost no digits.
    """

    def __init__(self, columns: int) -> None:
        self._shift = np.zeros(columns)
        self._sum, self._squares = np.zeros(columns), np.zeros(columns)
        self._count = 0

    def add(self, rows: np.ndarray) -> None:
        """Some more rows."""
        if not self._count and len(rows):
            self._shift = rows.mean(axis=0, dtype="float64")
        moved = rows - self._shift
        self._sum += moved.sum(axis=0)
        self._squares += (moved**2).sum(axis=0)
        self._count += len(rows)

    @property
    def mean(self) -> np.ndarray:
        """Per column."""
        return self._shift + self._sum / max(self._count, 1)

    @property
    def variance(self) -> np.ndarray:
        """Per column, about the mean of these rows."""
        count = max(self._count, 1)
        return np.maximum(self._squares / count - (self._sum / count) ** 2, 0)

    @property
    def std(self) -> np.ndarray:
        """Square root of the variance."""
        return np.sqrt(self.variance)

    @property
    def rms(self) -> np.ndarray:
        """Root of the mean square."""
        return np.sqrt(self.variance + self.mean**2)


def batch_norm(pair: Pair) -> None:
    """Measure the statistics of every batch norm anew, on all samples.

    Mean and variance over all positions of all samples, exactly, layer by layer in running order;
    not an average over batches.

    The samples must be **augmented as in training**. Statistics of clean images differ from those
    that the network was trained with: a ResNet-56 that was trained with random crops and flips lost
    1.3 points of accuracy on CIFAR-10, unpruned, by re-estimation on clean images. After
    "least_squares" it is of no further use.

    Source: EagleEye (Li et al. 2020). Needs samples, no labels. Cost: a forward pass of each model.
    """
    for layer, moments in _batch_norms(pair, "of batch norms"):
        set_values(layer.moving_mean, moments.mean)
        set_values(layer.moving_variance, moments.variance)


def renormalise(pair: Pair) -> None:
    """Make every batch norm compute in training what it computes in inference.

    Statistics μ, σ² are measured anew, as by "batch_norm", and scale and offset make up for that:
    ``β ← β + γ · (μ − μ₀) / √(σ₀² + ε)`` and ``γ ← γ · √(σ² + ε) / √(σ₀² + ε)``. The outputs stay
    what they are. Training, which normalises by every batch's own statistics, then starts from the
    network as it was repaired. Otherwise it starts from one whose layers have other scales, for
    what a layer computes after "least_squares" does not vary as it did in the original.

    The samples should be augmented as in training. Layers without scale or offset stay as they are.
    Needs samples, no labels. Cost: a forward pass of each model.
    """
    for layer, moments in _batch_norms(pair, "of batch norms"):
        if layer.gamma is None or layer.beta is None:
            continue
        mean, variance, gamma, beta = (
            to_numpy(v).astype("float64")
            for v in (layer.moving_mean, layer.moving_variance, layer.gamma, layer.beta)
        )
        scale = gamma / np.sqrt(variance + layer.epsilon)
        set_values(layer.gamma, scale * np.sqrt(moments.variance + layer.epsilon))
        set_values(layer.beta, beta + scale * (moments.mean - mean))
        set_values(layer.moving_mean, moments.mean)
        set_values(layer.moving_variance, moments.variance)


def _batch_norms(pair: Pair, title: str) -> Iterator[tuple[Any, Moments]]:
    """Every batch norm that is called once, when it is its turn, and what it gets to see."""
    for _, new in pair.walk(title):
        layer: Any = new.call.operation
        if type(layer) is L.BatchNormalization and pair.new.once(new.call):
            moments = Moments(layer.moving_mean.shape[0])
            for batch in range(new.batches):
                moments.add(_seen(new, batch))
            yield layer, moments


def _seen(step: Step, batch: int) -> np.ndarray:
    """Rows that a batch norm takes into account: those that are not masked."""
    tensor = step.inputs(batch)[0]
    rows = all_rows(to_numpy(tensor), step.call.operation.axis)
    mask = keras_mask(tensor)
    return rows if mask is None else rows[to_numpy(mask).reshape(-1)]
