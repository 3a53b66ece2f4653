"""Delete channels of several layers at once: by a plan, or whole branches."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from ridurre.dependency import DependencyGraph
from ridurre.errors import RequestError
from ridurre.graph.labels import FIXED, Value
from ridurre.plan import Planner
from ridurre.rebuilding import Rebuilder
from ridurre.surgeon.places import tensors_of
from ridurre.surgery import distribution_of

Request = Mapping[str, tuple[int, ...]]


def cut(model: keras.Model, layers: Mapping[str, tuple[int, ...]]) -> keras.Model:
    """The model without these channels, and without what is tied to them.

    The model's own outputs become narrower where the request reaches them. A layer that loses all
    its channels goes, with every layer that reads nothing else, up to a concatenation.

    Args:
        model: it is not touched.
        layers: full name of each layer → its output channels to delete.

    Raises:
        RequestError: layers that are tied to each other are to lose different channels; a channel
            cannot go (`FrozenChannelError`); or nothing would be left of an output.
    """
    graph = DependencyGraph(model, free_outputs=True)
    _check_agreement(graph, layers)
    if all(len(gone) < len(graph.channels(name)) for name, gone in layers.items()):
        return graph.get_pruning_plan(layers).exec()
    return _without_branches(graph, layers)


def _check_agreement(graph: DependencyGraph, request: Request) -> None:
    """What is asked for of one layer must agree with what is asked for of another."""
    tied = graph.solution.hard
    for one, other in itertools.combinations(request, 2):
        ends = {name: tied[graph.channels(name)] for name in (one, other)}
        shared = np.intersect1d(*ends.values())
        shared = shared[shared != tied[FIXED]]
        a, b = (np.intersect1d(ends[n][list(request[n])], shared) for n in (one, other))
        if not np.array_equal(a, b):
            raise RequestError(
                f"Channels of the layers {one!r} and {other!r} are tied to each other: they are "
                "added, or read by one shared layer, and can only go together. Received: "
                f"{list(request[one])} of {one!r} and {list(request[other])} of {other!r}. Ask for "
                "the same channels of both, or only of one of them: the others go along."
            )


class _BranchPlanner(Planner):
    """A planner that lets a layer lose everything: with it goes what reads nothing else."""

    def branches(self, request: Request) -> np.ndarray:
        """What is left of all labels, ``(labels,)`` of bool."""
        alive = self.alive(request)
        while (dead := self._starved(alive)).size:
            alive &= self.close(dead)
        return alive

    def _starved(self, alive: np.ndarray) -> np.ndarray:
        """Labels that are alive, of layers that have nothing left to read."""
        found = [np.zeros(0, int)]
        for call in self.graph.trace.calls:
            if call.inputs and all(_is_gone(v, alive) for v in call.inputs):
                found += [v.labels[alive[v.labels]] for v in call.outputs]
        return np.unique(np.concatenate(found))

    def _check_something_stays(self, alive: np.ndarray) -> None:
        """Nothing has to, within a branch."""


class _BranchRebuilder(Rebuilder):
    """Leaves out the calls of which nothing is left."""

    def __init__(self, graph: DependencyGraph, alive: np.ndarray) -> None:
        super().__init__(graph, alive)
        self._alive = alive

    def _call(self, node: Any, args: Any, kwargs: Any) -> Any:
        if all(map(self._gone, node.outputs)):
            return [None] * len(node.outputs)
        if not any(map(self._gone, [*tensors_of((node.args, node.kwargs)), *node.outputs])):
            return super()._call(node, args, kwargs)
        kind = type(node.operation).__name__
        if kind != "Concatenate":
            raise RequestError(
                f"This would remove every channel of an input, or of an output, of "
                f"{node.operation.name!r} ({kind}), "
                "which cannot do without it. Only a concatenation can lose a whole branch."
            )
        left = [x for x in keras.tree.flatten(args[0]) if x is not None]
        if len(left) == 1:
            return left[0]
        return super()._call(node, (left, *args[1:]), kwargs)

    def _gone(self, tensor: keras.KerasTensor) -> bool:
        return _is_gone(self.trace.first_value[id(tensor)], self._alive)


def _is_gone(value: Value, alive: np.ndarray) -> bool:
    return not alive[value.labels].any()


def _without_branches(graph: DependencyGraph, request: Request) -> keras.Model:
    alive = _BranchPlanner(graph).branches(request)
    for value in graph.trace.outputs:
        if _is_gone(value, alive):
            whole = [n for n, gone in request.items() if len(gone) == len(graph.channels(n))]
            raise RequestError(
                f"This would remove every channel of {', '.join(map(repr, whole))}, and nothing "
                f"would be left of an output of the model {graph.model.name!r}. Only a branch that "
                "ends in a concatenation can go as a whole."
            )
    with distribution_of(graph.model):
        rebuilder = _BranchRebuilder(graph, alive)
        rebuilder.check_sharding()
        model = rebuilder.model(graph.model)
        rebuilder.copy_state()
    return model
