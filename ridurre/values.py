"""Strategies are values: they print, compare and serialise."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras

from ridurre.checks import check_count, check_fraction, check_optional
from ridurre.data import Batches
from ridurre.errors import RequestError


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Strategy:
    """What channel and weight strategies share: being values.

    Two strategies are equal if their arguments are; data are not looked at, printed or saved.
    """

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, but for the data."""
        fields = dataclasses.fields(self)
        return {f.name: getattr(self, f.name) for f in fields if f.init and f.name != "data"}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Strategy:
        """The strategy that has this configuration; data have to be given again."""
        return cls(**{name: _restored(value) for name, value in config.items()})

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        given = [(f, getattr(self, f.name)) for f in dataclasses.fields(self) if f.init]
        shown = [(f.name, v) for f, v in given if f.name != "data" and not _same(v, f.default)]
        first = next(f.name for f, _ in given if not f.kw_only)
        shown.sort(key=lambda pair: pair[0] != first)
        texts = [_text(v) if name == first else f"{name}={_text(v)}" for name, v in shown]
        return f"{type(self).__name__}({', '.join(texts)})"


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and bool(value == default)


def _text(value: Any) -> str:
    return getattr(value, "__name__", repr(value)) if callable(value) else repr(value)


def _restored(value: Any) -> Any:
    """What Keras serialised inside a configuration."""
    if isinstance(value, dict) and "class_name" in value:
        return keras.saving.deserialize_keras_object(value)
    if isinstance(value, dict):
        return {k: _restored(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_restored, value))
    return value


def check_recover(how: Any) -> Mapping[str, Any] | None:
    """The arguments of `ridurre.recover` as a dictionary; None for no repair."""
    return how if how is None or isinstance(how, Mapping) else {"how": how}


def check_data(data: Any) -> Batches | None:
    """Data as batches, or None."""
    return None if data is None else Batches(data)


def check_steps(steps: Any) -> int:
    """A number of steps, at least one."""
    check_count("steps", steps)
    return max(1, int(steps))


def check_level(level: Any) -> float | None:
    """A level in [0, 1], or None; raises `RequestError`."""
    check_optional("level", level, check_fraction)
    return None if level is None else float(level)


def check_block(block: Any) -> tuple[int, int] | None:
    """Inputs and outputs of a block, or None; raises `RequestError`."""
    if block is None:
        return None
    good = isinstance(block, list | tuple) and len(block) == 2
    if not good or not all(isinstance(n, int) and n > 0 for n in block):
        raise RequestError(
            f"Expected a block of (inputs, outputs), such as (4, 1). Received: {block!r}."
        )
    return (block[0], block[1])
