"""When a run of pruning has to end: targets reached, accuracy lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import keras

from ridurre.errors import RequestError
from ridurre.surgery import duplicate
from ridurre.targets import Target

Evaluate = Callable[[keras.Model], float]


class Goals:
    """Targets, with the numbers that a model has to come down to.

    Args:
        targets: all of these have to be reached.
        original: the model that fractions refer to.
    """

    def __init__(self, targets: Iterable[Target], original: keras.Model) -> None:
        measures = [(t, t.against(original)) for t in targets]
        self._goals = [(measure, t.goal(measure(original))) for t, measure in measures]

    def reached(self, model: keras.Model) -> bool:
        """Whether there are targets and the model has come down to all of them."""
        return bool(self._goals) and all(measure(model) <= goal for measure, goal in self._goals)


class Accuracy:
    """How accurate models are, and how accurate they have to stay.

    Args:
        evaluate_fn: ``fn(model) -> number``, or None.
        data: what ``model.evaluate`` takes, arrays as ``(x, y)`` or ``(x, y, sample_weight)``; or
            None.
        metric: the compiled metric that counts on these data.
        minimum: the smallest accuracy accepted; None for any.

    Raises:
        RequestError: `evaluate_fn` and `data` are both given; or a minimum, and neither.
    """

    def __init__(
        self, evaluate_fn: Evaluate | None, data: Any, metric: str, minimum: float | None
    ) -> None:
        if evaluate_fn is not None and data is not None:
            raise RequestError(
                "Both evaluate_fn and validation_data are given, and each says how accurate a "
                "model is. Expected one of them."
            )
        if evaluate_fn is None and data is None and minimum is not None:
            raise RequestError(
                "minimum_accuracy needs to know how accurate a model is. Expected evaluate_fn in "
                "the constructor or validation_data in run_pruning. Received neither."
            )
        self._evaluate_fn, self._metric = evaluate_fn, metric
        self.data, self.minimum = data, minimum

    def of(self, model: keras.Model) -> float | None:
        """The accuracy of a compiled model; None if nobody says how to find it."""
        if self._evaluate_fn is not None:
            return _number(self._evaluate_fn(model), "evaluate_fn(model)")
        return None if self.data is None else _compiled_metric(model, self.data, self._metric)

    def holds(self, accuracy: float | None) -> bool:
        """Whether an accuracy is acceptable; one that is not a number is not."""
        return self.minimum is None or (accuracy is not None and accuracy >= self.minimum)

    def check_original(
        self, model: keras.Model, compile_model: Callable[[keras.Model], keras.Model]
    ) -> None:
        """Refuse a minimum that the original does not hold; a copy of it is compiled and asked.

        Raises:
            RequestError: its accuracy is below the minimum.
        """
        if self.minimum is None:
            return
        accuracy = self.of(compile_model(duplicate(model)))
        if not self.holds(accuracy):
            raise RequestError(
                f"The original's accuracy is {accuracy}, below the minimum_accuracy of "
                f"{self.minimum} from the start. Expected a smaller minimum, or a better model."
            )


def compiled_metrics(model: keras.Model, data: Any) -> dict[str, Any]:
    """All that a compiled model's ``evaluate`` says of some data, by the metrics' names."""
    x, y, weight = data, None, None
    if isinstance(data, tuple | list):
        x, y, weight = keras.utils.unpack_x_y_sample_weight(tuple(data))
    return model.evaluate(x, y, sample_weight=weight, verbose=0, return_dict=True)


def _compiled_metric(model: keras.Model, data: Any, metric: str) -> float:
    results = compiled_metrics(model, data)
    if metric not in results:
        raise RequestError(
            f"The model has no metric {metric!r}. Expected `metric` to be one of those that "
            f"model_compile_fn compiles it with: {sorted(results)}."
        )
    return float(results[metric])


def _number(value: Any, what: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise RequestError(f"Expected {what} to be a number. Received: {value!r}.") from error
