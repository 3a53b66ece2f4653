"""Names that are the same in every copy of a model: of its layers and of their variables."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import TypeVar

import keras

from ridurre.backend import has_graph
from ridurre.backend.models import graph_of

T = TypeVar("T")


def variable_paths(layers: dict[str, keras.Layer]) -> dict[int, str]:
    """A unique name for every variable, by its id.

    It is the variable's Keras path; where several variables share one, the names of the models that
    their layers stand in are put in front, then those of the layers, then they are counted.
    """
    owners = {id(v): name for name, x in layers.items() for v in x.variables}
    paths = {id(v): v.path for x in layers.values() for v in x.variables}
    models = {key: name.rpartition("/")[0] for key, name in owners.items()}
    for before in (models, owners):
        count = collections.Counter(paths.values())
        paths = {
            key: path if count[path] == 1 else f"{before[key]}/{path}".lstrip("/")
            for key, path in paths.items()
        }
    count = collections.Counter(paths.values())
    numbers: dict[str, int] = collections.defaultdict(int)
    for key, path in paths.items():
        if count[path] > 1:
            numbers[path] += 1
            paths[key] = f"{path}:{numbers[path]}"
    return paths


def by_own_paths(by_path: Mapping[str, T], layers: dict[str, keras.Layer]) -> dict[str, T]:
    """What is known by the paths of one copy of a model, by those of another.

    Keras puts a Sequential model's name in front of its variables or not, depending on how the
    model came about; saving and loading changes that. A path that is not there stands for the one
    variable that it names but for such a first part; if there is none, it is given back as it is.

    Args:
        by_path: anything, by `variable_paths` of the one copy.
        layers: of the other.
    """
    here = variable_paths(layers)
    known = set(here.values())
    tails: dict[str, set[str]] = {}
    for name, layer in layers.items():
        for variable in layer.variables:
            tail = _from_layer(variable.path, name.rpartition("/")[2])
            tails.setdefault(tail, set()).add(here[id(variable)])

    def own(path: str) -> str:
        if path in known:
            return path
        candidates = tails.get(path, set()) | tails.get(path.partition("/")[2], set())
        return candidates.pop() if len(candidates) == 1 else path

    return {own(path): value for path, value in by_path.items()}


def _from_layer(path: str, layer: str) -> str:
    """The part of a variable's path that begins with its layer, if the layer is in it."""
    parts = path.split("/")
    return "/".join(parts[parts.index(layer) :]) if layer in parts else path


def named_layers(model: keras.Model, scope: str = "") -> dict[str, keras.Layer]:
    """Every layer of a model by its name behind the names of the models it stands in."""
    found: dict[str, keras.Layer] = {}
    for node in graph_of(model).nodes:
        name = scope + node.operation.name
        if has_graph(node.operation):
            found |= named_layers(node.operation, name + "/")
        elif isinstance(node.operation, keras.Layer):
            found.setdefault(name, node.operation)
    return found
