"""Progress of what takes long: a bar with the time that is left, or lines in the log.

Bars go to the standard error stream, and to the output of a cell in a notebook. They are switched
off by ``verbose=0`` where a call has that argument, for all that it calls too, and everywhere by
``keras.config.disable_interactive_logging()``. Then the logger "ridurre" gets lines of the level
INFO.
"""

from __future__ import annotations

import contextlib
import logging
import operator
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any, Self, TypeVar

import keras
from tqdm.auto import tqdm

logger = logging.getLogger("ridurre")
T = TypeVar("T")

#: Seconds before a bar appears, unless it is said how long.
PATIENCE = 1.0
_shown: ContextVar[bool] = ContextVar("ridurre_progress", default=True)


@contextlib.contextmanager
def shown(verbose: int) -> Iterator[None]:
    """Show no bars inside if `verbose` is 0; within a call that shows none, there are none."""
    before = _shown.set(_shown.get() and bool(verbose))
    try:
        yield
    finally:
        _shown.reset(before)


class Bar:
    """A bar, to be used as a context.

    Args:
        what: is done, a word or two.
        total: how many units there are; None if that is not known.
        unit: what is counted.
        done: how many are done already.
        patience: seconds before it appears, so that what is done soon shows none; None for
            `PATIENCE`.
    """

    def __init__(
        self,
        what: str,
        total: int | None = None,
        *,
        unit: str = "step",
        done: int = 0,
        patience: float | None = None,
    ) -> None:
        self._what, self._total, self._unit, self._done = what, total, unit, done
        self._bar: Any = None
        if _shown.get() and keras.config.is_interactive_logging_enabled():
            patience = PATIENCE if patience is None else patience
            self._bar = tqdm(
                desc=what,
                total=total,
                unit=f" {unit}",
                initial=done,
                delay=patience,
                mininterval=0.1 if patience else 0.0,  # long steps are all shown
                leave=None,  # inner bars go when they are full
                dynamic_ncols=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, **numbers: Any) -> None:
        """One more is done; numbers are shown behind the bar."""
        self._done += 1
        if self._bar is None:
            self._log(numbers)
            return
        if numbers:
            self._bar.set_postfix(numbers, refresh=False)
        self._bar.update()

    def _log(self, numbers: dict[str, Any]) -> None:
        """A line for every tenth."""
        total = self._total
        if total and 10 * self._done // total == 10 * (self._done - 1) // total:
            return
        rest = "".join(f", {name}: {value}" for name, value in numbers.items())
        of = f" of {total}" if total else ""
        logger.info("%s: %s %d%s%s", self._what, self._unit, self._done, of, rest)


def track(
    items: Iterable[T], what: str, *, unit: str = "step", patience: float | None = None
) -> Iterator[T]:
    """The items, with a bar; their number is taken from ``len`` or ``__length_hint__``."""
    total = operator.length_hint(items) or None
    with Bar(what, total, unit=unit, patience=patience) as bar:
        for item in items:
            yield item
            bar.advance()
