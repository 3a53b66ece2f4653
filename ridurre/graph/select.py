"""Choose layers by name, regular expression, index, layer object or predicate."""

from __future__ import annotations

import numbers
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import keras

from ridurre.errors import RequestError, UnknownLayerError, nearest

#: What a user may name layers with; a list of these means any of them.
Selector: TypeAlias = (
    "str | re.Pattern[str] | int | keras.Layer | Callable[[keras.Layer], bool] | Sequence[Any]"
)
_SPECIAL = re.compile(r"[\\^$.*+?()\[\]{}|]")


def find_layer(layers: Mapping[str, keras.Layer], wanted: keras.Layer | str) -> str:
    """Full name of one layer, given itself, its full name, or its name if that is unique.

    Raises:
        UnknownLayerError: no layer, or more than one, is meant.
    """
    if isinstance(wanted, str):
        if wanted in layers:
            return wanted
        names = [full for full, layer in layers.items() if layer.name == wanted]
        what = repr(wanted)
    else:
        names = [full for full, layer in layers.items() if layer is wanted][:1]
        what = f"{getattr(wanted, 'name', wanted)!r} ({type(wanted).__name__})"
    if len(names) == 1:
        return names[0]
    if names:
        raise UnknownLayerError(
            f"Several layers are called {what}. Expected one of the full names: {sorted(names)}."
        )
    hint = nearest(wanted, layers) if isinstance(wanted, str) else ""
    raise UnknownLayerError(f"The model has no layer {what}.{hint} Layers: {_some(layers)}.")


def select_layers(
    model: keras.Model, layers: Mapping[str, keras.Layer], selector: Selector
) -> list[str]:
    """Full names of all layers that are meant, in the model's order.

    Args:
        model: its `layers` are what an index counts.
        layers: all layers by full name.
        selector: a name (of a nested model: all its layers), a regular expression searched in full
            names (a compiled pattern, or a string with a special character in it), an index into
            ``model.layers``, a layer, a predicate ``layer -> bool``, or a sequence of these.

    Raises:
        UnknownLayerError: a name or expression matches nothing, or an index is out of range.
    """
    if isinstance(selector, list | tuple | set | frozenset):
        chosen = {name for one in selector for name in select_layers(model, layers, one)}
    else:
        chosen = set(_chosen(model, layers, selector))
    return [name for name in layers if name in chosen]


def _chosen(model: keras.Model, layers: Mapping[str, keras.Layer], one: Any) -> Iterable[str]:
    if isinstance(one, bool):
        raise RequestError(f"Expected a name, pattern, index, layer or predicate. Received: {one}.")
    if isinstance(one, numbers.Integral):
        index, count = int(one), len(model.layers)
        if not -count <= index < count:
            raise UnknownLayerError(f"Layer index {one} is out of range: there are {count} layers.")
        return _within(layers, model.layers[index])
    if isinstance(one, keras.Layer):
        return _within(layers, one)
    if isinstance(one, re.Pattern):
        return _matching(layers, one)
    if isinstance(one, str):
        return _named(layers, one)
    if callable(one) and not isinstance(one, type):
        return [name for name, layer in layers.items() if one(layer)]
    raise RequestError(
        "Expected a name, pattern, index, layer, predicate, or a list of these. "
        f"Received: {one!r} ({type(one).__name__})."
    )


def _within(layers: Mapping[str, keras.Layer], layer: keras.Layer) -> list[str]:
    """The layer itself, or all layers of a nested model."""
    names = [name for name, other in layers.items() if other is layer]
    if not names and isinstance(layer, keras.Model):
        names = [n for n in layers if f"/{layer.name}/" in f"/{n}"]
    return names or [find_layer(layers, layer)]


def _named(layers: Mapping[str, keras.Layer], name: str) -> list[str]:
    exact = [f for f, x in layers.items() if name in (f, x.name) or f"/{name}/" in f"/{f}"]
    if exact:
        return exact
    if _SPECIAL.search(name):
        try:
            return _matching(layers, re.compile(name))
        except re.error as error:
            raise RequestError(f"{name!r} is no regular expression: {error}.") from error
    raise UnknownLayerError(
        f"The model has no layer {name!r}.{nearest(name, layers)} Layers: {_some(layers)}."
    )


def _matching(layers: Mapping[str, keras.Layer], pattern: re.Pattern[str]) -> list[str]:
    names = [name for name in layers if pattern.search(name)]
    if not names:
        raise UnknownLayerError(
            f"The regular expression {pattern.pattern!r} matches no layer. Layers: {_some(layers)}."
        )
    return names


def _some(layers: Iterable[str], most: int = 10) -> str:
    names = list(layers)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
