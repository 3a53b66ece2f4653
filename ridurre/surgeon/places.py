"""Where the layers of a model are called, nested models included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras

from ridurre.backend import (
    Node,
    functional_graph,
    has_graph,
    in_order_of_calls,
    input_source,
)
from ridurre.checks import check_list
from ridurre.errors import RequestError
from ridurre.graph.select import find_layer


@dataclass(frozen=True)
class Place:
    """A layer, or a nested model, and its calls.

    Attributes:
        name: its name behind the names of the nested models it stands in.
        layer: itself.
        calls: all calls in the model, in the order in which they were made. A nested model that is
            called several times holds one call of each of its layers.
    """

    name: str
    layer: keras.Layer
    calls: tuple[Node, ...]


def find_place(model: keras.Model, wanted: keras.Layer | str) -> Place:
    """The place of a layer.

    Args:
        model: the model.
        wanted: the layer; its full name, or its name if that is unique; or a layer of another copy
            of the model, of which this one has the layer of the same name and class.

    Raises:
        UnknownLayerError: the model has no such layer.
        RequestError: it is an input of the model, which computes nothing.
    """
    named = isinstance(wanted, str) and wanted in _input_names(model)
    if named or isinstance(wanted, keras.layers.InputLayer):
        name = wanted if isinstance(wanted, str) else wanted.name
        raise RequestError(
            f"{name!r} is an input of the model. Expected a layer that computes something."
        )
    calls = _calls(model)
    layers = {name: nodes[0].operation for name, nodes in calls.items()}
    name = find_layer(layers, _namesake(layers, wanted))
    layer = layers[name]
    return Place(name, layer, tuple(in_order_of_calls(layer, calls[name])))


def select_calls(place: Place, node_indices: Sequence[int] | None) -> tuple[Node, ...]:
    """The calls of a shared layer that are meant; None means all.

    Raises:
        RequestError: the layer is not called so often, or a call is named twice, or none.
    """
    if node_indices is None:
        return place.calls
    chosen = check_list("node_indices", node_indices)
    possible = range(len(place.calls))
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(possible):
        raise RequestError(
            f"Expected node_indices to be calls of layer {place.name!r} in this model, numbered in "
            f"the order in which they were made: some of {list(possible)}, each once, or None for "
            f"all. Received: {node_indices!r}."
        )
    return tuple(place.calls[i] for i in sorted(chosen))


def tensors_of(structure: Any) -> list[keras.KerasTensor]:
    """All symbolic tensors in a structure."""
    return [x for x in keras.tree.flatten(structure) if isinstance(x, keras.KerasTensor)]


def inputs_of(call: Node) -> list[keras.KerasTensor]:
    """All tensors that a layer is called on, but for the mask that Keras hands on by itself."""
    return tensors_of((call.args, {k: v for k, v in call.kwargs.items() if k != "mask"}))


def _input_names(model: keras.Model) -> list[str]:
    return [input_source(t).name for t in functional_graph(model).inputs]


def _namesake(layers: dict[str, keras.Layer], wanted: Any) -> Any:
    """For a layer of another model its full name here, if there is one; else what was given."""
    if not isinstance(wanted, keras.Layer) or any(x is wanted for x in layers.values()):
        return wanted
    same = [n for n, x in layers.items() if x.name == wanted.name and type(x) is type(wanted)]
    return same[0] if len(same) == 1 else wanted


def _calls(model: keras.Model) -> dict[str, list[Node]]:
    """Full name of every layer and nested model → its calls."""
    names: dict[int, str] = {}
    calls: dict[str, list[Node]] = {}

    def visit(model: keras.Model, scope: str) -> None:
        for node in functional_graph(model).nodes:
            layer = node.operation
            if not isinstance(layer, keras.Layer):
                continue
            new = id(layer) not in names
            name = names.setdefault(id(layer), scope + layer.name)
            calls.setdefault(name, []).append(node)
            if new and has_graph(layer):
                visit(layer, name + "/")

    visit(model, "")
    return calls
