"""Dense layers, and layers that only pass channels on."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from ridurre.graph.labels import LabelSpace, Reason, along
from ridurre.graph.rules.activation import activate, keeps_zero
from ridurre.graph.rules.base import Call, Flow, Kept, Rule, Work, fixed, register_rule
from ridurre.graph.rules.convolution import channels_of, on_axis

L = keras.layers


@register_rule(L.Dense)
class DenseRule(Rule):
    """Reads the last axis, makes a new one.

    Where channels lie on another axis (a dense layer over positions, as in an MLP-Mixer), they
    pass, and the units stay as they are.
    """

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        layer, labels = call.operation, call.x.labels
        rank = labels.ndim
        if labels.shape[-1] == 1 and labels.size > 1:
            space.freeze(space.produce(layer.kernel, -1), Reason.SHAPE)
            space.own(layer.kernel, 0, np.zeros(1, int), "in")
            return activate(layer.activation, labels, space)
        merged = space.merge(labels, range(rank - 1))
        ins = np.broadcast_to(along(merged, -1)[:, 0], (layer.kernel.shape[0],))
        space.own(layer.kernel, 0, ins, "in")
        outs = space.produce(layer.kernel, -1)
        space.own(layer.bias, 0, outs, "out")
        return activate(layer.activation, on_axis(outs, rank - 1, rank), space)

    def vanishes(self, call: Call) -> bool:
        made = call.outputs[0].labels.shape[-1] > 1 or call.x.vanishing
        return made and keeps_zero(call.operation.activation)

    def config(self, call: Call, kept: Kept) -> dict[str, Any]:
        return {"units": kept.size(call.operation.kernel, -1)}

    def work(self, call: Call) -> list[Work]:
        return [Work(call.operation.kernel, math.prod(n or 0 for n in call.x.shape[1:-1]))]


@register_rule(
    L.Dropout,
    L.GaussianDropout,
    L.GaussianNoise,
    L.AlphaDropout,
    L.SpatialDropout1D,
    L.SpatialDropout2D,
    L.SpatialDropout3D,
    L.ActivityRegularization,
    L.Identity,
)
class PassingRule(Rule):
    """Inactive in inference mode, or acting on every number by itself."""

    keeps_zero = True

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        return call.x.labels


@register_rule(L.Rescaling)
class RescalingRule(Rule):
    """One scale and offset for all channels; a list of them, one per channel, stays whole."""

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        layer = call.operation
        scalar = np.ndim(layer.scale) == 0 and np.ndim(layer.offset) == 0
        return call.x.labels if scalar else space.block(call.x.labels, Reason.SHAPE)


@register_rule(L.Normalization)
class NormalizationRule(Rule):
    """Feature-wise, with statistics kept as weights or constants of the configuration."""

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        return space.block(call.x.labels, Reason.SHAPE)


@register_rule(L.Masking)
class MaskingRule(Rule):
    """Hides the steps at which all channels have a certain value, so it must see them all."""

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        return space.block(call.x.labels, Reason.MIXED)


@register_rule(L.Embedding)
class EmbeddingRule(Rule):
    """Reads integers, makes a vector for each."""

    def vanishes(self, call: Call) -> bool:
        return True

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        space.freeze(call.x.labels, Reason.MIXED)
        rank = len(call.outputs[0].shape)
        return on_axis(space.produce(call.operation.embeddings, -1), rank - 1, rank)

    def config(self, call: Call, kept: Kept) -> dict[str, Any]:
        return {"output_dim": kept.size(call.operation.embeddings, -1)}


@register_rule(L.ReversibleEmbedding)
class ReversibleEmbeddingRule(EmbeddingRule):
    """An embedding that is also called backwards: from its vectors to a score for every row."""

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        layer = call.operation
        if not call.argument("reverse"):
            labels = super().flow(call, space)
            backwards = space.produce(layer.embeddings, -1)
        else:
            backwards = channels_of(call.x, len(call.x.shape) - 1, space)
            space.own(layer.embeddings, -1, backwards, "in")
            labels = fixed(call.outputs[0])
        if not layer.tie_weights:
            space.own(layer.reverse_embeddings, 0, backwards, "in")
        return labels

    def work(self, call: Call) -> list[Work]:
        layer = call.operation
        if not call.argument("reverse"):
            return []
        matrix = layer.embeddings if layer.tie_weights else layer.reverse_embeddings
        return [Work(matrix, math.prod(n or 0 for n in call.x.shape[1:-1]))]
