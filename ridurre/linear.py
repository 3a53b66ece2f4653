"""Dense and convolution layers as what they are: one matrix, applied at many positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from ridurre.backend import to_numpy, view_of
from ridurre.graph.rules import Call
from ridurre.graph.rules.convolution import channel_axis

L = keras.layers
DEPTHWISE = (L.DepthwiseConv1D, L.DepthwiseConv2D)
CONVOLUTIONS = (L.Conv1D, L.Conv2D, L.Conv3D, *DEPTHWISE)


class Linear:
    """The linear part of one call of a layer: ``outputs = inputs · matrices + bias``.

    A layer of g groups has g matrices; a depthwise convolution has one per channel.

    Attributes:
        layer: Dense, Conv1D to Conv3D, DepthwiseConv1D or 2D.
        axis: of the channels, in its input and in its output.
        dtype: what is computed with, float64 for float64 layers and float32 for all others.
    """

    def __init__(self, call: Call) -> None:
        self.layer: Any = call.operation
        rank = len(call.x.shape)
        self.convolves = isinstance(self.layer, CONVOLUTIONS)
        self.axis = channel_axis(self.layer, rank) if self.convolves else rank - 1
        self.dtype = np.dtype("float64" if self.layer.dtype == "float64" else "float32")
        shape = tuple(self.layer.kernel.shape)
        self.taps = shape[:-2] if self.convolves else (1,) * (rank - 2)
        if isinstance(self.layer, DEPTHWISE):
            self.groups, self.outputs = shape[-2], shape[-2] * shape[-1]
        else:
            self.groups, self.outputs = getattr(self.layer, "groups", 1), shape[-1]
        self.columns = math.prod(shape) // self.outputs

    @property
    def matrices(self) -> np.ndarray:
        """The kernel, ``(groups, columns, outputs per group)``; to look at, not to write into."""
        return self.as_matrices(view_of(self.layer.kernel).astype(self.dtype, copy=False))

    @property
    def bias(self) -> np.ndarray:
        """One value per output; zeros where the layer has none."""
        if self.layer.bias is None:
            return np.zeros(self.outputs, self.dtype)
        return to_numpy(self.layer.bias).astype(self.dtype)

    def assign(self, matrices: np.ndarray) -> None:
        """Give the layer another kernel, in the form of `matrices`."""
        kernel = self.layer.kernel
        value = self.as_kernel(matrices)
        kernel.assign(keras.ops.cast(value.astype(self.dtype), kernel.dtype))

    def as_kernel(self, matrices: np.ndarray) -> np.ndarray:
        """Numbers in the form of `matrices` in the form of the kernel."""
        return matrices.swapaxes(0, 1).reshape(self.layer.kernel.shape)

    def as_matrices(self, kernel: np.ndarray) -> np.ndarray:
        """Numbers in the form of the kernel in the form of `matrices`."""
        return kernel.reshape(self.columns, self.groups, -1).swapaxes(0, 1)

    def positions(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Sizes of the output without its channels, for an input of this shape."""
        sizes = [n for a, n in enumerate(shape) if a != self.axis]
        return (sizes[0], *(self._along(d, n)[0] for d, n in enumerate(sizes[1:])))

    def patches(self, x: np.ndarray, at: np.ndarray) -> np.ndarray:
        """What the matrices are multiplied with at some positions of the output.

        Args:
            x: an input of the layer.
            at: positions, as flat indices into `positions`, ``(rows,)``.

        Returns:
            ``(groups, rows, columns)``; zeros where the kernel reaches into the padding.
        """
        x = np.moveaxis(x, self.axis, -1)
        batch, *where = np.unravel_index(at, self.positions_of_last(x.shape))
        index, inside = batch[:, None], np.ones((len(at), 1), bool)
        for d, (size, o) in enumerate(zip(x.shape[1:-1], where, strict=True)):
            _, stride, dilation, before = self._along(d, size)
            i = o[:, None] * stride - before + np.arange(self.taps[d]) * dilation
            valid = (i >= 0) & (i < size)
            index = index[:, :, None] * size + np.where(valid, i, 0)[:, None, :]
            inside = inside[:, :, None] & valid[:, None, :]
            index, inside = (a.reshape(len(at), -1) for a in (index, inside))
        found = x.reshape(-1, x.shape[-1])[index].astype(self.dtype, copy=False)
        if not inside.all():
            found[~inside] = 0
        rows, taps, channels = found.shape
        split = found.reshape(rows, taps, self.groups, channels // self.groups)
        return split.transpose(2, 0, 1, 3).reshape(self.groups, rows, self.columns)

    def positions_of_last(self, shape: Sequence[int]) -> tuple[int, ...]:
        """`positions` for an input whose channels were moved to the end."""
        return (shape[0], *(self._along(d, n)[0] for d, n in enumerate(shape[1:-1])))

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Outputs before the activation, ``(rows, outputs)``."""
        return self.join(patches @ self.matrices) + self.bias

    def join(self, parts: np.ndarray) -> np.ndarray:
        """Values by group as values by output: ``(rows, outputs)``."""
        return parts.swapaxes(0, 1).reshape(parts.shape[1], -1)

    def split(self, rows: np.ndarray) -> np.ndarray:
        """Values by output as values by group: ``(groups, rows, outputs per group)``."""
        return rows.reshape(len(rows), self.groups, -1).swapaxes(0, 1)

    def _along(self, d: int, size: int) -> tuple[int, int, int, int]:
        """Along one axis: number of outputs, stride, dilation, padding in front."""
        if not self.convolves:
            return size, 1, 1, 0
        layer = self.layer
        stride, dilation = _pair(layer.strides, d), _pair(layer.dilation_rate, d)
        reach = (self.taps[d] - 1) * dilation
        if layer.padding == "valid":
            return (size - reach - 1) // stride + 1, stride, dilation, 0
        count = -(-size // stride)
        if layer.padding == "causal":
            return count, stride, dilation, reach
        return count, stride, dilation, max((count - 1) * stride + reach + 1 - size, 0) // 2


def _pair(value: int | Sequence[int], d: int) -> int:
    return value if isinstance(value, int) else value[d]
