"""Build a model anew with some layers left out, put in or exchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from ridurre.backend import FunctionalGraph, has_graph, own_variables, to_numpy
from ridurre.backend.making import recreate
from ridurre.backend.state import copy_hidden_state
from ridurre.errors import RequestError, RidurreError
from ridurre.graph import ChannelGraph
from ridurre.rebuilding import Rebuilder
from ridurre.surgeon.jobs import Job
from ridurre.surgeon.places import tensors_of
from ridurre.surgery import distribution_of, duplicate


class Edited:
    """A model after the jobs that change its layers; the original is not touched.

    Jobs that delete channels only at some calls of a shared layer give these calls a layer of
    their own here, with the same weights, whose channels can then go.

    Args:
        graph: of the original.
        jobs: all jobs.

    Attributes:
        model: the new model.

    Raises:
        RequestError: the layers do not fit together after the jobs.
    """

    def __init__(self, graph: ChannelGraph, jobs: Sequence[Job]) -> None:
        names = {layer.name for layer in graph.layers.values()}
        with distribution_of(graph.model):
            self._editor = _Editor(graph, jobs, names)
            try:
                self.model = self._editor.model(graph.model)
                self._editor.copy_state()
            except RidurreError:
                raise
            except Exception as error:  # whatever Keras says of layers that do not fit together
                raise RequestError(
                    f"The model {graph.model.name!r} cannot be put together after these jobs: "
                    f"{'; '.join(map(str, jobs))}. {type(error).__name__}: {error}"
                ) from error

    def layer(self, job: Job) -> keras.Layer:
        """What became of the layer of a job that deletes channels."""
        return self._editor.put_in.get(id(job)) or self._editor.new[id(job.place.layer)][1]


class _Editor(Rebuilder):
    """Rebuilds a whole model, but for the calls that a job is at."""

    def __init__(self, graph: ChannelGraph, jobs: Sequence[Job], names: set[str]) -> None:
        super().__init__(graph, np.ones(graph.trace.space.size, bool))
        self.put_in: dict[int, Any] = {}
        self._names = names
        self._jobs = {
            id(call.outputs[0]): job
            for job in jobs
            for call in job.calls
            if job.kind != "delete_channels" or not job.whole
        }

    def _as_functional(self, model: keras.Model, graph: FunctionalGraph) -> keras.Model:
        new = super()._as_functional(model, graph)
        before = {id(t) for t in graph.inputs}
        after = {id(t) for t in new.inputs}
        for old, tensor in zip(graph.outputs, new.outputs, strict=True):
            if id(tensor) in after and id(old) not in before:
                raise RequestError(
                    f"After these jobs nothing would be left between the input {tensor.name!r} of "
                    f"the model {model.name!r} and its output. Expected at least one layer to stay."
                )
        return new

    def _chain(self, node: Any) -> list[Any]:
        job = self._jobs.get(id(node.outputs[0]))
        if job is None:
            return super()._chain(node)
        if job.kind == "delete_layer":
            return []
        return [self._new_layer(job), *(super()._chain(node) if job.kind == "insert_layer" else [])]

    def _as_sequential(self, model: keras.Model, graph: FunctionalGraph) -> keras.Model:
        jobs = [self._jobs.get(id(node.outputs[0])) for node in graph.nodes]
        if all(job is not None and job.kind == "delete_layer" for job in jobs):
            raise RequestError(
                f"These jobs would delete every layer of the model {model.name!r}. Expected at "
                "least one to stay."
            )
        return super()._as_sequential(model, graph)

    def _call(self, node: Any, args: Any, kwargs: Any) -> Any:
        job = self._jobs.get(id(node.outputs[0]))
        if job is None:
            return super()._call(node, args, kwargs)
        mask = {"mask": kwargs["mask"]} if "mask" in kwargs else {}
        kwargs = {k: v for k, v in kwargs.items() if k != "mask"}
        if job.kind == "delete_layer":
            return tensors_of((args, kwargs))[0]
        new = self._new_layer(job)
        if job.kind == "insert_layer":
            args, kwargs = keras.tree.map_structure(
                lambda x: new(x) if isinstance(x, keras.KerasTensor) else x, (args, kwargs)
            )
            return super()._call(node, args, kwargs | mask)
        outputs = new(*args, **{k: v for k, v in kwargs.items() if v is not None})
        self._check_count(job, node, outputs)
        return outputs

    def _check_count(self, job: Job, node: Any, outputs: Any) -> None:
        count = len(keras.tree.flatten(outputs))
        if count != len(node.outputs):
            raise RequestError(
                f"{job}: expected a new layer with {len(node.outputs)} outputs, like the old one. "
                f"Received one with {count}."
            )

    def _new_layer(self, job: Job) -> Any:
        """A copy of the layer that a job brings in; the same for several jobs with one layer."""
        if job.new_layer is None:
            source, changes = job.place.layer, {"name": self._free_name(job.place.layer.name)}
            key = id(job)
        else:
            source, changes, key = job.new_layer, {}, id(job.new_layer)
        if key not in self.put_in:
            built = has_graph(source)
            self.put_in[key] = duplicate(source) if built else recreate(source, changes)
            if source.built and not built:
                self.new[key] = (source, self.put_in[key])
        return self.put_in[key]

    def _free_name(self, name: str) -> str:
        """The name that kerassurgeon gave to a layer that is no longer shared; numbered."""
        wanted = free = f"{name}_delete_channels"
        number = 0
        while free in self._names:
            number += 1
            free = f"{wanted}_{number}"
        self._names.add(free)
        return free

    def _check_outputs(self, call: Any, outputs: list[keras.KerasTensor]) -> None:
        """Sizes may change behind a job; what does not fit is found where it is read."""

    def _copy_weights(self, old: keras.Layer, new: keras.Layer) -> None:
        before, after = ([tuple(v.shape) for v in own_variables(x)] for x in (old, new))
        if before != after:
            raise RequestError(
                f"After these jobs the layer {old.name!r} ({type(old).__name__}) reads a tensor of "
                f"another size, and its weights do not fit: it has {before}, and would need "
                f"{after}. Replace it too, or delete channels instead of layers."
            )
        for variable, value in zip(own_variables(new), own_variables(old), strict=True):
            variable.assign(to_numpy(value))
        copy_hidden_state(old, new)
