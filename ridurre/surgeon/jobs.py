"""What a surgeon is asked to do, checked when it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np

from ridurre.backend import Node, all_layers, has_graph
from ridurre.checks import check_choice, check_indices
from ridurre.errors import RequestError
from ridurre.graph import ChannelGraph
from ridurre.surgeon.places import Place, find_place, inputs_of, select_calls

VALID_JOBS = ("delete_layer", "insert_layer", "replace_layer", "delete_channels")
_NEEDS = {"insert_layer": "new_layer", "replace_layer": "new_layer", "delete_channels": "channels"}


@dataclass(frozen=True, eq=False)
class Job:
    """One job, checked.

    Attributes:
        kind: one of `VALID_JOBS`.
        place: the layer.
        calls: those of its calls that are meant.
        channels: sorted output channels to delete; none for the other jobs.
        new_layer: the layer to insert or to put in the place of the old one.
    """

    kind: str
    place: Place
    calls: tuple[Node, ...]
    channels: tuple[int, ...] = ()
    new_layer: keras.Layer | None = None

    @property
    def whole(self) -> bool:
        """Whether all calls of the layer are meant."""
        return len(self.calls) == len(self.place.calls)

    def __str__(self) -> str:
        return f"{self.kind} at {self.place.name!r}"


def make_job(
    graph: ChannelGraph,
    kind: str,
    layer: keras.Layer | str,
    channels: Sequence[int] | None,
    new_layer: keras.Layer | None,
    node_indices: Sequence[int] | None,
) -> Job:
    """A job on a model, if it makes sense; see `Surgeon.add_job`."""
    check_choice("job", kind, VALID_JOBS)
    given = {"channels": channels, "new_layer": new_layer}
    for name, value in given.items():
        if (value is None) == (name == _NEEDS.get(kind)):
            verb = "needs" if value is None else "takes no"
            raise RequestError(f"The job {kind!r} {verb} `{name}`. Received: {value!r}.")
    place = find_place(graph.model, layer)
    calls = select_calls(place, node_indices)
    if channels is not None:
        return Job(kind, place, calls, _check_channels(graph, place, channels))
    if new_layer is not None:
        _check_new_layer(graph.model, new_layer)
    job = Job(kind, place, calls, new_layer=new_layer)
    if kind != "replace_layer":
        _check_single(job)
    return job


def check_free(job: Job, others: Sequence[Job]) -> None:
    """One job per call of a layer.

    Raises:
        RequestError: another job is at one of these calls.
    """
    taken = {id(call.outputs[0]): other for other in others for call in other.calls}
    for call in job.calls:
        other = taken.get(id(call.outputs[0]))
        if other is not None:
            raise RequestError(
                f"Expected one job per call of a layer. Received {job}, where there is already "
                f"{other}. Do one after the other, with two surgeons."
            )


def _check_channels(graph: ChannelGraph, place: Place, channels: Sequence[int]) -> tuple[int, ...]:
    """Output channels of a layer, sorted; -1 is the last one, as in kerassurgeon."""
    if has_graph(place.layer):
        raise RequestError(
            f"{place.name!r} is a nested model. Expected one of its layers, under its full name: "
            f"{[n for n in graph.layers if n.startswith(place.name + '/')][:10]}."
        )
    count = len(graph.channels(place.name))
    what = f"layer {place.name!r}"
    try:
        array = np.asarray(list(channels))
    except (TypeError, ValueError):
        array = np.zeros((), object)
    if array.ndim == 1 and np.issubdtype(array.dtype, np.integer) and (array >= -count).all():
        array = np.where(array < 0, array + count, array)
        return tuple(check_indices(array, count, what).tolist())
    return tuple(check_indices(channels, count, what).tolist())


def _check_new_layer(model: keras.Model, new_layer: object) -> None:
    if isinstance(new_layer, keras.layers.InputLayer) or not isinstance(new_layer, keras.Layer):
        raise RequestError(
            "Expected new_layer to be a layer that can be called. "
            f"Received: {new_layer!r} ({type(new_layer).__name__})."
        )
    if any(new_layer is x for x in [model, *all_layers(model)]):
        raise RequestError(
            f"The layer {new_layer.name!r} stands in the model already. Expected a new one. For a "
            "copy of it, give type(layer).from_config(layer.get_config() | {'name': …}), and build "
            "that and set its weights if it is to have the same."
        )


def _check_single(job: Job) -> None:
    """Before a layer with one input another can stand; and one with one output can be left out."""
    for call in job.calls:
        count = len(inputs_of(call))
        if count != 1:
            raise RequestError(
                f"{job} ({type(job.place.layer).__name__}): the layer has {count} inputs, and it "
                "is not clear which one is meant. Expected a layer with one input."
            )
        if job.kind == "delete_layer" and len(call.outputs) != 1:
            raise RequestError(
                f"{job} ({type(job.place.layer).__name__}): the layer has {len(call.outputs)} "
                "outputs. Expected a layer with one, in whose place its input can stand."
            )
