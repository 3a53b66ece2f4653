"""Measure a model: parameters, multiply-accumulates, filters, activation memory, latency."""

from __future__ import annotations

import dataclasses
import math
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from ridurre.backend import (
    bytes_per_number,
    check_model,
    compiled,
    parameters_of,
    run_compiled,
    view_of,
)
from ridurre.backend.making import recreate
from ridurre.backend.models import inputs_of
from ridurre.data import Batch, random_inputs
from ridurre.errors import RequestError
from ridurre.forward import Forward, Step
from ridurre.graph.rules import Call, Work, rule_for
from ridurre.graph.rules.convolution import filter_axis
from ridurre.graph.trace import Trace
from ridurre.progress import track
from ridurre.tables import aligned

#: The weights in a ``.keras`` file.
_WEIGHTS = "model.weights.h5"


@dataclass(frozen=True)
class LayerComplexity:
    """One call of a layer or operation; the units are those of `Complexity`."""

    name: str
    kind: str
    parameters: int
    macs: int | None
    filters: int
    activation_memory: int | None
    nonzero: int = 0
    nonzero_macs: int | None = None

    @property
    def sparsity(self) -> float:
        """Fraction of the parameters that are exactly zero."""
        return _sparsity(self)


@dataclass(frozen=True)
class Complexity:
    """Size and cost of a model.

    MACs and memory are None where the model leaves its input size open.

    Attributes:
        parameters: weights that training would change, frozen or not (batch norm's scale and
            offset, not its moving statistics).
        macs: multiply-accumulate operations of dense and convolutional layers for one sample
            (FLOPs = 2 × MACs).
        filters: output filters of all convolutions (depthwise ones make none).
        activation_memory: bytes of the outputs of all layers together, for one sample.
        layers: the same by call, in running order; a shared layer's weights count at its first.
        nonzero: parameters that are not exactly zero.
        nonzero_macs: MACs with weights that are not zero: what is left for a machine that skips all
            zeros, which few do.
        zipped_size: bytes of the saved model in a compressed archive, where zeros take little room;
            None unless asked for.
    """

    parameters: int
    macs: int | None
    filters: int
    activation_memory: int | None
    layers: tuple[LayerComplexity, ...] = ()
    nonzero: int = 0
    nonzero_macs: int | None = None
    zipped_size: int | None = None

    @property
    def sparsity(self) -> float:
        """Fraction of the parameters that are exactly zero."""
        return _sparsity(self)

    def table(self) -> str:
        """One line per layer, and the totals."""
        head = ("layer", "type", "parameters", "MACs", "filters", "activation bytes", "sparsity")
        rows = [(x.name, x.kind, *_numbers(x), f"{x.sparsity:.1%}") for x in self.layers]
        return aligned([head, *rows, ("total", "", *_numbers(self), f"{self.sparsity:.1%}")])

    def __str__(self) -> str:
        units = ("parameters", "MACs", "filters", "bytes of activations")
        return ", ".join(f"{n} {unit}" for n, unit in zip(_numbers(self), units, strict=True))


def _sparsity(x: LayerComplexity | Complexity) -> float:
    return 1 - x.nonzero / x.parameters if x.parameters else 0.0


def _numbers(x: LayerComplexity | Complexity) -> list[str]:
    values = (x.parameters, x.macs, x.filters, x.activation_memory)
    return ["?" if n is None else f"{n:,}" for n in values]


def model_complexity(
    model: keras.Model, *, input_shape: tuple[int, ...] | None = None, zipped: bool = False
) -> Complexity:
    """Parameters, MACs, filters, activation memory and sparsity of a model.

    Args:
        model: a built Functional or Sequential model.
        input_shape: shape of one sample, without the batch axis; needed where the model's own
            leaves sizes open.
        zipped: measure `zipped_size` too, which takes saving the model to a temporary file.

    Raises:
        ModelError: the model cannot be analysed.
        RequestError: `input_shape` is given and the model has several inputs.
    """
    check_model(model)
    size = zipped_size(model) if zipped else None
    if input_shape is not None:
        model = _with_input_shape(model, input_shape)
    open_size = any(None in t.shape[1:] for t in keras.tree.flatten(inputs_of(model)))
    seen: set[int] = set()
    trace = Trace(model)
    layers = tuple(_layer(call, seen, open_size) for call in [*trace.calls, *_own_weights(trace)])
    return Complexity(
        sum(x.parameters for x in layers),
        None if open_size else sum(x.macs or 0 for x in layers),
        sum(x.filters for x in layers),
        None if open_size else sum(x.activation_memory or 0 for x in layers),
        layers,
        sum(x.nonzero for x in layers),
        None if open_size else sum(x.nonzero_macs or 0 for x in layers),
        size,
    )


