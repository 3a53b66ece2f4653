"""Bring a pruned model back towards the original without training it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np

from ridurre.data import Batch, Batches
from ridurre.errors import RequestError, nearest
from ridurre.graph import ChannelGraph
from ridurre.masks import Masks
from ridurre.plan import PruningPlan
from ridurre.progress import shown
from ridurre.recovery.fitting import least_squares, mean
from ridurre.recovery.merging import merge
from ridurre.recovery.pair import Pair, Settings, pair_models
from ridurre.recovery.statistics import batch_norm, renormalise, variance
from ridurre.surgery import rebuild

__all__ = ["METHODS", "Method", "Pair", "Settings", "get", "recover"]

Method: TypeAlias = Callable[[Pair], None]


def none(pair: Pair) -> None:
    """Leave the pruned model as it is."""


METHODS: dict[str, Method] = {
    f.__name__: f for f in (least_squares, mean, variance, batch_norm, renormalise, merge, none)
}
#: Methods that look at weights alone.
DATA_FREE: tuple[Method, ...] = (merge, none)


def get(how: str | Method) -> Method:
    """A recovery method by name; a function is one itself.

    Args:
        how: a name of `METHODS`, or a function that changes ``pair.new`` (see `Pair`) in place.

    Raises:
        RequestError: no method has this name.
    """
    if callable(how):
        return how
    if isinstance(how, str) and how in METHODS:
        return METHODS[how]
    raise RequestError(
        f"Unknown recovery method {how!r}. Expected a function, or one of {', '.join(METHODS)}."
        + nearest(str(how), METHODS)
    )


def recover(
    pruned: keras.Model,
    original: keras.Model,
    plan: PruningPlan | Masks,
    data: Any = None,
    how: str | Method | Sequence[str | Method] = "least_squares",
    *,
    samples: int | None = 512,
    batch_size: int = 64,
    ridge: float = 1e-3,
    max_rows: int = 65536,
    rounds: int = 4,
    seed: int = 0,
    memory: int = 1 << 29,
    verbose: int = 1,
) -> keras.Model:
    """Repair a pruned model with a few hundred unlabelled samples, without training.

    Args:
        pruned: what the plan made of the original; it is not changed.
        original: the model before; it is not changed.
        plan: what was removed: channels, or single weights by their masks (which stay zero).
        data: samples, in any form that `model.fit` takes; labels are not used. None for methods
            that look at weights alone.
        how: one method, or several that are carried out in order:

            - ``"least_squares"``: refit every layer to what it computes in the original;
            - ``"mean"``: the same for the means alone, through the biases;
            - ``"variance"``: means and variances of every layer's outputs;
            - ``"batch_norm"``: measure batch-norm statistics anew. Only with data that are
              augmented as in training: clean images do harm;
            - ``"renormalise"``: after one of the first two, before training: batch norms then
              compute in training what they compute in inference, which stays what it is;
            - ``"merge"``: a similar filter stands in for each removed one; without data;
            - ``"none"``: nothing;
            - a function of a `Pair`.
        samples: at most that many samples; None for all.
        batch_size: samples per batch, where the data are arrays.
        ridge: strength of the pull towards the present weights, relative to the inputs' mean
            square.
        max_rows: positions (pixels) per layer that are looked at, over all samples.
        rounds: how often least squares refits a layer in front of a ReLU (see
            `ridurre.recovery.fitting.least_squares`).
        seed: of the choice of samples and positions.
        memory: bytes of tensors that are held; what is more goes to a temporary folder.
        verbose: 1 for progress bars, 0 for none.

    Returns:
        A new model, compiled like the pruned one.

    Raises:
        RequestError: no such method, or data that do not fit.
        PlanMismatchError: the models and the plan do not belong together.
    """
    names = [how] if isinstance(how, str) or callable(how) else list(how)
    methods = [get(name) for name in names]
    batches = _batches(data, samples, batch_size, seed)
    if not batches and not all(method in DATA_FREE for method in methods):
        raise RequestError(
            f"Recovery by {names} needs samples. Expected data as model.fit takes them. "
            f"Received: {data!r}."
        )
    graph = ChannelGraph(pruned)
    model = rebuild(graph, np.ones(graph.trace.space.size, bool), keep_compiled=True)
    settings = Settings(ridge, max_rows, rounds, seed, memory)
    pair = pair_models(original, model, plan, batches, settings)
    with shown(verbose):
        for method in methods:
            method(pair)
    return model


def _batches(data: Any, samples: int | None, batch_size: int, seed: int) -> list[Batch]:
    """The samples, held, so that both models see the same whatever the source does."""
    if data is None:
        return []
    source = Batches(data, batch_size=batch_size, samples=samples, seed=seed)
    return [Batch(batch.x) for batch in source]
