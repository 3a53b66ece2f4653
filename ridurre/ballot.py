"""Ask a pruning method about every layer, and carry out what the answers come to."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from ridurre.checks import check_indices
from ridurre.dependency import DependencyGraph
from ridurre.errors import RequestError
from ridurre.graph.rules.convolution import filter_kernel
from ridurre.graph.select import Selector
from ridurre.measure import model_complexity
from ridurre.voting import merge_votes

logger = logging.getLogger("ridurre")

#: A method's answer for one layer, given it and a copy of its kernel: filters to remove.
Ask = Callable[[keras.Layer, np.ndarray], Any]


class Ballot:
    """The layers of a model that are asked in every round, and those that keep their channels.

    Args:
        model: as it is before the first round.
        layers, protect: see `ridurre.BasePruning`.

    Attributes:
        chosen, protected: full names of layers, which stay the same in smaller models.
        filters: how many the model has.

    Raises:
        NothingToPruneError: no filter of the chosen layers can be removed.
    """

    def __init__(
        self, model: keras.Model, layers: Selector | None, protect: Selector | None
    ) -> None:
        graph = DependencyGraph(model, protect=protect)
        self.chosen = list(graph.layers) if layers is None else graph.select(layers)
        self.protected = [] if protect is None else graph.select(protect)
        self.filters = model_complexity(model).filters
        if not self._prunable(graph):
            raise graph.nothing_to_prune(
                f"The model {model.name!r} has no convolution whose filters can be pruned"
                + ("." if layers is None else f" among the selected layers {layers!r}.")
                + " Filters tied to the model's inputs or outputs, protected ones and those that "
                "flow into layers without a rule have to stay."
            )

    @classmethod
    def of_all(cls, model: keras.Model) -> Ballot:
        """Without a question to any layer: for methods that choose by themselves."""
        ballot = cls.__new__(cls)
        ballot.chosen, ballot.protected = [], []
        ballot.filters = model_complexity(model).filters
        return ballot

    def prune(self, model: keras.Model, ask: Ask) -> keras.Model | None:
        """One round's smaller model; None if nothing is to be removed.

        Raises:
            RequestError: an answer is no list of filters, or a layer's weights are not finite.
        """
        protect = [re.compile(f"^{re.escape(name)}$") for name in self.protected]
        graph = DependencyGraph(model, protect=protect)
        votes = {name: _vote(graph, name, ask) for name in self._prunable(graph)}
        chosen = merge_votes(graph, votes)
        if not chosen:
            return None
        plan = graph.get_pruning_plan(chosen)
        logger.info("%s", plan)
        return plan.exec()

    def _prunable(self, graph: DependencyGraph) -> list[str]:
        """Chosen convolutions that have a channel to lose."""
        made = {name for group in graph.groups for name in group.producers}
        chosen = {id(graph.layers[name]) for name in self.chosen}  # a layer may have two names
        names = [n for n, layer in graph.layers.items() if n in made and id(layer) in chosen]
        return [n for n in names if filter_kernel(graph.layers[n]) is not None]


def _vote(graph: DependencyGraph, name: str, ask: Ask) -> list[int]:
    """What the method answers for one layer, checked."""
    layer = graph.layers[name]
    kernel = filter_kernel(layer)
    if kernel is None:
        raise RequestError(f"The layer {name!r} makes no filters.")
    if not np.isfinite(kernel).all():
        raise RequestError(
            f"The kernel of layer {name!r} holds values that are not finite (NaN or infinity); "
            "its filters cannot be ranked. Training has probably diverged."
        )
    count = kernel.shape[-1]
    what = f"layer {name!r} (as returned by run_pruning_for_conv2d_layer)"
    indices = check_indices(ask(layer, kernel), count, what)
    if len(indices) == count:
        raise RequestError(
            f"run_pruning_for_conv2d_layer returned all {count} filters of layer {name!r}; at "
            "least one has to stay."
        )
    fixed = indices[~graph.removable(name)[indices]]
    if fixed.size:
        logger.info("Channels %s of %s have to stay, whatever its vote.", fixed.tolist(), name)
    return indices.tolist()
