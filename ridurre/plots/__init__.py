"""Pictures of a network's weights: as they are now, and from what was recorded in training.

matplotlib is imported when a picture is made. How much cutting would cost is drawn by
`ridurre.Sensitivity`.
"""

from __future__ import annotations

import os
from typing import Any

import keras

from ridurre.figures import saved
from ridurre.masks import Masks
from ridurre.plots.panels import MaskPanels, WeightPanels, gone
from ridurre.plots.recording import Layers, Recording, chosen_of
from ridurre.snapshots import Snapshot

__all__ = ["Recording", "masks", "weights"]


def masks(
    source: keras.Model | Masks,
    path: str | os.PathLike[str] | None = None,
    *,
    layers: Layers = None,
) -> Any:
    """A model's masks as a matplotlib figure, a picture per kernel.

    Inputs go downwards and outputs to the right; the cell of two of them holds the taps of a
    convolution, height × width. Large kernels are drawn as means over blocks.

    Example::

        ridurre.plots.masks(sparse, "masks.png", layers=["conv1", "conv2"])

    Args:
        source: a built model, or masks of one.
        path: of a file to write it to as well.
        layers: names of kernels or layers; None for all.

    Raises:
        RequestError: matplotlib is not installed.
        UnknownLayerError: no such kernel.
        NothingToPruneError: the model has no kernels.
    """
    keep = source if isinstance(source, Masks) else Masks.of(source)
    panels = MaskPanels(chosen_of({p: k.shape for p, k in keep.items()}, layers))
    panels.show(keep, f"{keep.sparsity:.1%} of the weights are zero")
    return saved(panels.figure, path)


def weights(
    model: keras.Model, path: str | os.PathLike[str] | None = None, *, layers: Layers = None
) -> Any:
    """The distributions of a model's weights that are not zero, as a matplotlib figure.

    Args:
        model: a built model.
        path: of a file to write it to as well.
        layers: names of kernels or layers; None for all.

    Raises:
        RequestError: matplotlib is not installed.
        UnknownLayerError: no such kernel.
        NothingToPruneError: the model has no kernels.
    """
    parts = Snapshot.of(model).parts
    chosen = chosen_of({p: part.shape for p, part in parts.items()}, layers)
    histograms = {p: parts[p].histogram for p in chosen}
    panels = WeightPanels([histograms])
    captions = {p: gone(parts[p].keep, parts[p].shape) for p in chosen}
    panels.show(histograms, captions, "weights that are not zero")
    return saved(panels.figure, path)
