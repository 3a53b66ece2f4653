"""Training that leaves zeros alone: what was pruned stays pruned."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras

from ridurre.backend.training import moving_averages, optimizer_of, zero_elsewhere
from ridurre.surgery import duplicate
from ridurre.weights import Weight, Which, weights_of

Constraint = Callable[[Any], Any]


class Override:
    """An object's own version of one of its methods, until it is taken back.

    Several may lie on top of each other and be taken back in any order.

    Args:
        owner: the object.
        name: of the method.
        replacement: is called with the method before, and with what the method is called with.
    """

    def __init__(self, owner: Any, name: str, replacement: Callable[..., Any]) -> None:
        self.owner, self._name, self._active = owner, name, True
        self._own = vars(owner).get(name)
        before = getattr(owner, name)

        def method(*args: Any, **kwargs: Any) -> Any:
            if not self._active:
                return before(*args, **kwargs)
            return replacement(before, *args, **kwargs)

        self._method = method
        setattr(owner, name, method)

    def take_back(self) -> None:
        """From now on the method is what it was; what lies on top stays."""
        self._active = False
        if vars(self.owner).get(self._name) is not self._method:
            return
        if self._own is None:
            delattr(self.owner, self._name)
        else:
            setattr(self.owner, self._name, self._own)


class ZerosKept:
    """Makes every optimizer step of a model leave weights that are exactly zero at zero.

    The mask is read off the weights within the step, before they are updated, so that it needs no
    room, survives saving and loading, and may change at any time without compiling anew. It holds
    with momentum and weight decay, gradient accumulation, in mixed precision, for moving averages
    of weights (``use_ema``), for an optimizer that is compiled later, and for your own loops that
    call ``model.optimizer.apply``.

    Args:
        model: the model.
        variables: which of its weights may have zeros that are masks.
    """

    def __init__(self, model: keras.Model, variables: Iterable[keras.Variable]) -> None:
        self._model = model
        self._variables = {id(v): v for v in variables}
        self._guarded: list[Override] = []
        self._compile = Override(model, "compile", self._compile_guarded)
        self._guard()

    def remove(self) -> None:
        """Let training change everything again."""
        for step in self._guarded:
            step.take_back()
        if self._guarded:
            retrace(self._model)
        self._guarded = []
        self._compile.take_back()

    def _compile_guarded(self, compile_: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = compile_(*args, **kwargs)
        self._guard()
        return result

    def _guard(self) -> None:
        optimizer = optimizer_of(self._model)
        if optimizer is None or any(optimizer is step.owner for step in self._guarded):
            return
        apply = functools.partial(self._apply_guarded, optimizer)
        self._guarded.append(Override(optimizer, "apply", apply))
        retrace(self._model)

    def _apply_guarded(
        self, optimizer: Any, apply: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        # On PyTorch a comparison with zero would take eight times as long.
        keep = [(v, keras.ops.cast(v, "bool")) for v in self._variables.values() if v.trainable]
        with _constrained(keep):
            result = apply(*args, **kwargs)
        averages = moving_averages(optimizer)  # these were taken before the constraints
        for variable, mask in keep:
            if id(variable) in averages:
                average = averages[id(variable)]
                average.assign(_masked(mask, None)(average))
        return result


@contextlib.contextmanager
def _constrained(keep: list[tuple[keras.Variable, Any]]) -> Iterator[None]:
    """While inside, masks are constraints of their variables: optimizers end a step with those."""
    before = [(variable, variable.constraint) for variable, _ in keep]
    for variable, mask in keep:
        variable.constraint = _masked(mask, variable.constraint)
    try:
        yield
    finally:
        for variable, own in before:
            variable.constraint = own


def _masked(keep: Any, own: Constraint | None) -> Constraint:
    """A constraint: the variable's own, and zero where it was zero."""

    def constraint(value: Any) -> Any:
        return zero_elsewhere(value if own is None else own(value), keep)

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
    kept = ZerosKept(model, zero_somewhere(weights_of(model, None, weights)))
    try:
        yield model
    finally:
        kept.remove()


def zero_somewhere(weights: Iterable[Weight]) -> list[keras.Variable]:
    """The variables of those weights that have zeros."""
    return [w.variable for w in weights if (w.value == 0).any()]


def strip(model: keras.Model) -> keras.Model:
    """A plain copy of a pruned model: zeros in place, nothing that keeps them there.

    Returns:
        A new model, compiled like the given one.
    """
    return duplicate(model, keep_compiled=True)


def retrace(model: keras.Model) -> None:
    """Forget what was compiled of training; it is compiled anew at the next step."""
    if model.compiled:
        model.make_train_function(force=True)
