"""The dependency graph with its plans: graph, plan and surgery under one name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from ridurre.errors import (
    ModelError,
    NothingToPruneError,
    RequestError,
    RidurreError,
    RidurreWarning,
)
from ridurre.graph import ChannelGraph, Group, Reason
from ridurre.graph.groups import Solution
from ridurre.graph.select import Selector
from ridurre.plan import Planner, PruningPlan, Removed
from ridurre.surgery import misfit, outermost, rebuild


class DependencyGraph(ChannelGraph):
    """Which channels of a model hang together, and what goes with what.

    Example::

        graph = ridurre.DependencyGraph(model)
        plan = graph.get_pruning_plan("conv1", idxs=[2, 6, 9])
        print(plan)
        smaller = plan.exec()

    Args:
        model: a built Keras 3 model; it is only read.
        protect: layers whose output channels must stay: a name, a regular expression, an index
            into ``model.layers``, a layer, a predicate ``layer -> bool``, or a list of these.
        free_outputs: whether the model's outputs may lose channels; by default they are fixed.

    Attributes:
        groups: all groups of channels that can be pruned.
        barriers: layers and operations that no rule describes, name → class.

    Raises:
        ModelError: not a Keras model, not built, quantised, or its code does not show what it does.
        UnknownLayerError: `protect` names a layer that is not there.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        protect: Selector | None = None,
        free_outputs: bool = False,
    ) -> None:
        super().__init__(model, protect=protect, free_outputs=free_outputs)
        self._tried: dict[str, str] = {}
        self._unmade = ""
        if self.trace.opened:
            self._hold_all_if_a_layer_cannot_be_made()
            self._hold_what_code_holds()
        self._warn_barriers()

    def get_pruning_plan(
        self,
        layer: keras.Layer | str | Group | Mapping[Any, Sequence[int]],
        idxs: Sequence[int] | None = None,
    ) -> PruningPlan:
        """The plan that removes these output channels and everything tied to them.

        Where only whole blocks may go (grouped convolutions, reshaped channels), the request is
        extended to the smallest such set.

        Args:
            layer: a layer or its name; a `Group` of ``graph.groups``; or a mapping of these to
                indices, to remove from several at once.
            idxs: output channels of that layer (units of that group), from 0.

        Raises:
            UnknownLayerError: no such layer.
            FrozenChannelError: one of the channels cannot be removed, and why.
            RequestError: an index is out of range or repeated, no channel of some layer would be
                left, or the code of some layer does not follow when these go together.
        """
        if (idxs is None) != isinstance(layer, Mapping):
            raise RequestError(
                "Expected a layer and the indices of its channels, or a mapping of layers to "
                f"indices. Received: {layer!r} and {idxs!r}."
            )
        request: Mapping[Any, Sequence[int]]
        request = layer if isinstance(layer, Mapping) else {layer: [] if idxs is None else idxs}
        planner = Planner(self)
        alive = planner.alive(request)
        for call in outermost(self.trace):
            if misfit(self, call, alive, self._tried, whole=False):
                raise RequestError(
                    f"The code of {call.name!r} ({call.kind}) does not follow when these channels "
                    f"go together, though it may when each goes alone. Received: {request!r}. "
                    "Remove fewer at once, or the same share of every group."
                )
        return self._plan(planner, alive)

    def complete(self, removed: Removed) -> PruningPlan:
        """The plan that removes just these positions, ``{variable path: {axis: indices}}``.

        Raises:
            PlanMismatchError: the model has no such positions, or coupled ones are missing.
        """
        planner = Planner(self)
        return self._plan(planner, planner.labels_of(PruningPlan(removed, (), {})))

    def nothing_to_prune(self, message: str) -> RidurreError:
        """The error to raise where nothing can go.

        Args:
            message: what was looked for; not told if no smaller model can be made at all.
        """
        return ModelError(self._unmade) if self._unmade else NothingToPruneError(message)

    def _plan(self, planner: Planner, alive: np.ndarray) -> PruningPlan:
        def execute(plan: PruningPlan, keep_compiled: bool) -> keras.Model:
            return rebuild(self, planner.labels_of(plan), keep_compiled=keep_compiled)

        return planner.plan(alive, execute)

    def _hold_all_if_a_layer_cannot_be_made(self) -> None:
        """Every layer is made anew, also those that lose nothing."""
        space = self.trace.space
        everything = np.ones(space.size, bool)
        for call in outermost(self.trace) if self.solution.groups() else ():
            self._unmade = misfit(self, call, everything, self._tried, whole=True)
            if self._unmade:
                space.at(call.name, call.kind)
                space.freeze(np.arange(1, space.size), Reason.UNMADE)
                self._solve_again()
                return

    def _solve_again(self) -> None:
        self.solution = Solution(self.trace)
        self.__dict__.pop("groups", None)

    def _hold_what_code_holds(self) -> None:
        """Freeze channels on which some layer's code insists, before anybody asks for them.

        Every group is tried, one unit of it, in every layer whose code was looked into.
        """
        while True:
            solution, planner, space = self.solution, Planner(self), self.trace.space
            stuck = len(space.frozen)
            for group in solution.groups():
                labels = np.flatnonzero(np.isin(solution.soft, group.components))
                alive = self._without_one_of(group, planner)
                if alive is None:
                    continue
                for call in outermost(self.trace):
                    if misfit(self, call, alive, self._tried, whole=False):
                        space.at(call.name, call.kind)
                        space.freeze(labels, Reason.CODE)
            if len(space.frozen) == stuck:
                return
            self._solve_again()

    def _without_one_of(self, group: Group, planner: Planner) -> np.ndarray | None:
        """What is left without the first unit of a group that can go at all."""
        for component in group.components:
            try:
                return planner.close(np.flatnonzero(self.solution.soft == component))
            except RequestError:
                continue
        return None

    def _warn_barriers(self) -> None:
        """One warning for all layers without a rule that channels flow into."""
        frozen = {w.name for _, w in self.trace.space.frozen if w.reason is Reason.NO_RULE}
        unknown = [f"{n!r} ({kind})" for n, kind in self.barriers.items() if n in frozen]
        if unknown:
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            warnings.warn(
                f"Channels that flow into {', '.join(unknown[:5])}{more} cannot be pruned: no rule "
                "says what happens to them there. See ridurre.register_rule.",
                RidurreWarning,
                stacklevel=3,
            )
