"""What a criterion is, and the table of all criteria."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NoReturn, TypeAlias

import keras
import numpy as np

from ridurre.backend import parameters_of
from ridurre.checks import as_numbers, received
from ridurre.data import Batches
from ridurre.errors import RequestError, nearest
from ridurre.graph import ChannelGraph, Group, Labels, Member
from ridurre.weights import Weight, weights_of

Scores: TypeAlias = dict[Group, np.ndarray]
#: Scores of single weights by the paths of the weights, of the weights' shapes.
WeightScores: TypeAlias = dict[str, np.ndarray]
#: What `criterion=` takes: a name, an instance, or a function of a graph and a group.
Spec: TypeAlias = "str | Criterion | Callable[[ChannelGraph, Group], Any]"


@dataclass(frozen=True)
class Setting:
    """What a criterion may use besides the graph."""

    data: Batches | None
    loss: Any
    rng: np.random.Generator


@dataclass(frozen=True)
class Criterion(abc.ABC):
    """Scores groups of coupled channels, or single weights: the higher, the more important.

    A unit is everything that lives or dies together: a filter, its bias, its batch norm, the
    slices of all that read it (see `ridurre.Group`). A score of infinity keeps a unit.

    A criterion of your own overrides `scores`, and `weight_scores` if it can tell single weights
    apart (see `WeightCriterion` for one that follows from the other). Wherever a criterion is
    expected, a plain function will do as well: ``fn(graph, group) -> (units,)`` for channels,
    ``fn(value) -> scores of the same shape`` for single weights.
    """

    #: "weights", "samples" (inputs too) or "labels" (inputs, labels and a loss).
    needs: ClassVar[str] = "weights"

    @abc.abstractmethod
    def scores(self, graph: ChannelGraph, setting: Setting) -> Scores:
        """Scores of all units of all groups, ``{group: (units,)}``."""

    def score(
        self, graph: ChannelGraph, data: Any = None, *, loss: Any = None, seed: int | None = 0
    ) -> Scores:
        """Scores of all units of all groups of a graph.

        Args:
            graph: of the model, which is not changed.
            data: what `model.fit` takes, where the criterion needs data.
            loss: a Keras loss or ``fn(y_true, y_pred)``, where it needs labels; the compiled
                model's by default.
            seed: of all random choices.

        Returns:
            ``{group: scores of its units}``, each ``(units,)`` of float64.

        Raises:
            RequestError: data or labels are missing, or scores come out that are no numbers.
        """
        if data is not None:
            data = Batches(data)
        self._check_data(data)
        rng = np.random.default_rng(seed)
        scores = self.scores(graph, Setting(data, loss, rng))
        return {g: self._checked(g, scores[g]) for g in graph.groups}

    def weight_scores(
        self, model: keras.Model, weights: list[Weight], setting: Setting
    ) -> WeightScores:
        """Scores of single weights, ``{path: array of the weight's shape}``.

        Raises:
            RequestError: this criterion knows channels only.
        """
        self.refuse_weights()

    def refuse_weights(self) -> NoReturn:
        """Say that this criterion knows channels only; raises `RequestError`."""
        known = [n for n, make in CRITERIA.items() if scores_weights(make())]
        raise RequestError(
            f"The criterion {type(self).__name__} scores channels, not single weights. Expected "
            f"one of {', '.join(map(repr, known))}, or a function of an array."
        )

    def score_weights(
        self,
        model: keras.Model,
        weights: list[Weight],
        data: Any = None,
        *,
        loss: Any = None,
        seed: int | None = 0,
    ) -> WeightScores:
        """Scores of single weights; arguments and errors are those of `score`.

        Args:
            model: is not changed.
            weights: which are asked for, see `ridurre.weights.weights_of`.
            data: see `score`.
            loss: see `score`.
            seed: see `score`.
        """
        if data is not None:
            data = Batches(data)
        self._check_data(data)
        unknown = [w.path for w in weights if not self.knows(w)]
        if unknown:
            raise RequestError(
                f"The criterion {type(self).__name__} cannot score these weights: {unknown}. Leave "
                "their layers out with layers=…, or choose another criterion."
            )
        setting = Setting(data, loss, np.random.default_rng(seed))
        scores = self.weight_scores(model, weights, setting)
        return {w.path: self._numbers(w.path, scores[w.path], w.shape) for w in weights}

    def knows(self, weight: Weight) -> bool:
        """Whether this weight is one that can be scored."""
        del weight
        return True

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Criterion:
        """The criterion that has this configuration."""
        return cls(**config)

    def _check_data(self, data: Batches | None) -> None:
        if self.needs == "weights":
            return
        if data is None:
            raise RequestError(
                f"The criterion {type(self).__name__} needs data. Expected data=…, what model.fit "
                "takes" + (", with labels." if self.needs == "labels" else ".")
            )
        if self.needs == "labels" and not data.labelled:
            raise RequestError(
                f"The criterion {type(self).__name__} needs labels. Expected data such as (x, y). "
                "Received samples only. Without labels, use 'output_taylor'."
            )

    def _checked(self, group: Group, scores: Any) -> np.ndarray:
        return self._numbers(repr(group), scores, (group.size,)).astype("float64", copy=False)

    def _numbers(self, what: str, scores: Any, shape: tuple[int, ...]) -> np.ndarray:
        array = as_numbers(scores)
        if array is None or array.shape != shape:
            expected = f"{shape[0]} numbers" if len(shape) == 1 else f"numbers of the shape {shape}"
            raise RequestError(
                f"The criterion {type(self).__name__} gave {what} no usable scores. Expected "
                f"{expected}. Received: {received(scores)}. If the weights are not finite, "
                "training has probably diverged."
            )
        return array


@dataclass(frozen=True)
class FunctionCriterion(Criterion):
    """A plain function as a criterion: of a graph and a group, or of a weight's value."""

    function: Callable[..., Any]

    def scores(self, graph: ChannelGraph, setting: Setting) -> Scores:
        """What the function returns for every group."""
        del setting
        return {group: self.function(graph, group) for group in graph.groups}

    def weight_scores(
        self, model: keras.Model, weights: list[Weight], setting: Setting
    ) -> WeightScores:
        """What the function returns for every weight's value."""
        del model, setting
        return {w.path: self.function(w.value) for w in weights}


class WeightCriterion(Criterion):
    """A criterion of single weights; a unit of channels is worth what its weights are worth.

    The score of a unit is the mean, over the coupled parameters, of the sum over its slice.
    """

    @abc.abstractmethod
    def weight_scores(
        self, model: keras.Model, weights: list[Weight], setting: Setting
    ) -> WeightScores:
        """Scores of single weights, ``{path: array of the weight's shape}``."""

    def scores(self, graph: ChannelGraph, setting: Setting) -> Scores:
        """Sums of the weights' scores over slices, averaged over the members of the group."""
        known = self._kernel_scores(graph, setting)
        return {group: self._unit_scores(graph, group, known) for group in graph.groups}

    def _kernel_scores(self, graph: ChannelGraph, setting: Setting) -> dict[int, np.ndarray]:
        weights = [w for w in weights_of(graph.model) if self.knows(w)]
        scores = self.weight_scores(graph.model, weights, setting)
        return {id(w.variable): np.asarray(scores[w.path], "float64") for w in weights}

    def _unit_scores(
        self, graph: ChannelGraph, group: Group, known: dict[int, np.ndarray]
    ) -> np.ndarray:
        found = []
        for member in parameters(graph, group):
            values = known.get(id(member.weight.variable))
            if values is not None:
                others = tuple(a for a in range(values.ndim) if a != member.weight.axis)
                found.append(sum_by_unit(group, member.units, values.sum(axis=others)))
        return np.mean(found, axis=0) if found else np.full(group.size, np.inf)


def scores_weights(criterion: Criterion) -> bool:
    """Whether a criterion can tell single weights apart."""
    return type(criterion).weight_scores is not Criterion.weight_scores


#: Every criterion by name; a new one is a class and a row.
CRITERIA: dict[str, Callable[[], Criterion]] = {}


def criterion(name: str, **arguments: Any) -> Callable[[type[Criterion]], type[Criterion]]:
    """Class decorator: enter a criterion into the table, and let Keras serialise it."""

    def decorate(cls: type[Criterion]) -> type[Criterion]:
        CRITERIA[name] = lambda: cls(**arguments)
        return cls

    return decorate


serializable = keras.saving.register_keras_serializable(package="ridurre")


def get(spec: Spec) -> Criterion:
    """A criterion by name, by instance, or from a plain function.

    Raises:
        RequestError: none of these.
    """
    if isinstance(spec, Criterion):
        return spec
    if isinstance(spec, str) and spec in CRITERIA:
        return CRITERIA[spec]()
    if callable(spec) and not isinstance(spec, type):
        return FunctionCriterion(spec)
    hint = nearest(spec, CRITERIA) if isinstance(spec, str) else ""
    raise RequestError(
        f"Expected a criterion: one of {', '.join(map(repr, CRITERIA))}, an instance, or a "
        f"function fn(graph, group). Received: {spec!r}.{hint}"
    )


def parameters(graph: ChannelGraph, group: Group, *roles: str) -> Iterator[Member]:
    """Members of a group that training would change; of these roles only, if any are named."""
    for member in group.members:
        weight = member.weight
        if roles and weight.role not in roles:
            continue
        if id(weight.variable) in parameters_of(graph.layers[weight.layer]):
            yield member


def sum_by_unit(group: Group, units: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sum of values over the positions of each unit, ``(units,)``; -1 belongs to no unit."""
    inside = units >= 0
    return np.bincount(units[inside], values[inside], group.size)


def relative(scores: np.ndarray) -> np.ndarray:
    """Scores over their mean, which makes groups of different scales comparable."""
    mean = scores.mean()
    return scores / mean if mean > 0 else scores


def units_of(graph: ChannelGraph, group: Group, labels: Labels) -> np.ndarray:
    """The unit of a group that every label belongs to, or -1; of the labels' shape."""
    numbers = np.full(graph.solution.soft.max() + 1, -1)
    numbers[group.components] = np.arange(group.size)
    return numbers[graph.solution.soft[labels]]
