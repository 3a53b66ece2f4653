"""Pooling, padding, cropping, upsampling: what happens at positions, not in channels."""

from __future__ import annotations

import keras
import numpy as np

from ridurre.graph.labels import LabelSpace
from ridurre.graph.rules.base import Call, Flow, Rule, register_rule
from ridurre.graph.rules.convolution import channel_axis, others

L = keras.layers


@register_rule(
    *[getattr(L, f"{kind}Pooling{n}D") for kind in ("Max", "Average") for n in (1, 2, 3)],
    *[
        getattr(L, f"Adaptive{kind}Pooling{n}D")
        for kind in ("Max", "Average")
        for n in (1, 2, 3)
        if hasattr(L, f"Adaptive{kind}Pooling{n}D")
    ],
    *[getattr(L, f"{kind}{n}D") for kind in ("Cropping", "ZeroPadding") for n in (2, 3)],
    *[getattr(L, f"UpSampling{n}D") for n in (2, 3)],
    L.Resizing,
    "MaxPool",
    "AveragePool",
    "AdaptiveMaxPool",
    "AdaptiveAveragePool",
    "Resize",
)
class PositionsRule(Rule):
    """Mixes or moves positions, the same in every channel."""

    keeps_zero = True

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        rank = len(call.x.shape)
        return space.merge(call.x.labels, others(channel_axis(call.operation, rank), rank))


@register_rule(L.Cropping1D, L.ZeroPadding1D, L.UpSampling1D)
class PositionsOf1DRule(Rule):
    """The one-dimensional ones; some have no data format and take the channels as last."""

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        axis = 1 if getattr(call.operation, "data_format", None) == "channels_first" else 2
        return space.merge(call.x.labels, [3 - axis])


@register_rule(
    *[getattr(L, f"Global{kind}Pooling{n}D") for kind in ("Max", "Average") for n in (1, 2, 3)]
)
class GlobalPoolingRule(Rule):
    """One number per channel."""

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        rank = len(call.x.shape)
        positions = others(channel_axis(call.operation, rank), rank)
        labels = space.merge(call.x.labels, positions)
        return labels if call.operation.keepdims else np.squeeze(labels, tuple(positions))
