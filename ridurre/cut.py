"""Cut single layers without a graph, for those who fix the dependencies by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from ridurre.backend import build_shape, own_variables, to_numpy
from ridurre.backend.making import recreate
from ridurre.checks import check_indices
from ridurre.errors import RequestError

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)


def prune_conv(layer: keras.Layer, idxs: Sequence[int]) -> keras.Layer:
    """A convolution without some of its filters.

    Args:
        layer: a built Conv1D, Conv2D or Conv3D with one group; it is not changed.
        idxs: filters to remove.

    Returns:
        The smaller layer, built, under the same name.

    Raises:
        RequestError: another kind of layer, or indices that are out of range, repeated or all.
    """
    _check(layer, _CONVOLUTIONS)
    kept = _kept(layer, idxs, layer.filters)
    changes = {"filters": int(kept.sum())}
    return _smaller(layer, changes, {"kernel": (-1, kept), "bias": (0, kept)}, build_shape(layer))


def prune_related_conv(layer: keras.Layer, idxs: Sequence[int]) -> keras.Layer:
    """A convolution that reads fewer input channels, because the layer before lost filters.

    Args:
        layer: a built Conv1D, Conv2D or Conv3D with one group; it is not changed.
        idxs: input channels to remove.

    Returns:
        The smaller layer, built, under the same name.

    Raises:
        RequestError: another kind of layer, or indices that are out of range, repeated or all.
    """
    _check(layer, _CONVOLUTIONS)
    kept = _kept(layer, idxs, layer.kernel.shape[-2])
    axis = 1 if layer.data_format == "channels_first" else -1
    return _smaller(layer, {}, {"kernel": (-2, kept)}, _narrow(layer, axis, kept))


def prune_batchnorm(layer: keras.layers.BatchNormalization, idxs: Sequence[int]) -> keras.Layer:
    """A batch normalisation without some of its channels.

    Args:
        layer: a built BatchNormalization; it is not changed.
        idxs: channels to remove.

    Returns:
        The smaller layer, built, under the same name.

    Raises:
        RequestError: another kind of layer, or indices that are out of range, repeated or all.
    """
    _check(layer, (keras.layers.BatchNormalization,))
    kept = _kept(layer, idxs, layer.moving_mean.shape[0])
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    shape = _narrow(layer, layer.axis, kept)
    return _smaller(layer, {}, dict.fromkeys(names, (0, kept)), shape)


def _check(layer: Any, kinds: tuple[type, ...]) -> None:
    if type(layer) not in kinds:
        expected = " or ".join(k.__name__ for k in kinds)
        raise RequestError(f"Expected a {expected} layer. Received: {type(layer).__name__}.")
    if not layer.built:
        raise RequestError(f"The layer {layer.name!r} is not built, so it has no weights to cut.")
    if getattr(layer, "groups", 1) != 1:
        raise RequestError(
            f"The convolution {layer.name!r} has {layer.groups} groups, which can only be cut "
            "together with its neighbours. Use ridurre.DependencyGraph."
        )


def _kept(layer: keras.Layer, idxs: Sequence[int], size: int) -> np.ndarray:
    gone = check_indices(idxs, size, f"layer {layer.name!r}")
    if len(gone) == size:
        raise RequestError(
            f"This would remove every channel of layer {layer.name!r}. At least one has to stay."
        )
    kept = np.ones(size, bool)
    kept[gone] = False
    return kept


def _narrow(layer: keras.Layer, axis: int, kept: np.ndarray) -> tuple[int | None, ...]:
    shape = list(build_shape(layer))
    shape[axis] = int(kept.sum())
    return tuple(shape)


def _smaller(
    layer: keras.Layer,
    changes: dict[str, Any],
    cuts: Mapping[str, tuple[int, np.ndarray]],
    shape: tuple[int | None, ...],
) -> keras.Layer:
    new = recreate(layer, changes)
    new.build(shape)
    for old_variable, variable in zip(own_variables(layer), own_variables(new), strict=True):
        value = to_numpy(old_variable)
        if old_variable.name in cuts:
            axis, kept = cuts[old_variable.name]
            value = np.compress(kept, value, axis)
        variable.assign(value)
    return new
