"""Layers and operations made anew, from what they say they were made with."""

from __future__ import annotations

import inspect
import types
import warnings
from typing import Any

import keras

from ridurre.errors import ModelError


def recreate(operation: keras.Operation, changes: dict[str, Any]) -> keras.Operation:
    """A new operation of the same class and configuration, except for `changes`.

    Args:
        operation: the layer or operation.
        changes: arguments of its constructor; layers that it wraps as layers.

    Raises:
        ModelError: the class cannot be re-created from its configuration.
    """
    if isinstance(operation, keras.layers.Lambda):
        return _recreate_lambda(operation)
    try:
        with warnings.catch_warnings():  # Keras warns of saving a lambda; nothing is saved here
            warnings.simplefilter("ignore")
            config = operation.get_config() | changes
        config |= _own_functions(operation, config) | changes
        # Wrappers take the layers themselves, which may not be known to Keras by their names.
        wraps = any(isinstance(x, keras.Layer) for x in keras.tree.flatten(changes))
        cls = type(operation)
        new: keras.Operation = cls(**config) if wraps else cls.from_config(config)
        if "name" not in changes:  # not every configuration of a class of one's own has it
            new.name = operation.name
        return new
    except Exception as error:
        if not isinstance(operation, keras.Layer):
            return _copy_operation(operation, changes)
        if type(operation).__module__.startswith("keras."):  # `Identity` does not take its own
            return remake(operation, changes)
        raise ModelError(
            f"The layer {operation.name!r} ({type(operation).__name__}) cannot be re-created from "
            f"its configuration: {error}\nGive the class a `get_config` that returns every "
            "argument of its constructor, and register its custom objects with "
            "@keras.saving.register_keras_serializable()."
        ) from error


def arguments_of(layer: keras.Layer) -> dict[str, Any]:
    """What a layer was made with, as far as Keras noted it or attributes of the names have it."""
    signature = inspect.signature(type(layer).__init__)
    named = {n: p for n, p in list(signature.parameters.items())[1:]
             if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}  # fmt: skip
    takes_more = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    general = {"name": layer.name, "dtype": layer.dtype_policy, "trainable": layer.trainable}
    given = {n: v for n, v in general.items() if takes_more or n in named}
    recorded = getattr(layer, "_auto_config", None)
    is_model = isinstance(layer, keras.Model)  # of these Keras notes the defaults alone
    noted = {} if recorded is None or is_model else recorded.config
    for name in named.keys() - given.keys():
        value = getattr(layer, name, getattr(layer, f"_{name}", inspect.Parameter.empty))
        value = noted.get(name, value)
        if value is not inspect.Parameter.empty and not isinstance(value, keras.Variable):
            given[name] = value
    return given


def remake(layer: keras.Layer, changes: dict[str, Any]) -> keras.Layer:
    """A new layer by a call of its class, as far as Keras or its attributes tell what with.

    For classes without a working ``get_config``; whether the result is right must be checked.

    Raises:
        ModelError: an argument without a default is not an attribute of the same name.
    """
    cls = type(layer)
    try:
        new = cls(**arguments_of(layer) | changes)
    except Exception as error:  # whatever a user's code raises
        raise ModelError(
            f"The layer {layer.name!r} ({cls.__name__}) cannot be re-created: its class has no "
            f"working `get_config`, and its attributes are not its arguments: {error}"
        ) from error
    new.name = layer.name
    return new


def names_read_by(layer: keras.Layer) -> set[str]:
    """Names of attributes that occur in what a layer's class does once a layer of it is made."""
    making = {"__init__", "build", "get_config", "from_config"}
    above = set(keras.Layer.__mro__)
    methods = [
        inspect.unwrap(getattr(f, "__func__", getattr(f, "fget", None) or f))
        for cls in type(layer).__mro__
        if cls not in above
        for name, f in vars(cls).items()
        if name not in making
    ]
    codes = [f.__code__ for f in methods if isinstance(f, types.FunctionType)]
    found: set[str] = set()
    while codes:
        code = codes.pop()
        found.update(code.co_names)
        codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return found


def _own_functions(operation: keras.Operation, config: dict[str, Any]) -> dict[str, Any]:
    """Functions among the constructor's arguments: a configuration holds only their names."""
    own = {name: getattr(operation, name, None) for name in config}
    return {name: f for name, f in own.items() if isinstance(f, types.FunctionType)}


def _copy_operation(operation: keras.Operation, changes: dict[str, Any]) -> keras.Operation:
    """Operations of ``keras.ops`` keep their constructor's arguments under the same names."""
    new: keras.Operation = object.__new__(type(operation))  # copy.copy would go through its config
    vars(new).update(vars(operation))
    new._inbound_nodes, new._outbound_nodes = [], []
    for name, value in changes.items():
        setattr(new, name, value)
    return new


def _recreate_lambda(layer: keras.layers.Lambda) -> keras.layers.Lambda:
    """A Lambda's configuration is byte code, which Keras rightly refuses; its function will do."""
    return keras.layers.Lambda(
        layer.function,
        output_shape=layer._output_shape,
        mask=layer.mask,
        arguments=layer.arguments,
        name=layer.name,
        dtype=layer.dtype_policy,
        trainable=layer.trainable,
    )
