"""What strategies look at besides the weights: gradients of the loss, and activations."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cached_property

import keras
import numpy as np

from ridurre.backend import to_numpy
from ridurre.backend.training import Loss, loss_of
from ridurre.criteria.gradients import mean_gradients
from ridurre.errors import ModelError, RequestError
from ridurre.forward import Forward, Step
from ridurre.graph.rules.convolution import channel_axis
from ridurre.graph.trace import Trace
from ridurre.progress import track
from ridurre.strategies.base import Pruning
from ridurre.strategies.helpers import Nested, check_norm

#: Samples that are run through the model at once, for activations.
_BATCH = 32


class GradientMixin(Pruning):
    """Gradients of the loss of all inputs and outputs by every parameter, in inference mode.

    They are computed once, when they are first asked for.
    """

    def params_gradients(self, only_prunable: bool = True) -> Nested:
        """``{layer: {param: ∂L/∂w}}``, of the shapes of `params`; not to be written into.

        Args:
            only_prunable: leave out layers that are not pruned.

        Raises:
            RequestError: inputs, outputs or the loss are missing.
        """
        return {layer: self._gradients[layer] for layer in self._layers(only_prunable)}

    def param_gradients(self, only_prunable: bool = True) -> Nested:
        """The same as `params_gradients`."""
        return self.params_gradients(only_prunable)

    def module_param_gradients(self, layer: keras.Layer | str) -> dict[str, np.ndarray]:
        """The same of one layer."""
        return {name: self._gradient_of[id(w.variable)] for name, w in self._of(layer).items()}

    @cached_property
    def _gradients(self) -> Nested:
        return {layer: self.module_param_gradients(layer) for layer in self._weights}

    @cached_property
    def _gradient_of(self) -> dict[int, np.ndarray]:
        """Gradients by the ids of variables."""
        variables = [w.variable for own in self._weights.values() for w in own.values()]
        data = self._data
        if not data.labelled:
            raise RequestError(
                f"{type(self).__name__} needs labels for gradients. Expected outputs=…, or data "
                "with labels as inputs. Received: None."
            )
        found = mean_gradients(
            self.model, variables, self._loss(), track(data, "Gradients", unit="batch")
        )
        for gradient in found:
            gradient.flags.writeable = False
        return {id(v): g for v, g in zip(variables, found, strict=True)}

    def _loss(self) -> Loss:
        try:
            return loss_of(self.model, self.loss)
        except ModelError as error:
            raise RequestError(str(error)) from error


class ActivationMixin(Pruning):
    """What goes into layers and comes out of them for the inputs, in inference mode.

    They are computed once, when they are first asked for. The model needs a graph.
    """

    #: The power of `channel_activations`.
    norm: float = 1

    def activations(
        self, only_prunable: bool = True
    ) -> dict[keras.Layer, tuple[np.ndarray, np.ndarray]]:
        """``{layer: (input, output)}``, arrays of all samples as the layer sees them.

        Outputs are behind the layer's own activation function. Layers with several inputs give
        the first; of layers that are called several times the calls stand one after the other.
        They are held in memory, all of them: some hundred samples will do.

        Args:
            only_prunable: leave out layers that are not pruned.

        Raises:
            RequestError: inputs are missing or do not fit, or a layer is called on tensors of
                different shapes.
        """
        return {layer: self._activations[layer] for layer in self._layers(only_prunable)}

    def module_activations(self, layer: keras.Layer | str) -> tuple[np.ndarray, np.ndarray]:
        """The same of one layer that has weights."""
        found = self._activations.get(self._layer(layer))
        if found is None:
            known = [one.name for one in self._activations]
            raise RequestError(
                f"Expected a layer that has weights, one of {known}. Received: "
                f"{self._layer(layer).name!r}."
            )
        return found

    def channel_activations(self) -> dict[keras.Layer, np.ndarray]:
        """For every prunable layer ``(mean |a|^p)^(1/p)`` of its output channels, ``(channels,)``.

        The mean is over all samples and positions, p is `norm`. Whole activations are not held.

        Raises:
            RequestError: inputs are missing or do not fit.
        """
        return self._channel_activations

    @cached_property
    def _activations(self) -> dict[keras.Layer, tuple[np.ndarray, np.ndarray]]:
        found: dict[keras.Layer, list[tuple[np.ndarray, np.ndarray]]] = {}
        for layer, step in self._steps():
            for batch in range(step.batches):
                pair = (to_numpy(step.inputs(batch)[0]), to_numpy(step.outputs(batch)[0]))
                found.setdefault(layer, []).append(pair)
        return {layer: _joined(layer, pairs) for layer, pairs in found.items()}

    @cached_property
    def _channel_activations(self) -> dict[keras.Layer, np.ndarray]:
        p = check_norm(self.norm)
        sums: dict[keras.Layer, np.ndarray] = {}
        counts: dict[keras.Layer, int] = {}
        for layer, step in self._steps():
            for batch in range(step.batches):
                rows = _by_channel(layer, to_numpy(step.outputs(batch)[0]))
                sums[layer] = sums.get(layer, 0) + (np.abs(rows) ** p).sum(axis=0, dtype="float64")
                counts[layer] = counts.get(layer, 0) + len(rows)
        return {layer: (sums[layer] / counts[layer]) ** (1 / p) for layer in self.prunable}

    def _steps(self) -> Iterator[tuple[keras.Layer, Step]]:
        """Every call of a layer with weights, on all samples."""
        data = self._data.with_batch_size(_BATCH, sys.maxsize)
        for step in Forward(Trace(self.model), data):
            if step.call.operation in self._weights:
                yield step.call.operation, step


def _joined(
    layer: keras.Layer, pairs: list[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    shapes = {(x.shape[1:], y.shape[1:]) for x, y in pairs}
    if len(shapes) > 1:
        raise RequestError(
            f"The layer {layer.name!r} is called on tensors of different shapes, so that its "
            "activations are no array. Expected one shape; leave the layer out with a can_prune of "
            f"your own, or use channel_activations. Received inputs and outputs: {sorted(shapes)}."
        )
    inputs, outputs = zip(*pairs, strict=True)
    return np.concatenate(inputs), np.concatenate(outputs)


def _by_channel(layer: keras.Layer, outputs: np.ndarray) -> np.ndarray:
    """Outputs of a layer as ``(…, channels)``, at least in float32."""
    # A dense layer has no data format: its channels stand last whatever Keras' setting is.
    last = outputs.ndim - 1
    axis = channel_axis(layer, outputs.ndim) if hasattr(layer, "data_format") else last
    rows = np.moveaxis(outputs, axis, -1).reshape(-1, outputs.shape[axis])
    return rows.astype("float32") if rows.dtype.itemsize < 4 else rows
