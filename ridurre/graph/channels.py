"""The dependency graph of a model's channels."""

from __future__ import annotations

from functools import cached_property

import keras
import numpy as np

from ridurre.backend import check_model
from ridurre.errors import FrozenChannelError
from ridurre.graph.groups import Group, Solution
from ridurre.graph.labels import Labels, Reason, varying
from ridurre.graph.names import named_layers, variable_paths
from ridurre.graph.rules import Call
from ridurre.graph.rules.convolution import filter_axis
from ridurre.graph.select import Selector, find_layer, select_layers
from ridurre.graph.trace import Trace


class ChannelGraph:
    """Which channels of a model hang together, and which weight positions they own.

    Args:
        model: a built Functional or Sequential Keras 3 model; it is only read.
        protect: layers whose output channels must stay (see `ridurre.graph.select`).
        free_outputs: whether the model's outputs may lose channels; by default they are fixed.

    Raises:
        ModelError: the model cannot be analysed.
        UnknownLayerError: `protect` names a layer that is not there.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        protect: Selector | None = None,
        free_outputs: bool = False,
    ) -> None:
        check_model(model)
        self.model = model
        self.trace = Trace(model, free_outputs=free_outputs)
        self._protect(protect)
        self.solution = Solution(self.trace)

    @property
    def layers(self) -> dict[str, keras.Layer]:
        """All layers by name, those of nested models as ``"nested/name"``."""
        return self.trace.layers

    @cached_property
    def groups(self) -> list[Group]:
        """All groups of channels that can be pruned."""
        return self.solution.groups()

    @cached_property
    def barriers(self) -> dict[str, str]:
        """Layers and operations without a rule: name → class."""
        return {c.name: _unknown(c).kind for c in self.trace.calls if not c.known}

    @cached_property
    def paths(self) -> dict[int, str]:
        """A unique name for every variable, by its id (see `variable_paths`)."""
        return variable_paths(named_layers(self.model))

    def find(self, layer: keras.Layer | str) -> str:
        """Full name of one layer; raises `UnknownLayerError`."""
        return find_layer(self.layers, layer)

    def select(self, selector: Selector) -> list[str]:
        """Full names of the layers that a selector means; raises `UnknownLayerError`."""
        return select_layers(self.model, self.layers, selector)

    def channels(self, name: str) -> Labels:
        """Labels of the output channels of a layer, ``(channels,)``.

        Raises:
            FrozenChannelError: its output has no single axis of channels.
        """
        call = self.trace.by_layer[id(self.layers[name])][0]
        made = None if call.opened else self.made_by(call)
        if made is not None:
            return made
        value = call.outputs[0]
        axes = varying(value.labels)
        if len(axes) > 1:
            raise FrozenChannelError(
                f"The output of {name!r} ({call.kind}) carries channels on the axes {axes}; name "
                "the layer that makes them instead."
            )
        axis = axes[0] if axes else len(value.shape) - 1
        size = max(value.shape[axis] or 1, value.labels.shape[axis])
        return np.broadcast_to(np.moveaxis(value.labels, axis, -1).reshape(-1), (size,))

    def made_by(self, call: Call) -> Labels | None:
        """Labels of the output channels that a layer makes itself, ``(channels,)``.

        None if it makes none. Those that a layer makes and reads inside are not among them.
        """
        produced = self.trace.space.produced_by(call.operation)
        if len(produced) < 2:
            return produced[0] if produced else None
        labels = call.outputs[0].labels
        if len(varying(labels)) == 1:
            return labels.ravel()
        return next((p for p in produced if set(p) == set(labels.ravel())), None)

    def removable(self, name: str) -> np.ndarray:
        """Which output channels of a layer may be removed, ``(channels,)`` of bool."""
        solution = self.solution
        return ~solution.hard_frozen[solution.hard[self.channels(name)]]

    def filters(self, layer: keras.Layer) -> Labels | None:
        """Labels of a convolution's filters, ``(filters,)``; None for layers that make none."""
        made = filter_axis(layer)
        if made is None:
            return None
        variable, axis = made
        return self.trace.space.weights[id(variable), axis].labels[:, 0]

    def explain(self, label: int) -> str:
        """A sentence on why a label cannot be removed."""
        why = self.solution.reason(label)
        where = f" at {why.name!r} ({why.kind})" if why.name else ""
        text = f"{why.reason.value}{where}"
        if why.reason is Reason.NO_RULE:
            text += f"; describe it with @ridurre.register_rule({why.kind})"
            if why.name in self.trace.closed:
                text += f" ({self.trace.closed[why.name]})"
        return text

    def _protect(self, protect: Selector | None) -> None:
        for name in [] if protect is None else self.select(protect):
            self.trace.space.at(name, type(self.layers[name]).__name__)
            self.trace.space.freeze(self.channels(name), Reason.PROTECTED)


def _unknown(call: Call) -> Call:
    """Of a call that no rule describes, the part that is to blame."""
    return next((_unknown(c) for c in call.inner if not c.known), call)
