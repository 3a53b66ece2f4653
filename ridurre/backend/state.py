"""What a layer is made of, and how it is made to be another one in place."""

from __future__ import annotations

import tempfile
from typing import Any

import keras
import numpy as np
from keras.src.backend import set_keras_mask

from ridurre.backend import all_layers, to_numpy
from ridurre.backend.opening import OPEN_SIZES, Inputs, run_code, shadow_of


class _BuiltAlready(Exception):
    """A layer is built; its call is not wanted."""


def build_on(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Build a layer as a call with these symbolic tensors would, without the call."""
    if not layer.built:
        _build_outside(layer, args, kwargs)
    if not all(x.built for x in all_layers(layer)):  # a `build` that leaves them to the first call
        _build_inside(layer, args, kwargs)


def _build_outside(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if not builds_itself(layer):  # Keras would trace the whole code to build what is in it
        _build_inside(layer, args, kwargs)

    def stop(*args: Any, **kwargs: Any) -> None:
        raise _BuiltAlready

    vars(layer)["symbolic_call"] = stop
    try:
        layer(*args, **kwargs)
    except _BuiltAlready:
        pass
    finally:
        del vars(layer)["symbolic_call"]


def _build_inside(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Run a layer's code once, which builds what is in it."""
    error: Exception | None = None
    for size in OPEN_SIZES:
        known, named = keras.tree.map_structure(Inputs(size), (args, kwargs))
        shadow, _ = shadow_of(layer)
        vars(shadow)["built"] = True
        try:
            run_code(shadow, known, named, [])
            return
        except Exception as failure:  # whatever a user's code raises
            error = error or failure
    if error is not None:
        raise error


def children_of(layer: keras.Layer) -> list[keras.Layer]:
    """The layers that a layer holds directly, in the order in which it got them."""
    return list(layer._layers)


def weights_made_by(layer: keras.Layer) -> list[keras.Variable]:
    """A layer's own variables, without those of layers inside it, in the order of making."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def builds_itself(layer: keras.Layer) -> bool:
    """Whether the layer's class says how it is built (and does not wait for its first call)."""
    return getattr(type(layer).build, "_is_default", False) is False


def says_shapes(layer: keras.Layer) -> bool:
    """Whether the layer's class says itself what shapes it returns."""
    cls = type(layer)
    return (
        cls.compute_output_shape is not keras.Layer.compute_output_shape
        or cls.compute_output_spec is not keras.Layer.compute_output_spec
    )


def take_over(layer: keras.Layer, other: keras.Layer) -> None:
    """Make a layer be another one, weights and all; whoever holds it goes on holding it."""
    state = vars(other) | {"_inbound_nodes": [], "_outbound_nodes": []}
    layer.__class__ = type(other)
    vars(layer).clear()
    vars(layer).update(state)


def reshape_variable(variable: Any, shape: tuple[int, ...]) -> None:
    """Give a variable another shape; its value is zero then."""
    value = np.zeros(shape, to_numpy(variable).dtype)
    variable._shape = tuple(shape)
    variable._initialize(keras.ops.convert_to_tensor(value, dtype=variable.dtype))


def recount(layer: Any) -> None:
    """Let PyTorch look anew for what a layer, and every one in it, has for parameters."""
    for one in [layer, *all_layers(layer)]:
        if "_torch_params" in vars(one) or "_torch_params" in vars(one).get("_modules", {}):
            one._track_variables()


def with_masks(tensors: list[Any], masks: dict[int, Any]) -> list[Any]:
    """The tensors, with a Keras mask attached to those whose place has one."""
    for place, mask in masks.items():
        set_keras_mask(tensors[place], mask)
    return tensors


def copy_hidden_state(old: keras.Layer, new: keras.Layer) -> None:
    """Copy what a layer (or one inside it) knows besides its variables, as saving to a file does.

    An adapted Normalization computes constants when its variables are loaded; a StringLookup keeps
    its vocabulary in a file of its own.
    """
    pairs = zip([old, *all_layers(old)], [new, *all_layers(new)], strict=True)
    for a, b in pairs:
        if type(a).load_own_variables is not keras.Layer.load_own_variables:
            store: dict[str, Any] = {}
            a.save_own_variables(store)  # variables: JAX would let both layers hold the same array
            b.load_own_variables({key: np.array(to_numpy(v)) for key, v in store.items()})
        if hasattr(a, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                a.save_assets(folder)
                b.load_assets(folder)
