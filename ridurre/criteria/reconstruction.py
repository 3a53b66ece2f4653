"""The criterion in closed form: what is lost when all readers make up for a channel."""

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
    criterion,
    serializable,
    sum_by_unit,
    units_of,
)
from ridurre.forward import Forward, Step
from ridurre.graph import ChannelGraph, Labels, along
from ridurre.linear import CONVOLUTIONS, DEPTHWISE, Linear

#: More columns than that are not inverted together; every channel then stands for itself.
WIDEST = 6144
_READERS = (keras.layers.Dense, *(c for c in CONVOLUTIONS if c not in DEPTHWISE))


class Loss(NamedTuple):
    """What one reader would lose of its output's variance, by channel of its input."""

    labels: Labels
    lost: np.ndarray


@criterion("obs")
@serializable
@dataclass(frozen=True)
class BlockOBS(Criterion):
    """Block OBS: the squared error that is left in all readers after they are refitted.

    Removing the columns P of a channel from a reader's inputs X costs ``½ tr(W_Pᵀ [(H⁻¹)_PP]⁻¹
    W_P)`` with ``H = XᵀX + λ``, X about its mean, if its other weights are refitted; that over the
    variance of the reader's output, summed over all readers. Frantar & Alistarh, "Optimal Brain
    Compression", NeurIPS 2022; Kurtic et al., "ZipLM", NeurIPS 2023. Goes with
    ``ridurre.recover(how="least_squares")``. Needs samples without labels; costs a forward pass and
    a Gram matrix and its inverse per reader.

    Args:
        samples: how many are used at most.
        rows: positions (pixels) per reader that are looked at.
        ridge: λ over the mean of H's diagonal.
        seed: of the choice of positions.
    """

    needs: ClassVar[str] = "samples"
    samples: int = 256
    rows: int = 8192
    ridge: float = 0.01
    seed: int = 0

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
        data: Any = setting.data
        rng = np.random.default_rng(self.seed)
        for step in Forward(graph.trace, data.first_samples(self.samples)):
            if isinstance(step.call.operation, _READERS):
                linear = Linear(step.call)
                labels = step.call.x.labels
                if labels.shape[linear.axis] > 1:
                    lost = self._lost(linear, self._patches(linear, step, rng))
                    yield Loss(along(labels, linear.axis)[:, 0], lost)

    def _patches(self, linear: Linear, step: Step, rng: np.random.Generator) -> np.ndarray:
        """Inputs at random positions, ``(groups, rows, columns)``."""
        found, each = [], -(-self.rows // step.batches)
        for batch in range(step.batches):
            x = to_numpy(step.inputs(batch)[0])
            count = int(np.prod(linear.positions(x.shape)))
            at = np.sort(rng.choice(count, min(count, each), replace=False))
            found.append(linear.patches(x, at))
        return np.concatenate(found, axis=1)

    def _lost(self, linear: Linear, patches: np.ndarray) -> np.ndarray:
        """Share of the output's variance that goes with each channel, ``(channels,)``."""
        patches = patches - patches.mean(axis=1, keepdims=True)
        lost, total = [], 0.0
        for x, w in zip(patches, linear.matrices, strict=True):
            taps = int(np.prod(linear.taps))
            blocks = np.arange(len(w)).reshape(taps, -1).T  # by channel: its columns
            lost.append(self._of_group(x, w.astype("float64"), blocks))
            total += float(np.square(x @ w).sum()) / len(x)
        return np.concatenate(lost) / max(total, 1e-30)

    def _of_group(self, x: np.ndarray, w: np.ndarray, blocks: np.ndarray) -> np.ndarray:
        if x.shape[1] > WIDEST:
            return np.array([0.5 * np.square(x[:, p] @ w[p]).sum() / len(x) for p in blocks])
        h = (x.T @ x).astype("float64") / len(x)
        h.flat[:: len(h) + 1] += self.ridge * max(h.trace() / len(h), 1e-30)
        inverse = scipy.linalg.inv(h, check_finite=False)
        return np.array(
            [0.5 * np.sum(w[p] * np.linalg.solve(inverse[np.ix_(p, p)], w[p])) for p in blocks]
        )
