"""Whether two graphs of operations compute the same, as far as can be seen without numbers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from ridurre.backend import FunctionalGraph, Node, own_variables, settings_of
from ridurre.graph.rules.base import argument_of
from ridurre.graph.rules.merging import is_array
from ridurre.graph.rules.slicing import full_key

#: Operations whose results are told by their shapes, given their input.
BY_SHAPE = frozenset({"Reshape", "Ravel", "BroadcastTo", "Split", "ArraySplit", "Squeeze"})


def alike(
    a: FunctionalGraph,
    b: FunctionalGraph,
    same: list[tuple[keras.KerasTensor, keras.KerasTensor]],
    places: tuple[dict[int, int], dict[int, int]],
) -> bool:
    """Whether two graphs have the same operations in the same order on the same tensors.

    Args:
        a: a graph.
        b: another one.
        same: which tensors that they begin with correspond.
        places: for a and b, the number of every variable of a layer, by its id; like layers have
            like numbers.

    Returns:
        True if they compute the same; False if that cannot be seen.
    """
    if len(a.nodes) != len(b.nodes):
        return False
    twins = {id(x): id(y) for x, y in same}
    for x, y in zip(a.nodes, b.nodes, strict=True):
        if len(x.outputs) != len(y.outputs) or not _like_nodes(x, y, twins, places):
            return False
        twins |= {id(s): id(t) for s, t in zip(x.outputs, y.outputs, strict=True)}
    return [twins.get(id(t)) for t in a.outputs] == [id(t) for t in b.outputs]


def _like_nodes(x: Node, y: Node, twins: dict[int, int], places: Any) -> bool:
    if type(x.operation) is not type(y.operation):
        return False
    if [t.shape for t in x.outputs] != [t.shape for t in y.outputs]:
        return False
    kind = type(x.operation).__name__
    if isinstance(x.operation, keras.Layer):
        fits = _like_layers(x.operation, y.operation, places)
        return fits and _like_arguments(x, y, twins)
    if kind in BY_SHAPE:
        return _tensors(x, twins) == _tensors(y, None)
    if kind == "GetItem":
        return _tensors(x, twins) == _tensors(y, None) and _selection(x) == _selection(y)
    return _like_settings(x.operation, y.operation) and _like_arguments(x, y, twins)


def _like_layers(a: keras.Layer, b: keras.Layer, places: Any) -> bool:
    numbers = [[places[i].get(id(v)) for v in own_variables(x)] for i, x in enumerate((a, b))]
    return numbers[0] == numbers[1] and nameless(config_of(a)) == nameless(config_of(b))


def config_of(layer: keras.Layer) -> Any:
    """What a layer says of itself; where that fails, the plain values that it holds.

    Nobody may ever have asked it.
    """
    try:
        return layer.get_config()
    except Exception:  # whatever a user's code raises
        plain = (bool, int, float, str, type(None), tuple)
        return {k: v for k, v in vars(layer).items() if isinstance(v, plain)}


def nameless(config: Any) -> Any:
    """A configuration without the names, which Keras counts up."""
    if isinstance(config, dict):
        return {k: nameless(v) for k, v in config.items() if k not in ("name", "keras_history")}
    if isinstance(config, list | tuple):
        return [nameless(v) for v in config]
    return config


def _leaves(x: Node) -> list[Any]:
    return keras.tree.flatten((list(x.args), x.kwargs))


def _tensors(x: Node, twins: dict[int, int] | None) -> list[Any]:
    found = [id(t) for t in _leaves(x) if isinstance(t, keras.KerasTensor)]
    return found if twins is None else [twins.get(t) for t in found]


def _like_arguments(x: Node, y: Node, twins: dict[int, int]) -> bool:
    a, b = _leaves(x), _leaves(y)
    return len(a) == len(b) and all(_like_values(s, t, twins) for s, t in zip(a, b, strict=True))


def _like_values(a: Any, b: Any, twins: dict[int, int]) -> bool:
    if isinstance(a, keras.KerasTensor):
        return twins.get(id(a)) == id(b)
    if is_array(a) or is_array(b):
        return np.shape(a) == np.shape(b) and bool(np.all(np.asarray(a) == np.asarray(b)))
    return bool(a == b)


def _like_settings(a: Any, b: Any) -> bool:
    settings = [settings_of(x) for x in (a, b)]
    if settings[0].keys() != settings[1].keys():
        return False
    return all(_like_values(_plain(v), _plain(settings[1][k]), {}) for k, v in settings[0].items())


def _plain(value: Any) -> Any:
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _selection(x: Node) -> Any:
    """Which positions an indexing takes, axis by axis; the node itself if that depends on data."""
    (tensor,) = [t for t in _leaves(x) if isinstance(t, keras.KerasTensor)][:1]
    key = full_key(argument_of(x.operation, "key", x.args, x.kwargs), len(tensor.shape))
    if key is None:
        return id(x)
    sizes = iter(tensor.shape)
    return [None if p is None else _chosen(p, next(sizes)) for p in key]


def _chosen(part: Any, size: int | None) -> Any:
    return repr(part) if size is None else np.arange(size)[part].tolist()
