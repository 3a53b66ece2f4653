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
    infer,
    keras_mask,
    mask_tensor,
    standardize_inputs,
    to_numpy,
)
from ridurre.data import Batch
from ridurre.errors import RequestError
from ridurre.graph.labels import Value
from ridurre.graph.rules import Call
from ridurre.graph.trace import Trace

Tensor: TypeAlias = Any


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
        self._started = False
        self.batches = 0
        for batch in batches:
            self._put(trace.inputs, _model_inputs(trace, batch.x), self.batches)
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
            for value in {*call.inputs, *call.outputs}:
                if self._last.get(value, index) <= index:
                    self._drop(value)

    def knows(self, value: Value) -> bool:
        """Whether a tensor was computed and is still needed."""
        return (value, 0) in self._store

    def tensor(self, value: Value, batch: int) -> Tensor:
        """A tensor that is known.

        Raises:
            RequestError: it was not computed yet, or is no longer needed and was dropped.
        """
        if (value, batch) not in self._store:
            raise RequestError(
                f"The tensor of shape {value.shape} is not known now. Expected one that was "
                "computed before and is still used by a later call or an output, and a batch from "
                f"0 to {self.batches - 1}. Received batch {batch}."
            )
        return self._store.get((value, batch))

    def outputs(self, batch: int) -> list[Tensor]:
        """The model's outputs for one batch, when all calls have run."""
        return [self.tensor(value, batch) for value in self.trace.outputs]

    def run(self, call: Call) -> None:
        """Run one call on all batches; a `Step` does this."""
        for batch in range(self.batches):
            tensors = {value: self.tensor(value, batch) for value in call.inputs}
            self._put(call.outputs, run_call(call, tensors), batch)

    def _put(self, values: list[Value], tensors: list[Tensor], batch: int) -> None:
        for value, tensor in zip(values, tensors, strict=True):
            self._store.put((value, batch), tensor)

    def _drop(self, value: Value) -> None:
        for batch in range(self.batches):
            self._store.drop((value, batch))


def run_call(call: Call, tensors: dict[Value, Tensor]) -> list[Tensor]:
    """The outputs of a call in inference mode, given the tensors of its inputs."""

    def fill(x: Any) -> Any:
        return tensors[x] if isinstance(x, Value) else x

    args, kwargs = keras.tree.map_structure(fill, (call.args, call.kwargs))
    return keras.tree.flatten(infer(call.operation, args, kwargs))


def _last_uses(trace: Trace) -> dict[Value, float]:
    """For every tensor the number of the last call that reads it."""
    last: dict[Value, float] = {v: i for i, call in enumerate(trace.calls) for v in call.inputs}
    return last | dict.fromkeys(trace.outputs, math.inf)


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
