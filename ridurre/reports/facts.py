"""What a report says, as plain data: renderers read this and nothing else."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ridurre.errors import RequestError
from ridurre.history import Step

_FORMAT = 1

#: A number of the original and of the pruned model; None where it is not known or not there.
Pair: TypeAlias = tuple[int | None, int | None]

#: What can have happened to a layer, and how it is said to people.
STATUSES = {
    "cut": "channels removed",
    "grown": "channels added",
    "follows": "follows other layers",
    "left": "left alone",
    "fixed": "cannot be pruned",
    "same": "unchanged",
    "removed": "only in the original",
    "added": "only in the pruned model",
}


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of measured times, in seconds."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class ModelFacts:
    """One model as a whole; what could not be found is None.

    Attributes:
        name: of the model.
        parameters, nonzero, macs, activation_memory: see `ridurre.Complexity`.
        file_size: bytes of the ``.keras`` file, without an optimizer's state.
        latency: of one prediction for one sample on the machine that made the report.
        metrics: what ``evaluate`` said, by name; None for what is not finite.
    """

    name: str
    parameters: int | None = None
    nonzero: int | None = None
    macs: int | None = None
    activation_memory: int | None = None
    file_size: int | None = None
    latency: Spread | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerFacts:
    """One layer of the original, or of the pruned model where only that has it.

    Attributes:
        name, kind: of the layer; the name stands behind those of nested models.
        channels: that it makes; None for layers that make none of their own.
        parameters, macs: before and after.
        status: one of `STATUSES`.
        reason: why channels stayed; empty where there is nothing to say.
    """

    name: str
    kind: str
    channels: Pair
    parameters: Pair
    macs: Pair
    status: str
    reason: str = ""


@dataclass(frozen=True)
class Node:
    """One call of a layer or operation in the original.

    Attributes:
        name, kind: of what is called.
        inputs: places of the nodes that it reads from.
        groups: indices of the groups that its output channels belong to.
        channels: of its output, before and after.
    """

    name: str
    kind: str
    inputs: tuple[int, ...]
    groups: tuple[int, ...]
    channels: Pair


@dataclass(frozen=True)
class Histogram:
    """How important the units of a group are.

    Attributes:
        edges: bounds of the bins, one more than bins.
        kept, removed: units by bin. Where no plan says which units went, all count as kept.
        cut: as many units lie below this score as went; None where that is unknown or none.
        infinite: units with a score of infinity, which no bin shows.
    """

    edges: tuple[float, ...]
    kept: tuple[int, ...]
    removed: tuple[int, ...]
    cut: float | None = None
    infinite: int = 0


@dataclass(frozen=True)
class GroupFacts:
    """One group of channels that live or die together.

    Attributes:
        layers: that make its channels.
        size: units of the original.
        removed: how many of them are gone; None where that is unknown.
        histogram: of their scores, if there are any.
    """

    layers: tuple[str, ...]
    size: int
    removed: int | None
    histogram: Histogram | None = None


@dataclass(frozen=True)
class Facts:
    """Everything that a report says.

    Attributes:
        original, pruned: the two models as wholes.
        layers: every layer of either, in running order.
        nodes: the original's network.
        groups: the original's groups of coupled channels.
        history: the run's rounds.
        criterion: what the importances are by; empty without any.
        plan_known: whether a plan says which units went.
        notes: what could not be found out, and why.
    """

    original: ModelFacts
    pruned: ModelFacts
    layers: tuple[LayerFacts, ...] = ()
    nodes: tuple[Node, ...] = ()
    groups: tuple[GroupFacts, ...] = ()
    history: tuple[Step, ...] = ()
    criterion: str = ""
    plan_known: bool = False
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data that fits into JSON; numbers that are not finite are None."""
        return {"format": _FORMAT, **plain(dataclasses.asdict(self))}


def read_facts(data: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of `Facts` from what `Facts.to_dict` wrote.

    Raises:
        RequestError: the data are something else.
    """
    try:
        if data["format"] != _FORMAT:
            raise ValueError(f"format {data['format']!r}")
        return {
            "original": _model(data["original"]),
            "pruned": _model(data["pruned"]),
            "layers": tuple(LayerFacts(**_tuples(x)) for x in data["layers"]),
            "nodes": tuple(Node(**_tuples(x)) for x in data["nodes"]),
            "groups": tuple(_group(x) for x in data["groups"]),
            "history": tuple(Step(**x) for x in data["history"]),
            "criterion": data["criterion"],
            "plan_known": data["plan_known"],
            "notes": tuple(data["notes"]),
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RequestError(
            "Expected the dictionary that Report.to_dict() returns. "
            f"Received something else ({type(error).__name__}: {error})."
        ) from error


def _model(data: Mapping[str, Any]) -> ModelFacts:
    latency = data["latency"]
    return ModelFacts(**{**data, "latency": latency and Spread(**latency)})


def _group(data: Mapping[str, Any]) -> GroupFacts:
    histogram = data["histogram"]
    made = histogram and Histogram(**_tuples(histogram))
    return GroupFacts(**{**_tuples(data), "histogram": made})


def _tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}


def plain(value: Any) -> Any:
    """Data that fit into JSON: lists for tuples, None for numbers that are not finite."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
