"""Operations of ``keras.ops`` on one tensor: element by element, and reductions."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from ridurre.backend import to_numpy
from ridurre.graph.labels import LabelSpace, Reason, varying
from ridurre.graph.rules.activation import ElementwiseRule
from ridurre.graph.rules.base import Call, Flow, Rule, fixed, register_rule
from ridurre.graph.rules.normalization import normalises_by_hand, share_statistics

ELEMENTWISE = """Absolute Fabs Relu ReLU Relu6 Sigmoid SparseSigmoid Softplus Softsign
    SoftShrink SparsePlus Silu Squareplus LogSigmoid LeakyRelu HardSigmoid HardSilu Elu Selu Gelu
    Celu TanhShrink HardTanh HardShrink Threshold Arccos Arccosh Arcsin Arcsinh Arctan Arctanh Cbrt
    Ceil Clip Conjugate Copy Cos Cosh Deg2rad Rad2deg Exp Exp2 Expm1 Floor Imag I0 Isfinite Isinf
    Isnan Isneginf Isposinf Isreal Log Log10 Log1p Log2 LogicalNot NanToNum Negative OnesLike
    ZerosLike Real Reciprocal Round Sign Signbit Sin Sinc Sinh Sqrt Square Tan Tanh Trunc Rsqrt Erf
    Erfc Erfinv StopGradient Cast SaturateCast ConvertToTensor Angle
    BitwiseInvert BitwiseNot""".split()

register_rule(*ELEMENTWISE)(ElementwiseRule)


def _axes(call: Call) -> list[int]:
    axis = call.operation.axis
    if axis is None:
        return list(range(len(call.x.shape)))
    return [axis] if isinstance(axis, int) else list(axis)


@register_rule(
    *"""Mean Sum Max Amax Min Amin Prod Var Std All Any CountNonzero Logsumexp Norm
    Median Nanmean Nansum Nanmax Nanmin Nanstd Nanvar Nanprod Argmax Argmin Ptp""".split()
)
class ReductionRule(Rule):
    """A reduction over positions is pooling; one over channels mixes them.

    Means over channels with which a layer's code normalises these are those of what is left.
    """

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        axes = [a % call.x.labels.ndim for a in _axes(call)]
        if self._normalises(call, axes):
            share_statistics(call.x.labels, axes, space)
            return fixed(call.outputs[0])
        labels = space.merge(call.x.labels, axes)
        if call.kind in ("Argmax", "Argmin") and call.operation.axis is None:
            return fixed(call.outputs[0])
        return (
            labels
            if getattr(call.operation, "keepdims", False)
            else np.squeeze(labels, tuple(axes))
        )

    @staticmethod
    def _normalises(call: Call, axes: list[int]) -> bool:
        if call.kind not in ("Mean", "Var", "Std") or not varying(call.x.labels):
            return False
        return set(varying(call.x.labels)) <= set(axes) and normalises_by_hand(call, axes)

    def vanishes(self, call: Call) -> bool:
        return call.x.vanishing and call.kind in ("Mean", "Sum", "Max", "Amax", "Min", "Amin")


@register_rule("Cumsum", "Cumprod", "Roll", "Sort", "Diff")
class AlongAxisRule(Rule):
    """Mixes positions along an axis, which stays."""

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        if getattr(call.operation, "axis", None) is None:
            space.freeze(call.x.labels, Reason.SHAPE)
            return fixed(call.outputs[0])
        return space.merge(call.x.labels, _axes(call))


@register_rule("DepthToSpace")
class DepthToSpaceRule(Rule):
    """Channels become positions, block by block: those that make one new channel go together."""

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        op, x = call.operation, call.x
        axis = 1 if op.data_format == "channels_first" else 3
        labels = space.merge(x.labels, [a for a in (1, 2, 3) if a != axis])
        if labels.shape[axis] == 1:
            return labels
        blocks = labels.ravel()[_channels_by_position(op, labels.shape)]
        space.tie(blocks, blocks[:1])
        return np.moveaxis(blocks[:1].reshape(1, 1, 1, -1), -1, axis)


def _channels_by_position(op: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Which input channel lands in which (position, output channel).

    Keras' back ends disagree on the order for channels_first, so the operation itself is asked.
    """
    numbers = np.arange(np.prod(shape), dtype="float32").reshape(shape)
    landed = to_numpy(op(keras.ops.convert_to_tensor(numbers))).astype(int)
    axis = 1 if op.data_format == "channels_first" else 3
    return np.moveaxis(landed, axis, -1).reshape(op.block_size**2, -1)
