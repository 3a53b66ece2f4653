"""Criteria from gradients of the loss, taken in inference mode.

In training mode the gradient of a convolution before batch norm is orthogonal to its weights, so
that ``⟨w, ∂L/∂w⟩`` is zero whatever the channel is worth.

All of them rest on one number per channel and weight: ``⟨w, ∂L/∂w⟩`` over the channel's slice. Over
the slices of all that read the channel it adds up to ``∂L/∂z``, the derivative by a gate z that
multiplies the channel wherever it is read; z = 0 is removing it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import keras
import numpy as np

from ridurre.backend import has_graph, view_of
from ridurre.backend.training import Loss, gradient_function, loss_of
from ridurre.criteria.base import (
    Criterion,
    Scores,
    Setting,
    WeightScores,
    criterion,
    parameters,
    serializable,
    sum_by_unit,
)
from ridurre.data import Batch, Batches
from ridurre.graph import ChannelGraph, Group, Member
from ridurre.measure import model_complexity
from ridurre.progress import track
from ridurre.weights import Weight

#: By group: for each parameter in it, ``⟨w, ∂L/∂w⟩`` of every unit.
Products = dict[Group, list[tuple[Member, np.ndarray]]]
#: Roles of weights that read a channel; a recurrent layer reads its own at the next step.
_READ = {"in", "recurrent"}
#: What a part of a batch may keep for the way back, by the outputs of its layers, in bytes.
MEMORY = 512 << 20


def products(graph: ChannelGraph, loss: Loss, batches: Iterable[Batch]) -> Iterator[Products]:
    """For every batch and group, ``⟨w, ∂L/∂w⟩`` of every unit, over each parameter it owns."""
    owned = {g: list(parameters(graph, g)) for g in graph.groups}
    members = [m for found in owned.values() for m in found]
    variables = list({id(m.weight.variable): m.weight.variable for m in members}.values())
    gradients = gradient_function(graph.model, variables, loss)
    for batch in batches:
        slices = {
            id(v): view_of(v) * g
            for v, g in zip(variables, _gradients(graph.model, gradients, batch), strict=True)
        }
        sums = {(key, a): _along(v, a) for key, v in slices.items() for a in range(v.ndim)}
        yield {
            group: [
                (m, sum_by_unit(group, m.units, sums[id(m.weight.variable), m.weight.axis]))
                for m in found
            ]
            for group, found in owned.items()
        }


def mean_gradients(
    model: keras.Model, variables: list[keras.Variable], loss: Loss, batches: Iterable[Batch]
) -> list[np.ndarray]:
    """Gradients of the loss in inference mode, averaged over samples, in the variables' shapes."""
    function, count = gradient_function(model, variables, loss), 0
    total = [np.zeros(v.shape, "float32") for v in variables]
    for batch in batches:
        count += len(batch)
        for t, g in zip(total, _gradients(model, function, batch), strict=True):
            t += g * len(batch)
    return [t / max(count, 1) for t in total]


def _along(values: np.ndarray, axis: int) -> np.ndarray:
    others = tuple(a for a in range(values.ndim) if a != axis)
    return values.sum(axis=others, dtype="float64")


