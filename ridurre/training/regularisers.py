"""Sparse training before the cut: callbacks that push the least important channels to zero."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from ridurre.backend import all_layers
from ridurre.checks import check_finite
from ridurre.errors import RequestError
from ridurre.graph import ChannelGraph, Group

Penalty = Callable[[Any], Any]


class Sparsity(keras.callbacks.Callback, abc.ABC):
    """Adds penalties to some weights of a model while it is trained, and takes them away again.

    ``fit`` does not tell its callbacks when it is interrupted by an exception. Then the penalties
    stay until this callback is used again or its `remove` is called; as a context manager it takes
    them away in any case::

        with ridurre.GroupSparsity(1e-4) as sparsity:
            model.fit(x, y, epochs=20, callbacks=[sparsity])

    Args:
        strength: of the penalty.

    Raises:
        RequestError: a negative strength.
    """

    def __init__(self, strength: float) -> None:
        super().__init__()
        if check_finite("strength", strength) < 0:
            raise RequestError(f"Expected strength not to be negative. Received: {strength!r}.")
        self.strength = strength
        self._before: list[tuple[keras.Variable, Any]] = []
        self._trained: keras.Model | None = None

    @abc.abstractmethod
    def penalties(self, model: keras.Model) -> list[tuple[keras.Variable, Penalty]]:
        """What is to be added to the loss: a function of a trainable variable's value each.

        Raises:
            RequestError: the model has nothing to penalise.
        """

    def on_train_begin(self, logs: Any = None) -> None:
        """Add the penalties."""
        self.remove()
        self._trained = self.model
        for variable, penalty in self.penalties(self.model):
            self._before.append((variable, variable.regularizer))
            variable.regularizer = _both(variable.regularizer, penalty)
        _retrace(self.model)

    def on_train_end(self, logs: Any = None) -> None:
        """Take the penalties away."""
        self.remove()

    def remove(self) -> None:
        """Take the penalties away, if they are there; other regularisers stay."""
        for variable, regularizer in reversed(self._before):
            variable.regularizer = regularizer
        if self._before and self._trained is not None:
            _retrace(self._trained)
        self._before, self._trained = [], None

    def __enter__(self) -> Sparsity:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class GroupSparsity(Sparsity):
    """Shrinks whole groups of coupled channels, the less important ones far more.

    Every parameter w that a channel c owns, anywhere in its group, gets the gradient ``strength ·
    2^(α · (s_max − s_c) / (s_max − s_min)) · w``, where s_c is the L2 norm of all of them. (The
    regulariser of DepGraph, Fang et al., CVPR 2023, with its α = 4.) It costs little beside a
    training step. Normal strengths are 1e-4 to 1e-3.

    Args:
        strength: of the penalty.
        alpha: how much more the least important channel shrinks than the most important one, as a
            power of two.

    Raises:
        RequestError: `strength` is negative, or `alpha` not a finite number.
    """

    def __init__(self, strength: float, alpha: float = 4.0) -> None:
        super().__init__(strength)
        self.alpha = check_finite("alpha", alpha)

    def penalties(self, model: keras.Model) -> list[tuple[keras.Variable, Penalty]]:
        """One penalty for all groups, on a variable of one of them."""
        trainable = {id(v) for v in model.trainable_variables}
        owned = [_owned(group, trainable) for group in ChannelGraph(model).groups]
        owned = [parts for parts in owned if parts]
        if not owned:
            raise RequestError(
                f"The model {model.name!r} has no trainable channels that could be pruned."
            )
        sizes = [1 + max(int(units.max()) for _, _, units in parts) for parts in owned]

        def penalty(_: Any) -> Any:
            return sum(self._penalty(p, n) for p, n in zip(owned, sizes, strict=True))

        return [(owned[0][0][0], penalty)]

    def _penalty(self, parts: list[Part], size: int) -> Any:
        squares = sum(_unit_squares(*part, size) for part in parts)
        norms = keras.ops.sqrt(keras.ops.stop_gradient(squares))
        top, low = keras.ops.max(norms), keras.ops.min(norms)
        rank = (top - norms) / keras.ops.maximum(top - low, keras.config.epsilon())
        return 0.5 * self.strength * keras.ops.sum(2.0 ** (self.alpha * rank) * squares)


class BatchNormSparsity(Sparsity):
    """Pushes the scales of all batch normalisations to zero, by an L1 penalty.

    The gradient of every scale γ grows by ``strength · sign γ``, so that unimportant channels
    switch themselves off and can be found by their scale. (Network Slimming, Liu et al., ICCV
    2017.) Normal strengths are 1e-5 to 1e-4.

    Args:
        strength: of the penalty.

    Raises:
        RequestError: `strength` is negative.
    """

    def penalties(self, model: keras.Model) -> list[tuple[keras.Variable, Penalty]]:
        """An L1 penalty on every trainable scale."""
        norms = [x for x in all_layers(model) if isinstance(x, keras.layers.BatchNormalization)]
        trainable = {id(v) for v in model.trainable_variables}
        scales = {id(x.gamma): x.gamma for x in norms if x.scale and id(x.gamma) in trainable}
        if not scales:
            raise RequestError(
                f"The model {model.name!r} has no batch normalisation with a trainable scale."
            )
        return [(gamma, self._penalty) for gamma in scales.values()]

    def _penalty(self, gamma: Any) -> Any:
        return self.strength * keras.ops.sum(keras.ops.abs(gamma))


#: A variable, its axis of channels, and for every position the unit it belongs to, or -1.
Part = tuple[keras.Variable, int, np.ndarray]


def _owned(group: Group, trainable: set[int]) -> list[Part]:
    """The trainable weights of a group."""
    return [
        (m.weight.variable, m.weight.axis, m.units)
        for m in group.members
        if id(m.weight.variable) in trainable
    ]


def _unit_squares(variable: keras.Variable, axis: int, units: np.ndarray, size: int) -> Any:
    """Sum of squares of what every unit owns of a variable, ``(size,)``."""
    value = keras.ops.convert_to_tensor(variable)
    others = [a for a in range(len(variable.shape)) if a != axis % len(variable.shape)]
    squares = keras.ops.sum(keras.ops.square(value), axis=others)
    if np.array_equal(units, np.arange(size)):
        return squares
    inside = np.flatnonzero(units >= 0)
    return keras.ops.segment_sum(keras.ops.take(squares, inside), units[inside], size)


def _both(old: Penalty | None, new: Penalty) -> Penalty:
    """Two penalties, one of which may not be there."""
    return new if old is None else lambda value: old(value) + new(value)


def _retrace(model: keras.Model) -> None:
    """Forget what was compiled of training and evaluation, as the loss has changed."""
    model.make_train_function(force=True)
    model.make_test_function(force=True)
