"""Layers that can be refitted: where they stand, what they should compute."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np

from ridurre.backend import library_operation, to_numpy
from ridurre.forward import Step
from ridurre.graph.labels import Value
from ridurre.graph.rules import Call
from ridurre.linear import CONVOLUTIONS, Linear
from ridurre.recovery.pair import PASSING, Pair, Side

L = keras.layers
logger = logging.getLogger("ridurre")
_CHUNK = 1 << 23  # numbers that are gathered at once
_TINY = 1e-4
FITTED = (L.Dense, *CONVOLUTIONS)


def is_linear(layer: object) -> bool:
    """Whether a layer has no activation function of its own."""
    return getattr(layer, "activation", None) in (None, keras.activations.linear)


class Path(NamedTuple):
    """The linear way of a layer's output, through layers that nothing else reads.

    Attributes:
        norms: calls of batch norms on the way.
        end: the tensor at the end of it.
        add: the addition that reads it there, if one does.
    """

    norms: list[Call]
    end: Value
    add: Call | None


def path_of(side: Side, call: Call) -> Path:
    """Follow a layer's output as far as it goes through linear things alone."""
    value, norms = call.outputs[0], list[Call]()
    if not is_linear(call.operation):
        return Path([], value, None)
    while (reader := side.reader(value)) is not None:
        layer = reader.operation
        if _adds(reader):
            return Path(norms, value, reader)
        if type(layer) is L.BatchNormalization:
            norms.append(reader)
        elif type(layer) not in PASSING:
            break
        value = reader.outputs[0]
    return Path(norms, value, None)


def _adds(call: Call) -> bool:
    return type(call.operation) is L.Add or library_operation(call.operation) == "Add"


