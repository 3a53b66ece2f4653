"""What was measured, as plain data: a table, files, pictures, and what to make of it."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ridurre.criteria import Criterion
from ridurre.criteria.base import CRITERIA
from ridurre.errors import RequestError
from ridurre.figures import saved
from ridurre.files import write_text, write_whole
from ridurre.optional import load
from ridurre.sensitivities import pictures
from ridurre.sensitivities.ranking import MeasuredCriterion, measured_scores
from ridurre.sparsity import LevelPrune
from ridurre.tables import aligned

_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Point:
    """One cut and what it came to.

    Attributes:
        name: of the group (the layers that make its channels), the weight, or ``"network"``.
        amount: the fraction that was to go.
        removed: how many channels or weights went; for a network, parameters. None while unknown.
        value: what was measured; None if it was not, or came out as no finite number.
        seconds: how long that took, 0 where nothing had to be evaluated; None if not measured.
    """

    name: str
    amount: float
    removed: int | None
    value: float | None
    seconds: float | None

    @property
    def measured(self) -> bool:
        """Whether the time sufficed for this point."""
        return self.seconds is not None


@dataclasses.dataclass(frozen=True)
class Names:
    """What a name in the record stands for.

    Attributes:
        layers: the layers that a strategy has to name.
        size: number of channels or weights; 0 for a network.
        order: units in the order in which they go; empty for weights and networks.
    """

    layers: tuple[str, ...]
    size: int
    order: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """How much cutting each part of a model alone costs; see `ridurre.sensitivity`.

    Attributes:
        grain: ``"channels"``, ``"weights"`` or ``"network"``.
        measured: what the values are: "accuracy", "loss", ….
        higher_is_better: whether a large value is a good one.
        baseline: the value of the whole model.
        criterion_name: what decided which go first.
        points: one per name and amount, names in the model's order.
        names: what the names stand for.
    """

    grain: str
    measured: str
    higher_is_better: bool
    baseline: float
    criterion_name: str
    points: tuple[Point, ...]
    names: Mapping[str, Names]

    @property
    def complete(self) -> bool:
        """Whether there was time for every point."""
        return all(p.measured for p in self.points)

    @property
    def amounts(self) -> tuple[float, ...]:
        """The amounts that were asked for, rising."""
        return tuple(sorted({p.amount for p in self.points}))

    def curve(self, name: str) -> list[Point]:
        """The points of one name by rising amount; raises `RequestError` if there is no such."""
        if name not in self.names:
            raise RequestError(f"Expected one of {list(self.names)}. Received: {name!r}.")
        return sorted((p for p in self.points if p.name == name), key=lambda p: p.amount)

    def drop(self, value: float) -> float:
        """By how much a value is worse than the baseline; negative where it is better."""
        return self.baseline - value if self.higher_is_better else value - self.baseline

    def suggest(self, tolerance: float, **options: Any) -> dict[str, Any]:
        """The largest measured amount of every name that costs at most so much, each cut alone.

        Together such cuts cost more than each alone: choose a small tolerance, or let the knapsack
        share out a target (see `criterion`).

        Args:
            tolerance: how much worse the value may become, in its own unit: 0.01 of accuracy.
            options: for weights, arguments of the `LevelPrune` (``data=…``).

        Returns:
            For channels, amounts by layer, ``ChannelPrune(amounts, criterion=found.criterion())``;
            for weights, a `LevelPrune` by layer, ``ridurre.prune(levels, model)``; for a network,
            ``{"network": amount}``.

        Raises:
            RequestError: a negative tolerance, or a weight criterion that has no name and is not
                given with ``criterion=…``.
        """
        if not tolerance >= 0:
            raise RequestError(f"Expected a tolerance from 0. Received: {tolerance!r}.")
        best: dict[str, float] = {}
        for name, known in self.names.items():
            amount = max(
                (p.amount for p in self.curve(name) if self._holds(p, tolerance)), default=0.0
            )
            for layer in known.layers:  # of several groups in a layer, the most cautious counts
                best[layer] = min(amount, best.get(layer, 1.0))
        if self.grain != "weights":
            # A short name also means layers inside a nested model; their own come later and count.
            return dict(sorted(best.items(), key=lambda item: item[0].count("/")))
        options = {"criterion": self._weight_criterion(options)} | options
        return {n: LevelPrune(a, **options) for n, a in best.items() if a}

    def criterion(self) -> Criterion:
        """A criterion that reproduces what was measured, for rankings and for the knapsack.

        The sum of the scores of a group's weakest units is what cutting them cost: measured at the
        amounts, linear in between, and from below convex and rising, as the units' order has to
        stay. Groups that were not measured stay whole.

        Example::

            half = ridurre.ChannelPrune(
                target=ridurre.MACs(0.5), scope="knapsack", criterion=found.criterion()
            )

        Raises:
            RequestError: weights or a whole network were measured.
        """
        if self.grain != "channels":
            raise RequestError(
                "Only the sensitivity of channels makes a criterion. Expected "
                f"ridurre.sensitivity(…, grain='channels'). Received: {self.grain!r}."
            )
        scores = {}
        for name, known in self.names.items():
            drops = [
                (p.removed, None if p.value is None else self.drop(p.value))
                for p in self.curve(name)
                if p.measured and p.removed
            ]
            if drops:
                scores[name] = measured_scores(drops, known.order)
        return MeasuredCriterion(scores)

    def to_dict(self) -> dict[str, Any]:
        """The record as plain data that fits into JSON."""
        return {"format": _FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Sensitivity:
        """The record that `to_dict` wrote.

        Raises:
            RequestError: the data are something else.
        """
        try:
            if data["format"] != _FORMAT:
                raise ValueError(f"format {data['format']!r}")
            given = {k: v for k, v in data.items() if k != "format"}
            given["points"] = tuple(Point(**p) for p in given["points"])
            given["names"] = {
                name: Names(tuple(n["layers"]), n["size"], tuple(n["order"]))
                for name, n in given["names"].items()
            }
            return cls(**given)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RequestError(
                "Expected the dictionary that Sensitivity.to_dict() returns. "
                f"Received something else ({type(error).__name__}: {error})."
            ) from error

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the record as JSON; `from_json` reads it."""
        write_text(path, json.dumps(self.to_dict(), indent=1))

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Sensitivity:
        """The record in a file; raises `RequestError` if it holds something else."""
        try:
            data = json.loads(Path(path).read_text("utf-8"))
        except ValueError as error:
            raise RequestError(f"{str(path)!r} is not JSON: {error}.") from error
        return cls.from_dict(data)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the points as a table with the columns of `Point`; what is missing is empty."""
        columns = [f.name for f in dataclasses.fields(Point)]

        def write(p: Path) -> None:
            with p.open("w", newline="", encoding="utf-8") as file:
                table = csv.writer(file)
                table.writerows([columns, *map(dataclasses.astuple, self.points)])

        write_whole(path, write)

    def to_frame(self) -> Any:
        """The points as a pandas data frame with the columns of `Point`.

        Raises:
            RequestError: pandas is not installed.
        """
        pd = load("pandas", "Data frames", "to_csv and to_dict do without.")
        return pd.DataFrame([dataclasses.asdict(p) for p in self.points])

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Curves, one per name, as a matplotlib figure; saved if a path is given.

        Raises:
            RequestError: matplotlib is not installed.
        """
        return saved(pictures.curves(self), path)

    def heatmap(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Names against amounts as a matplotlib figure; saved if a path is given.

        Raises:
            RequestError: matplotlib is not installed.
        """
        return saved(pictures.heatmap(self), path)

    def __str__(self) -> str:
        rows = [("", "size", *(f"{a:.4g}" for a in self.amounts))]
        for name, known in self.names.items():
            cells = [_cell(p) for p in self.curve(name)]
            rows.append((name, str(known.size) if known.size else "", *cells))
        better = "higher" if self.higher_is_better else "lower"
        missing = sum(not p.measured for p in self.points)
        rest = f"; incomplete, {missing} of {len(self.points)} are missing (-)" if missing else ""
        head = f"{self.measured} of {self.grain} cut ({better} is better); whole: "
        return f"{head}{self.baseline:.4g}{rest}\n{aligned(rows, left=1)}"

    def __repr__(self) -> str:
        done = sum(p.measured for p in self.points)
        return f"Sensitivity({self.measured} by {self.grain}, {done} of {len(self.points)} points)"

    def _holds(self, point: Point, tolerance: float) -> bool:
        # 0.9 - 0.89 is a little more than 0.01 in floating point.
        return point.value is not None and self.drop(point.value) <= tolerance + 1e-9

    def _weight_criterion(self, options: Mapping[str, Any]) -> Any:
        if "criterion" in options or self.criterion_name in CRITERIA:
            return self.criterion_name
        raise RequestError(
            f"The levels were measured with {self.criterion_name}, which has no name in the table "
            "of criteria. Expected suggest(…, criterion=…) with the same one."
        )


def _cell(point: Point) -> str:
    if not point.measured:
        return "-"
    return "nan" if point.value is None else f"{point.value:.4f}"
