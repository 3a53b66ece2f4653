"""Convolutions: plain, grouped, transposed, depthwise, separable; in 1, 2 and 3 dimensions."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from ridurre.backend import shape_of, to_numpy
from ridurre.graph.labels import Labels, LabelSpace, Value, along
from ridurre.graph.rules.activation import activate, keeps_zero
from ridurre.graph.rules.base import Call, Flow, Kept, Rule, Work, register_rule, rule_for

L = keras.layers


def channel_axis(operation: Any, rank: int) -> int:
    """The axis of the channels, given the layer's or operation's data format."""
    data_format = getattr(operation, "data_format", None) or keras.config.image_data_format()
    return 1 if data_format == "channels_first" else rank - 1


def others(axis: int, rank: int) -> list[int]:
    """All axes but the batch and one more."""
    return [a for a in range(1, rank) if a != axis]


def channels_of(x: Value, axis: int, space: LabelSpace) -> Labels:
    """Labels along the channel axis of an operation that mixes all other positions."""
    labels, size = x.labels, x.shape[axis] or 1
    if labels.size != labels.shape[axis]:
        labels = space.merge(labels, others(axis, len(x.shape)))
    channels = along(labels, axis)[:, 0]
    return channels if len(channels) == size else np.broadcast_to(channels, (size,))


def on_axis(labels: Labels, axis: int, rank: int) -> Labels:
    """One-dimensional labels laid along one axis of a tensor."""
    return labels.reshape([-1 if a == axis else 1 for a in range(rank)])


def spatial(value: Value, axis: int) -> int:
    """Number of positions of a tensor over which a kernel is moved; 0 if not static."""
    return math.prod(value.shape[a] or 0 for a in others(axis, len(value.shape)))


def grouped(ins: Labels, outs: Labels, groups: int, space: LabelSpace) -> tuple[Labels, Labels]:
    """Tie the groups' inputs and outputs: a whole group, or one position of every group.

    Returns:
        By position within a group, the labels of all groups: ``(n_in, groups)``, ``(n_out, …)``.
    """
    ins, outs = ins.reshape(groups, -1), outs.reshape(groups, -1)
    n_in, n_out = ins.shape[1], outs.shape[1]
    if n_in == n_out == 1:
        space.tie(ins, outs)
    else:
        by_group = n_in == 1 or groups >= max(n_in, n_out)
        space.box(np.concatenate([ins, outs], axis=1), prefer=0 if by_group else 1)
    return ins.T, outs.T


@register_rule(L.Conv1D, L.Conv2D, L.Conv3D)
class ConvRule(Rule):
    """Reads all channels of its group, makes new ones."""

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        layer, rank = call.operation, len(call.x.shape)
        axis = channel_axis(layer, rank)
        ins, outs = channels_of(call.x, axis, space), space.produce(layer.kernel, -1)
        if layer.groups > 1:
            ins, _ = grouped(ins, outs, layer.groups, space)
        space.own(layer.kernel, -2, ins, "in")
        space.own(layer.bias, 0, outs, "out")
        return activate(layer.activation, on_axis(outs, axis, rank), space)

    def vanishes(self, call: Call) -> bool:
        return keeps_zero(call.operation.activation)

    def config(self, call: Call, kept: Kept) -> dict[str, Any]:
        layer = call.operation
        filters, width = (kept.size(layer.kernel, a) for a in (-1, -2))
        axis = channel_axis(layer, len(call.x.shape))
        channels = kept.count(call.x.labels, axis) if call.x.labels.shape[axis] > 1 else None
        groups = layer.groups if channels is None else channels // width
        return {"filters": filters, "groups": groups}

    def work(self, call: Call) -> list[Work]:
        axis = channel_axis(call.operation, len(call.x.shape))
        return [Work(call.operation.kernel, spatial(call.outputs[0], axis))]


@register_rule(L.Conv1DTranspose, L.Conv2DTranspose, L.Conv3DTranspose)
class ConvTransposeRule(Rule):
    """A convolution whose kernel is stored with outputs before inputs."""

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        layer, rank = call.operation, len(call.x.shape)
        axis = channel_axis(layer, rank)
        space.own(layer.kernel, -1, channels_of(call.x, axis, space), "in")
        outs = space.produce(layer.kernel, -2)
        space.own(layer.bias, 0, outs, "out")
        return activate(layer.activation, on_axis(outs, axis, rank), space)

    def vanishes(self, call: Call) -> bool:
        return keeps_zero(call.operation.activation)

    def config(self, call: Call, kept: Kept) -> dict[str, Any]:
        return {"filters": kept.size(call.operation.kernel, -2)}

    def work(self, call: Call) -> list[Work]:
        axis = channel_axis(call.operation, len(call.x.shape))
        return [Work(call.operation.kernel, spatial(call.x, axis))]


def depthwise(layer: Any, kernel: keras.Variable, x: Value, space: LabelSpace) -> Labels:
    """Labels after a depthwise kernel ``(…, channels, multiplier)``, along the channel axis."""
    ins = channels_of(x, channel_axis(layer, len(x.shape)), space)
    channels, multiplier = shape_of(kernel)[-2:]
    space.own(kernel, -2, ins, "channel")
    if multiplier == 1:
        return ins
    outs = _many_per_channel(kernel, ins, space)
    _, by_position = grouped(ins, outs, channels, space)
    space.own(kernel, -1, by_position, "out")
    return outs


def _many_per_channel(kernel: keras.Variable, ins: Labels, space: LabelSpace) -> Labels:
    """New labels for the outputs of every call: they belong to no single axis of a weight."""
    known = space.weights.get((id(kernel), len(kernel.shape) - 1))
    return space.fresh(len(ins) * kernel.shape[-1]) if known is None else known.labels.T.ravel()


@register_rule(L.DepthwiseConv1D, L.DepthwiseConv2D)
class DepthwiseConvRule(Rule):
    """Every channel by itself; with a depth multiplier, several outputs per channel."""

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        layer, rank = call.operation, len(call.x.shape)
        outs = depthwise(layer, layer.kernel, call.x, space)
        space.own(layer.bias, 0, outs, "channel")
        labels = on_axis(outs, channel_axis(layer, rank), rank)
        return activate(layer.activation, labels, space)

    def vanishes(self, call: Call) -> bool:
        return keeps_zero(call.operation.activation)

    def config(self, call: Call, kept: Kept) -> dict[str, Any]:
        return {"depth_multiplier": kept.size(call.operation.kernel, -1)}

    def work(self, call: Call) -> list[Work]:
        axis = channel_axis(call.operation, len(call.x.shape))
        return [Work(call.operation.kernel, spatial(call.outputs[0], axis))]


@register_rule(L.SeparableConv1D, L.SeparableConv2D)
class SeparableConvRule(Rule):
    """A depthwise convolution and a pointwise one in one layer."""

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        layer, rank = call.operation, len(call.x.shape)
        middle = depthwise(layer, layer.depthwise_kernel, call.x, space)
        space.own(layer.pointwise_kernel, -2, middle, "in")
        outs = space.produce(layer.pointwise_kernel, -1)
        space.own(layer.bias, 0, outs, "out")
        return activate(layer.activation, on_axis(outs, channel_axis(layer, rank), rank), space)

    def vanishes(self, call: Call) -> bool:
        return keeps_zero(call.operation.activation)

    def config(self, call: Call, kept: Kept) -> dict[str, Any]:
        layer = call.operation
        return {
            "filters": kept.size(layer.pointwise_kernel, -1),
            "depth_multiplier": kept.size(layer.depthwise_kernel, -1),
        }

    def work(self, call: Call) -> list[Work]:
        layer = call.operation
        positions = spatial(call.outputs[0], channel_axis(layer, len(call.x.shape)))
        return [Work(k, positions) for k in (layer.depthwise_kernel, layer.pointwise_kernel)]


def filter_axis(layer: Any) -> tuple[keras.Variable, int] | None:
    """The weight that makes a convolution's filters and its axis of filters.

    None for layers that make no filters.
    """
    rule = rule_for(layer)
    if isinstance(rule, SeparableConvRule):
        return layer.pointwise_kernel, len(layer.pointwise_kernel.shape) - 1
    if isinstance(rule, ConvRule):
        return layer.kernel, len(layer.kernel.shape) - 1
    if isinstance(rule, ConvTransposeRule):
        return layer.kernel, len(layer.kernel.shape) - 2
    return None


def filter_kernel(layer: Any) -> np.ndarray | None:
    """The kernel that makes a convolution's filters, as height × width × in × out.

    A one-dimensional kernel has height 1; a three-dimensional one has depth and height in one
    axis. None for layers that make no filters.
    """
    made = filter_axis(layer)
    if made is None:
        return None
    variable, axis = made
    kernel = to_numpy(variable)
    if axis != kernel.ndim - 1:
        kernel = kernel.swapaxes(-1, -2)
    return kernel.reshape(-1, *kernel.shape[-3:])