def affine(norms: list[Call]) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset per channel of batch norms in a row, in inference mode, in float64."""
    scale, offset = np.ones(1), np.zeros(1)
    for call in norms:
        layer: Any = call.operation
        mean, variance, gamma, beta = (
            np.float64(default) if v is None else to_numpy(v).astype("float64")
            for v, default in (
                (layer.moving_mean, 0),
                (layer.moving_variance, 1),
                (layer.gamma, 1),
                (layer.beta, 0),
            )
        )
        own = gamma / np.sqrt(variance + layer.epsilon)
        scale, offset = scale * own, (offset - mean) * own + beta
    return scale, offset


class Rows(NamedTuple):
    """Some positions of a layer's output.

    Attributes:
        inputs: patches of the pruned layer's inputs, ``(groups, rows, columns)``.
        wanted: what it should compute there, ``(rows, outputs)``.
        zero: what makes the ReLU's input zero, ``(rows, outputs)``, nan if nothing does; None if
            no ReLU follows.
        sign: 1 where the ReLU cuts off what is below, -1 what is above, ``(outputs,)``.
    """

    inputs: np.ndarray
    wanted: np.ndarray
    zero: np.ndarray | None
    sign: np.ndarray

    def aim(self, made: np.ndarray) -> np.ndarray:
        """What is wanted of a layer that computes `made` so far.

        Where the ReLU cuts off what is wanted, everything else that it cuts off is as good.
        """
        if self.zero is None:
            return self.wanted
        cut, gone = (self.sign * (x - self.zero) < 0 for x in (self.wanted, made))
        return np.where(cut, np.where(gone, made, self.zero), self.wanted)


@dataclass(eq=False)
class Site:
    """One layer in both models, of which the pruned one may be changed.

    Attributes:
        pair: the models.
        old, new: the layer's calls.
        before, after: the layers' linear parts.
        index: number of the call.
        kept: which outputs of the original are left, as indices.
        cut_off: whether a ReLU comes next, and matters.
    """

    pair: Pair
    old: Call
    new: Call
    index: int

    def __post_init__(self) -> None:
        self.before, self.after = Linear(self.old), Linear(self.new)
        self.kept = self.pair.channels(self.old.outputs[0], self.before.axis)
        self._paths = path_of(self.pair.old, self.old), path_of(self.pair.new, self.new)
        norms = self._paths[1].norms
        alone = bool(norms) and self.pair.new.once(norms[0])
        self._norm = norms[0].operation if alone else None
        self.cut_off = self.pair.settings.rounds > 1 and self._before_relu()

    @property
    def free(self) -> np.ndarray | None:
        """Which numbers of the kernel may be changed, as `Linear.matrices`; None for all."""
        keep = self.pair.free.get(id(self.after.layer.kernel))
        return None if keep is None or keep.all() else self.after.as_matrices(keep)

    @property
    def movable(self) -> bool:
        """Whether a constant can be added to every output."""
        return self.after.layer.bias is not None or self._norm is not None

    def _before_relu(self) -> bool:
        """Whether a ReLU, and nothing else, reads the layer's output (or the sum it goes into)."""
        layer, path = self.new.operation, self._paths[1]
        if not is_linear(layer):
            return layer.activation is keras.activations.relu
        value = path.end if path.add is None else path.add.outputs[0]
        reader = self.pair.new.reader(value)
        return reader is not None and cuts_off(reader.operation)

    def available(self, old: Step) -> int:
        """Number of positions in all samples, given that all are alike."""
        first = len(self.pair.batches[0])
        positions = math.prod(self.before.positions(old.inputs(0)[0].shape))
        return positions * sum(map(len, self.pair.batches)) // first

    def change(self, matrices: np.ndarray | None, offset: np.ndarray | None) -> None:
        """Add to the layer's kernel, and to its outputs.

        Args:
            matrices: in the form of `Linear.matrices`.
            offset: ``(outputs,)``; goes into the bias, or else into the mean of the batch norm.
        """
        if not all(np.isfinite(a).all() for a in (matrices, offset) if a is not None):
            logger.warning("%s: no finite solution; left as it is.", self.new.name)
            return
        if matrices is not None:
            self.after.assign(self.after.matrices + matrices.astype(self.after.dtype))
        if offset is None:
            return
        if self.after.layer.bias is not None:
            _add(self.after.layer.bias, offset)
        elif self._norm is not None:
            _add(self._norm.moving_mean, -offset)

    def rows(self, old: Step, new: Step, limit: int, *, whole: bool = True) -> Iterator[Rows]:
        """Inputs of the pruned layer and what it should compute, at random positions.

        Wanted is what the original computes, moved so that what later becomes of it (through
        batch norms, and added to other tensors) is as in the original.

        Args:
            old: the layer's step in the original.
            new: its step in the pruned model.
            limit: at most about that many rows over all data.
            whole: make up for what the other terms of a sum lack.
        """
        rng = np.random.default_rng((self.pair.settings.seed, self.index))
        samples = sum(map(len, self.pair.batches))
        others = self._others(old, new)
        settled = self.cut_off and (self._paths[1].add is None or bool(others))
        for batch, data in enumerate(self.pair.batches):
            x, y = (to_numpy(step.inputs(batch)[0]) for step in (old, new))
            total = math.prod(self.before.positions(x.shape))
            count = min(total, -(-limit * len(data) // samples))
            at = np.sort(rng.choice(total, count, replace=False))
            added = self._added(others, old, new, batch)
            size = count * self.before.groups * self.before.columns
            for part in np.array_split(at, -(-size // _CHUNK)):
                wanted = self.before(self.before.patches(x, part))[:, self.kept]
                first, second = (rows[part] if rows.ndim else rows for rows in added)
                lacking = first - second if whole else np.zeros(())
                wanted += self._correction(wanted, lacking)
                zero = self._zero(second, len(part)) if settled else (None, np.ones(1))
                yield Rows(self.after.patches(y, part), wanted, *zero)

    def _added(
        self, others: list[tuple[Value, Value]], old: Step, new: Step, batch: int
    ) -> list[np.ndarray]:
        """The sum of the other terms, in both models, ``(positions, outputs)``; or zeros."""
        total = [np.zeros((), self.after.dtype), np.zeros((), self.after.dtype)]
        for a, b in others:
            full = self.pair.cut(a, to_numpy(foresee(self.pair.old, old, a, batch)))
            part = to_numpy(foresee(self.pair.new, new, b, batch))
            for i, x in enumerate((full, part)):
                total[i] = total[i] + all_rows(x.astype(self.after.dtype), self.after.axis)
        return total

    def _zero(self, added: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Rows.zero` and `Rows.sign`."""
        scale, offset = affine(self._paths[1].norms)
        alive = np.abs(scale) > _TINY * np.abs(scale).max()
        zero = np.where(alive, -(offset + added) / np.where(alive, scale, 1), np.nan)
        shape = count, self.after.outputs
        return np.broadcast_to(zero, shape).astype(self.after.dtype), np.sign(scale)

    def _others(self, old: Step, new: Step) -> list[tuple[Value, Value]]:
        """The other terms of the sum that follows, in both models; none unless all are known."""
        a, b = self._paths
        if a.add is None or b.add is None:
            return []
        sides = self.pair.old, self.pair.new
        pairs = [(x, y) for x, y in zip(a.add.inputs, b.add.inputs, strict=True) if y is not b.end]
        fit = all(
            y.shape == b.end.shape
            and foreseeable(sides[0], old, x)
            and foreseeable(sides[1], new, y)
            for x, y in pairs
        )
        return pairs if fit and len(pairs) == len(b.add.inputs) - 1 else []

    def _correction(self, wanted: np.ndarray, lacking: np.ndarray | float) -> np.ndarray:
        """What the outputs have to be moved by, before the batch norms on the way."""
        (s, t), (scale, offset) = (affine(p.norms) for p in self._paths)
        s, t = (a[self.kept] if a.size > 1 else a for a in (s, t))
        moved = (s - scale) * wanted + (t - offset) + lacking
        alive = np.abs(scale) > _TINY * np.abs(scale).max()
        return np.where(alive, moved / np.where(alive, scale, 1), 0)


def foreseeable(side: Side, step: Step, value: Value) -> bool:
    """Whether a tensor is known, or follows from known ones through layers that stay as they are.

    Keras runs every call as late as it can, so a shortcut often waits until it is added.
    """
    if step.knows(value):
        return True
    call = side.maker.get(value)
    if call is None or type(call.operation) in FITTED:
        return False
    return all(foreseeable(side, step, x) for x in call.inputs)


def foresee(side: Side, step: Step, value: Value, batch: int) -> Any:
    """A foreseeable tensor, computed for the moment if it is not known."""
    if step.knows(value):
        return step.tensor(value, batch)
    call = side.maker[value]
    inputs = {x: foresee(side, step, x, batch) for x in call.inputs}
    outputs = step.compute(call, inputs, batch)
    return outputs[call.outputs.index(value)]


def cuts_off(operation: Any) -> bool:
    """Whether this is a plain ReLU."""
    if type(operation) is L.ReLU:
        plain = operation.negative_slope == 0 and operation.threshold == 0
        return plain and operation.max_value is None
    if type(operation) is L.Activation:
        return operation.activation is keras.activations.relu
    return library_operation(operation) == "Relu"


def all_rows(x: np.ndarray, axis: int) -> np.ndarray:
    """A tensor as ``(positions, channels)``."""
    moved = np.moveaxis(x, axis, -1)
    return moved.reshape(-1, moved.shape[-1])


def set_values(variable: keras.Variable, values: np.ndarray) -> None:
    """Assign numbers of another precision."""
    wide = "float64" if variable.dtype == "float64" else "float32"
    variable.assign(keras.ops.cast(values.astype(wide), variable.dtype))


def _add(variable: keras.Variable, change: np.ndarray) -> None:
    set_values(variable, to_numpy(variable).astype("float64") + change)


def site_of(pair: Pair, old: Call, new: Call, index: int) -> Site | None:
    """The site of a call, or None if its layer is not one that can be refitted."""
    layer = new.operation
    if type(layer) not in FITTED:
        if isinstance(layer, keras.Layer) and any(len(v.shape) > 1 for v in layer.weights):
            logger.info("%s (%s) is left as it is.", new.name, new.kind)
        return None
    if not pair.new.once(new):
        logger.info("%s is shared between several calls and left as it is.", new.name)
        return None
    return Site(pair, old, new, index)
