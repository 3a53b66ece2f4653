"""One operation on one layer, as a function."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from ridurre.surgeon.operator import Surgeon


def delete_layer(
    model: keras.Model,
    layer: keras.Layer | str,
    *,
    node_indices: Sequence[int] | None = None,
    copy: bool | None = None,
) -> keras.Model:
    """The model without a layer: its input goes straight to its consumers.

    Args:
        model: the model; it is not touched.
        layer: a layer with one input and one output, or its name.
        node_indices: which of its calls, if it is shared; None for all.
        copy: has no effect, see `Surgeon`.

    Raises:
        RequestError: see `Surgeon`.
    """
    surgeon = Surgeon(model, copy)
    surgeon.add_job("delete_layer", layer, node_indices=node_indices)
    return surgeon.operate()


def insert_layer(
    model: keras.Model,
    layer: keras.Layer | str,
    new_layer: keras.Layer,
    *,
    node_indices: Sequence[int] | None = None,
    copy: bool | None = None,
) -> keras.Model:
    """The model with a new layer *before* another one.

    Args:
        model: the model; it is not touched.
        layer: a layer with one input, or its name.
        new_layer: is copied, weights included if it has any, and called once per call.
        node_indices: before which of the layer's calls, if it is shared; None for all.
        copy: has no effect, see `Surgeon`.

    Raises:
        RequestError: see `Surgeon`.
    """
    surgeon = Surgeon(model, copy)
    surgeon.add_job("insert_layer", layer, new_layer=new_layer, node_indices=node_indices)
    return surgeon.operate()


def replace_layer(
    model: keras.Model,
    layer: keras.Layer | str,
    new_layer: keras.Layer,
    *,
    node_indices: Sequence[int] | None = None,
    copy: bool | None = None,
) -> keras.Model:
    """The model with a new layer in the place of another one.

    Args:
        model: the model; it is not touched.
        layer: the old layer, or its name.
        new_layer: is copied, weights included if it has any, and called with what the old layer
            was called with.
        node_indices: at which of the old layer's calls, if it is shared; None for all.
        copy: has no effect, see `Surgeon`.

    Raises:
        RequestError: see `Surgeon`.
    """
    surgeon = Surgeon(model, copy)
    surgeon.add_job("replace_layer", layer, new_layer=new_layer, node_indices=node_indices)
    return surgeon.operate()


def delete_channels(
    model: keras.Model,
    layer: keras.Layer | str,
    channels: Sequence[int],
    *,
    node_indices: Sequence[int] | None = None,
    copy: bool | None = None,
) -> keras.Model:
    """The model without some of a layer's output channels, and without what is tied to them.

    Args:
        model: the model; it is not touched.
        layer: the layer whose filters or units go, or its name.
        channels: indices from 0; -1 is the last one.
        node_indices: at which of its calls, if it is shared; None for all. The weights of these
            calls are no longer shared with the others.
        copy: has no effect, see `Surgeon`.

    Raises:
        RequestError: see `Surgeon`.
    """
    surgeon = Surgeon(model, copy)
    surgeon.add_job("delete_channels", layer, channels=channels, node_indices=node_indices)
    return surgeon.operate()
