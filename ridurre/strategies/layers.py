"""What strategies have to know of layers: which come last, and where channels stand in kernels."""

from __future__ import annotations

import keras
import numpy as np

from ridurre.backend import has_graph
from ridurre.errors import RequestError
from ridurre.graph.trace import Trace
from ridurre.linear import CONVOLUTIONS, DEPTHWISE
from ridurre.weights import weights_of

L = keras.layers
TRANSPOSED = (L.Conv1DTranspose, L.Conv2DTranspose, L.Conv3DTranspose)
SEPARABLE = (L.SeparableConv1D, L.SeparableConv2D)
#: Layers with one kernel, which makes the channels of their output.
ONE_KERNEL = (L.Dense, *CONVOLUTIONS, *TRANSPOSED)


def last_layers(model: keras.Model) -> list[keras.Layer]:
    """The layers with kernels from which an output is reached without another kernel.

    Where the output is a sum of branches, these are the last layers of every branch.

    Raises:
        RequestError: the model has no graph, so nobody knows.
    """
    if not has_graph(model):
        raise RequestError(
            f"The model {model.name!r} ({type(model).__name__}) is subclassed: without a graph its "
            "classifier cannot be told. Expected classifier=True, which prunes all layers, or a "
            "strategy with a can_prune of its own."
        )
    owners = {id(w.owner) for w in weights_of(model)}
    trace, found = Trace(model), {}
    open_ends = {id(value) for value in trace.outputs}
    for call in reversed(trace.calls):
        if open_ends.isdisjoint(map(id, call.outputs)):
            continue
        if id(call.operation) in owners:
            found[id(call.operation)] = call.operation
        else:
            open_ends.update(map(id, call.inputs))
    return list(found.values())


def channels_last(layer: keras.Layer, array: np.ndarray) -> np.ndarray:
    """A kernel or bias of a layer with its output channels in the last axis.

    Depthwise kernels have them in two axes, transposed ones in the last but one.
    """
    if array.ndim > 1 and isinstance(layer, DEPTHWISE):
        return array.reshape(*array.shape[:-2], -1)
    if array.ndim > 1 and isinstance(layer, TRANSPOSED):
        return array.swapaxes(-1, -2)
    return array


def channels_back(layer: keras.Layer, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """What `channels_last` gave, in the kernel's own shape again."""
    if array.ndim > 1 and isinstance(layer, TRANSPOSED):
        array = array.swapaxes(-1, -2)
    return array.reshape(shape)
