"""Weight rewinding: the lottery ticket that a trained network has held from early on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from ridurre import schedules
from ridurre.checks import check_callable, check_count
from ridurre.errors import RequestError
from ridurre.masking import ZerosKept
from ridurre.masks import Masks
from ridurre.progress import shown, track
from ridurre.sparsity import WeightPrune, sizes_of
from ridurre.surgery import duplicate
from ridurre.training.masked import check_strategy

Train = Callable[[keras.Model, int, int], Any]


def lottery_ticket(
    model: keras.Model,
    train: Train,
    strategy: WeightPrune,
    *,
    epochs: int,
    rewind_to: int = 0,
    rounds: int = 1,
    schedule: str | schedules.Schedule = "geometric",
    verbose: int = 1,
) -> tuple[keras.Model, Masks]:
    """Train, prune, set the weights that are left back to an early epoch, train again.

    The model is trained for `rewind_to` epochs and remembered, weights, statistics and optimizer
    alike. Then it is trained up to `epochs`; the strategy says what goes; what stays gets its
    remembered values, and training starts again from there with the masks enforced. (Frankle &
    Carbin, "The Lottery Ticket Hypothesis", ICLR 2019, with ``rewind_to=0``; rewinding to a later
    epoch and iterative pruning: Frankle et al., "Linear Mode Connectivity and the Lottery Ticket
    Hypothesis", ICML 2020.)

    Example::

        def train(model, initial_epoch, epochs):
            model.fit(x, y, initial_epoch=initial_epoch, epochs=epochs, verbose=0)


        ticket, masks = ridurre.lottery_ticket(
            model, train, ridurre.LevelPrune(0.9, scope="global"), epochs=30, rewind_to=2, rounds=5
        )

    Args:
        model: untrained, and compiled unless `train` does that; is not changed.
        train: ``fn(model, initial_epoch, epochs)`` trains a model in place from one epoch to
            another, both counted from the very start.
        strategy: what goes in the end: `ridurre.LevelPrune` or `ridurre.ThresholdPrune`.
        epochs: the epoch at which training ends.
        rewind_to: the epoch whose weights the surviving ones get back.
        rounds: how often to prune and train again; the level is reached in the last one.
        schedule: how the level is spread over the rounds; "geometric" removes the same fraction of
            what is left in every one.
        verbose: 1 shows progress bars, 0 none.

    Returns:
        The new model, trained to the end, and its masks.

    Raises:
        RequestError: arguments that make no sense.
    """
    check_callable("train", train)
    strategy = check_strategy(strategy, schedule)
    _check_epochs(epochs, rewind_to, rounds)
    with shown(verbose):
        return _ticket(model, train, strategy, epochs, rewind_to, rounds)


def _ticket(
    model: keras.Model,
    train: Train,
    strategy: WeightPrune,
    epochs: int,
    rewind_to: int,
    rounds: int,
) -> tuple[keras.Model, Masks]:
    early = duplicate(model, keep_compiled=True)
    if rewind_to:
        train(early, 0, rewind_to)
    trained, masks = duplicate(early, keep_compiled=True), Masks({})
    train(trained, rewind_to, epochs)
    for number in track(range(rounds), "Lottery ticket", unit="round", patience=0):
        masks = strategy.masks_at(trained, number, rounds, sizes_of(model)) & masks
        trained = _rewound(early, masks)
        kept = ZerosKept(trained, [weight.variable for weight, _ in masks.pairs(trained)])
        try:
            train(trained, rewind_to, epochs)
        finally:
            kept.remove()
    return trained, masks


def _rewound(early: keras.Model, masks: Masks) -> keras.Model:
    """The early model without what the masks leave out."""
    model = duplicate(early, keep_compiled=True)
    for weight, keep in masks.pairs(model):
        # A zero would count as pruned. What stays and happens to be zero gets a number beside it.
        tiny = 2.0**-14 if "float16" == weight.value.dtype.name else 1e-30
        value = np.where(keep & (weight.value == 0), tiny, weight.value)
        weight.variable.assign(np.where(keep, value, 0).astype(weight.value.dtype))
    return model


def _check_epochs(epochs: Any, rewind_to: Any, rounds: Any) -> None:
    check_count("epochs", epochs)
    check_count("rewind_to", rewind_to)
    check_count("rounds", rounds)
    if rewind_to >= epochs or rounds == 0:
        raise RequestError(
            "Expected rewind_to below epochs, and at least one round. Received: "
            f"rewind_to={rewind_to}, epochs={epochs}, rounds={rounds}."
        )
