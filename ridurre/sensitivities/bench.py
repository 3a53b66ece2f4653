"""Where cuts are measured: a working copy of the model, the data, and what is looked at."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from ridurre.backend import to_numpy
from ridurre.data import Batch, random_inputs
from ridurre.errors import RequestError
from ridurre.graph.names import by_own_paths, named_layers, variable_paths
from ridurre.plan import Removed
from ridurre.verification import outputs_of
from ridurre.weights import weights_of

Evaluate = Callable[[keras.Model], float]
#: Parts of the names of metrics of which less is better.
_LOWER = ("loss", "error", "crossentropy", "divergence", "hinge", "mae", "mse", "rmse", "mape")


@dataclass(frozen=True)
class Gauge:
    """What is measured.

    Attributes:
        evaluate_fn: the user's function, or None.
        metric: the compiled metric that counts; None chooses one.
        loss: what to compile with where the model has no metric.
    """

    evaluate_fn: Evaluate | None
    metric: str | None
    loss: Any

    def check(self, model: keras.Model, data: Batch | None) -> None:
        """Raises `RequestError` where nobody says how to measure."""
        if self.evaluate_fn is not None:
            return
        if data is None or data.y is None:
            raise RequestError(
                "Nothing says how good a cut model is. Expected data with labels, such as (x, y), "
                f"or evaluate_fn. Received: {'no data' if data is None else 'samples only'}."
            )
        if self.loss is None and not has_loss(model):
            raise RequestError(
                f"The model {model.name!r} is not compiled with a loss, so there is nothing to "
                "measure. Compile it, or give loss=… or evaluate_fn=…."
            )

    def settled(self, bench: Bench) -> Gauge:
        """The same with its metric chosen; the bench's model is compiled if it has to be."""
        if self.evaluate_fn is not None:
            return self
        if has_loss(bench.model) and (self.metric != "loss" or self.loss is None):
            names = list(bench.results(bench.model))
            name = self.metric or _best(names)
            if name not in names:
                raise RequestError(
                    f"The model has no metric {name!r}. Expected one of those that it is compiled "
                    f"with: {sorted(names)}."
                )
            if name != "loss" or self.loss is None:
                return Gauge(None, name, None)
        if self.metric not in (None, "loss"):
            raise RequestError(
                "The model is not compiled, so that only its loss can be measured. Expected "
                f"metric=None, or a compiled model. Received: {self.metric!r}."
            )
        return Gauge(None, "loss", self.loss)

    @property
    def label(self) -> str:
        """What the values are."""
        if self.evaluate_fn is None:
            return str(self.metric)
        return getattr(self.evaluate_fn, "__name__", type(self.evaluate_fn).__name__)

    @property
    def higher_is_better(self) -> bool:
        """Losses and errors should be low, the rest high; users' functions too."""
        if self.evaluate_fn is not None:
            return True
        return not any(part in str(self.metric).lower() for part in _LOWER)


class Bench:
    """Measures models, and what a model would be with parts of it at zero.

    Args:
        model: becomes the bench's own: it is changed and restored.
        data: all samples.
        gauge: what is measured.
        batch_size: samples at a time.
    """

    def __init__(
        self, model: keras.Model, data: Batch | None, gauge: Gauge, batch_size: int
    ) -> None:
        self.model, self.data, self.batch_size = model, data, batch_size
        self.gauge = gauge.settled(self)
        if self.gauge.evaluate_fn is None and self.gauge.loss is not None:
            model.compile(loss=self.gauge.loss)
        self._sound: dict[frozenset[str], bool] = {}

    def value(self, model: keras.Model) -> float | None:
        """What the gauge shows; None for what is not finite.

        Raises:
            RequestError: evaluate_fn returns something else than a number.
        """
        if self.gauge.evaluate_fn is None:
            found = self.results(model)[str(self.gauge.metric)]
        else:
            found = self.gauge.evaluate_fn(model)
        if keras.ops.is_tensor(found):
            found = to_numpy(found)
        try:
            value = float(found)
        except (TypeError, ValueError) as error:
            raise RequestError(
                f"Expected evaluate_fn(model) to return a number. Received: {found!r}."
            ) from error
        return value if math.isfinite(value) else None

    def results(self, model: keras.Model) -> dict[str, Any]:
        """What `model.evaluate` says."""
        data: Any = self.data
        return model.evaluate(
            data.x,
            data.y,
            sample_weight=data.sample_weight,
            batch_size=self.batch_size,
            verbose=0,
            return_dict=True,
        )

    @contextlib.contextmanager
    def without(self, removed: Removed) -> Iterator[None]:
        """The model with slices of its weights at zero, ``{variable path: {axis: indices}}``."""
        layers = named_layers(self.model)
        variables = {id(v): v for layer in layers.values() for v in layer.variables}
        by_path = {path: variables[key] for key, path in variable_paths(layers).items()}
        removed = by_own_paths(removed, layers)
        values = {path: to_numpy(by_path[path]).copy() for path in removed}
        for path, axes in removed.items():
            for axis, indices in axes.items():
                np.moveaxis(values[path], axis, 0)[indices] = 0
        with _holding({path: (by_path[path], value) for path, value in values.items()}):
            yield

    @contextlib.contextmanager
    def masked(self, index: int, keep: np.ndarray) -> Iterator[None]:
        """The model with some numbers of one weight, by its place among all, at zero.

        Copies of subclassed models may name their layers otherwise; their order is the same.
        """
        weight = weights_of(self.model, None, "all")[index]
        value = np.where(keep, weight.value, 0).astype(weight.value.dtype)
        with _holding({weight.path: (weight.variable, value)}):
            yield

    def sound(self, changed: frozenset[str]) -> bool:
        """Whether the model, as it is now, gives finite numbers; asked once per set of weights.

        A logarithm or a division makes infinity of a channel that is zero, and NaN of that times a
        weight that is zero. Such channels have to be cut in earnest.
        """
        if changed not in self._sound:
            inputs = random_inputs(self.model) if self.data is None else self.data.slice(0, 2).x
            outputs = outputs_of(self.model, inputs)
            self._sound[changed] = all(bool(np.isfinite(y).all()) for y in outputs)
        return self._sound[changed]


def has_loss(model: keras.Model) -> bool:
    """Whether a model is compiled with a loss."""
    return bool(model.compiled and model.loss is not None)


@contextlib.contextmanager
def _holding(values: Mapping[str, tuple[keras.Variable, np.ndarray]]) -> Iterator[None]:
    """Variables with other values, and their own again afterwards whatever happens."""
    before = {path: to_numpy(variable).copy() for path, (variable, _) in values.items()}
    try:
        for variable, value in values.values():
            variable.assign(value)
        yield
    finally:
        for path, (variable, _) in values.items():
            variable.assign(before[path])


def _best(names: list[str]) -> str:
    """An accuracy if there is one, else the first metric, else the loss."""
    metrics = [n for n in names if not n.endswith("loss")]
    return next((n for n in metrics if "acc" in n), metrics[0] if metrics else "loss")
