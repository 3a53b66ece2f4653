"""What a model should come down to: a measured number and its goal."""

from __future__ import annotations

import abc
import math
import numbers
from collections.abc import Callable, Iterable
from statistics import median, quantiles
from typing import Any, ClassVar, TypeAlias

import keras

from ridurre.checks import check_count
from ridurre.errors import RequestError
from ridurre.measure import (
    file_size,
    measure_latency,
    model_complexity,
    prediction,
    timed_in_turns,
)

#: A ratio of times is known well enough at this relative error, or after so many rounds.
_CERTAIN, _MOST_ROUNDS = 0.01, 8
#: What gives a model's number.
Measure: TypeAlias = Callable[[keras.Model], float]
_serializable = keras.saving.register_keras_serializable(package="ridurre")


class Target(abc.ABC):
    """A measured number of a model and the value that it should come down to.

    Args:
        value: what should **remain**. A float from 0 to 1 is a fraction of the original's, a
            whole number (or a larger one) is absolute, in the unit of the target.

    Raises:
        RequestError: not a positive number.
    """

    #: What one unit is called in messages.
    unit: ClassVar[str] = ""
    #: The cost (see `ridurre.costs`) that a cut changes the number by; None: it has to be measured.
    cost: ClassVar[str | None] = None

    def __init__(self, value: float) -> None:
        good = isinstance(value, numbers.Real) and not isinstance(value, bool) and value > 0
        if not good or value == float("inf"):
            raise RequestError(
                f"Expected {type(self).__name__} of a fraction of the original in (0, 1] or a "
                f"positive number of {self.unit}. Received: {value!r}."
            )
        self.value = value

    @property
    def relative(self) -> bool:
        """Whether the value is a fraction of the original's."""
        return self.value <= 1 and not isinstance(self.value, numbers.Integral)

    @abc.abstractmethod
    def measure(self, model: keras.Model) -> float:
        """The number, for a model."""

    def against(self, original: keras.Model) -> Measure:
        """What measures the models that are made of this one.

        Numbers that drift with the machine are measured on both in turns; so the drift goes out.
        """
        del original
        return self.measure

    def goal(self, original: float) -> float:
        """The number to come down to, given the original's."""
        return original * self.value if self.relative else float(self.value)

    def get_config(self) -> dict[str, Any]:
        """What the constructor takes."""
        return {"value": self.value}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Target:
        """The target that has this configuration."""
        return cls(**config)

    def __repr__(self) -> str:
        config = {k: v for k, v in self.get_config().items() if v is not None}
        arguments = [f"{k}={v!r}" for k, v in config.items() if k != "value"]
        if "value" in config:
            arguments.insert(0, repr(self.value))
        return f"{type(self).__name__}({', '.join(arguments)})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash(repr(self))


@_serializable
class Filters(Target):
    """Output filters of all convolutions."""

    unit = "filters"
    cost = "filters"

    def measure(self, model: keras.Model) -> int:
        """Filters of a model."""
        return model_complexity(model).filters


@_serializable
class Params(Target):
    """Parameters: weights that training would change, frozen or not."""

    unit = "parameters"
    cost = "parameters"

    def measure(self, model: keras.Model) -> int:
        """Parameters of a model."""
        return model_complexity(model).parameters


class _Sized(Target):
    """A number that depends on the size of the input.

    Args:
        value: see `Target`.
        input_shape: shape of one sample, without the batch axis, where the model leaves it open.
    """

    def __init__(self, value: float, *, input_shape: tuple[int, ...] | None = None) -> None:
        super().__init__(value)
        self.input_shape = None if input_shape is None else tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        """What the constructor takes."""
        return {**super().get_config(), "input_shape": self.input_shape}

    def _known(self, number: int | None, model: keras.Model) -> int:
        if number is None:
            raise RequestError(
                f"{type(self).__name__} of {model.name!r} depend on the size of its input, which "
                f"the model leaves open. Give it: {type(self).__name__}({self.value!r}, "
                "input_shape=…), the shape of one sample."
            )
        return number


@_serializable
class MACs(_Sized):
    """Multiply-accumulate operations of one sample (FLOPs = 2 × MACs)."""

    unit = "multiply-accumulates"
    cost = "macs"

    def measure(self, model: keras.Model) -> int:
        """MACs of a model."""
        return self._known(model_complexity(model, input_shape=self.input_shape).macs, model)


