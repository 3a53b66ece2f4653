"""Ready strategies for whole output channels, set to zero and not removed."""

from __future__ import annotations

import abc
from functools import cached_property
from typing import Any, ClassVar

import keras
import numpy as np

from ridurre.backend import view_of
from ridurre.levels import lowest, scaled
from ridurre.strategies.helpers import channel_norms, check_norm, checked
from ridurre.strategies.kinds import LayerPruning, VisionPruning
from ridurre.strategies.layers import ONE_KERNEL, channels_back, channels_last
from ridurre.strategies.mixins import ActivationMixin


class ChannelMasking(LayerPruning, VisionPruning):
    """Masks whole output channels: the same fraction of every layer, the least important ones.

    A channel's slice of the kernel goes and its bias with it, so that it is exactly zero before
    the activation function; behind it a batch norm makes a constant of that. Nothing that reads
    the channel is touched: `ridurre.ChannelPrune` removes channels with all that belongs to them.

    The compression is met to half of the largest channel. At least one channel of every layer
    stays. Separable convolutions are left alone.

    Args:
        *args: those of `Pruning`.
        norm: p of the Lp norm, 1 or 2.
        **options: those of `Pruning`.
    """

    usual_weights: ClassVar[str] = "all"

    def __init__(self, *args: Any, norm: float = 1, **options: Any) -> None:
        self.norm = check_norm(norm)
        super().__init__(*args, **options)

    @abc.abstractmethod
    def channel_importances(self, layer: keras.Layer) -> np.ndarray:
        """Scores of a layer's output channels, ``(channels,)``; the higher, the better."""

    def can_prune(self, layer: keras.Layer) -> bool:
        """Layers with one kernel, which makes the channels of their output."""
        if not isinstance(layer, ONE_KERNEL) or not set(self._weights[layer]) <= {"kernel", "bias"}:
            return False
        return super().can_prune(layer)

    def layer_masks(self, layer: keras.Layer) -> dict[str, np.ndarray]:
        """The masks of whole channels, kernel and bias alike."""
        scores = checked(self.channel_importances(layer), f"channels of {layer.name!r}")
        keep = ~lowest(scores, scores.size - self._counts[layer])
        return {
            name: _spread(layer, keep, value) for name, value in self.module_params(layer).items()
        }

    @cached_property
    def _counts(self) -> dict[keras.Layer, int]:
        """How many channels of every layer stay."""
        channels = np.array([self._channels(layer) for layer in self.prunable], float)
        each = np.array([self._each(layer) for layer in self.prunable], float)
        ones, wanted = np.ones(len(each)), self.fraction * self._prunable_count
        exact = channels * scaled(ones, channels * each, 1 / channels, wanted)
        counts = np.floor(exact + 1e-6)
        missing = wanted - (counts * each).sum()
        for i in np.argsort(counts - exact, kind="stable"):  # who lost most by rounding comes first
            if missing >= each[i] / 2 and counts[i] < channels[i]:
                counts[i] += 1
                missing -= each[i]
        return dict(zip(self.prunable, counts.astype(int).tolist(), strict=True))

    def _least(self) -> int:
        return sum(map(self._each, self.prunable))

    def _channels(self, layer: keras.Layer) -> int:
        return channels_last(layer, self._kernel(layer)).shape[-1]

    def _each(self, layer: keras.Layer) -> int:
        """How many weights a channel has."""
        return sum(w.size for w in self._weights[layer].values()) // self._channels(layer)

    def _kernel(self, layer: Any) -> np.ndarray:
        return view_of(layer.kernel)

    def _given(self) -> dict[str, Any]:
        return super()._given() | ({} if self.norm == 1 else {"norm": self.norm})


def _spread(layer: keras.Layer, keep: np.ndarray, value: np.ndarray) -> np.ndarray:
    """A mask of channels as one of a kernel or bias."""
    whole = np.broadcast_to(keep, channels_last(layer, value).shape)
    return channels_back(layer, whole, value.shape)


class WeightNormChannelPruning(ChannelMasking):
    """Masks the output channels whose filters have the smallest norm, ``(Σ |w|^p)^(1/p)``.

    Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017; Blalock et al., MLSys 2020. Only
    the kernel is looked at, not the bias.

    Args:
        *args: those of `Pruning`.
        norm: p, 1 or 2.
        **options: those of `Pruning`.
    """

    def channel_importances(self, layer: keras.Layer) -> np.ndarray:
        """The norms of the filters."""
        return channel_norms(channels_last(layer, self._kernel(layer)), self.norm)


class ActivationNormChannelPruning(ActivationMixin, ChannelMasking):
    """Masks the output channels with the smallest activations, ``(mean |a|^p)^(1/p)``.

    The mean is over samples and positions of what the layer gives, behind its own activation
    function. Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient
    Inference", ICLR 2017; Blalock et al., MLSys 2020. Needs inputs.

    Args:
        *args: those of `Pruning`.
        norm: p, 1 or 2.
        **options: those of `Pruning`.
    """

    def channel_importances(self, layer: keras.Layer) -> np.ndarray:
        """The mean powers of the activations."""
        return self.channel_activations()[layer]