def _gradients(
    model: keras.Model, function: Callable[[Batch], list[np.ndarray]], batch: Batch
) -> list[np.ndarray]:
    """Gradients of a batch's mean loss, a part at a time where the whole needs much memory."""
    size = (model_complexity(model).activation_memory or 0) if has_graph(model) else 0
    step = max(1, MEMORY // max(size, 1))
    parts = [batch.slice(i, i + step) for i in range(0, len(batch), step)]
    total: list[np.ndarray] = []
    for part in parts:
        weighted = [g * (len(part) / len(batch)) for g in function(part)]
        total = [a + b for a, b in zip(total, weighted, strict=True)] if total else weighted
    return total


def gates(found: list[tuple[Member, np.ndarray]]) -> np.ndarray:
    """``∂L/∂z`` of every unit, z the gate at all that read it, ``(units,)``.

    What nothing reads through a weight of its own is gated where it is made.
    """
    roles = {m.weight.role for m, _ in found}
    where = next(r for r in (_READ, {"channel"}, {"out"}) if r & roles)
    return np.sum([values for m, values in found if m.weight.role in where], axis=0)


@dataclass(frozen=True)
class _Gradient(Criterion):
    """What the criteria from gradients share.

    Args:
        batches: how many are used at most.
        batch_size: samples per batch, where the data are arrays.
    """

    needs: ClassVar[str] = "labels"
    batches: int = 50
    batch_size: int = 32

    def _products(self, graph: ChannelGraph, setting: Setting) -> Iterator[Products]:
        batches = track(self._batches(setting), "Scoring", unit="batch")
        yield from products(graph, loss_of(graph.model, setting.loss), batches)

    def _batches(self, setting: Setting) -> Batches:
        data: Any = setting.data
        return data.with_batch_size(self.batch_size, self.batches)


@criterion("snip")
@criterion("taylor")
@serializable
@dataclass(frozen=True)
class Taylor(_Gradient):
    """First-order Taylor expansion on weights: ``Σ_m |⟨w_m, ∂L/∂w_m⟩|`` over the members m.

    Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019. For single
    weights ``|w · ∂L/∂w|``, on a network that is not trained yet known as SNIP (Lee et al., "SNIP:
    Single-shot Network Pruning based on Connection Sensitivity", ICLR 2019). Needs labels; costs
    one forward and backward pass per batch.
    """

    def scores(self, graph: ChannelGraph, setting: Setting) -> Scores:
        """Absolute products of weights and mean gradients, summed over members."""
        total: dict[Group, Any] = defaultdict(float)
        count = 0
        for count, batch in enumerate(self._products(graph, setting), 1):  # noqa: B007
            for group, found in batch.items():
                total[group] = total[group] + np.array([values for _, values in found])
        return {group: np.abs(sums / count).sum(axis=0) for group, sums in total.items()}

    def weight_scores(
        self, model: keras.Model, weights: list[Weight], setting: Setting
    ) -> WeightScores:
        """``|w · ∂L/∂w|`` with the mean gradient of all samples."""
        loss, variables = loss_of(model, setting.loss), [w.variable for w in weights]
        batches = track(self._batches(setting), "Scoring", unit="batch")
        found = mean_gradients(model, variables, loss, batches)
        return {w.path: np.abs(w.value * g) for w, g in zip(weights, found, strict=True)}


@criterion("gate_taylor")
@serializable
@dataclass(frozen=True)
class GateTaylor(_Gradient):
    """Squared gate Taylor: ``Σ_b (∂L_b/∂z_c)²``, z the gate wherever channel c is read.

    Molchanov et al., CVPR 2019, "method 22"; the default where labelled data are given. Needs
    labels; costs one forward and backward pass per batch. Invariant to how scale is shared out
    between layers. Do not normalise it per group; divide by what a channel costs instead.
    """

    def scores(self, graph: ChannelGraph, setting: Setting) -> Scores:
        """Squared derivatives by the gates, summed over batches."""
        total: dict[Group, Any] = defaultdict(float)
        for batch in self._products(graph, setting):
            for group, found in batch.items():
                total[group] = total[group] + gates(found) ** 2
        return dict(total)


@criterion("output_taylor")
@serializable
@dataclass(frozen=True)
class OutputTaylor(GateTaylor):
    """Squared gate Taylor of the outputs: ``Σ_n ‖∂f(x_n)/∂z_c‖²``, estimated by random signs.

    The loss is ``⟨r, f(x)⟩`` with new random signs r for every sample, whose squared derivative has
    the squared norm of the Jacobian as its mean (Hutchinson, 1990). It needs no labels, and works
    where the loss says little because the network has learnt its training data by heart; on outputs
    that are logits rather than probabilities. Needs samples without labels; costs one forward and
    backward pass per batch.
    """

    needs: ClassVar[str] = "samples"

    def _products(self, graph: ChannelGraph, setting: Setting) -> Iterator[Products]:
        rng = setting.rng
        signed = (
            _with_signs(graph.model, batch, rng)
            for batch in track(self._batches(setting), "Scoring", unit="batch")
        )
        yield from products(graph, _projection, signed)


def _with_signs(model: keras.Model, batch: Batch, rng: np.random.Generator) -> Batch:
    """The samples with random signs of the shapes of the outputs as labels."""

    def signs(output: keras.KerasTensor) -> np.ndarray:
        return rng.choice(
            np.array([-1, 1], "float32"), (len(batch), *(n or 1 for n in output.shape[1:]))
        )

    return Batch(batch.x, keras.tree.map_structure(signs, model.output))


def _projection(x: Any, signs: Any, outputs: Any, weight: Any) -> Any:
    """Mean over the samples of the outputs' inner product with the signs."""
    del x, weight
    pairs = zip(keras.tree.flatten(signs), keras.tree.flatten(outputs), strict=True)
    return sum(keras.ops.sum(keras.ops.mean(r * f, axis=0)) for r, f in pairs)


@criterion("group_fisher")
@serializable
@dataclass(frozen=True)
class GroupFisher(GateTaylor):
    """Group Fisher: ``Σ_n (∂L_n/∂z_c)²`` over single samples n.

    Liu et al., "Group Fisher Pruning for Practical Network Compression", ICML 2021: `GateTaylor`
    with batches of one. Needs labels; costs one forward and backward pass per sample.
    """

    batches: int = 512
    batch_size: int = 1


@criterion("jacobian")
@serializable
@dataclass(frozen=True)
class Jacobian(_Gradient):
    """Jacobian criterion: ``Σ_m Σ_b ⟨w_m, ∂L_b/∂w_m⟩²``, kernel with bias and γ with β as one m.

    Optimal Brain Connection, 2025. Needs labels; costs one forward and backward pass per batch.
    """

    def scores(self, graph: ChannelGraph, setting: Setting) -> Scores:
        """Squared products per layer and role, summed over layers and batches."""
        total: dict[Group, Any] = defaultdict(float)
        for batch in self._products(graph, setting):
            for group, found in batch.items():
                total[group] = total[group] + self._of(group, found)
        return dict(total)

    def _of(self, group: Group, found: list[tuple[Member, np.ndarray]]) -> np.ndarray:
        pairs: dict[tuple[str, str], np.ndarray] = defaultdict(lambda: np.zeros(group.size))
        for member, values in found:
            pairs[member.weight.layer, member.weight.role] += values
        return np.sum([values**2 for values in pairs.values()], axis=0)
