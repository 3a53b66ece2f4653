"""The surgeon: collects jobs, then does them all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import keras

from ridurre.graph import ChannelGraph
from ridurre.graph.names import named_layers
from ridurre.surgeon.channels import cut
from ridurre.surgeon.editing import Edited
from ridurre.surgeon.jobs import VALID_JOBS, Job, check_free, make_job
from ridurre.surgery import duplicate


class Surgeon:
    """Several operations on one model at once.

    Layers are left out, put in and exchanged first; then channels are deleted, all by one plan.
    New layers therefore see tensors of the original's sizes, and are cut like the others::

        surgeon = Surgeon(model)
        surgeon.add_job("delete_channels", model.get_layer("conv1"), channels=[2, 6, -1])
        surgeon.add_job("insert_layer", model.get_layer("conv2"), new_layer=keras.layers.ReLU())
        smaller = surgeon.operate()

    Args:
        model: a built Functional or Sequential model; it is not touched.
        copy: has no effect. In kerassurgeon it kept the new model's layers apart from the
            original's; here they always are.

    Attributes:
        valid_jobs: the names of the jobs.

    Raises:
        ModelError: the model cannot be analysed.
    """

    valid_jobs: ClassVar[tuple[str, ...]] = VALID_JOBS

    def __init__(self, model: keras.Model, copy: bool | None = None) -> None:
        del copy
        self.model = model
        self._graph = ChannelGraph(model)
        self._jobs: list[Job] = []

    def add_job(
        self,
        job: str,
        layer: keras.Layer | str,
        *,
        channels: Sequence[int] | None = None,
        new_layer: keras.Layer | None = None,
        node_indices: Sequence[int] | None = None,
    ) -> None:
        """Ask for an operation; one per call of a layer.

        Args:
            job: ``"delete_layer"``, ``"insert_layer"`` (before `layer`), ``"replace_layer"`` or
                ``"delete_channels"``.
            layer: a layer, its name, or ``"nested/name"``. A layer of an earlier copy of the model
                means the one of its name.
            channels: for ``"delete_channels"``: output channels, from 0; -1 is the last one. If
                they are all, the layer goes with the whole branch up to a concatenation.
            new_layer: for ``"insert_layer"`` and ``"replace_layer"``. It is copied, weights
                included if it has any; given to two jobs, it is shared.
            node_indices: which calls of a shared layer, numbered in the order in which they were
                made in this model; None for all. Channels that are deleted at some calls only are
                deleted from a copy, named ``…_delete_channels``, which shares no weights.

        Raises:
            UnknownLayerError: the model has no such layer.
            RequestError: an unknown job, a job at the same call, an argument that is missing or too
                much, channels or node indices out of range, a new layer that stands in the model
                already, or a layer with several inputs that is to be deleted or inserted before.
        """
        wanted = make_job(self._graph, job, layer, channels, new_layer, node_indices)
        check_free(wanted, self._jobs)
        self._jobs.append(wanted)

    def operate(self) -> keras.Model:
        """Do all jobs.

        Returns:
            A new model, not compiled.

        Raises:
            FrozenChannelError: one of the channels cannot be removed, and why.
            RequestError: the layers do not fit together after the jobs, layers that are tied to
                each other are to lose different channels, or nothing would be left.
        """
        cuts = [job for job in self._jobs if job.kind == "delete_channels" and job.channels]
        edits = [j for j in self._jobs if j.kind != "delete_channels" or j in cuts and not j.whole]
        if not edits:
            request = {job.place.name: job.channels for job in cuts}
            return cut(self.model, request) if request else duplicate(self.model)
        edited = Edited(self._graph, edits)
        if not cuts:
            return edited.model
        names = {id(layer): name for name, layer in named_layers(edited.model).items()}
        return cut(edited.model, {names[id(edited.layer(job))]: job.channels for job in cuts})
