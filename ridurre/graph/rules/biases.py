"""Biases with several axes."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from ridurre.backend import shape_of
from ridurre.graph.labels import Labels, LabelSpace


def own_bias(bias: keras.Variable | None, by_axis: Sequence[Labels], space: LabelSpace) -> bool:
    """The positions of a bias are those of the tensor that it is added to.

    Keras 3.15 on TensorFlow takes a bias with a single axis that is not 1 for one of channels: it
    adds it along the last axis, or along the first behind the batch, whichever is of this size. So
    the last axis of a bias of several must not shrink to 1; on no back end, for models are saved.

    Args:
        bias: None where the layer has none.
        by_axis: the tensor's labels along every axis of the bias, ``(size, …)`` each.
        space: where they are reported.

    Returns:
        Whether the bias is safe; one along another axis than the last is not, whatever its size.
    """
    if bias is None:
        return True
    shape = shape_of(bias)
    wide = [a for a, n in enumerate(shape) if n > 1]
    for axis in wide:
        space.own(bias, axis, by_axis[axis], "out")
    last = len(shape) - 1
    if len(wide) > 1 and last in wide:
        space.keep_some(by_axis[last], 2)
    return not wide or last in wide
