"""What is pruned, and how: the layers of vision models, every layer by itself."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import keras

from ridurre.strategies.base import Pruning
from ridurre.strategies.layers import ONE_KERNEL, SEPARABLE


class VisionPruning(Pruning):
    """Prunes dense and convolution layers (depthwise, separable, transposed ones too)."""

    def can_prune(self, layer: keras.Layer) -> bool:
        """Dense and convolution layers, but for the classifier unless that is asked for."""
        kinds = (*ONE_KERNEL, *SEPARABLE)
        return isinstance(layer, kinds) and super().can_prune(layer)


class LayerPruning(Pruning):
    """Prunes every layer by itself: subclasses say how in `layer_masks`."""

    @abc.abstractmethod
    def layer_masks(self, layer: keras.Layer) -> Mapping[str, Any]:
        """The masks of one prunable layer, ``{param: mask}``; see `model_masks`."""

    def model_masks(self) -> Mapping[Any, Mapping[str, Any]]:
        """The masks of all prunable layers."""
        return {layer: self.layer_masks(layer) for layer in self.prunable}
