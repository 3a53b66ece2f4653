"""Ready strategies for single weights: by magnitude, gradient, activation, or at random.

All of them meet the compression to one weight, whatever scores are equal: of equal ones those that
come first go. What is zero already goes before everything else.
"""

from __future__ import annotations

import abc
from functools import cached_property
from typing import Any

import keras
import numpy as np

from ridurre import criteria
from ridurre.criteria.base import WeightScores
from ridurre.levels import lowest, ranked, rounded
from ridurre.sparsity import zeros_first
from ridurre.strategies.base import Pruning
from ridurre.strategies.helpers import Nested, activation_importance, checked, map_importances
from ridurre.strategies.kinds import LayerPruning, VisionPruning
from ridurre.strategies.layers import ONE_KERNEL, channels_back, channels_last
from ridurre.strategies.mixins import ActivationMixin, GradientMixin
from ridurre.weights import Weight


class Scored(Pruning):
    """A strategy that keeps the largest importances.

    `importances` says what is important.
    """

    @abc.abstractmethod
    def importances(self) -> Nested:
        """Scores of all prunable weights, of the shapes of `params`; the higher, the better."""

    @cached_property
    def _scores(self) -> WeightScores:
        """The importances by the paths of the weights; what is zero comes first."""
        found = self.importances()
        return {
            w.path: zeros_first(self._score_of(found, layer, name, w), w)
            for layer in self.prunable
            for name, w in self._weights[layer].items()
        }

    def _score_of(self, found: Any, layer: keras.Layer, name: str, weight: Weight) -> np.ndarray:
        value = found.get(layer, {}).get(name)
        return checked(value, f"importances of {name!r} of {layer.name!r}", weight.shape)


class GlobalPruning(Scored):
    """One ranking of all prunable weights: the ``fraction · n`` most important ones stay."""

    def model_masks(self) -> dict[Any, dict[str, np.ndarray]]:
        """The masks of the largest importances of all."""
        sizes = {w.path: w.size for w in self._pruned}
        level = 1 - self._kept_count / self._prunable_count
        found = ranked(self._pruned, self._scores, level, sizes)
        return {
            layer: {name: found[w.path] for name, w in self._weights[layer].items()}
            for layer in self.prunable
        }


class LayerwisePruning(Scored, LayerPruning):
    """The same fraction of every weight stays, its most important ones.

    Rounding is carried over from weight to weight, so that the whole is met to one weight.
    """

    def layer_masks(self, layer: keras.Layer) -> dict[str, np.ndarray]:
        """The masks of the layer's largest importances."""
        return {
            name: ~lowest(self._scores[w.path], w.size - self._counts[w.path])
            for name, w in self._weights[layer].items()
        }

    @cached_property
    def _counts(self) -> dict[str, int]:
        """How many numbers of every weight stay, by its path."""
        ends = np.cumsum([w.size for w in self._pruned])
        counts = np.diff([0, *(rounded(self.fraction * end) for end in ends)])
        return {w.path: int(count) for w, count in zip(self._pruned, counts, strict=True)}


class _Random(Scored):
    def importances(self) -> Nested:
        """Random numbers from 0 to 1."""
        random = criteria.get("random")
        found = random.score_weights(self.model, self._pruned, seed=self.seed)
        return {
            layer: {name: found[w.path] for name, w in self._weights[layer].items()}
            for layer in self.prunable
        }


class _Magnitude(Scored):
    def importances(self) -> Nested:
        """``|w|``."""
        return map_importances(np.abs, self.params())


class _Gradient(Scored, GradientMixin):
    def importances(self) -> Nested:
        """``|w · ∂L/∂w|``."""
        gradients = self.params_gradients()
        return {
            layer: {name: np.abs(value * gradients[layer][name]) for name, value in values.items()}
            for layer, values in self.params().items()
        }


class _Activation(Scored, ActivationMixin):
    def can_prune(self, layer: keras.Layer) -> bool:
        """Layers with one kernel, which makes the channels of their output."""
        return isinstance(layer, ONE_KERNEL) and super().can_prune(layer)

    def importances(self) -> Nested:
        """``|w| · mean |a_c|``."""
        means = self.channel_activations()
        return {
            layer: {name: _times(layer, value, means[layer]) for name, value in values.items()}
            for layer, values in self.params().items()
        }


def _times(layer: keras.Layer, value: np.ndarray, activation: np.ndarray) -> np.ndarray:
    found = activation_importance(channels_last(layer, value), activation)
    return channels_back(layer, found, value.shape)


class RandomPruning(_Random, GlobalPruning, VisionPruning):
    """Random weights of all layers together: the control that others have to beat.

    Arguments are those of `Pruning`; `seed` says which.
    """


class GlobalMagWeight(_Magnitude, GlobalPruning, VisionPruning):
    """The smallest ``|w|`` of all layers together go.

    Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015;
    Blalock et al., MLSys 2020. Arguments are those of `Pruning`.
    """


class LayerMagWeight(_Magnitude, LayerwisePruning, VisionPruning):
    """The smallest ``|w|`` of every layer go, the same fraction of each.

    Blalock et al., MLSys 2020. Arguments are those of `Pruning`.
    """


class GlobalMagGrad(_Gradient, GlobalPruning, VisionPruning):
    """The smallest ``|w · ∂L/∂w|`` of all layers together go, L the loss of all samples.

    Lee et al., "SNIP", ICLR 2019; Blalock et al., MLSys 2020. Arguments are those of `Pruning`;
    needs inputs, outputs and a loss.
    """


class LayerMagGrad(_Gradient, LayerwisePruning, VisionPruning):
    """The smallest ``|w · ∂L/∂w|`` of every layer go, the same fraction of each.

    Blalock et al., MLSys 2020. Arguments are those of `Pruning`; needs inputs, outputs and a loss.
    """


class GlobalMagAct(_Activation, GlobalPruning, VisionPruning):
    """The smallest ``|w| · mean |a_c|`` of all layers together go.

    a_c is output channel c of the weight's layer, behind the layer's own activation function; the
    mean is over samples and positions. Blalock et al., MLSys 2020. Arguments are those of
    `Pruning`; needs inputs. Separable convolutions, in which two kernels stand one behind the
    other, are left alone.
    """


class LayerMagAct(_Activation, LayerwisePruning, VisionPruning):
    """The smallest ``|w| · mean |a_c|`` of every layer go, the same fraction of each.

    See `GlobalMagAct`.
    """
