"""Criteria from the inputs of layers: in closed form, or nearly so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import keras
import numpy as np
import scipy.linalg

from ridurre.backend import to_numpy
from ridurre.criteria.base import (
    Criterion,
    Scores,
    Setting,
    WeightCriterion,
    WeightScores,
    criterion,
    serializable,
    sum_by_unit,
    units_of,
)
from ridurre.forward import Forward, Step
from ridurre.graph import ChannelGraph, Labels, along
from ridurre.graph.trace import Trace
from ridurre.linear import CONVOLUTIONS, DEPTHWISE, Linear
from ridurre.progress import track
from ridurre.weights import Weight

#: More columns than that are not inverted together; every channel then stands for itself.
WIDEST = 6144
_READERS = (keras.layers.Dense, *(c for c in CONVOLUTIONS if c not in DEPTHWISE))


class Loss(NamedTuple):
    """What one reader would lose of its output's variance, by channel of its input."""

    labels: Labels
    lost: np.ndarray


@dataclass(frozen=True)
class _FromInputs(Criterion):
    """What criteria that look at the inputs of layers share.

    Args:
        samples: how many are used at most.
        rows: positions (pixels) per reader that are looked at.
        seed: of the choice of positions.
    """

    needs: ClassVar[str] = "samples"
    samples: int = 256
    rows: int = 8192
    seed: int = 0

    def _steps(self, trace: Trace, setting: Setting) -> Iterator[Step]:
        data: Any = setting.data
        return track(Forward(trace, data.first_samples(self.samples)), "Scoring", unit="layer")

    def _patches(self, linear: Linear, step: Step, rng: np.random.Generator) -> np.ndarray:
        """Inputs at random positions, ``(groups, rows, columns)``."""
        found, each = [], -(-self.rows // step.batches)
        for batch in range(step.batches):
            x = to_numpy(step.inputs(batch)[0])
            count = int(np.prod(linear.positions(x.shape)))
            at = np.sort(rng.choice(count, min(count, each), replace=False))
            found.append(linear.patches(x, at))
        return np.concatenate(found, axis=1)

    def knows(self, weight: Weight) -> bool:
        """The kernels of dense and convolution layers: their inputs can be looked at."""
        return type(weight.owner) in _READ and weight.variable is weight.owner.kernel

    def weight_scores(
        self, model: keras.Model, weights: list[Weight], setting: Setting
    ) -> WeightScores:
        """What `_of_kernel` says of every kernel, summed over the calls of its layer."""
        rng, wanted = np.random.default_rng(self.seed), {id(w.variable): w for w in weights}
        found: WeightScores = {}
        for step in self._steps(Trace(model), setting):
            layer = step.call.operation
            weight = wanted.get(id(getattr(layer, "kernel", None)))
            if weight is not None and type(layer) in _READ:
                linear = Linear(step.call)
                scores = linear.as_kernel(self._of_kernel(linear, self._patches(linear, step, rng)))
                found[weight.path] = found.get(weight.path, 0) + scores
        return found

    def _of_kernel(self, linear: Linear, patches: np.ndarray) -> np.ndarray:
        """Scores in the form of `Linear.matrices`, from patches ``(groups, rows, columns)``."""
        raise NotImplementedError


_READ = (keras.layers.Dense, *CONVOLUTIONS)


@criterion("obs")
@serializable
@dataclass(frozen=True)
class BlockOBS(_FromInputs):
    """Block OBS: the squared error that is left in all readers after they are refitted.

    Removing the columns P of a channel from a reader's inputs X costs ``½ tr(W_Pᵀ [(H⁻¹)_PP]⁻¹
    W_P)`` with ``H = XᵀX + λ``, X about its mean, if its other weights are refitted; that over the
    variance of the reader's output, summed over all readers. Frantar & Alistarh, "Optimal Brain
    Compression", NeurIPS 2022; Kurtic et al., "ZipLM", NeurIPS 2023. A single weight of a kernel
    costs ``½ w² / (H⁻¹)_jj``, with X as it is (Frantar & Alistarh, "SparseGPT", ICML 2023, with
    several `steps` for its blocks); that, too, over the variance of its layer's output, so that
    layers can be ranked together. Goes with ``recover="least_squares"``. Needs samples without
    labels; costs a forward pass and a Gram matrix and its inverse per reader.

    Args:
        samples: how many are used at most.
        rows: positions (pixels) per reader that are looked at.
        seed: of the choice of positions.
        ridge: λ over the mean of H's diagonal.
    """

    ridge: float = 0.01

    def scores(self, graph: ChannelGraph, setting: Setting) -> Scores:
        """Losses of single readers, summed over all that reads a unit."""
        losses = list(self._losses(graph, setting))
        found = {}
        for group in graph.groups:
            total, read = np.zeros(group.size), np.zeros(group.size, bool)
            for loss in losses:
                units = units_of(graph, group, loss.labels)
                total += sum_by_unit(group, units, loss.lost)
                read[units[units >= 0]] = True
            found[group] = np.where(read, total, np.inf)
        return found

    def _losses(self, graph: ChannelGraph, setting: Setting) -> Iterator[Loss]:
        rng = np.random.default_rng(self.seed)
        for step in self._steps(graph.trace, setting):
            if isinstance(step.call.operation, _READERS):
                linear = Linear(step.call)
                labels = step.call.x.labels
                if labels.shape[linear.axis] > 1:
                    lost = self._lost(linear, self._patches(linear, step, rng))
                    yield Loss(along(labels, linear.axis)[:, 0], lost)

    def _lost(self, linear: Linear, patches: np.ndarray) -> np.ndarray:
        """Share of the output's variance that goes with each channel, ``(channels,)``."""
        patches = patches - patches.mean(axis=1, keepdims=True)
        lost, taps = [], int(np.prod(linear.taps))
        for x, w in zip(patches, linear.matrices, strict=True):
            blocks = np.arange(len(w)).reshape(taps, -1).T  # by channel: its columns
            lost.append(self._of_group(x, w.astype("float64"), blocks))
        return np.concatenate(lost) / _variance(linear, patches)

    def _of_group(self, x: np.ndarray, w: np.ndarray, blocks: np.ndarray) -> np.ndarray:
        if x.shape[1] > WIDEST:
            return np.array([0.5 * np.square(x[:, p] @ w[p]).sum() / len(x) for p in blocks])
        inverse = self._inverse(x)
        return np.array(
            [0.5 * np.sum(w[p] * np.linalg.solve(inverse[np.ix_(p, p)], w[p])) for p in blocks]
        )

    def _inverse(self, x: np.ndarray) -> np.ndarray:
        """H⁻¹ of patches ``(rows, columns)``."""
        h = (x.T @ x).astype("float64") / len(x)
        h.flat[:: len(h) + 1] += self.ridge * max(h.trace() / len(h), 1e-30)
        return scipy.linalg.inv(h, check_finite=False)

    def _of_kernel(self, linear: Linear, patches: np.ndarray) -> np.ndarray:
        losses = [self._column_losses(x) for x in patches]
        lost = np.square(linear.matrices, dtype="float64") * np.array(losses)[:, :, None]
        return lost / _variance(linear, patches)

    def _column_losses(self, x: np.ndarray) -> np.ndarray:
        """``½ / (H⁻¹)_jj``; where the layer is too wide, as if columns were not correlated."""
        if x.shape[1] > WIDEST:
            return 0.5 * np.square(x, dtype="float64").mean(axis=0)
        return 0.5 / np.diag(self._inverse(x))


def _variance(linear: Linear, patches: np.ndarray) -> float:
    """The variance of a layer's output, summed over its channels."""
    pairs = zip(patches, linear.matrices, strict=True)
    return max(sum(float((x @ w).var(axis=0, dtype="float64").sum()) for x, w in pairs), 1e-30)


@criterion("wanda")
@serializable
@dataclass(frozen=True)
class Wanda(_FromInputs, WeightCriterion):
    """``|w| · ‖x_j‖₂``, x_j the inputs that the weight is multiplied with.

    Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024,
    which compares the weights of one output with each other: ``scope="output"``. The norm is the
    root mean square over all positions. Needs samples without labels; costs a forward pass.
    """

    def _of_kernel(self, linear: Linear, patches: np.ndarray) -> np.ndarray:
        norms = np.sqrt(np.square(patches, dtype="float64").mean(axis=1))
        return np.abs(linear.matrices) * norms[:, :, None]
