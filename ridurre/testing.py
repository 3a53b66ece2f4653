"""The contract tests of a rule, for the rules of this package and for yours."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import keras
import numpy as np

from ridurre.backend import node_counts, to_numpy
from ridurre.data import random_inputs
from ridurre.dependency import DependencyGraph
from ridurre.errors import FrozenChannelError, RequestError, RuleError
from ridurre.graph import Group
from ridurre.plan import PruningPlan
from ridurre.verification import outputs_of, verify

Build: TypeAlias = "keras.Layer | Callable[[Any], Any]"


def check_rule(
    layer: Build,
    input_shape: Sequence[int],
    *,
    channel_axis: int = -1,
    prunable: bool = True,
    tolerance: float | None = None,
    seed: int = 0,
) -> int:
    """Put a layer into a small network and remove every subset of its channels.

    The network is ``Dense → layer → Flatten → Dense``. Checked are: every plan is exact (see
    `ridurre.verify`; where statistics run across channels, only that the result runs), the result
    survives a ``.keras`` file, the original is untouched, and channels can be removed at all.

    Args:
        layer: the layer, or a function of a symbolic tensor that returns one.
        input_shape: shape of one sample that the layer takes; few channels, all subsets are tried.
        channel_axis: where the channels are in the layer's input, batch axis included.
        prunable: whether channels should pass; False expects that all of them are frozen.
        tolerance: see `ridurre.verify`.
        seed: of the random weights and inputs.

    Returns:
        The number of plans that were checked.

    Raises:
        RuleError: a check failed; the message says which channels of which layer were removed.
    """
    model = sandwich(layer, input_shape, channel_axis=channel_axis)
    randomise(model, seed)
    return check_model(model, prunable=prunable, tolerance=tolerance)


def check_model(
    model: keras.Model, *, prunable: bool = True, tolerance: float | None = None
) -> int:
    """Remove every subset of the channels of every layer of a small model, as `check_rule` does.

    Args:
        model: a small model with random weights.
        prunable: whether there should be channels that can be removed.
        tolerance: see `ridurre.verify`.

    Returns:
        The number of plans that were checked.

    Raises:
        RuleError: a check failed.
    """
    before = snapshot(model)
    graph = DependencyGraph(model)
    count = 0
    for name, indices in _requests(graph):
        try:
            plan = graph.get_pruning_plan(name, indices)
        except FrozenChannelError:
            continue
        except RequestError as error:
            if "every channel" in str(error):
                continue
            raise
        _check_plan(model, plan, f"{name}{list(indices)}", tolerance, save=count % 8 == 0)
        count += 1
    if snapshot(model) != before:
        raise RuleError("The original model was changed.")
    if (count > 0) != prunable:
        raise RuleError(
            f"Expected {'some' if prunable else 'no'} removable channels. Received: {count} plans; "
            f"frozen because: {_reasons(graph)}."
        )
    return count


def sandwich(layer: Build, input_shape: Sequence[int], *, channel_axis: int = -1) -> keras.Model:
    """A layer between one that makes its channels and one that reads every position."""
    rank = len(input_shape) + 1
    axis = channel_axis % rank
    shape = list(input_shape)
    channels = shape.pop(axis - 1)
    inputs = keras.Input((*shape, 3))
    x = keras.layers.Dense(channels, name="before")(inputs)
    if axis != rank - 1:
        order = list(range(1, rank - 1))
        order.insert(axis - 1, rank - 1)
        x = keras.layers.Permute(order)(x)
    x = layer(x)
    outputs = [
        keras.layers.Dense(2, name=f"after_{i}")(keras.layers.Flatten()(y))
        for i, y in enumerate(keras.tree.flatten(x))
    ]
    return keras.Model(inputs, outputs)


def randomise(model: keras.Model, seed: int = 0) -> None:
    """Give every weight a random value, biases and batch-norm statistics included.

    Freshly initialised models hide mistakes: zero biases and unit variances look right anywhere.
    """
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if "int" in variable.dtype:  # the state of a random number generator
            continue
        value = rng.normal(size=variable.shape)
        if "variance" in variable.name:
            value = np.abs(value) + 0.5
        elif len(variable.shape) > 1:
            value /= math.sqrt(max(1, math.prod(variable.shape[:-1])))
        else:
            value = (variable.name == "gamma") + 0.3 * value
        variable.assign(value)


def snapshot(model: keras.Model) -> tuple[Any, ...]:
    """Weights, configuration and connections of a model, to see whether anything changed."""
    return (
        [to_numpy(v).tobytes() for v in model.variables],
        [v.path for v in model.variables],
        str(model.get_config()) if not _has_lambda(model) else "",
        node_counts(model),
    )


def _has_lambda(model: keras.Model) -> bool:
    return any(isinstance(x, keras.layers.Lambda) for x in model.layers)


def _requests(graph: DependencyGraph) -> Iterator[tuple[str | Group, tuple[int, ...]]]:
    """Every proper subset of the output channels of every layer that makes channels.

    And of the units of groups that are no layer's output (the heads inside an attention layer).
    """
    made = {w.layer for w in graph.trace.space.weights.values() if w.role == "out"}
    sizes: dict[str | Group, int] = {n: len(graph.channels(n)) for n in graph.layers if n in made}
    outer = {int(c) for n in sizes for c in graph.solution.soft[graph.channels(str(n))]}
    sizes |= {g: g.size for g in graph.groups if outer.isdisjoint(g.components.tolist())}
    for target, size in sizes.items():
        for count in range(1, size):
            for indices in itertools.combinations(range(size), count):
                yield target, indices


def _check_plan(
    model: keras.Model, plan: PruningPlan, what: str, tolerance: float | None, *, save: bool
) -> None:
    try:
        pruned = plan.exec()
        if plan.exact:
            verify(model, pruned, plan, tolerance=tolerance)
        if save or not plan.exact:
            _check_alone(pruned, save)
    except Exception as error:
        raise RuleError(
            f"Removing {what} failed. {type(error).__name__}: {error}\n{plan}"
        ) from error


def _check_alone(model: keras.Model, save: bool) -> None:
    """What a pruned model has to hold to without its original: finite outputs, as a file too."""
    inputs = random_inputs(model)
    outputs = outputs_of(model, inputs)
    if not all(np.isfinite(y).all() for y in outputs):
        raise RuleError("The outputs are not finite.")
    if not save:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        loaded = keras.saving.load_model(path, safe_mode=not _has_lambda(model))
    again = outputs_of(loaded, inputs)
    if not all(np.allclose(a, b, atol=1e-6) for a, b in zip(outputs, again, strict=True)):
        raise RuleError("The model computes something else after saving and loading.")


def _reasons(graph: DependencyGraph) -> str:
    reasons = {f"{w.reason.value} ({w.name})" for _, w in graph.trace.space.frozen}
    return "; ".join(sorted(reasons)) or "nothing is frozen"
