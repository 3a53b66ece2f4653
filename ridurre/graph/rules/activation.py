"""Activations: layers, functions inside layers, and the operations of ``keras.ops``."""

from __future__ import annotations

from typing import Any

import keras

from ridurre.graph.labels import Labels, LabelSpace, Reason, along
from ridurre.graph.rules.base import Call, Flow, Rule, register_rule

#: Activation functions that treat every number by itself.
ELEMENTWISE = frozenset(
    getattr(keras.activations, name)
    for name in """celu elu exponential gelu hard_shrink hard_sigmoid hard_silu hard_tanh leaky_relu
    linear log_sigmoid mish relu relu6 selu sigmoid silu soft_shrink softplus softsign sparse_plus
    sparse_sigmoid squareplus tanh tanh_shrink threshold""".split()
)


def activate(activation: Any, labels: Labels, space: LabelSpace) -> Labels:
    """Labels after an activation function; None is the identity.

    Softmax and everything that is not known to be element-wise mixes the channels.
    """
    if activation is None or activation in ELEMENTWISE or _is_elementwise_layer(activation):
        return labels
    return space.block(labels, Reason.MIXED)


def _is_elementwise_layer(activation: Any) -> bool:
    """Layers such as ``keras.layers.ReLU()`` may be passed as an activation."""
    return type(activation) in PASSING


PASSING = (keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU)


@register_rule(*PASSING)
class ElementwiseRule(Rule):
    """One input, one output, every number by itself."""

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        return call.x.labels


@register_rule(keras.layers.Activation)
class ActivationRule(Rule):
    """`keras.layers.Activation`."""

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        return activate(call.operation.activation, call.x.labels, space)


@register_rule(keras.layers.PReLU)
class PReLURule(Rule):
    """One slope per position, except along shared axes."""

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        labels, alpha = call.x.labels, call.operation.alpha
        for axis in range(1, labels.ndim):
            if labels.shape[axis] > 1 and alpha.shape[axis - 1] > 1:
                space.own(alpha, axis - 1, along(labels, axis), "channel")
        return labels


@register_rule(keras.layers.Softmax, "Softmax", "LogSoftmax", "Sparsemax", "Normalize")
class SoftmaxRule(Rule):
    """Mixes the positions along its axis."""

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        axis = call.operation.axis
        labels = call.x.labels
        axes = range(labels.ndim) if axis is None else [axis] if isinstance(axis, int) else axis
        return space.merge(labels, list(axes))
