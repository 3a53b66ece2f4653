"""Training that leaves zeros alone: what was pruned stays pruned."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras

from ridurre.surgery import duplicate
from ridurre.weights import Which, weights_of

Constraint = Callable[[Any], Any]


class ZerosKept:
    """Makes every optimizer step of a model leave weights that are exactly zero at zero.

    The mask is read off the weights within the step, before they are updated, so that it needs no
    room, survives saving and loading, and may change at any time without compiling anew. It holds
    with momentum and weight decay, gradient accumulation, in mixed precision, for an optimizer that
    is compiled later, and for your own loops that call ``model.optimizer.apply``.

    Args:
        model: the model.
        variables: which of its weights may have zeros that are masks.
    """

    def __init__(self, model: keras.Model, variables: Iterable[keras.Variable]) -> None:
        self._model = model
        self._variables = {id(v): v for v in variables}
        self._guarded: list[keras.optimizers.Optimizer] = []
        self._compile = model.compile
        model.compile = self._compile_guarded
        self._guard()

    def remove(self) -> None:
        """Let training change everything again."""
        for optimizer in self._guarded:
            vars(optimizer).pop("apply", None)
        if self._guarded:
            _retrace(self._model)
        self._guarded = []
        if vars(self._model).get("compile") == self._compile_guarded:
            del self._model.compile

    def _compile_guarded(self, *args: Any, **kwargs: Any) -> Any:
        result = self._compile(*args, **kwargs)
        self._guard()
        return result

    def _guard(self) -> None:
        optimizer = getattr(self._model, "optimizer", None)
        if optimizer is None:
            return
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        if any(optimizer is known for known in self._guarded):
            return
        apply = optimizer.apply

        def guarded(grads: Any, trainable_variables: Any = None) -> Any:
            with self._constrained():
                return apply(grads, trainable_variables)

        optimizer.apply = guarded
        self._guarded.append(optimizer)
        _retrace(self._model)

    @contextlib.contextmanager
    def _constrained(self) -> Iterator[None]:
        """While inside, the variables' zeros are constraints, which optimizers end a step with."""
        before = [(v, v.constraint) for v in self._variables.values() if v.trainable]
        for variable, own in before:
            variable.constraint = _masked(keras.ops.not_equal(variable, 0), own)
        try:
            yield
        finally:
            for variable, own in before:
                variable.constraint = own


def _masked(keep: Any, own: Constraint | None) -> Constraint:
    """A constraint: the variable's own, and zero where it was zero."""

    def constraint(value: Any) -> Any:
        value = keras.ops.convert_to_tensor(value if own is None else own(value))
        return keras.ops.where(keep, value, keras.ops.zeros_like(value))

    return constraint


@contextlib.contextmanager
def keep_zeros(model: keras.Model, weights: Which = "kernels") -> Iterator[keras.Model]:
    """While inside, training leaves those weights alone that are exactly zero.

    Works for ``fit``, for `train_on_batch` and for loops of your own, also if the model is compiled
    inside. For `fit` alone there is the callback `ridurre.KeepZeros`.

    Example::

        sparse = ridurre.prune(ridurre.LevelPrune(0.8), model)
        with ridurre.keep_zeros(sparse):
            sparse.compile("adam", "mse")
            sparse.fit(x, y)

    Args:
        model: the pruned model.
        weights: which zeros count: those of "kernels", "all", or a predicate of a variable.
    """
    chosen = [w.variable for w in weights_of(model, None, weights) if (w.value == 0).any()]
    kept = ZerosKept(model, chosen)
    try:
        yield model
    finally:
        kept.remove()


def strip(model: keras.Model) -> keras.Model:
    """A plain copy of a pruned model: zeros in place, nothing that keeps them there.

    Returns:
        A new model, compiled like the given one.
    """
    return duplicate(model, keep_compiled=True)


def _retrace(model: keras.Model) -> None:
    """Forget what was compiled of training."""
    if model.compiled:
        model.make_train_function(force=True)
