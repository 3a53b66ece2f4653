"""From masks to channels: remove physically what zeros have emptied."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping

import keras
import numpy as np

from ridurre.backend import to_numpy, view_of
from ridurre.criteria.base import parameters, sum_by_unit
from ridurre.data import Batch, random_inputs
from ridurre.dependency import DependencyGraph
from ridurre.forward import Forward
from ridurre.graph import Group, Member
from ridurre.linear import CONVOLUTIONS, DEPTHWISE, Linear
from ridurre.plan import Planner
from ridurre.surgery import duplicate
from ridurre.weights import is_kernel

_READERS = (keras.layers.Dense, *(c for c in CONVOLUTIONS if c not in DEPTHWISE))
_CONSTANT = 1e-6  # relative; averages of a constant are rounded


def compact(model: keras.Model) -> keras.Model:
    """Remove the channels that the zeros of a pruned model have emptied; exact.

    A channel goes if nothing reads it (all weights of its readers are zero), or if nothing makes it
    (all weights of its filters are zero), so that it is a constant: one that is zero, or that the
    biases of its readers can take over. That is repeated until nothing more goes; at least one
    channel of every group stays, and so do channels that cannot be removed exactly: constants under
    the zero padding of a convolution, or before a layer without bias; channels that statistics run
    across.

    Args:
        model: a built Functional or Sequential model.

    Returns:
        A new model that computes the same, compiled like the given one.
    """
    smaller = duplicate(model, keep_compiled=True)
    while True:
        graph = DependencyGraph(smaller)
        request = _possible(graph, _unread(graph)) or _possible(graph, _folded(graph))
        if not request:
            return smaller
        smaller = graph.get_pruning_plan(request).exec(keep_compiled=smaller.compiled)


def _possible(
    graph: DependencyGraph, wanted: Mapping[Group, np.ndarray]
) -> dict[Group, np.ndarray]:
    """Of the units that could go, those that can go by themselves; one of each group stays."""
    found = {}
    for group, gone in wanted.items():
        units = np.flatnonzero(gone)[: group.size - group.least]
        if len(units) and _alone(graph, group, units):
            found[group] = units
    return found


def _alone(graph: DependencyGraph, group: Group, units: np.ndarray) -> bool:
    """Whether these units can be removed exactly, and without others that are coupled to them."""
    planner = Planner(graph)
    alive = planner.alive({group: list(units)})
    dead = np.unique(graph.solution.soft[~alive])
    own = np.isin(dead, group.components[units])
    fixed = np.isin(dead, np.concatenate([g.components for g in graph.groups]))
    return bool(own[fixed].all()) and graph.get_pruning_plan({group: list(units)}).exact


def _used(graph: DependencyGraph, group: Group, *roles: str) -> np.ndarray | None:
    """Which units have a kernel's weight that is not zero in a role; None if there is none."""
    members = [m for m in parameters(graph, group, *roles) if is_kernel(m.weight.variable)]
    if not members:
        return None
    return np.sum([sum_by_unit(group, m.units, _counts(m)) for m in members], axis=0) > 0


def _counts(member: Member) -> np.ndarray:
    value = view_of(member.weight.variable)
    others = tuple(a for a in range(value.ndim) if a != member.weight.axis)
    return np.count_nonzero(value, axis=others).astype("float64")


def _unread(graph: DependencyGraph) -> dict[Group, np.ndarray]:
    """Units that nothing reads."""
    found = {}
    for group in graph.groups:
        used = _used(graph, group, "in", "recurrent")
        # What only a recurrent layer reads may leave the model without a weight of its own.
        if used is not None and any(m.weight.role == "in" for m in group.members):
            found[group] = ~used
    return found


def _folded(graph: DependencyGraph) -> dict[Group, np.ndarray]:
    """Units that are constant; what they add to their readers is moved into the biases first."""
    found: dict[Group, np.ndarray] = {}
    for group in graph.groups:
        if any(m.weight.role == "recurrent" for m in group.members):
            continue  # with constant gates, too, a state changes from step to step
        made = _used(graph, group, "out")
        if made is not None and not made.all():
            found[group] = ~made
    if not found:
        return {}
    constants = _constants(graph, found)
    for group, readers in constants.items():
        for reader in readers:
            found[group] &= reader.foldable
    possible = _possible(graph, found)
    for group, units in possible.items():
        for reader in constants[group]:
            reader.fold(units)
    return {group: np.isin(np.arange(group.size), units) for group, units in possible.items()}


class _Reader:
    """A layer that reads units of a group which are constant.

    Attributes:
        foldable: which units may be taken over by the bias, ``(units,)``.
    """

    def __init__(self, linear: Linear, member: Member, group: Group, x: np.ndarray) -> None:
        self._linear, self._member = linear, member
        moved = np.moveaxis(x, linear.axis, -1).reshape(-1, x.shape[linear.axis])
        self._value = moved[0]
        spread = moved.max(axis=0) - moved.min(axis=0)
        uniform = spread <= _CONSTANT * np.abs(moved).max(axis=0)
        takes = linear.layer.bias is not None and not _reaches_into_padding(linear)
        good = uniform & (takes | (np.abs(moved).max(axis=0) == 0))
        bad = sum_by_unit(group, member.units, (~good).astype("float64"))
        self.foldable = bad == 0

    def fold(self, units: np.ndarray) -> None:
        """Let the bias do what the units do, and read them no more."""
        layer, inside = self._linear.layer, np.isin(self._member.units, units)
        kernel = np.array(view_of(layer.kernel))
        axis = self._member.weight.axis
        shape = [-1 if a == axis else 1 for a in range(kernel.ndim)]
        value = np.where(inside, self._value, 0).reshape(shape)
        if layer.bias is not None:
            others = tuple(range(kernel.ndim - 1))
            added = (kernel.astype("float64") * value).sum(axis=others)
            layer.bias.assign(to_numpy(layer.bias) + added.astype(layer.bias.dtype))
        kernel[np.broadcast_to(inside.reshape(shape), kernel.shape)] = 0
        layer.kernel.assign(kernel)


def _reaches_into_padding(linear: Linear) -> bool:
    padded = linear.convolves and linear.layer.padding != "valid"
    return padded and any(n > 1 for n in linear.taps)


def _constants(
    graph: DependencyGraph, groups: Mapping[Group, np.ndarray]
) -> dict[Group, list[_Reader]]:
    """The layers that read these groups, with the values that they read.

    A group with a reader that is not understood (grouped, shared, of another kind) is left out of
    what can be folded, by a reader that takes nothing.
    """
    members: dict[int, list[tuple[Group, Member]]] = defaultdict(list)  # of a concatenation, say
    for group in groups:
        for member in parameters(graph, group, "in"):
            members[id(member.weight.variable)].append((group, member))
    found: dict[Group, list[_Reader]] = {group: [] for group in groups}
    forward = Forward(graph.trace, [Batch(random_inputs(graph.model))])
    for step in forward:
        layer = step.call.operation
        kernel = getattr(layer, "kernel", None)
        once = len(graph.trace.by_layer[id(layer)]) == 1 and getattr(layer, "groups", 1) == 1
        if id(kernel) not in members or type(layer) not in _READERS or not once:
            continue
        x = to_numpy(step.inputs(0)[0])
        for group, member in members.pop(id(kernel)):
            found[group].append(_Reader(Linear(step.call), member, group, x))
    for group, _ in itertools.chain.from_iterable(members.values()):
        groups[group][:] = False
    return found
