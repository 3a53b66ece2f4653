"""Run a traced model on real data, call by call."""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import keras
import numpy as np

from ridurre.backend import (
    Node,
    infer,
    keras_mask,
    mask_tensor,
    standardize_inputs,
    to_numpy,
)
from ridurre.backend.opening import open_call
from ridurre.backend.state import with_masks
from ridurre.data import Batch
from ridurre.errors import RequestError
from ridurre.graph.labels import Parameter, Value
from ridurre.graph.rules import Call
from ridurre.graph.trace import Trace

Tensor: TypeAlias = Any
Shape: TypeAlias = tuple[int | None, ...]


class Step:
    """One call of the model: its inputs are known, its outputs are made when they are needed.

    Until `run` is called, `outputs` is asked for, or the walk goes on, the layer's weights may
    still be changed.

    Attributes:
        call: the call that is next; `call.inputs` and `call.outputs` say what the tensors are.
        batches: number of batches.
    """

    def __init__(self, forward: Forward, call: Call) -> None:
        self.call = call
        self.batches = forward.batches
        self._forward = forward
        self._done = False

    def inputs(self, batch: int) -> list[Tensor]:
        """The tensors of `call.inputs` for one batch."""
        return [self._forward.tensor(value, batch) for value in self.call.inputs]

    def outputs(self, batch: int) -> list[Tensor]:
        """The tensors of `call.outputs` for one batch; the call is run if it was not yet."""
        self.run()
        return [self._forward.tensor(value, batch) for value in self.call.outputs]

    def knows(self, value: Value) -> bool:
        """Whether some other tensor of the model is known now."""
        return self._forward.knows(value)

    def tensor(self, value: Value, batch: int) -> Tensor:
        """Some other tensor that is known now; see `Forward.tensor`."""
        return self._forward.tensor(value, batch)

    def compute(self, call: Call, tensors: dict[Value, Tensor], batch: int) -> list[Tensor]:
        """The outputs of any call for one batch, given the tensors of its inputs."""
        return self._forward.compute(call, tensors, batch)

    def run(self) -> None:
        """Run the call on all batches, once."""
        if not self._done:
            self._done = True
            self._forward.run(self.call)


class Forward:
    """A traced model run call by call, each call on all batches of a data set before the next.

    Layers run in inference mode, with the weights that they have when it is their turn::

        forward = Forward(graph.trace, Batches(x))
        for step in forward:
            for batch in range(step.batches):
                look_at(step.inputs(batch), step.outputs(batch))

    Tensors are forgotten after their last use; nested models are walked through.

    Args:
        trace: of the model (``ChannelGraph(model).trace``).
        batches: samples; labels are not used. Gone through once, here.
        memory: bytes of tensors that are held; what is alive beyond goes to a temporary folder and
            is read again when it is used.

    Raises:
        RequestError: there are no samples, or they do not fit the model's inputs.
    """

    def __init__(self, trace: Trace, batches: Iterable[Batch], *, memory: int = 1 << 30) -> None:
        self.trace = trace
        self._last = _last_uses(trace)
        self._store = _Store(memory)
        self._codes = Codes(trace)
        self._rows: list[int] = []
        self._started = False
        self.batches = 0
        for batch in batches:
            self._put(trace.inputs, _model_inputs(trace, batch.x), self.batches)
            self._rows.append(len(batch))
            self.batches += 1
        if not self.batches:
            raise RequestError("The data hold no samples. Expected at least one batch.")

    def __length_hint__(self) -> int:
        return len(self.trace.calls)

    def __iter__(self) -> Iterator[Step]:
        if self._started:
            raise RequestError("A Forward is walked through once. Make another one.")
        self._started = True
        for index, call in enumerate(self.trace.calls):
            step = Step(self, call)
            yield step
            step.run()
            for value in {source(self.trace, v) for v in (*call.inputs, *call.outputs)}:
                if self._last.get(value, index) <= index:
                    self._drop(value)

    def knows(self, value: Value) -> bool:
        """Whether a tensor was computed and is still needed."""
        value = source(self.trace, value)
        return (value, 0) in self._store or isinstance(value, Parameter)

    def tensor(self, value: Value, batch: int) -> Tensor:
        """A tensor that is known.

        Raises:
            RequestError: it was not computed yet, or is no longer needed and was dropped.
        """
        masked = self.trace.masks.get(value)
        if masked is not None:
            return keras_mask(self.tensor(masked, batch))
        value = source(self.trace, value)
        if (value, batch) in self._store:
            return self._store.get((value, batch))
        if isinstance(value, Parameter):
            return value.variable.value
        raise RequestError(
            f"The tensor of shape {value.shape} is not known now. Expected one that was "
            "computed before and is still used by a later call or an output, and a batch from "
            f"0 to {self.batches - 1}. Received batch {batch}."
        )

    def outputs(self, batch: int) -> list[Tensor]:
        """The model's outputs for one batch, when all calls have run."""
        return [self.tensor(value, batch) for value in self.trace.outputs]

    def run(self, call: Call) -> None:
        """Run one call on all batches; a `Step` does this."""
        for batch in range(self.batches):
            tensors = {value: self.tensor(value, batch) for value in call.inputs}
            self._put(call.outputs, self.compute(call, tensors, batch), batch)

    def compute(self, call: Call, tensors: dict[Value, Tensor], batch: int) -> list[Tensor]:
        """The outputs of a call for one batch, given the tensors of its inputs."""
        if call.place is None:
            return run_call(call, tensors)
        outer, index = call.place
        shapes = [self._shape(value, batch) for value in outer.inputs]
        return run_call(call, tensors, self._codes.node(outer, (batch, *shapes), shapes, index))

    def _shape(self, value: Value, batch: int) -> Shape:
        """The shape of a tensor; one that is gone is as the model says, with so many samples."""
        if self.knows(value):
            return tuple(self.tensor(value, batch).shape)
        return (self._rows[batch], *value.shape[1:])

    def _put(self, values: list[Value], tensors: list[Tensor], batch: int) -> None:
        for value, tensor in zip(values, tensors, strict=True):
            self._store.put((value, batch), tensor)

    def _drop(self, value: Value) -> None:
        for batch in range(self.batches):
            self._store.drop((value, batch))


