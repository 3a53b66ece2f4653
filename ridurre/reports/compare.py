"""Collect the facts of two models."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from ridurre import criteria
from ridurre.backend import own_variables, parameters_of
from ridurre.criteria.base import Spec
from ridurre.data import Batches
from ridurre.errors import ModelError, NotAModelError, RequestError
from ridurre.graph import ChannelGraph
from ridurre.history import Step
from ridurre.limits import compiled_metrics
from ridurre.measure import Complexity, file_size, model_complexity, prediction, timed_in_turns
from ridurre.plan import PruningPlan
from ridurre.reports.facts import ModelFacts, Spread
from ridurre.reports.groups import Survivors, group_facts
from ridurre.reports.layers import layer_facts, network
from ridurre.reports.report import Report

_REPEATS = 30
_WARMUP = 5


def compare(
    original: keras.Model,
    pruned: keras.Model,
    *,
    plan: PruningPlan | None = None,
    data: Any = None,
    history: Iterable[Step] = (),
    criterion: Spec | None = "l1",
    latency: bool = True,
    seed: int | None = 0,
) -> Report:
    """What pruning did to a model: size, cost, speed, accuracy, layer by layer, and why.

    Any two Keras models can be compared; layers are matched by name. What cannot be found out, of
    a model without a graph of layers for example, is named in the report's `notes`.

    Example::

        report = ridurre.compare(model, smaller, plan=plan, data=(x_test, y_test))
        report.save("report.html")

    Args:
        original: the model before pruning; it is only read.
        pruned: the model afterwards; it is only read.
        plan: what made the one from the other; tells which units went, not only how many.
        data: what ``model.evaluate`` takes, with labels; every compiled model is evaluated on it.
        history: `Step` records of the run.
        criterion: importances of the original's units to be shown (see `ridurre.criteria`); None
            for none. Those that need data use `data`.
        latency: whether predictions for one sample are timed, both models in turns.
        seed: of the criterion's random choices.

    Raises:
        NotAModelError: one of the two is no Keras model.
        PlanMismatchError: the plan does not fit the original.
        RequestError: `history` holds something else than `Step` records, or `criterion` is none.
    """
    steps = _steps(history)
    data = _repeatable(data)
    notes: list[str] = []
    sides = [
        _Side("original", original, data, notes),
        _Side("pruned model", pruned, data, notes),
    ]
    times = _latencies(sides) if latency else [None, None]
    before, after = sides
    survivors = Survivors(before.graph, after.graph, plan)
    scores = {}
    if criterion is not None:
        scores = _scores(criterion, before, data, seed)
    return Report(
        original=before.facts(times[0]),
        pruned=after.facts(times[1]),
        layers=layer_facts(before.graph, before.cost, after.graph, after.cost),
        nodes=network(before.graph, after.graph),
        groups=group_facts(before.graph, survivors, scores),
        history=steps,
        criterion=_name(criterion) if scores else "",
        plan_known=plan is not None and before.graph is not None,
        notes=tuple(notes),
    )


class _Kept(keras.utils.PyDataset):
    """Batches that came one by one, to be gone through as often as needed."""

    def __init__(self, batches: list[Any]) -> None:
        super().__init__()
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Any:
        return self._batches[index]


def _repeatable(data: Any) -> Any:
    """The data, such that every model sees all of them."""
    one_by_one = isinstance(data, list) and data and isinstance(data[0], tuple)
    return _Kept(list(data)) if isinstance(data, Iterator) or one_by_one else data


class _Side:
    """One of the two models, and what is known of it.

    Args:
        role: what messages call it.
        model: is only read.
        data: to evaluate it on, if any.
        notes: take up what cannot be found out.
    """

    def __init__(self, role: str, model: keras.Model, data: Any, notes: list[str]) -> None:
        self.role, self.model, self.notes = role, model, notes
        self.graph = self._try("layers, MACs and groups", lambda: ChannelGraph(model))
        self.cost: Complexity | None = None
        if self.graph is not None:
            self.cost = model_complexity(model)
            if self.cost.macs is None:
                self._miss("MACs and activation memory", "its input size is open")
        self.metrics = {} if data is None else self._evaluate(data)

    def facts(self, latency: Spread | None) -> ModelFacts:
        """The model as a whole."""
        size = self._try("file size", lambda: file_size(self.model))
        cost = self.cost
        if cost is None:
            return ModelFacts(
                self.model.name,
                _count_parameters(self.model),
                file_size=size,
                latency=latency,
                metrics=self.metrics,
            )
        return ModelFacts(
            self.model.name,
            int(cost.parameters),
            int(cost.nonzero),
            cost.macs,
            cost.activation_memory,
            size,
            latency,
            self.metrics,
        )

    def predict(self) -> Callable[[], Any] | None:
        """One prediction to be timed, which has run once."""

        def tried() -> Callable[[], Any]:
            action = prediction(self.model)
            action()
            return action

        return self._try("latency", tried)

    def miss_importances(self, error: RequestError) -> None:
        """Note that a criterion could not be used."""
        self._miss("importances", error)

    def _evaluate(self, data: Any) -> dict[str, float | None]:
        if not Batches(data).labelled:
            self._miss("accuracy", "the data have no labels")
        elif not self.model.compiled:
            self._miss("accuracy", "it is not compiled; compile it with a loss and metrics")
        else:
            return _flat(compiled_metrics(self.model, data))
        return {}

    def _try(self, what: str, find: Callable[[], Any]) -> Any:
        try:
            return find()
        except NotAModelError:
            raise
        except (ModelError, RequestError, NotImplementedError, ValueError, TypeError) as error:
            self._miss(what, error)
            return None

    def _miss(self, what: str, why: object) -> None:
        self.notes.append(f"Unknown of the {self.role} ({self.model.name!r}): {what}: {why}")


def _steps(history: Iterable[Step]) -> tuple[Step, ...]:
    steps = tuple(history)
    if not all(isinstance(step, Step) for step in steps):
        raise RequestError(
            f"Expected history to be the Step records of a run, pruning.history. Received: {steps}."
        )
    return steps


def _scores(criterion: Spec, side: _Side, data: Any, seed: int | None) -> dict[int, np.ndarray]:
    """Scores by the index of the group; none where the criterion cannot say."""
    made = criteria.get(criterion)
    if side.graph is None:
        return {}
    try:
        scores = made.score(side.graph, data, seed=seed)
    except RequestError as error:  # weights that are not finite, data that are missing
        side.miss_importances(error)
        return {}
    return {group.index: values for group, values in scores.items()}


def _name(criterion: Spec | None) -> str:
    if isinstance(criterion, str):
        return criterion
    return getattr(criterion, "__name__", type(criterion).__name__)


def _latencies(sides: Sequence[_Side]) -> list[Spread | None]:
    actions = [side.predict() for side in sides]
    known = [action for action in actions if action is not None]
    times = iter(timed_in_turns(known, _REPEATS, _WARMUP))
    return [None if action is None else _spread(next(times)) for action in actions]


def _spread(times: list[float]) -> Spread:
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Spread(median, low, high)


def _count_parameters(model: keras.Model) -> int | None:
    counted = parameters_of(model)
    sizes = [int(np.prod(v.shape)) for v in own_variables(model) if id(v) in counted]
    return sum(sizes) if sizes else None


def _flat(results: dict[str, Any]) -> dict[str, float | None]:
    """Numbers by name; a metric with several values (one per class) becomes several."""
    found: dict[str, float | None] = {}
    for name, value in results.items():
        numbers = np.asarray(value, "float64").ravel()
        for index, number in enumerate(numbers):
            label = name if numbers.size == 1 else f"{name}[{index}]"
            found[label] = float(number) if np.isfinite(number) else None
    return found
