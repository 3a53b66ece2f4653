"""What training leaves in a model, and gradients on each back end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from ridurre.backend import in_inference, to_numpy
from ridurre.errors import ModelError


def compile_like(model: keras.Model, original: keras.Model) -> keras.optimizers.Optimizer | None:
    """Compile a model as another one is, with an optimizer and metrics of its own.

    Returns:
        The new optimizer, built; None if the original is not compiled.
    """
    if not original.compiled:
        return None
    settings = dict(original._compile_config.config)
    optimizer = type(original.optimizer).from_config(original.optimizer.get_config())
    for name in ("metrics", "weighted_metrics"):
        settings[name] = keras.tree.map_structure(_fresh_metric, settings.get(name))
    model.compile(**settings | {"optimizer": optimizer})
    model.optimizer.build(model.trainable_variables)
    return model.optimizer


def _fresh_metric(metric: Any) -> Any:
    if isinstance(metric, keras.metrics.Metric):
        return type(metric).from_config(metric.get_config())
    return metric


def optimizer_of(model: keras.Model) -> keras.optimizers.Optimizer | None:
    """The optimizer whose ``apply`` changes a model's weights; None if it is not compiled."""
    optimizer = getattr(model, "optimizer", None)
    # On JAX a LossScaleOptimizer calls only that of the one inside.
    return getattr(optimizer, "inner_optimizer", optimizer)


def parts_of(optimizer: keras.optimizers.Optimizer) -> list[keras.optimizers.Optimizer]:
    """The optimizers that a MultiOptimizer has shared weights out to by now; or the only one."""
    return list(getattr(optimizer, "optimizers", [optimizer]))


def zero_elsewhere(value: Any, keep: Any) -> Any:
    """A tensor or variable with zeros where it is not kept; PyTorch's is changed in place."""
    tensor = keras.ops.convert_to_tensor(value)
    if keras.backend.backend() == "torch":
        import torch  # noqa: PLC0415 - only the backend in use is loaded

        with torch.no_grad():  # a new tensor and a copy of it would take more than twice the time
            return tensor.mul_(keep.view(torch.uint8))  # of booleans three times as long
    return keras.ops.where(keep, tensor, 0)  # half the time of an array of zeros


def moving_averages(optimizer: keras.optimizers.Optimizer) -> dict[int, keras.Variable]:
    """By the id of a weight its moving average, where an optimizer keeps any (``use_ema``)."""
    averages: dict[int, keras.Variable] = {}
    for part in parts_of(optimizer):
        found = getattr(part, "_model_variables_moving_average", [])
        pairs = zip(part._trainable_variables, found, strict=False)  # none without use_ema
        averages |= {id(v): average for v, average in pairs if average is not None}
    return averages


def rate_schedule(optimizer: keras.optimizers.Optimizer) -> Any:
    """What an optimizer has as its learning rate: a variable, a schedule or a function."""
    return optimizer._learning_rate


def attach_state(model: keras.Model) -> None:
    """Within ``fit``: make a model's variables hold what training has made of them.

    On JAX they are empty while an epoch runs, and Keras' trainer has the values. After this call it
    takes them from the variables again, changed or not, before the next step.
    """
    if keras.backend.backend() == "jax":
        model.jax_state_sync()


#: Adafactor keeps averages over an axis of the weight: over the last, and over the one before.
_REDUCED = {"_r": -1, "_c": -2}


