"""The original and the pruned model side by side."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import keras
import numpy as np

from ridurre.data import Batch
from ridurre.errors import PlanMismatchError
from ridurre.forward import Forward, Step
from ridurre.graph import ChannelGraph
from ridurre.graph.labels import Value, varying
from ridurre.graph.rules import Call
from ridurre.graph.trace import Trace
from ridurre.masks import Masks
from ridurre.plan import Planner, PruningPlan
from ridurre.progress import Bar
from ridurre.rebuilding import Alive

L = keras.layers
logger = logging.getLogger("ridurre")
#: Layers that hand on what they get in inference mode.
PASSING = (
    L.Dropout, L.SpatialDropout1D, L.SpatialDropout2D, L.SpatialDropout3D, L.GaussianDropout,
    L.GaussianNoise, L.AlphaDropout, L.ActivityRegularization, L.Identity,
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What methods may ask for; see `ridurre.recover`."""

    ridge: float = 1e-3
    max_rows: int = 65536
    rounds: int = 4
    seed: int = 0
    memory: int = 1 << 29


class Side:
    """One of the two models: its calls, and who makes and reads every tensor."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.maker = {v: call for call in trace.calls for v in call.outputs}
        self.readers: dict[Value, list[Call | None]] = defaultdict(list)
        for call in trace.calls:
            for value in call.inputs:
                self.readers[value].append(call)
        for value in trace.outputs:
            self.readers[value].append(None)

    def once(self, call: Call) -> bool:
        """Whether this is the only call of its layer."""
        return len(self.trace.by_layer[id(call.operation)]) == 1

    def reader(self, value: Value) -> Call | None:
        """The call that alone reads a tensor; None if there are others, or the output is it."""
        readers = self.readers[value]
        return readers[0] if len(readers) == 1 else None


@dataclass(eq=False)
class Pair:
    """A pruned model, open to changes, next to the original.

    Attributes:
        old, new: the original and the pruned model; their calls correspond one to one.
        kept: what is left of the original's channels.
        free: which numbers of the pruned model's weights may be changed, by the ids of the weights;
            all of those that are not there.
        batches: samples, gone through in the same order for both; empty without data.
        settings: see `Settings`.
    """

    old: Side
    new: Side
    kept: Alive
    free: Mapping[int, np.ndarray]
    batches: list[Batch]
    settings: Settings = field(default_factory=Settings)

    def walk(self, title: str = "") -> Iterator[tuple[Step, Step]]:
        """Run both models on all data in lockstep, in inference mode.

        What is changed of the pruned model's layer before its step is over is what later layers
        get to see.

        Yields:
            For every call the step in the original and the one in the pruned model.
        """
        memory = self.settings.memory // 2
        walks = [Forward(s.trace, self.batches, memory=memory) for s in (self.old, self.new)]
        logger.debug("Recovery %s: walking through both models.", title)
        with Bar("Refitting", len(self.new.trace.calls), unit="layer") as bar:
            for old, new in zip(*walks, strict=True):
                yield old, new
                new.run()
                bar.advance()

    def calls(self) -> Iterator[tuple[Call, Call]]:
        """All calls, of the original and of the pruned model."""
        yield from zip(self.old.trace.calls, self.new.trace.calls, strict=True)

    def cut(self, value: Value, tensor: np.ndarray) -> np.ndarray:
        """What is left of a tensor of the original when the removed channels are taken out."""
        for axis in varying(value.labels):
            tensor = np.compress(self.kept.positions(value.labels, axis), tensor, axis)
        return tensor

    def shape(self, value: Value) -> tuple[int | None, ...]:
        """The shape of a tensor of the original when the removed channels are taken out."""
        axes = varying(value.labels)
        count = self.kept.count
        return tuple(count(value.labels, a) if a in axes else n for a, n in enumerate(value.shape))

    def channels(self, value: Value, axis: int) -> np.ndarray:
        """Which channels of a tensor of the original are left, as indices."""
        kept = self.kept.positions(value.labels, axis)
        return np.flatnonzero(np.broadcast_to(kept, (value.shape[axis] or len(kept),)))


def pair_models(
    original: keras.Model,
    pruned: keras.Model,
    plan: PruningPlan | Masks,
    batches: list[Batch],
    settings: Settings,
) -> Pair:
    """Put the two models next to each other.

    Raises:
        PlanMismatchError: the plan is not of the original, or the pruned model is not what the
            plan leaves of it.
    """
    graph, new = ChannelGraph(original), Side(ChannelGraph(pruned).trace)
    if isinstance(plan, Masks):
        kept = Alive(graph, np.ones(graph.trace.space.size, bool))
        free = {id(weight.variable): keep for weight, keep in plan.pairs(pruned)}
    else:
        kept, free = Alive(graph, Planner(graph).labels_of(plan)), {}
    pair = Pair(Side(graph.trace), new, kept, free, batches, settings)
    _check_match(pair, original, pruned)
    return pair


def _check_match(pair: Pair, original: keras.Model, pruned: keras.Model) -> None:
    old, new = pair.old.trace.calls, pair.new.trace.calls
    if len(old) != len(new):
        raise PlanMismatchError(
            f"The pruned model {pruned.name!r} has {len(new)} calls of layers and the original "
            f"{original.name!r} has {len(old)}. Expected the model that the plan makes of it."
        )
    for a, b in zip(old, new, strict=True):
        renamed = a.name != b.name and isinstance(a.operation, keras.Layer)
        expected = [pair.shape(v) for v in a.outputs]
        if a.kind != b.kind or renamed or expected != [v.shape for v in b.outputs]:
            raise PlanMismatchError(
                f"The pruned model {pruned.name!r} is not what the plan makes of the original: "
                f"expected {a.name!r} ({a.kind}) with outputs of the shapes {expected}. Received: "
                f"{b.name!r} ({b.kind}) with {[v.shape for v in b.outputs]}. Pass the model that "
                "the plan was carried out on, and keep its layers' names."
            )
