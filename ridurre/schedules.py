"""How an amount is spread over the steps of a run.

A schedule is a function ``fn(step, steps, amount)`` of the step, from 0, which returns the amount
that is removed after it. The last step ends at the whole amount.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from ridurre.checks import check_fraction
from ridurre.errors import RequestError, nearest

Schedule: TypeAlias = Callable[[int, int, float], float]


def one_shot(step: int, steps: int, amount: float) -> float:
    """Everything in the first step."""
    del step, steps
    return amount


def linear(step: int, steps: int, amount: float) -> float:
    """The same number of channels in every step."""
    return amount * (step + 1) / steps


def geometric(step: int, steps: int, amount: float) -> float:
    """The same fraction of what is left in every step; Renda et al., ICLR 2020."""
    return 1 - (1 - amount) ** ((step + 1) / steps)


def cubic(step: int, steps: int, amount: float) -> float:
    """Much at first, little at the end: ``a·(1 − (1 − t)³)``; Zhu & Gupta, 2017."""
    return amount * (1 - (1 - (step + 1) / steps) ** 3)


#: Every schedule by name; a new one is a function and a row.
SCHEDULES: dict[str, Schedule] = {
    "one_shot": one_shot,
    "linear": linear,
    "geometric": geometric,
    "cubic": cubic,
}


def get(spec: str | Schedule) -> Schedule:
    """A schedule by name, or a function ``fn(step, steps, amount) -> amount so far``.

    Raises:
        RequestError: neither.
    """
    if isinstance(spec, str) and spec in SCHEDULES:
        return SCHEDULES[spec]
    if callable(spec):
        return spec
    hint = nearest(spec, SCHEDULES) if isinstance(spec, str) else ""
    raise RequestError(
        f"Expected a schedule: one of {', '.join(map(repr, SCHEDULES))}, or a function "
        f"fn(step, steps, amount). Received: {spec!r}.{hint}"
    )


def amount_at(schedule: Schedule, step: int, steps: int, amount: float) -> float:
    """What is removed in all after a step, from 0; the whole amount after the last one."""
    if step == steps - 1:
        return amount
    return min(amount, check_fraction("the schedule's amount", schedule(step, steps, amount)))