def optimizer_slots(
    optimizer: keras.optimizers.Optimizer,
) -> dict[int, tuple[int, int | None]]:
    """What every state variable of an optimizer belongs to.

    Keras optimizers keep lists of state variables as long as the list of trainable ones.

    Returns:
        By the id of a state variable, the position of its trainable variable, and the axis of that
        one which the state lacks (None: it has the same shape).
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    slots: dict[int, tuple[int, int | None]] = {}
    for name, values in list(vars(inner).items()):
        if not isinstance(values, list) or len(values) != len(inner._trainable_variables):
            continue
        if name in ("_trainable_variables", "_variables"):
            continue
        for index, state in enumerate(values):
            for variable in keras.tree.flatten(state):
                rank = len(inner._trainable_variables[index].shape)
                if isinstance(variable, keras.Variable) and len(variable.shape) == rank:
                    slots[id(variable)] = (index, None)
                elif name in _REDUCED and len(variable.shape) == rank - 1 > 0:
                    slots[id(variable)] = (index, _REDUCED[name])
    return slots


Loss = Callable[[Any, Any, Any, Any], Any]


def loss_of(model: keras.Model, loss: Any = None) -> Loss:
    """A loss without regularisers, ``fn(x, y_true, y_pred, sample_weight)``.

    Args:
        model: its compiled loss is meant where none is given.
        loss: a Keras loss, its name, or ``fn(y_true, y_pred)``.

    Raises:
        ModelError: none is given and the model is not compiled with one.
    """
    if loss is not None:
        given = keras.losses.get(loss)

        def own(x: Any, y: Any, outputs: Any, weight: Any) -> Any:
            del x
            extra = {} if weight is None else {"sample_weight": weight}
            return keras.ops.mean(given(y, outputs, **extra))

        return own
    if not model.compiled or model.loss is None:
        raise ModelError(
            f"The model {model.name!r} is not compiled with a loss. Give loss=…, or compile it."
        )

    def compiled(x: Any, y: Any, outputs: Any, weight: Any) -> Any:
        value = model.compute_loss(x, y, outputs, weight, training=False)
        return value - sum(model.losses)

    return compiled


def gradient_function(
    model: keras.Model, variables: list[keras.Variable], loss: Loss
) -> Callable[[Any], list[np.ndarray]]:
    """Gradients of the loss in inference mode, by variables that may be frozen.

    Returns:
        ``fn(batch)``, arrays of the variables' shapes.
    """

    def objective(x: Any, y: Any, weight: Any) -> Any:
        with _nothing_kept():
            outputs = model(x, **in_inference(model))
        return loss(x, y, outputs, weight)

    def tensors(batch: Any) -> list[Any]:
        return [
            None if s is None else keras.tree.map_structure(keras.ops.convert_to_tensor, s)
            for s in (batch.x, batch.y, batch.sample_weight)
        ]

    make = {"tensorflow": _tensorflow_gradients, "jax": _jax_gradients, "torch": _torch_gradients}
    run = make[keras.backend.backend()](objective, variables)
    return lambda batch: [to_numpy(g).astype("float32") for g in run(*tensors(batch))]


def _nothing_kept() -> contextlib.AbstractContextManager[Any]:
    """Inside, stateful layers stay as they are; on JAX they are in such a scope already."""
    jax = keras.backend.backend() == "jax"
    return contextlib.nullcontext() if jax else keras.StatelessScope()


def _tensorflow_gradients(objective: Callable[..., Any], variables: list[keras.Variable]) -> Any:
    import tensorflow as tf  # noqa: PLC0415 - only the backend in use is loaded

    @tf.function(reduce_retracing=True)
    def run(*data: Any) -> Any:
        values = [v.value for v in variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            value = objective(*data)
        zero = tf.UnconnectedGradients.ZERO
        found = tape.gradient(value, values, unconnected_gradients=zero)
        return [tf.convert_to_tensor(g) for g in found]  # embeddings have sparse ones

    return run


def _jax_gradients(objective: Callable[..., Any], variables: list[keras.Variable]) -> Any:
    import jax  # noqa: PLC0415

    def value(values: list[Any], data: Any) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return objective(*data)

    gradient = jax.jit(jax.grad(value))
    return lambda *data: gradient([v.value for v in variables], data)


def _torch_gradients(objective: Callable[..., Any], variables: list[keras.Variable]) -> Any:
    import torch  # noqa: PLC0415

    def run(*data: Any) -> Any:
        values = [v.value for v in variables]
        flags = [v.requires_grad for v in values]
        try:
            for v in values:
                v.requires_grad_(True)
            found = torch.autograd.grad(objective(*data), values, allow_unused=True)
        finally:
            for v, flag in zip(values, flags, strict=True):
                v.requires_grad_(flag)
        return [torch.zeros_like(v) if g is None else g for v, g in zip(values, found, strict=True)]

    return run