class Codes:
    """What layers' code does for the sizes of the data: it may stand in the operations it makes."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._first: dict[Any, list[Shape]] = {}
        self._nodes: dict[Any, list[Node]] = {}

    def node(self, outer: Call, key: Any, shapes: list[Shape], index: int) -> Node:
        """One of the calls that a layer's code makes, for inputs of these shapes.

        Raises:
            RequestError: the code does something else for these sizes.
        """
        # What comes later in the code may ask when inputs are gone: the first answer stands.
        shapes = self._first.setdefault((id(outer), key[0]), shapes)
        place = (id(outer), *shapes)
        if place not in self._nodes:
            self._nodes[place] = self._again(outer, shapes)
        return self._nodes[place][index]

    def _again(self, outer: Call, shapes: list[Shape]) -> list[Node]:
        opened: Any = outer.opened
        tensors = [
            keras.KerasTensor(shape, dtype=t.dtype)
            for shape, t in zip(shapes, opened.graph.inputs, strict=True)
        ]
        for place, t in enumerate(opened.graph.inputs):
            for masked, mask in opened.masks:
                if masked is t:
                    sizes = shapes[place][: len(mask.shape)]
                    with_masks(tensors, {place: keras.KerasTensor(sizes, dtype=mask.dtype)})
        by_value = dict(zip(outer.inputs, tensors, strict=True))
        args, kwargs = _fill((outer.args, outer.kwargs), by_value)
        nodes: list[Node] = open_call(outer.operation, args, kwargs).graph.nodes
        kinds = [[type(n.operation) for n in x] for x in (nodes, opened.graph.nodes)]
        if kinds[0] != kinds[1]:
            raise RequestError(
                f"The code of {outer.name!r} ({outer.kind}) does something else for inputs of the "
                f"shapes {shapes} than for others, so that it cannot be run call by call."
            )
        return nodes


def source(trace: Trace, value: Value) -> Value:
    """What a tensor with labels stands for: itself, or a weight."""
    return trace.aliases.get(value, value)


def _fill(arguments: Any, tensors: dict[Value, Any]) -> Any:
    def one(x: Any) -> Any:
        return tensors[x] if isinstance(x, Value) else x

    return keras.tree.map_structure(one, arguments)


def run_call(call: Call, tensors: dict[Value, Tensor], node: Node | None = None) -> list[Tensor]:
    """The outputs of a call in inference mode, given the tensors of its inputs.

    Args:
        call: the call.
        tensors: of its inputs.
        node: the same call in other sizes, if it is one that a layer's code makes.
    """
    if node is None:
        args, kwargs = _fill((call.args, call.kwargs), tensors)
        return keras.tree.flatten(infer(call.operation, args, kwargs))
    given = iter(call.inputs)
    leaves = [
        tensors[next(given)] if isinstance(x, keras.KerasTensor) else x
        for x in keras.tree.flatten((node.args, node.kwargs))
    ]
    args, kwargs = keras.tree.pack_sequence_as((node.args, node.kwargs), leaves)
    return keras.tree.flatten(infer(node.operation, args, kwargs))


def _last_uses(trace: Trace) -> dict[Value, float]:
    """For every tensor the number of the last call that reads it."""
    last: dict[Value, float] = {}
    for index, call in enumerate(trace.calls):
        for value in call.inputs:
            last[trace.masks.get(value, source(trace, value))] = index
    return last | dict.fromkeys((source(trace, v) for v in trace.outputs), math.inf)


def _model_inputs(trace: Trace, x: Any) -> list[Tensor]:
    """Samples in the order and with the types of the model's inputs."""
    expected = [value.shape for value in trace.inputs]
    try:
        tensors = standardize_inputs(trace.model, x)
    except (ValueError, TypeError, KeyError) as error:
        raise RequestError(
            f"The data do not fit the model {trace.model.name!r}. Expected inputs of the shapes "
            f"{expected}. {error}"
        ) from error
    shapes = [None if t is None else tuple(t.shape) for t in tensors]
    if not all(map(_matches, shapes, expected)) or len(shapes) != len(expected):
        raise RequestError(
            f"The data do not fit the model {trace.model.name!r}. Expected inputs of the shapes "
            f"{expected}. Received: {shapes}."
        )
    return tensors


