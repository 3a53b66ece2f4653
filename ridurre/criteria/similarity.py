"""Criteria that look for channels which others can stand for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ridurre.backend import view_of
from ridurre.criteria.base import (
    Criterion,
    Scores,
    Setting,
    criterion,
    parameters,
    serializable,
)
from ridurre.graph import ChannelGraph, Group, Member


def unit_matrix(group: Group, member: Member) -> np.ndarray:
    """What each unit owns of a weight, one row per unit, ``(units, numbers)`` of float32.

    Units with fewer positions than others have zeros at the end.
    """
    value = np.moveaxis(view_of(member.weight.variable), member.weight.axis, 0)
    rows = value.reshape(len(value), -1).astype("float32", copy=False)
    owned = np.flatnonzero(member.units >= 0)
    owned = owned[np.argsort(member.units[owned], kind="stable")]
    units = member.units[owned]
    counts = np.bincount(units, minlength=group.size)
    place = np.arange(len(units)) - (np.cumsum(counts) - counts)[units]
    matrix = np.zeros((group.size, counts.max(initial=1), rows.shape[1]), "float32")
    matrix[units, place] = rows[owned]
    return matrix.reshape(group.size, -1)


def gram(graph: ChannelGraph, group: Group, *roles: str) -> np.ndarray:
    """Inner products of the units' weights, ``(units, units)``, over these roles."""
    total = np.zeros((group.size, group.size))
    for member in parameters(graph, group, *roles):
        matrix = unit_matrix(group, member)
        total += (matrix @ matrix.T).astype("float64")
    return total


@criterion("fpgm")
@serializable
@dataclass(frozen=True)
class FPGM(Criterion):
    """Sum of the distances to all other units: low near the geometric median of the group.

    ``Σ_j ‖w_c − w_j‖₂`` over all coupled weights. He et al., "Filter Pruning via Geometric Median",
    CVPR 2019. Needs the weights; costs one matrix of inner products per group.
    """

    def scores(self, graph: ChannelGraph, setting: Setting) -> Scores:
        """Sums of distances."""
        del setting
        return {group: self._of(gram(graph, group)) for group in graph.groups}

    def _of(self, products: np.ndarray) -> np.ndarray:
        squares = np.diag(products)
        distances = squares[:, None] + squares[None] - 2 * products
        np.fill_diagonal(distances, 0)
        return np.sqrt(np.maximum(distances, 0)).sum(axis=1)


@criterion("cosine")
@serializable
@dataclass(frozen=True)
class CosineRedundancy(Criterion):
    """How unlike its most similar companion a filter is, taken away greedily.

    Of the two most similar filters (largest ``|cos|``) the smaller one goes first, with the score
    ``1 − |cos|``; then the same among the rest, so that of a family of equal filters one scores
    high. Filters are the weights that make the channel. Greedy similarity pruning as in Ayinde et
    al., "Redundant Feature Pruning", 2019. Needs the weights; costs a matrix of inner products.
    """

    def scores(self, graph: ChannelGraph, setting: Setting) -> Scores:
        """One minus the similarity at the time of going; 1 more for the last one left."""
        del setting
        return {group: self._of(gram(graph, group, "out")) for group in graph.groups}

    def _of(self, products: np.ndarray) -> np.ndarray:
        norms = np.sqrt(np.maximum(np.diag(products), 0))
        scale = np.where(norms > 0, norms, 1)
        alike = np.abs(products) / scale[:, None] / scale[None]
        alike[norms == 0] = alike[:, norms == 0] = 1  # a filter of zeros is spared by anyone
        np.fill_diagonal(alike, -1)
        scores, least = np.full(len(norms), 2.0), 0.0
        best = alike.argmax(axis=1)
        value = alike.max(axis=1)
        for _ in range(len(norms) - 1):
            a = int(value.argmax())
            pair = (a, int(best[a]))
            gone = min(pair, key=lambda i: (norms[i], i))
            least = scores[gone] = max(least, 1 - value[a])
            alike[gone] = alike[:, gone] = value[gone] = -1
            for row in np.flatnonzero((best == gone) & (value >= 0)):
                best[row], value[row] = alike[row].argmax(), alike[row].max()
        return scores


@criterion("kmeans")
@serializable
@dataclass(frozen=True)
class KMeansRedundancy(Criterion):
    """Distance to the nearest representative, after clustering the filters with k-means.

    The filter nearest to each centre represents its cluster and scores above all others. Son et
    al., "Clustering Convolutional Kernels to Compress Deep Neural Networks", ECCV 2018. Needs the
    weights and scikit-learn; costs one k-means per group.

    Args:
        clusters: their number as a fraction of the group's units.
    """

    clusters: float = 0.5

    def scores(self, graph: ChannelGraph, setting: Setting) -> Scores:
        """Distances, relative to the largest; 1 and more for representatives."""
        return {group: self._of(graph, group, setting.rng) for group in graph.groups}

    def _of(self, graph: ChannelGraph, group: Group, rng: np.random.Generator) -> np.ndarray:
        from sklearn.cluster import KMeans  # loaded by those who use it only
        from sklearn.metrics import pairwise_distances

        made = [unit_matrix(group, m) for m in parameters(graph, group, "out")]
        points = np.concatenate(made, axis=1)
        norms = np.linalg.norm(points, axis=1).astype("float64")
        ordered, counts = np.unique(points, axis=0, return_counts=True)
        count = max(1, min(len(ordered), round(self.clusters * group.size)))
        seed = int(rng.integers(2**31))
        # In an order of their own, so that the result does not depend on how channels are numbered.
        fitted = KMeans(count, n_init=4, random_state=seed).fit(ordered, sample_weight=counts)
        chosen = np.unique(fitted.transform(points).argmin(axis=0))
        nearest = pairwise_distances(points, points[chosen]).min(axis=1).astype("float64")
        scores = nearest / max(nearest.max(), 1e-12) * 0.99
        scores[chosen] = 1 + norms[chosen] / max(norms.max(), 1e-12)
        return scores