@_serializable
class ActivationMemory(_Sized):
    """Bytes of the outputs of all layers together, for one sample."""

    unit = "bytes"
    cost = "memory"

    def measure(self, model: keras.Model) -> int:
        """Activation memory of a model."""
        size = model_complexity(model, input_shape=self.input_shape)
        return self._known(size.activation_memory, model)


@_serializable
class Latency(_Sized):
    """Median time of one compiled prediction on this machine (see `ridurre.measure_latency`).

    Args:
        value: a fraction of the original's, up to 1; or milliseconds, if greater.
        milliseconds: the time instead of `value`.
        batch_size: samples per prediction.
        input_shape: shape of one sample, where the model leaves sizes open.
        repeats: timed predictions per measurement; of a fraction, up to eight times as many, until
            the ratio is known to about 1 %.
        warmup: predictions before, not timed.
    """

    unit = "milliseconds"

    def __init__(
        self,
        value: float | None = None,
        *,
        milliseconds: float | None = None,
        batch_size: int = 1,
        input_shape: tuple[int, ...] | None = None,
        repeats: int = 30,
        warmup: int = 5,
    ) -> None:
        if (value is None) == (milliseconds is None):
            raise RequestError(
                "Expected a fraction, Latency(0.5), or a time, Latency(milliseconds=5). Received: "
                f"value={value!r}, milliseconds={milliseconds!r}."
            )
        super().__init__(
            milliseconds if value is None else value,  # type: ignore[arg-type]
            input_shape=input_shape,
        )
        check_count("batch_size", batch_size)
        check_count("repeats", repeats)
        check_count("warmup", warmup)
        self._absolute = value is None
        self.batch_size, self.repeats, self.warmup = batch_size, repeats, warmup

    @property
    def relative(self) -> bool:
        """Whether the value is a fraction of the original's."""
        return not self._absolute and self.value <= 1

    def measure(self, model: keras.Model) -> float:
        """Milliseconds of a prediction."""
        return 1000 * measure_latency(
            model,
            batch_size=self.batch_size,
            input_shape=self.input_shape,
            repeats=self.repeats,
            warmup=self.warmup,
        )

    def against(self, original: keras.Model) -> Measure:
        """Milliseconds; of fractions as if the machine were always as fast as it is now."""
        if not self.relative:
            return self.measure
        whole, milliseconds = self._prediction(original), self.measure(original)

        def measure(model: keras.Model) -> float:
            if model is original:
                return milliseconds
            return milliseconds * self._ratio(self._prediction(model), whole)

        return measure

    def _ratio(self, prediction: Callable[[], Any], whole: Callable[[], Any]) -> float:
        """Median ratio of the times of two predictions, timed until it is known well enough."""
        ratios: list[float] = []
        for _ in range(_MOST_ROUNDS):
            times = timed_in_turns([prediction, whole], self.repeats, self.warmup)
            ratios += [a / b for a, b in zip(*times, strict=True)]
            if len(ratios) > 1 and _uncertainty(ratios) < _CERTAIN:
                break
        return median(ratios)

    def _prediction(self, model: keras.Model) -> Callable[[], Any]:
        return prediction(model, batch_size=self.batch_size, input_shape=self.input_shape)

    def get_config(self) -> dict[str, Any]:
        """What the constructor takes."""
        config = super().get_config()
        if self._absolute:
            config["milliseconds"] = config.pop("value")
        return config | {
            "batch_size": self.batch_size,
            "repeats": self.repeats,
            "warmup": self.warmup,
        }


@_serializable
class FileSize(Target):
    """Bytes of the model saved as a ``.keras`` file, without an optimizer's state."""

    unit = "bytes"
    cost = "file"

    def measure(self, model: keras.Model) -> int:
        """Size of a model's file."""
        return file_size(model)


def _uncertainty(values: list[float]) -> float:
    """About the relative standard error of a median."""
    low, middle, high = quantiles(values, n=4)
    return (high - low) / (middle * math.sqrt(len(values)))


def check_targets(target: Target | Iterable[Target] | None) -> tuple[Target, ...]:
    """One target, several or none, as a tuple; raises `RequestError`."""
    if target is None:
        return ()
    targets = (target,) if isinstance(target, Target) else target
    if not isinstance(targets, Iterable) or not all(isinstance(t, Target) for t in targets):
        raise RequestError(
            "Expected targets such as ridurre.MACs(0.5) or ridurre.Params(200_000), one or a list. "
            f"Received: {target!r}."
        )
    return tuple(targets)
