"""Which channels to delete: those that are mostly zero (APoZ; Hu et al., 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from ridurre.backend import to_numpy
from ridurre.checks import check_choice, check_finite
from ridurre.data import Batches, is_arrays
from ridurre.errors import RequestError
from ridurre.forward import Forward
from ridurre.graph import Call, ChannelGraph
from ridurre.graph.labels import varying
from ridurre.graph.rules.activation import PASSING
from ridurre.graph.trace import Trace
from ridurre.surgeon.places import Place, find_place, select_calls

_ACTIVATIONS = (*PASSING, keras.layers.PReLU, keras.layers.Softmax)


def get_apoz(
    model: keras.Model,
    layer: keras.Layer | str,
    x_val: Any,
    node_indices: Sequence[int] | None = None,
) -> np.ndarray:
    """The average percentage of zeros of every channel of a layer, over samples and positions.

    Counted are the zeros after the activation. If the layer has none of its own, that is the
    output of the first activation behind it, through batch norm, dropout or pooling, as long as the
    channels pass one by one and the model does not branch; failing that, the layer's own output.

    Source: Hu et al., "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient
    Deep Architectures", 2016.

    Args:
        model: the model; it is only read, and run in inference mode.
        layer: one of its layers, or its name.
        x_val: samples as ``model.predict`` takes them; a list of arrays for several inputs.
        node_indices: which calls of a shared layer; None for all, taken together.

    Returns:
        A fraction from 0 to 1 for every channel, ``(channels,)``.

    Raises:
        UnknownLayerError: the model has no such layer.
        RequestError: the data or the node indices do not fit.
    """
    trace = ChannelGraph(model).trace
    calls = _calls(trace, find_place(model, layer), node_indices)
    watched = {id(c): axis for c, axis in (_activation(trace, call) for call in calls)}
    data = Batches((x_val,) if is_arrays(x_val) else x_val, seed=None)
    zeros: Any = 0
    count = 0
    for step in Forward(trace, data):
        axis = watched.get(id(step.call))
        if axis is None:
            continue
        for batch in range(step.batches):
            output = np.moveaxis(to_numpy(step.outputs(batch)[0]), axis, -1)
            rows = output.reshape(-1, output.shape[-1])
            zeros = zeros + (rows == 0).sum(axis=0)
            count += len(rows)
    return np.asarray(zeros / count)


def _calls(trace: Trace, place: Place, node_indices: Sequence[int] | None) -> list[Call]:
    """What is meant: all calls, those of nested models that are called several times included."""
    nodes = select_calls(place, node_indices)
    if not trace.by_layer[id(place.layer)]:
        raise RequestError(f"{place.name!r} is a nested model. Expected one of its layers.")
    if node_indices is None:
        return trace.by_layer[id(place.layer)]
    return [trace.first_call[id(node.outputs[0])] for node in nodes]


def _activation(trace: Trace, call: Call) -> tuple[Call, int]:
    """The call after which zeros are counted, and the axis of the channels in its output."""
    first = getattr(call.operation, "data_format", None) == "channels_first"
    own = call, (1 if first else -1)
    axis = own[1]
    while not _activates(call):
        value = call.outputs[0]
        readers = [c for c in trace.calls if any(v is value for v in c.inputs)]
        if len(readers) != 1 or any(v is value for v in trace.outputs):
            return own
        call = readers[0]
        if trace.space.produced_by(call.operation):
            return own
        labels = call.outputs[0].labels
        if np.array_equal(labels.ravel(), value.labels.ravel()) and labels.size > 1:
            axis = varying(labels)[0]
        elif not _activates(call) or call.outputs[0].shape != value.shape:
            return own
    return call, axis


def _activates(call: Call) -> bool:
    if isinstance(call.operation, _ACTIVATIONS):
        return True
    function = getattr(call.operation, "activation", None)
    return function is not None and function is not keras.activations.linear


def high_apoz(
    apoz: Sequence[float] | np.ndarray,
    method: str = "std",
    cutoff_std: float = 1,
    cutoff_absolute: float = 0.99,
) -> np.ndarray:
    """Channels whose average percentage of zeros reaches a cut-off (at most 1).

    Args:
        apoz: what `get_apoz` returned, ``(channels,)``.
        method: ``"std"``: the cut-off is the mean and `cutoff_std` standard deviations more;
            ``"absolute"``: it is `cutoff_absolute`; ``"both"``: the lower of the two.
        cutoff_std: standard deviations.
        cutoff_absolute: a fraction.

    Returns:
        Indices of the channels, sorted. They are all channels where all are alike and the method
        is not ``"absolute"``: everything then reaches the mean.

    Raises:
        RequestError: another method, or no numbers.
    """
    check_choice("method", method, ("std", "absolute", "both"))
    values = np.asarray(apoz, "float64")
    if values.ndim != 1 or not values.size:
        raise RequestError(f"Expected one number per channel. Received: {apoz!r}.")
    spread = values.mean() + values.std() * check_finite("cutoff_std", cutoff_std)
    absolute = check_finite("cutoff_absolute", cutoff_absolute)
    cutoff = {"std": spread, "absolute": absolute, "both": min(spread, absolute)}[method]
    return np.flatnonzero(values >= min(cutoff, 1))
