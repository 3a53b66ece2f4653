"""Pruning methods: which filters of a layer go."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from ridurre.ballot import Ballot
from ridurre.checks import check_fraction
from ridurre.errors import RequestError
from ridurre.pruning import BasePruning
from ridurre.run import Run
from ridurre.shrinking import Shrinking
from ridurre.strategy import ChannelPrune


def filters_to_keep(filters: int, keep: float) -> int:
    """How many of a layer's filters stay: the fraction, rounded up, and at least one."""
    return max(1, math.ceil(round(filters * keep, 9)))


class RandomFilterPruning(BasePruning):
    """Remove random filters, the same fraction of every layer; the baseline to beat.

    Args:
        removal_factor: fraction of each layer's filters that is **removed** per round, in [0, 1).

    All other arguments are those of `BasePruning`.
    """

    def __init__(
        self,
        removal_factor: float,
        model_compile_fn: Callable[[keras.Model], Any],
        model_finetune_fn: Callable[[keras.Model, int, int], Any] | None,
        nb_finetune_epochs: int,
        maximum_prune_iterations: int | None = None,
        maximum_pruning_percent: float | None = 0.9,
        nb_trained_for_epochs: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(
            removal_factor,
            model_compile_fn,
            model_finetune_fn,
            nb_finetune_epochs,
            nb_trained_for_epochs,
            maximum_prune_iterations,
            maximum_pruning_percent,
            **options,
        )

    def check_factor(self, factor: float) -> float:
        """A fraction to remove, in [0, 1)."""
        return check_fraction("removal_factor", factor, below_one=True)

    def run_pruning_for_conv2d_layer(
        self, pruning_factor: float, layer: keras.Layer, layer_weight_mtx: np.ndarray
    ) -> list[int]:
        """Random filters."""
        filters = layer_weight_mtx.shape[-1]
        count = filters - filters_to_keep(filters, 1 - pruning_factor)
        return self.rng.permutation(filters)[:count].tolist()


class KMeansFilterPruning(BasePruning):
    """Cluster each layer's filters with k-means and keep the one nearest to each centre.

    Similar filters are redundant: one of them can stand for all (Son et al., "Clustering
    Convolutional Kernels to Compress Deep Neural Networks", ECCV 2018, and "Filter Level Pruning
    Based on Similar Feature Extraction", IEICE 2018).

    Args:
        clustering_factor: number of clusters as a fraction of each layer's filters, that is, the
            fraction that is **kept** per round, in (0, 1].

    All other arguments are those of `BasePruning`.
    """

    def __init__(
        self,
        clustering_factor: float,
        model_compile_fn: Callable[[keras.Model], Any],
        model_finetune_fn: Callable[[keras.Model, int, int], Any] | None,
        nb_finetune_epochs: int,
        maximum_prune_iterations: int | None = None,
        maximum_pruning_percent: float | None = 0.9,
        nb_trained_for_epochs: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(
            clustering_factor,
            model_compile_fn,
            model_finetune_fn,
            nb_finetune_epochs,
            nb_trained_for_epochs,
            maximum_prune_iterations,
            maximum_pruning_percent,
            **options,
        )

    def check_factor(self, factor: float) -> float:
        """A fraction to keep, in (0, 1]."""
        if isinstance(factor, numbers.Real) and factor == 0:
            raise RequestError(
                "Expected clustering_factor in (0, 1], the fraction of filters that is kept. "
                "Received: 0."
            )
        return check_fraction("clustering_factor", factor)

    def run_pruning_for_conv2d_layer(
        self, pruning_factor: float, layer: keras.Layer, layer_weight_mtx: np.ndarray
    ) -> list[int]:
        """All filters but the one nearest to each centre."""
        filters = layer_weight_mtx.shape[-1]
        keep = filters_to_keep(filters, pruning_factor)
        if keep == filters:
            return []
        points = layer_weight_mtx.reshape(-1, filters).T.astype("float64")
        kept = self._nearest_to_centres(points, keep)
        return np.setdiff1d(np.arange(filters), kept).tolist()

    def _nearest_to_centres(self, points: np.ndarray, clusters: int) -> np.ndarray:
        from sklearn.cluster import KMeans  # loaded by those who use it only
        from sklearn.metrics import pairwise_distances_argmin

        distinct, first = np.unique(points, axis=0, return_index=True)
        if len(distinct) > clusters:
            seed = int(self.rng.integers(2**31))
            centres = KMeans(clusters, n_init=4, random_state=seed).fit(points).cluster_centers_
            first = np.unique(pairwise_distances_argmin(centres, points))
        # Centres that share a nearest filter, or duplicates, leave places: the largest fill them.
        rest = np.setdiff1d(np.argsort(-np.abs(points).sum(axis=1), kind="stable"), first, True)
        return np.concatenate([first, rest])[:clusters]


class ChannelPruning(BasePruning):
    """Carry out a `ridurre.ChannelPrune` strategy with fine-tuning after each of its steps.

    One round is one step of the strategy: scores are computed on the fine-tuned model, channels of
    convolutions and dense layers go, `recover` (if the strategy has it) repairs, then the model is
    compiled and fine-tuned. After the last step the loop ends, or before, for one of the reasons
    that end every loop.

    Example::

        strategy = ridurre.ChannelPrune(target=ridurre.MACs(0.5), scope="global", cost="macs",
                                        data=(x, y), loss="mse", steps=5)
        pruning = ridurre.ChannelPruning(strategy, compile_fn, finetune_fn, 2)
        smaller, epochs = pruning.run_pruning(model)

    Args:
        strategy: what goes. `layers` and `protect` are given there.

    All other arguments are those of `BasePruning`.
    """

    def __init__(
        self,
        strategy: ChannelPrune,
        model_compile_fn: Callable[[keras.Model], Any],
        model_finetune_fn: Callable[[keras.Model, int, int], Any] | None,
        nb_finetune_epochs: int,
        maximum_prune_iterations: int | None = None,
        maximum_pruning_percent: float | None = None,
        nb_trained_for_epochs: int = 0,
        **options: Any,
    ) -> None:
        if not isinstance(strategy, ChannelPrune):
            raise RequestError(
                "Expected a strategy such as ridurre.ChannelPrune(0.3). Received: "
                f"{type(strategy).__name__}."
            )
        misplaced = {"layers", "protect"} & options.keys()
        if misplaced:
            raise RequestError(
                f"Expected {' and '.join(sorted(misplaced))} in the strategy. Received them here."
            )
        self.strategy = strategy
        steps = strategy.settings.steps
        rounds = steps if maximum_prune_iterations is None else maximum_prune_iterations
        super().__init__(
            1.0,
            model_compile_fn,
            model_finetune_fn,
            nb_finetune_epochs,
            nb_trained_for_epochs,
            min(rounds, steps),
            maximum_pruning_percent,
            **options,
        )

    def run_pruning_for_conv2d_layer(
        self, pruning_factor: float, layer: keras.Layer, layer_weight_mtx: np.ndarray
    ) -> list[int]:
        """Nothing: whole groups of layers are scored, and single layers are not asked."""
        return []

    def _prepare(self, model: keras.Model) -> Ballot:
        self._shrinking = Shrinking(self.strategy.settings, model)
        return Ballot.of_all(model)

    def _cut(self, run: Run, factor: float) -> keras.Model | None:
        return self._shrinking.one_step(run.model, len(run.history))

    def _settings(self, run: Run) -> dict[str, Any]:
        return super()._settings(run) | {"strategy": repr(self.strategy)}
