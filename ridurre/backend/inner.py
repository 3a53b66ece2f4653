"""Calls of layers inside a layer whose code is run on symbolic tensors.

Keras asks such a layer what it would return (`compute_output_spec`, `compute_output_shape`), and a
class of a user's own may answer wrongly, or for other arguments than its ``call`` takes. Nobody
notices as long as the layers around it run on numbers. So its code is asked instead.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import keras
import numpy as np
from keras.src.backend import compute_output_spec, in_stateless_scope, is_tensor
from keras.src.backend.common.keras_tensor import any_symbolic_tensors
from keras.src.layers import layer as keras_layer
from keras.src.ops.node import Node

from ridurre.backend import has_graph, to_numpy

#: Makes a stand-in for a layer, on which its code can be run without touching the layer.
StandIn = Callable[[Any], Any]


def tensors_in(structure: Any) -> list[Any]:
    """The tensors of what a layer returned, in order; a layer may return None among them."""
    return [x for x in keras.tree.flatten(structure) if x is not None]


def like(structure: Any) -> Any:
    """Fresh symbolic tensors of the same shapes and types; None stays."""

    def fresh(x: Any) -> Any:
        return None if x is None else keras.KerasTensor(x.shape, dtype=x.dtype)

    return keras.tree.map_structure(fresh, structure)


class _Node(Node):
    """A call that is noted although None is among what it returned."""

    def __init__(
        self, operation: Any, call_args: Any = None, call_kwargs: Any = None, outputs: Any = None
    ) -> None:
        super().__init__(operation, call_args, call_kwargs, tensors_in(outputs))


#: Only one thread at a time has Keras answer otherwise.
_LOCK = threading.RLock()


#: Symbolic tensors that stand for numbers, and these.
Constants = list[tuple[keras.KerasTensor, np.ndarray]]


def symbolic(structure: Any, constants: Constants) -> Any:
    """Numbers become symbolic tensors, which are noted; everything else stays."""

    def one(x: Any) -> Any:
        if not (is_tensor(x) or isinstance(x, np.ndarray)):
            return x
        value = to_numpy(x)
        constants.append((keras.KerasTensor(value.shape, dtype=str(value.dtype)), value))
        return constants[-1][0]

    return keras.tree.map_structure(one, structure)


@contextlib.contextmanager
def seeing_constants(constants: Constants) -> Iterator[None]:
    """While inside, layers with weights are seen that are called on numbers (of positions, say)."""
    called: Any = keras_layer.Layer.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        numbers = not in_stateless_scope() and not any_symbolic_tensors(args, kwargs)
        if numbers and (self.variables or not self.built):
            args, kwargs = symbolic((args, kwargs), constants)
        return called(self, *args, **kwargs)

    with _LOCK, mock.patch.object(keras_layer.Layer, "__call__", call):
        yield


@contextlib.contextmanager
def answering_by_code(stand_in: StandIn) -> Iterator[None]:
    """While inside, symbolic calls of layers return what their code says, and None where it does.

    Args:
        stand_in: makes what a layer's code is run on.
    """
    with _LOCK, mock.patch.object(keras_layer, "Node", _Node):
        asked: Any = keras_layer.Layer.symbolic_call

        def symbolic_call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if has_graph(self):
                return asked(self, *args, **kwargs)
            if type(self).__module__.startswith("keras."):
                return _with_known_sizes(self, asked(self, *args, **kwargs), args, kwargs)
            try:
                return like(stand_in(self).call(*args, **kwargs))
            except Exception as error:  # whatever a user's code says to symbolic tensors
                try:
                    return asked(self, *args, **kwargs)
                except Exception:  # nor does it say what it returns
                    raise error from None

        with mock.patch.object(keras_layer.Layer, "symbolic_call", symbolic_call):
            yield


def _with_known_sizes(layer: Any, outputs: Any, args: Any, kwargs: Any) -> Any:
    """Outputs without open sizes, where all sizes of the inputs are known.

    Some layers (`EinsumDense`) say an open size for whatever size they are given.
    """
    if not _open_sizes(outputs) or _open_sizes((args, kwargs)):
        return outputs
    try:
        return like(compute_output_spec(layer.call, *args, **kwargs))
    except Exception:  # it is as it says
        return outputs


def _open_sizes(structure: Any) -> bool:
    tensors = [t for t in keras.tree.flatten(structure) if isinstance(t, keras.KerasTensor)]
    return any(None in t.shape for t in tensors)


@contextlib.contextmanager
def returning(layer: Any, outputs: Any) -> Iterator[None]:
    """While inside, a symbolic call of the layer returns tensors like these: nothing is traced."""
    fresh = like(outputs)
    vars(layer)["symbolic_call"] = lambda *args, **kwargs: fresh
    try:
        with _LOCK, mock.patch.object(keras_layer, "Node", _Node):
            yield
    finally:
        del vars(layer)["symbolic_call"]
