"""What is in a model: its size by layer, its groups, and what cannot be pruned and why."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from ridurre.graph import ChannelGraph
from ridurre.measure import Complexity, model_complexity
from ridurre.reports.layers import layer_facts
from ridurre.tables import aligned


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        name, kind: of the layer.
        channels: that it makes; None for layers that make none of their own.
        group: the number of the group that they belong to, if they can be pruned; several where
            its channels belong to several.
        parameters, macs: of it; `macs` is None where the input size is open.
        reason: why its channels cannot be pruned; empty where they can, or there are none.
    """

    name: str
    kind: str
    channels: int | None
    group: tuple[int, ...]
    parameters: int
    macs: int | None
    reason: str


@dataclasses.dataclass(frozen=True)
class Inspection:
    """A model, for people and as plain data.

    Attributes:
        size: of the whole.
        layers: all that make channels or have parameters, in running order.
        groups: by number, the layers that make a group's channels, and how many there are.
    """

    size: Complexity
    layers: tuple[Layer, ...]
    groups: tuple[tuple[tuple[str, ...], int], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data that fits into JSON."""
        names = ("parameters", "macs", "filters", "activation_memory")
        return {
            **{name: getattr(self.size, name) for name in names},
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
            "groups": [{"layers": layers, "channels": size} for layers, size in self.groups],
        }

    def __str__(self) -> str:
        head = ("layer", "kind", "channels", "group", "parameters", "MACs")
        rows = [head, *(self._row(layer) for layer in self.layers)]
        channels = sum(size for _, size in self.groups)
        parts = [
            str(self.size),
            aligned(rows),
            f"{len(self.groups)} group{'s' * (len(self.groups) != 1)} of coupled channels, "
            f"{channels:,} channels in all, can be pruned.",
        ]
        if stuck := [f"{x.name} ({x.kind}): {x.reason}" for x in self.layers if x.reason]:
            parts.append("\n".join(["These cannot:", *stuck]))
        return "\n\n".join(parts)

    def _row(self, x: Layer) -> tuple[str, ...]:
        groups = ", ".join(map(str, x.group)) if x.group else ("-" if x.reason else "")
        macs = "open" if x.macs is None else f"{x.macs:,}"
        channels = "" if x.channels is None else f"{x.channels:,}"
        return x.name, x.kind, channels, groups, f"{x.parameters:,}", macs


def inspection(model: keras.Model) -> Inspection:
    """Look at a model.

    Raises:
        ModelError: it cannot be analysed.
    """
    graph, size = ChannelGraph(model), model_complexity(model)
    groups: dict[str, list[int]] = {}
    for group in graph.groups:
        for name in group.producers:
            groups.setdefault(name, []).append(group.index)
    layers = tuple(
        Layer(
            x.name,
            x.kind,
            x.channels[0],
            tuple(groups.get(x.name, ())),
            x.parameters[0] or 0,
            x.macs[0],
            x.reason if x.status == "fixed" else "",
        )
        for x in layer_facts(graph, size, graph, size)
        if x.channels[0] is not None or x.parameters[0] or x.status == "fixed"
    )
    return Inspection(size, layers, tuple((g.producers, g.size) for g in graph.groups))
