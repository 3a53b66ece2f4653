"""Pruning while training as a dictionary says it."""

from __future__ import annotations

import inspect
from typing import Any

from ridurre.checks import check_choice
from ridurre.errors import RequestError
from ridurre.training.magnitude import MagnitudePercentage, MagnitudeThreshold
from ridurre.training.masked import MaskedTraining
from ridurre.training.rewinding import RewindPruning

#: Every callback by its name in configurations; a new one is a class and a row.
SCHEDULE_TYPES: dict[str, type[MaskedTraining]] = {
    "magnitude_percentage": MagnitudePercentage,
    "magnitude_threshold": MagnitudeThreshold,
    "rewind_pruning": RewindPruning,
}


def pruning_callback(schedule_type: str, **config: Any) -> MaskedTraining:
    """The callback that a configuration describes.

    Example::

        config = {
            "schedule_type": "magnitude_percentage",
            "function": "gradual",
            "threshold": 0.8,
            "epoch_threshold": 2,
            "converge_over": 3,
        }
        model.fit(x, y, epochs=8, callbacks=[ridurre.pruning_callback(**config)])

    Args:
        schedule_type: ``"magnitude_percentage"`` (`ridurre.MagnitudePercentage`),
            ``"magnitude_threshold"`` (`ridurre.MagnitudeThreshold`) or ``"rewind_pruning"``
            (`ridurre.RewindPruning`).
        **config: the arguments of that class.

    Raises:
        RequestError: another name, or arguments that are missing, unknown or make no sense.
    """
    check_choice("schedule_type", schedule_type, SCHEDULE_TYPES)
    cls = SCHEDULE_TYPES[schedule_type]
    signature = inspect.signature(cls)
    try:
        signature.bind(**config)
    except TypeError as error:
        raise RequestError(
            f"The configuration does not fit {schedule_type!r}: {error}. Expected: "
            f"{', '.join(map(str, signature.parameters.values()))}. Received: {sorted(config)}."
        ) from error
    return cls(**config)
