"""What goes: from a request (these channels of that layer) to every weight position that goes."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

import keras
import numpy as np

from ridurre.backend import parameters_of
from ridurre.checks import check_indices
from ridurre.errors import FrozenChannelError, PlanMismatchError, RequestError
from ridurre.graph import ChannelGraph, Group
from ridurre.graph.groups import is_box
from ridurre.graph.names import by_own_paths

Removed = dict[str, dict[int, np.ndarray]]
Execute = Callable[["PruningPlan", bool], keras.Model]
_ROLES = {
    "out": "output channels",
    "in": "input channels",
    "recurrent": "recurrent channels",
    "channel": "channels",
}
_FORMAT = 1


@dataclass(frozen=True)
class Cut:
    """What a plan takes from one axis of one layer's weights.

    Attributes:
        layer, kind: name and class of the layer.
        role: ``"output channels"``, ``"input channels"``, ``"recurrent channels"`` (those of a
            recurrent layer that it reads itself) or ``"channels"``.
        indices: positions that go.
        size: number of positions before.
    """

    layer: str
    kind: str
    role: str
    indices: tuple[int, ...]
    size: int

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.indices[:16])) + (", …" if len(self.indices) > 16 else "")
        return f"{len(self.indices)} of {self.size} {self.role} [{shown}]"


@dataclass(frozen=True, eq=False)
class PruningPlan:
    """Everything that a pruning step removes: frozen, printable, serialisable.

    Attributes:
        removed: ``{variable path: {axis: sorted indices}}`` for every affected variable of the
            original model.
        cuts: the same by layer, for people.
        layer_parameters: parameters that each layer loses. Batch norm counts its scale and offset,
            not its moving statistics.
        inexact: layers whose statistics run across channels and change with the cut. If there are
            none, the pruned model equals the original with the removed slices set to zero.
    """

    removed: Removed
    cuts: tuple[Cut, ...]
    layer_parameters: Mapping[str, int]
    inexact: tuple[str, ...] = ()
    _execute: Execute | None = field(default=None, repr=False)

    @property
    def parameters(self) -> int:
        """Number of parameters that go."""
        return sum(self.layer_parameters.values())

    @property
    def exact(self) -> bool:
        """Whether no normalisation across channels is affected."""
        return not self.inexact

    def exec(self, *, keep_compiled: bool = False) -> keras.Model:
        """Carry the plan out and return the smaller model; the original is not touched.

        Args:
            keep_compiled: compile the new model like the original, with the optimizer's state cut
                to match, so that training continues where it was.

        Raises:
            RequestError: the plan was loaded and knows no model; use ``ridurre.apply``.
        """
        if self._execute is None:
            raise RequestError(
                "A loaded plan holds no model. Use ridurre.apply(model, plan) with the model that "
                "the plan was made for."
            )
        return self._execute(self, keep_compiled)

    def print(self, file: TextIO | None = None) -> None:
        """Write the plan as text, to the standard output unless a file is given."""
        (file or sys.stdout).write(f"{self}\n")

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data that fits into JSON."""
        return {
            "format": _FORMAT,
            "removed": {
                path: {str(axis): indices.tolist() for axis, indices in axes.items()}
                for path, axes in self.removed.items()
            },
            "cuts": [[c.layer, c.kind, c.role, list(c.indices), c.size] for c in self.cuts],
            "layer_parameters": dict(self.layer_parameters),
            "inexact": list(self.inexact),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PruningPlan:
        """A plan from what `to_dict` returned (JSON turns its keys into text; both are read).

        Raises:
            PlanMismatchError: the data are not a plan.
        """
        try:
            if data["format"] != _FORMAT:
                raise ValueError(f"format {data['format']!r}")
            return cls(
                {
                    path: {int(a): np.asarray(i, int) for a, i in axes.items()}
                    for path, axes in data["removed"].items()
                },
                tuple(Cut(n, k, r, tuple(i), size) for n, k, r, i, size in data["cuts"]),
                dict(data["layer_parameters"]),
                tuple(data["inexact"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanMismatchError(
                "Expected the dictionary that PruningPlan.to_dict() returns. "
                f"Received something else ({type(error).__name__}: {error})."
            ) from error

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PruningPlan):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        by_layer: dict[str, list[Cut]] = {}
        for cut in self.cuts:
            by_layer.setdefault(cut.layer, []).append(cut)
        lines = [
            f"{name} ({cuts[0].kind}): {'; '.join(map(str, cuts))}: "
            f"{self.layer_parameters.get(name, 0)} parameters"
            for name, cuts in by_layer.items()
        ]
        if self.inexact:
            lines.append(
                "Not exact: statistics across channels change in " + ", ".join(self.inexact)
            )
        return "\n".join([*lines, f"{self.parameters} parameters will be pruned"])


class Planner:
    """Makes plans for one graph."""

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        self.solution = graph.solution
        self.space = graph.trace.space
        self._rank = {name: i for i, name in enumerate(graph.layers)}

    def alive(self, request: Mapping[Any, Sequence[int]]) -> np.ndarray:
        """What is left when these channels, and all that is tied to them, are removed.

        Args:
            request: layer, layer name or `Group` → indices of output channels (or of units).

        Returns:
            For every label whether it stays.

        Raises:
            RequestError: see `DependencyGraph.get_pruning_plan`.
        """
        labels = [self._labels(target, indices) for target, indices in request.items()]
        if not any(len(part) for part in labels):
            raise RequestError("No channel is named: expected at least one index to remove.")
        return self.close(np.concatenate(labels))

    def close(self, labels: np.ndarray) -> np.ndarray:
        """For every label whether it stays when these go, with everything tied to them."""
        solution = self.solution
        alive = self._close(labels, solution.hard, solution.hard_frozen)
        if not all(is_box(alive[box]) for box, _ in solution.boxes):
            alive = self._close(labels, solution.soft, solution.soft_frozen)
        self._check_something_stays(alive)
        return alive

    def plan(self, alive: np.ndarray, execute: Execute | None = None) -> PruningPlan:
        """The plan that leaves just the labels that are alive."""
        removed: Removed = {}
        cuts: dict[tuple[str, str], Cut] = {}
        shapes: dict[int, list[int]] = {}
        for weight in self.space.weights.values():
            gone = np.flatnonzero(~alive[weight.labels].any(axis=1))
            if not gone.size:
                continue
            shape = shapes.setdefault(id(weight.variable), list(weight.variable.shape))
            cut = Cut(
                weight.layer, weight.kind, _ROLES[weight.role],
                tuple(gone[gone < weight.channels].tolist()), weight.channels,
            )  # fmt: skip
            cuts.setdefault((cut.layer, cut.role), cut)
            removed.setdefault(self.graph.paths[id(weight.variable)], {})[weight.axis] = gone
            shape[weight.axis] -= gone.size
        by_layer = sorted(cuts.values(), key=lambda c: self._rank[c.layer])
        lost = self._parameters(shapes, by_layer)
        return PruningPlan(removed, tuple(by_layer), lost, self._inexact(alive), execute)

    def labels_of(self, plan: PruningPlan) -> np.ndarray:
        """What a plan leaves of this graph's labels.

        Raises:
            PlanMismatchError: the plan names variables or positions that this model does not have,
                or its cuts do not fit together.
        """
        by_path = {
            (self.graph.paths[key], axis): weight
            for (key, axis), weight in self.space.weights.items()
        }
        removed = by_own_paths(plan.removed, self.graph.layers)
        gone = []
        for path, axes in removed.items():
            for axis, indices in axes.items():
                weight = by_path.get((path, axis))
                if weight is None or (len(indices) and max(indices) >= len(weight.labels)):
                    raise PlanMismatchError(
                        f"The plan does not fit the model {self.graph.model.name!r}: it removes "
                        f"positions of axis {axis} of {path!r}, which the model does not have. "
                        "Apply a plan to the model that it was made for."
                    )
                gone.append(weight.labels[indices].ravel())
        try:
            alive = self.close(np.concatenate(gone)) if gone else np.ones(self.space.size, bool)
        except RequestError as error:
            raise PlanMismatchError(f"The plan does not fit the model: {error}") from error
        expected = self.plan(alive).removed
        if not same_removal(expected, removed):
            raise PlanMismatchError(
                "The plan's cuts do not fit together: coupled positions are missing in "
                f"{_differing(expected, removed)}. Make plans with "
                "DependencyGraph.get_pruning_plan."
            )
        return alive

    def _labels(self, target: Any, indices: Sequence[int]) -> np.ndarray:
        if isinstance(target, Group):
            if not any(target is group for group in self.graph.groups):
                raise RequestError(
                    f"{target!r} is a group of another graph. Expected one of `graph.groups` of "
                    "the graph that makes the plan."
                )
            units = check_indices(indices, target.size, repr(target))
            return np.flatnonzero(np.isin(self.solution.soft, target.components[units]))
        name = self.graph.find(target)
        labels = self.graph.channels(name)
        gone = check_indices(indices, len(labels), f"layer {name!r}")
        stuck = self.solution.hard_frozen[self.solution.hard[labels[gone]]]
        if stuck.any():
            kind = type(self.graph.layers[name]).__name__
            raise FrozenChannelError(
                f"Channels {gone[stuck].tolist()} of layer {name!r} ({kind}) cannot be removed: "
                f"{self.graph.explain(int(labels[gone[stuck][0]]))}."
            )
        return labels[gone]

    def _close(self, labels: np.ndarray, solved: np.ndarray, frozen: np.ndarray) -> np.ndarray:
        gone = np.unique(solved[labels])
        stuck = gone[frozen[gone]]
        if stuck.size:
            label = int(np.flatnonzero(solved == stuck[0])[-1])
            raise FrozenChannelError(
                "Some of these channels can only go together with channels that cannot be removed: "
                f"{self.graph.explain(label)}."
            )
        mask = np.ones(len(frozen), bool)
        mask[gone] = False
        return mask[solved]

    def _check_something_stays(self, alive: np.ndarray) -> None:
        for weight in self.space.weights.values():
            if not alive[weight.labels].any():
                raise RequestError(
                    f"This would remove every channel ({weight.channels} {_ROLES[weight.role]}) "
                    f"of layer {weight.layer!r} ({weight.kind}). At least one has to stay."
                )
        for labels, least in self.space.parts:
            if alive[labels.reshape(len(labels), -1)].any(axis=1).sum() < least:
                raise RequestError(
                    "This would remove every channel of a slice of a tensor, or all but one where "
                    f"that is not enough. At least {least} of {len(labels)} have to stay."
                )

    def _inexact(self, alive: np.ndarray) -> tuple[str, ...]:
        names = []
        for matrix, name in self.space.statistics:
            left = alive[matrix]
            if (left.any(axis=1) & ~left.all(axis=1)).any():
                names.append(name)
        return tuple(dict.fromkeys(names))

    def _parameters(self, shapes: dict[int, list[int]], cuts: list[Cut]) -> dict[str, int]:
        lost = dict.fromkeys((c.layer for c in cuts), 0)
        counted = set().union(*(parameters_of(self.graph.layers[name]) for name in lost))
        variables = {id(w.variable): w for w in self.space.weights.values()}
        for key, shape in shapes.items():
            if key in counted:
                weight = variables[key]
                lost[weight.layer] += math.prod(weight.variable.shape) - math.prod(shape)
        return lost


def same_removal(a: Removed, b: Removed) -> bool:
    """Whether two removals take the same positions."""
    return not _differing(a, b)


def _differing(a: Removed, b: Removed) -> list[str]:
    def flat(removed: Removed) -> dict[tuple[str, int], list[int]]:
        return {(p, x): sorted(i) for p, axes in removed.items() for x, i in axes.items() if len(i)}

    x, y = flat(a), flat(b)
    return sorted(
        {path for path, axis in x.keys() | y.keys() if x.get((path, axis)) != y.get((path, axis))}
    )
