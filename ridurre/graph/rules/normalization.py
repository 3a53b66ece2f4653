"""Normalisation: within a channel (exact) and across channels (the statistics change)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from ridurre.backend import Node
from ridurre.graph.labels import Labels, LabelSpace, Reason, along, varying
from ridurre.graph.rules.base import Call, Flow, Kept, Rule, register_rule, rule_for

L = keras.layers


@register_rule(L.BatchNormalization)
class BatchNormalizationRule(Rule):
    """One scale, offset, mean and variance per channel."""

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        layer, labels = call.operation, call.x.labels
        channel = along(labels, layer.axis)
        for name in ("gamma", "beta", "moving_mean", "moving_variance"):
            space.own(getattr(layer, name, None), 0, channel, "channel")
        return labels

    def vanishes(self, call: Call) -> bool:
        return call.operation.scale or call.x.vanishing


def _axes(layer: Any, rank: int) -> list[int]:
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    return [a % rank for a in axes]


def share_statistics(labels: Labels, axes: list[int], space: LabelSpace) -> None:
    """Statistics are taken over all positions of `axes`, separately along the other ones."""
    inner = [a for a in range(labels.ndim) if a in axes]
    if all(labels.shape[a] == 1 for a in inner):
        return
    moved = np.moveaxis(labels, inner, range(-len(inner), 0))
    sets = int(np.prod([labels.shape[a] for a in range(labels.ndim) if a not in axes], dtype=int))
    space.normalise(moved.reshape(sets, -1))


def normalises_by_hand(call: Call, axes: list[int]) -> bool:
    """Whether a mean over channels does no more than scale and shift just these channels.

    In the code of a layer it then goes, number by number, into an operation with a tensor of the
    channels that it is the mean of, and nowhere else.
    """
    if call.place is None or call.place[0].opened is None:
        return False
    graph, index = call.place[0].opened.graph, call.place[1]
    same = _of_the_same_channels(graph.nodes, index, axes)
    reached = {id(t) for t in graph.nodes[index].outputs}
    for node in graph.nodes[index + 1 :]:
        tensors = {id(t) for t in _tensors(node)}
        if reached.isdisjoint(tensors):
            continue
        expands = type(node.operation).__name__ == "ExpandDims"
        if not (expands or rule_for(node.operation).by_number):
            return False
        if same.isdisjoint(tensors):
            reached |= {id(t) for t in node.outputs}
    return reached.isdisjoint(map(id, graph.outputs))


def _of_the_same_channels(nodes: Sequence[Node], index: int, axes: list[int]) -> set[int]:
    """Tensors that come, number by number, from what one operation reads, or are what it does."""
    (x,) = _tensors(nodes[index])
    sizes = [x.shape[a] for a in axes]

    def wide(tensors: Iterable[keras.KerasTensor]) -> set[int]:
        alike = [t for t in tensors if len(t.shape) == len(x.shape)]
        return {id(t) for t in alike if [t.shape[a] for a in axes] == sizes}

    found, by_number = {id(x)}, [n for n in nodes if rule_for(n.operation).by_number]
    for node in reversed(by_number):
        if not found.isdisjoint(map(id, node.outputs)):
            found |= wide(_tensors(node))
    for node in by_number:
        if not found.isdisjoint(map(id, _tensors(node))):
            found |= wide(node.outputs)
    return found


def _tensors(node: Node) -> list[keras.KerasTensor]:
    leaves = keras.tree.flatten((node.args, node.kwargs))
    return [t for t in leaves if isinstance(t, keras.KerasTensor)]


@register_rule(L.LayerNormalization, L.RMSNormalization, L.UnitNormalization)
class AcrossChannelsRule(Rule):
    """Statistics over the normalised axes, a scale (and an offset) per position of them."""

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        layer, labels = call.operation, call.x.labels
        axes = _axes(layer, labels.ndim)
        if axes != sorted(axes):  # Keras then reads the scale in another order than it has
            return space.block(labels, Reason.SHAPE)
        for index, axis in enumerate(axes):
            if labels.shape[axis] == 1:
                continue
            for name in ("gamma", "beta", "scale"):
                variable = getattr(layer, name, None)
                if isinstance(variable, keras.Variable):
                    space.own(variable, index, along(labels, axis), "channel")
        share_statistics(labels, axes, space)
        return labels

    def vanishes(self, call: Call) -> bool:
        """A scale of zero makes zero; without one, the mean that is subtracted does not."""
        labels, variable = call.x.labels, self._scale(call.operation)
        axes = _axes(call.operation, labels.ndim)
        scaled = variable is not None and all(a in axes for a in varying(labels))
        return scaled or (call.kind != "LayerNormalization" and call.x.vanishing)

    @staticmethod
    def _scale(layer: Any) -> keras.Variable | None:
        scale = getattr(layer, "scale", None)  # LayerNormalization has a flag of this name
        return scale if isinstance(scale, keras.Variable) else getattr(layer, "gamma", None)


@register_rule(L.GroupNormalization)
class GroupNormalizationRule(Rule):
    """Statistics over the channels of a group: whole groups may go, exactly."""

    sized_by_input = True

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        layer, labels = call.operation, call.x.labels
        axis = layer.axis % labels.ndim
        merged = space.merge(labels, [a for a in range(1, labels.ndim) if a != axis])
        if merged.shape[axis] == 1:
            return merged
        channel = along(merged, axis)
        for name in ("gamma", "beta"):
            space.own(getattr(layer, name, None), 0, channel, "channel")
        matrix = channel.reshape(layer.groups, -1)
        space.box(matrix, prefer=0)
        space.normalise(matrix)
        return merged

    def config(self, call: Call, kept: Kept) -> dict[str, Any]:
        layer, labels = call.operation, call.x.labels
        axis = layer.axis % labels.ndim
        if labels.shape[axis] == 1:
            return {}
        alive = kept.positions(labels, axis).reshape(layer.groups, -1)
        return {"groups": int(alive.any(axis=1).sum())}
