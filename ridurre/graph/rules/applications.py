"""Layers that `keras.applications` defines for itself."""

from __future__ import annotations

from typing import Any

from ridurre.backend import CustomScaleLayer, LayerScale, StochasticDepth
from ridurre.graph.labels import LabelSpace, along
from ridurre.graph.rules.activation import ElementwiseRule
from ridurre.graph.rules.base import Call, Flow, Kept, Rule, register_rule
from ridurre.graph.rules.merging import combine

register_rule(StochasticDepth)(ElementwiseRule)


@register_rule(LayerScale)
class LayerScaleRule(Rule):
    """ConvNeXt: one factor per channel."""

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        space.own(call.operation.gamma, 0, along(call.x.labels, -1), "channel")
        return call.x.labels

    def vanishes(self, call: Call) -> bool:
        return True

    def config(self, call: Call, kept: Kept) -> dict[str, Any]:
        return {"projection_dim": kept.size(call.operation.gamma, 0)}


@register_rule(CustomScaleLayer)
class ScaledAdditionRule(Rule):
    """Inception-ResNet: ``a + scale * b``."""

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        return combine(call.inputs, space)
