"""Check that a pruned model computes what it should."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from ridurre.backend import all_layers, in_inference, to_numpy
from ridurre.backend.precision import full_precision
from ridurre.data import random_inputs
from ridurre.errors import PlanMismatchError, VerificationError
from ridurre.graph.names import by_own_paths, named_layers, variable_paths
from ridurre.masks import Masks
from ridurre.plan import PruningPlan

_TOLERANCE = {"float16": 1e-2, "bfloat16": 5e-2}


def verify(
    original: keras.Model,
    pruned: keras.Model,
    plan: PruningPlan | Masks,
    *,
    inputs: Any = None,
    tolerance: float | None = None,
    seed: int = 0,
) -> float:
    """Compare a pruned model with the original whose removed slices are zero, in inference mode.

    Args:
        original: the model that the plan was made for; its weights are not touched.
        pruned: the smaller model, before any further training.
        plan: what was removed: channels, or single weights by their masks.
        inputs: what to feed both models; random by default (2 samples; along axes of unknown size
            64, or what the model takes; whole numbers 0 and 1 where the model takes integers).
        tolerance: largest allowed difference, relative to the largest value of each output; by
            default 1e-4, and 1e-2 (float16) or 5e-2 (bfloat16) where a layer computes in these.
        seed: of the random inputs.

    Returns:
        The largest relative difference over all outputs.

    Raises:
        VerificationError: the difference is over the tolerance, the outputs have other shapes or
            are not finite, or the plan is not exact (it changes statistics across channels).
        PlanMismatchError: the plan names weights that the original does not have.
    """
    if isinstance(plan, PruningPlan) and not plan.exact:
        raise VerificationError(
            f"This plan is not exact: {', '.join(plan.inexact)} compute statistics across the "
            "removed channels, so that zeroed channels and missing ones differ by design."
        )
    if tolerance is None:
        tolerance = usual_tolerance(original)
    zeroed = _by_masks(original, plan) if isinstance(plan, Masks) else _by_plan(original, plan)
    if inputs is None:
        inputs, expected = _random_run(original, zeroed, seed)
    else:
        expected = outputs_of(original, inputs, zeroed)
    received = outputs_of(pruned, inputs)
    worst = largest_difference(
        expected, received, ("original with its removed slices zeroed", "pruned model")
    )
    if not worst <= tolerance:
        raise VerificationError(
            f"The pruned model differs from the original with the removed slices set to zero by "
            f"{worst:.3g} of the largest output; allowed is {tolerance:g}. If the pruned model was "
            "trained since, this is expected; otherwise model and plan do not belong together."
        )
    return worst


def _random_run(
    model: keras.Model, zeroed: dict[int, np.ndarray], seed: int
) -> tuple[Any, list[np.ndarray]]:
    """Random inputs and their outputs; shorter where the sizes left open are too much for it."""
    for open_size in (64, 8, 4):
        inputs = random_inputs(model, open_size=open_size, seed=seed)
        with contextlib.suppress(Exception):
            return inputs, outputs_of(model, inputs, zeroed)
    inputs = random_inputs(model, open_size=2, seed=seed)
    return inputs, outputs_of(model, inputs, zeroed)


def usual_tolerance(model: keras.Model) -> float:
    """What rounding may change of the outputs of a model, relative to the largest value."""
    return max(_TOLERANCE.get(x.compute_dtype, 1e-4) for x in [model, *all_layers(model)])


def outputs_of(
    model: keras.Model, inputs: Any, replaced: Mapping[int, np.ndarray] | None = None
) -> list[np.ndarray]:
    """Outputs of the model in inference mode; what its layers remember between calls stays.

    Float32 products are in full precision on every device.

    Args:
        model: is not changed.
        inputs: what it takes.
        replaced: by the id of a variable the value to compute with.
    """
    values = replaced or {}

    def value(variable: keras.Variable) -> Any:
        if id(variable) not in values:
            return variable.value
        return keras.ops.convert_to_tensor(values[id(variable)], dtype=variable.dtype)

    with full_precision():
        outputs, _ = model.stateless_call(
            [value(v) for v in model.trainable_variables],
            [value(v) for v in model.non_trainable_variables],
            inputs,
            **in_inference(model),
        )
    return [to_numpy(y) for y in keras.tree.flatten(outputs)]


def _by_masks(model: keras.Model, masks: Masks) -> dict[int, np.ndarray]:
    """By the id of a weight its value without what the masks leave out."""
    pairs = masks.pairs(model)
    return {id(w.variable): np.where(k, w.value, 0).astype(w.value.dtype) for w, k in pairs}


def _by_plan(model: keras.Model, plan: PruningPlan) -> dict[int, np.ndarray]:
    """By the id of a weight its value with every removed slice set to zero."""
    layers = named_layers(model)
    variables = {id(v): v for layer in layers.values() for v in layer.variables}
    paths = variable_paths(layers)
    removed = by_own_paths(plan.removed, layers)
    unknown = removed.keys() - set(paths.values())
    if unknown:
        raise PlanMismatchError(
            f"The plan names weights that {model.name!r} does not have: {sorted(unknown)[:5]}."
        )
    found: dict[int, np.ndarray] = {}
    for key, path in paths.items():
        for axis, indices in removed.get(path, {}).items():
            found.setdefault(key, to_numpy(variables[key]).copy())
            np.moveaxis(found[key], axis, 0)[indices] = 0
    return found


def largest_difference(
    expected: Sequence[np.ndarray], received: Sequence[np.ndarray], whose: tuple[str, str]
) -> float:
    """The largest difference of two lists of outputs, relative to the largest value of each output.

    Args:
        expected: outputs that are right.
        received: outputs that may not be.
        whose: names both in messages.

    Raises:
        VerificationError: they differ in number or shape, or are not finite.
    """
    if len(expected) != len(received):
        raise VerificationError(
            f"The {whose[0]} has {len(expected)} outputs, the {whose[1]} {len(received)}."
        )
    pairs = zip(expected, received, strict=True)
    return max((_difference(a, b, whose) for a, b in pairs), default=0.0)


def _difference(expected: np.ndarray, received: np.ndarray, whose: tuple[str, str]) -> float:
    if expected.shape != received.shape:
        raise VerificationError(
            f"Outputs have different shapes: expected {expected.shape}, received {received.shape}."
        )
    a, b = (x.astype("float64") for x in (expected, received))
    for name, values in zip(whose, (a, b), strict=True):
        if not np.isfinite(values).all():
            raise VerificationError(
                f"Outputs of the {name} are not finite and cannot be compared. A function that "
                "is infinite at zero (1 / x, log) or weights that are not finite would do that."
            )
    scale = float(np.abs(a).max(initial=0.0))
    return float(np.abs(a - b).max(initial=0.0)) / max(scale, 1e-12)
