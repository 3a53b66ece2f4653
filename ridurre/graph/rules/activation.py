"""Activations: layers, functions inside layers, and the operations of ``keras.ops``."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from ridurre.backend.opening import open_function
from ridurre.errors import OpeningError
from ridurre.graph.labels import Labels, LabelSpace, Parameter, Reason, along
from ridurre.graph.rules.base import Call, Flow, Rule, register_rule, rule_for

#: Activation functions that treat every number by itself.
ELEMENTWISE = frozenset(
    getattr(keras.activations, name)
    for name in """celu elu exponential gelu hard_shrink hard_sigmoid hard_silu hard_tanh leaky_relu
    linear log_sigmoid mish relu relu6 selu sigmoid silu soft_shrink softplus softsign sparse_plus
    sparse_sigmoid squareplus tanh tanh_shrink threshold""".split()
)


#: Those of them that make zero of zero.
KEEPING_ZERO = ELEMENTWISE - {
    getattr(keras.activations, name)
    for name in """exponential hard_sigmoid log_sigmoid sigmoid softplus sparse_plus sparse_sigmoid
    squareplus threshold""".split()
}


def keeps_zero(activation: Any) -> bool:
    """Whether an activation function is known to make zero of zero; None is the identity."""
    return activation is None or activation in KEEPING_ZERO


def activate(activation: Any, labels: Labels, space: LabelSpace) -> Labels:
    """Labels after an activation function; None is the identity.

    Softmax and everything that is not seen to be element-wise mixes the channels.
    """
    if activation is None or activation in ELEMENTWISE or _is_elementwise_layer(activation):
        return labels
    return labels if _acts_by_number(activation) else space.block(labels, Reason.MIXED)


@functools.cache
def _acts_by_number(activation: Any) -> bool:
    """Whether a function of one's own treats every number by itself: all that it does must."""
    try:
        graph = open_function(activation)
    except OpeningError:
        return False
    constants = [x for n in graph.nodes for x in keras.tree.flatten((n.args, n.kwargs))
                 if x is not None and not isinstance(x, keras.KerasTensor)]  # fmt: skip
    return (
        all(rule_for(node.operation).by_number for node in graph.nodes)
        and [t.shape for t in graph.outputs] == [t.shape for t in graph.inputs]
        and all(np.ndim(x) == 0 for x in constants)
    )


def _is_elementwise_layer(activation: Any) -> bool:
    """Layers such as ``keras.layers.ReLU()`` may be passed as an activation."""
    return type(activation) in PASSING


#: Layers and operations that make zero of zero, however they are configured.
ZERO_TO_ZERO = frozenset(
    """ReLU LeakyReLU ELU Absolute Fabs Relu Relu6 Softsign SoftShrink Silu LeakyRelu HardSilu Elu
    Selu Gelu Celu TanhShrink HardTanh HardShrink Arcsin Arcsinh Arctan Arctanh Cbrt Ceil Conjugate
    Copy Deg2rad Rad2deg Expm1 Floor Imag Log1p NanToNum Negative ZerosLike Real Round Sign Sin Sinh
    Sqrt Square Tan Tanh Trunc Erf Erfinv StopGradient Cast SaturateCast
    ConvertToTensor StochasticDepth""".split()
)

PASSING = (keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU)


@register_rule(*PASSING)
class ElementwiseRule(Rule):
    """One input, one output, every number by itself; a weight is still one."""

    reads_weights = True
    by_number = True

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        if isinstance(call.x, Parameter):
            return replace(call.x, vanishing=self.vanishes(call))
        return call.x.labels

    def vanishes(self, call: Call) -> bool:
        moved = call.kind == "ReLU" and getattr(call.operation, "threshold", None)
        return call.x.vanishing and call.kind in ZERO_TO_ZERO and not moved


@register_rule(keras.layers.Activation)
class ActivationRule(Rule):
    """`keras.layers.Activation`."""

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        return activate(call.operation.activation, call.x.labels, space)

    def vanishes(self, call: Call) -> bool:
        return call.x.vanishing and keeps_zero(call.operation.activation)


@register_rule(keras.layers.PReLU)
class PReLURule(Rule):
    """One slope per position, except along shared axes."""

    keeps_zero = True

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