def _matches(shape: tuple[int, ...] | None, expected: tuple[int | None, ...]) -> bool:
    if shape is None:  # an optional input
        return True
    return len(shape) == len(expected) and all(
        m in (None, n) for n, m in zip(shape, expected, strict=True)
    )


class _Store:
    """Tensors by key, in memory up to a limit and in files beyond it."""

    def __init__(self, memory: int) -> None:
        self._left = memory
        self._tensors: dict[Any, Tensor] = {}
        self._files: dict[Any, tuple[Path, str, Tensor]] = {}
        self._folder: Path | None = None
        self._written = 0

    def __contains__(self, key: Any) -> bool:
        return key in self._tensors or key in self._files

    def put(self, key: Any, tensor: Tensor) -> None:
        size = _bytes(tensor)
        if size > self._left and size:
            self._files[key] = (self._write(to_numpy(tensor)), *_nature(tensor))
        else:
            self._left -= size
            self._tensors[key] = tensor

    def get(self, key: Any) -> Tensor:
        if key in self._tensors:
            return self._tensors[key]
        path, dtype, mask = self._files[key]
        array = np.load(path)
        if array.dtype.kind == "V":  # NumPy has no name for bfloat16 and reads plain bytes
            array = array.view(dtype)
        return mask_tensor(keras.ops.convert_to_tensor(array, dtype=dtype), mask)

    def drop(self, key: Any) -> None:
        if key in self._tensors:
            self._left += _bytes(self._tensors.pop(key))
        elif key in self._files:
            self._files.pop(key)[0].unlink()

    def _write(self, array: np.ndarray) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="ridurre-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._written += 1
        path = self._folder / f"{self._written}.npy"
        np.save(path, array)
        return path


def _nature(tensor: Tensor) -> tuple[str, Tensor]:
    """What a file of numbers does not say: the type, and the mask that Keras attached."""
    return keras.backend.standardize_dtype(tensor.dtype), keras_mask(tensor)


def _bytes(tensor: Tensor) -> int:
    """Size of a tensor; 0 if it is not a plain tensor of numbers and has to stay in memory."""
    special = ("SparseTensor", "RaggedTensor", "BCOO", "IndexedSlices")
    if not keras.ops.is_tensor(tensor) or type(tensor).__name__ in special:
        return 0
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    bits = "".join(filter(str.isdigit, dtype))
    size = 1 if dtype == "bool" else int(bits or 0) // 8
    return math.prod(tensor.shape) * size