def _own_weights(trace: Trace) -> Iterator[Call]:
    """Layers with weights of their own beside those of the layers in them."""
    for call in trace.opened:
        if call.opened and call.opened.parameters:
            yield dataclasses.replace(call, outputs=[])  # those of the last call in it


def file_size(model: keras.Model) -> int:
    """Bytes of the model as a ``.keras`` file, without an optimizer's state."""
    with tempfile.TemporaryDirectory() as folder:
        return _save(model, folder).stat().st_size


def zipped_size(model: keras.Model) -> int:
    """Bytes of the model's ``.keras`` file in a compressed archive."""
    with tempfile.TemporaryDirectory() as folder:
        path, archive = _save(model, folder), Path(folder) / "model.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            file.write(path, path.name)
        return archive.stat().st_size


def _save(model: keras.Model, folder: str) -> Path:
    path = Path(folder) / "model.keras"
    keras.saving.save_model(model, path)
    if getattr(model, "optimizer", None) is not None:
        drop_optimizer(path)
    return path


def drop_optimizer(path: Path, *, keep_scalars: bool = False) -> None:
    """Take an optimizer's state out of a ``.keras`` file; Keras has no option for that.

    Args:
        path: of the file.
        keep_scalars: keep its step and learning rate, without which Keras does not load the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        whole, part = Path(folder) / "whole", Path(folder) / "part"
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            archive.extractall(whole)
        with h5py.File(whole / _WEIGHTS) as source, h5py.File(part, "w") as target:
            for name in source.keys() - {"optimizer"}:
                source.copy(name, target)
            if keep_scalars:
                _copy_scalars(source["optimizer"], target.create_group("optimizer"))
        part.replace(whole / _WEIGHTS)
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.write(whole / name, name)


def _copy_scalars(source: Any, target: Any) -> None:
    """Copy an HDF5 group but for its arrays."""
    for name, item in source.items():
        if isinstance(item, h5py.Group):
            _copy_scalars(item, target.create_group(name))
        elif not item.shape:
            source.copy(name, target)


def _with_input_shape(model: keras.Model, input_shape: tuple[int, ...]) -> keras.Model:
    """A copy of a model for inputs of this size."""
    if len(model.inputs) != 1:
        raise RequestError(
            f"input_shape describes one input; the model has {len(model.inputs)}. Received: "
            f"{input_shape}."
        )
    problem: Any = "its weights would have other shapes"
    try:
        new = keras.models.clone_model(
            model,
            input_tensors=keras.Input(tuple(input_shape)),
            clone_function=lambda layer: recreate(layer, {}),
            recursive=True,
        )
        if [v.shape for v in new.variables] == [v.shape for v in model.variables]:
            return new
    except (TypeError, ValueError) as error:
        problem = error
    raise RequestError(
        f"input_shape does not fit the model {model.name!r}, whose input is "
        f"{tuple(model.inputs[0].shape[1:])}: {problem}. Received: {input_shape!r}."
    )


def _layer(call: Call, seen: set[int], open_size: bool) -> LayerComplexity:
    operation = call.operation
    parameters = filters = nonzero = 0
    if isinstance(operation, keras.Layer) and id(operation) not in seen:
        seen.add(id(operation))
        counted = parameters_of(operation)
        new = [v for v in operation.weights if id(v) in counted and id(v) not in seen]
        seen.update(id(v) for v in new)
        parameters = sum(int(np.prod(v.shape)) for v in new)
        nonzero = sum(map(_count_nonzero, new))
        made = filter_axis(operation)
        filters = 0 if made is None else made[0].shape[made[1]]
    macs = memory = nonzero_macs = None
    if not open_size:
        work = rule_for(operation).work(call)
        macs = sum(w.macs for w in work)
        nonzero_macs = sum(_nonzero_macs(w) for w in work)
        memory = sum(
            math.prod(n or 0 for n in v.shape[1:]) * bytes_per_number(operation)
            for v in call.outputs
        )
    return LayerComplexity(
        call.name, call.kind, parameters, macs, filters, memory, nonzero, nonzero_macs
    )


def _count_nonzero(variable: keras.Variable) -> int:
    return int(np.count_nonzero(view_of(variable)))


def _nonzero_macs(work: Work) -> int:
    weight = isinstance(work.operand, keras.Variable) and work.axes is None
    return work.times * _count_nonzero(work.operand) if weight else work.macs


def measure_latency(
    model: keras.Model,
    *,
    batch_size: int = 1,
    input_shape: tuple[int, ...] | None = None,
    repeats: int = 30,
    warmup: int = 5,
) -> float:
    """Median time of one compiled prediction on this machine, in seconds.

    Args:
        model: any Keras model with known inputs.
        batch_size: samples per prediction.
        input_shape: shape of one sample, where the model leaves sizes open.
        repeats: timed predictions.
        warmup: predictions before, not timed.

    Raises:
        RequestError: `repeats` is not positive, or the sizes of the input are not known.
    """
    if repeats < 1 or batch_size < 1:
        raise RequestError(
            f"Expected positive numbers. Received: repeats={repeats}, batch_size={batch_size}."
        )
    predict = prediction(model, batch_size=batch_size, input_shape=input_shape)
    return statistics.median(timed(predict, repeats, warmup))


def prediction(
    model: keras.Model, *, batch_size: int = 1, input_shape: tuple[int, ...] | None = None
) -> Callable[[], Any]:
    """One compiled prediction on random inputs, to be timed; see `measure_latency`.

    Raises:
        ModelError: the model has no graph of layers.
        RequestError: the sizes of the input are not known.
    """
    check_model(model)
    if input_shape is None and any(
        None in t.shape[1:] for t in keras.tree.flatten(inputs_of(model))
    ):
        raise RequestError(
            f"The model {model.name!r} leaves the size of its input open. Give input_shape, the "
            "shape of one sample without the batch axis."
        )
    inputs = random_inputs(model, batch_size, input_shape)
    predict = run_compiled(model)
    return lambda: predict(inputs)


def call_latencies(trace: Trace, *, batch_size: int = 1, repeats: int = 5) -> list[float]:
    """Median time of every call of a model alone, compiled, on random inputs, in seconds.

    Args:
        trace: of the model.
        batch_size: samples per call.
        repeats: timed runs, after two to warm up.
    """
    data = [Batch(random_inputs(trace.model, batch_size))]
    steps = track(Forward(trace, data), "Measuring latencies", unit="layer")
    return [_call_latency(step, repeats) for step in steps]


def _call_latency(step: Step, repeats: int) -> float:
    tensors = step.inputs(0)
    run = compiled(
        lambda x: step.compute(step.call, dict(zip(step.call.inputs, x, strict=True)), 0)
    )
    return statistics.median(timed(lambda: run(tensors), repeats, warmup=2))


def timed(action: Callable[[], Any], repeats: int, warmup: int) -> list[float]:
    """Wall times of an action in seconds, after some runs to warm up."""
    return timed_in_turns([action], repeats, warmup)[0]


def timed_in_turns(
    actions: Sequence[Callable[[], Any]], repeats: int, warmup: int
) -> list[list[float]]:
    """Wall times of several actions in seconds; in turns, so that a busy machine hits all alike."""
    times: list[list[float]] = [[] for _ in actions]
    for turn in range(warmup + repeats):
        for action, found in zip(actions, times, strict=True):
            start = time.perf_counter()
            action()
            if turn >= warmup:
                found.append(time.perf_counter() - start)
    return times
