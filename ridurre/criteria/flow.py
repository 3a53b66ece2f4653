"""Criteria for networks before, or while, they are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import keras
import numpy as np

from ridurre.backend import check_model, own_variables, to_numpy, view_of
from ridurre.backend.making import recreate
from ridurre.backend.training import gradient_function, loss_of
from ridurre.criteria.base import (
    Scores,
    Setting,
    WeightCriterion,
    WeightScores,
    criterion,
    serializable,
)
from ridurre.data import Batch, Batches
from ridurre.errors import RequestError
from ridurre.graph import ChannelGraph
from ridurre.progress import track
from ridurre.weights import Weight, is_kernel, layers_of

L = keras.layers
_LEAST = 1e-3
#: Layers that are the identity in a network without nonlinearities and normalisation.
_DROPPED = (
    L.Activation, L.ReLU, L.LeakyReLU, L.PReLU, L.ELU, L.Softmax, L.BatchNormalization,
    L.LayerNormalization, L.GroupNormalization, L.RMSNormalization, L.UnitNormalization,
    L.SpectralNormalization, L.Normalization,
)  # fmt: skip


@criterion("synflow")
@serializable
@dataclass(frozen=True)
class SynFlow(WeightCriterion):
    """Synaptic flow: ``|w · ∂R/∂w|``, R the sum of the outputs of the network made linear.

    Every weight is replaced by its absolute value, every bias by zero, activation functions and
    normalisations by the identity; the input is all ones. Tanaka et al., "Pruning Neural Networks
    without any Data by Iteratively Conserving Synaptic Flow", NeurIPS 2020, which ranks globally in
    100 exponential steps, so that no layer collapses::

        ridurre.LevelPrune(0.95, criterion="synflow", scope="global", steps=100,
                           schedule="geometric")

    Needs the weights; costs a forward and a backward pass of one sample per step.
    """

    def weight_scores(
        self, model: keras.Model, weights: list[Weight], setting: Setting
    ) -> WeightScores:
        """Products of weights and derivatives."""
        del setting
        check_model(model)
        linear = _linear_copy(model)
        own = {name: own_variables(layer) for name, layer in layers_of(linear).items()}
        variables = [own[w.layer][_index(w)] for w in weights]
        ones = keras.tree.map_structure(
            lambda t: np.ones((1, *(n or 1 for n in t.shape[1:])), t.dtype), _inputs(model)
        )
        found = gradient_function(linear, variables, _total)(Batch(ones))
        scores = {w.path: np.abs(w.value * g) for w, g in zip(weights, found, strict=True)}
        sums = [float(x.sum(dtype="float64")) for x in scores.values()]
        flow = float(to_numpy(_total(None, None, linear(ones, training=False), None)))
        # All that flows through a layer without bias arrives: its scores add up to R.
        if not np.isfinite([*sums, flow]).all() or max(sums) < _LEAST * flow or not any(sums):
            raise RequestError(
                f"Synaptic flow does not get through the model {model.name!r}: the sum of its "
                "outputs is not finite, or does not depend on the weights. Expected layers that "
                "hand on positive numbers. Choose another criterion, such as 'l1' or 'lamp'."
            )
        return scores


def _inputs(model: keras.Model) -> Any:
    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input


def _index(weight: Weight) -> int:
    """Which of its layer's variables a weight is."""
    return [id(v) for v in own_variables(weight.owner)].index(id(weight.variable))


def _total(x: Any, y: Any, outputs: Any, weight: Any) -> Any:
    """The sum of all outputs."""
    del x, y, weight
    return sum(keras.ops.sum(output) for output in keras.tree.flatten(outputs))


def _linear_copy(model: keras.Model) -> keras.Model:
    """The model without nonlinearities and normalisation, with positive weights, in float64."""
    copy = keras.models.clone_model(model, clone_function=_linear_layer, recursive=True)
    old = layers_of(model)
    for name, layer in layers_of(copy).items():
        for a, b in zip(own_variables(old[name]), own_variables(layer), strict=False):
            b.assign(np.abs(view_of(a)) if is_kernel(b) else np.zeros(b.shape))
    return copy


def _linear_layer(layer: keras.Layer) -> keras.Layer:
    if isinstance(layer, _DROPPED):
        return _Pass(name=layer.name, dtype=_WIDE)
    config = layer.get_config()
    return recreate(layer, {"dtype": _WIDE} | {k: "linear" for k in config if k == "activation"})


class _Pass(keras.Layer):
    """Hands on its first argument, whatever else it is called with."""

    def call(self, x: Any, **others: Any) -> Any:
        """The first argument."""
        return x


#: JAX has no float64 unless it is asked for when it starts.
_WIDE = "float32" if keras.backend.backend() == "jax" else "float64"


@criterion("movement")
@serializable
@dataclass(frozen=True)
class Movement(WeightCriterion):
    """Movement: ``−Σ_t w_t · ∂L_t/∂w_t`` over some steps of training, away from zero is up.

    Sanh et al., "Movement Pruning: Adaptive Sparsity by Fine-Tuning", NeurIPS 2020. The steps are
    plain gradient descent, in inference mode, on a copy. Needs labels; costs one forward and
    backward pass per batch.

    Args:
        batches: how many steps are taken at most.
        batch_size: samples per batch, where the data are arrays.
        rate: learning rate.
    """

    needs: ClassVar[str] = "labels"
    batches: int = 50
    batch_size: int = 32
    rate: float = 0.01

    def weight_scores(
        self, model: keras.Model, weights: list[Weight], setting: Setting
    ) -> WeightScores:
        """Sums over the steps."""
        copy = keras.models.clone_model(model)
        copy.set_weights(model.get_weights())
        twins = dict(zip(map(id, model.variables), copy.variables, strict=True))
        variables = [twins[id(w.variable)] for w in weights]
        gradients = gradient_function(copy, variables, loss_of(model, setting.loss))
        scores = {w.path: np.zeros(w.shape) for w in weights}
        data: Batches = setting.data  # type: ignore[assignment] # checked: this needs labels
        for batch in track(
            data.with_batch_size(self.batch_size, self.batches), "Scoring", unit="batch"
        ):
            for w, v, g in zip(weights, variables, gradients(batch), strict=True):
                value = np.array(view_of(v))
                scores[w.path] -= value * g
                v.assign(value - self.rate * g)
        return scores

    def scores(self, graph: ChannelGraph, setting: Setting) -> Scores:
        """Sums over the weights of a unit, from 0 for the least important unit of all up."""
        found = super().scores(graph, setting)
        low = min((x.min() for x in found.values()), default=0.0)
        return {group: x - low for group, x in found.items()}
