"""Runs exported files with the runtimes that they are made for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ridurre.optional import load

#: Names of a tensor, and what it holds.
Named = tuple[Iterable[str], np.ndarray]
#: Inputs of a model, in its order.
Inputs = Sequence[Named]


@dataclass(frozen=True)
class Runtime:
    """What runs files of one format.

    Attributes:
        title: its name, for people.
        package: what has to be imported.
        ending: of the files; empty where it is a folder.
        run: ``fn(package, path, inputs)``, the outputs in the order of the file, by their names.
        parts: endings of the files that belong to the one with `ending`.
    """

    title: str
    package: str
    ending: str
    run: Callable[[Any, Path, Inputs], list[Named]]
    parts: tuple[str, ...] = ()

    def load(self) -> Any:
        """The package.

        Raises:
            RequestError: it is not installed.
        """
        return load(
            self.package,
            f"Checks of exported {self.title} files",
            "Or export without a check: verify=False.",
        )

    def outputs(self, path: Path, inputs: Inputs, keys: Sequence[str] = ()) -> list[np.ndarray]:
        """What a file computes, in the order of the model's outputs; `keys` as for `in_order`."""
        return in_order(self.run(self.load(), path, inputs), keys)


def _saved_model(tensorflow: Any, path: Path, inputs: Inputs) -> list[Named]:
    serve = tensorflow.saved_model.load(str(path)).signatures["serving_default"]
    tensors = [(names, tensorflow.constant(x)) for names, x in inputs]
    _, takes = serve.structured_input_signature
    found = serve(**_by_name(tensors, list(takes)))
    return [([name], y.numpy()) for name, y in found.items()]


def _onnx(onnxruntime: Any, path: Path, inputs: Inputs) -> list[Named]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_outputs()]
    found = session.run(names, _by_name(inputs, [x.name for x in session.get_inputs()]))
    return [([name], y) for name, y in zip(names, found, strict=True)]


def _openvino(openvino: Any, path: Path, inputs: Inputs) -> list[Named]:
    # Some processors would compute in bfloat16, which says nothing about the file.
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(str(path), "CPU", exact)
    found = model(_by_name(inputs, [x.get_any_name() for x in model.inputs]))
    return [(y.get_names(), found[y]) for y in model.outputs]


def _litert(litert: Any, path: Path, inputs: Inputs) -> list[Named]:
    runner = litert.Interpreter(model_path=str(path)).get_signature_runner()
    found = runner(**_by_name(inputs, list(runner.get_input_details())))
    return [([name], y) for name, y in found.items()]


#: By the names that `keras.Model.export` has for the formats.
RUNTIMES = {
    "tf_saved_model": Runtime("TensorFlow SavedModel", "tensorflow", "", _saved_model),
    "onnx": Runtime("ONNX", "onnxruntime", ".onnx", _onnx),
    "openvino": Runtime("OpenVINO", "openvino", ".xml", _openvino, (".bin",)),
    "litert": Runtime("LiteRT", "ai_edge_litert.interpreter", ".tflite", _litert),
}


def named_inputs(model: keras.Model, inputs: Any) -> list[Named]:
    """Inputs of a model with the names that exported files may have for them.

    These are those of its input tensors, or the keys of a dictionary where they differ.
    """
    own = [x.name for x in getattr(model, "inputs", None) or []]  # none without a graph
    values = [np.asarray(x) for x in keras.tree.flatten(inputs)]
    if not isinstance(inputs, dict):
        return list(zip([[name] for name in own] or [[]] * len(values), values, strict=True))
    keys = sorted(inputs)  # which is how Keras flattens them
    other = own if own and set(own) != set(keys) else keys
    return [([a, b], x) for a, b, x in zip(keys, other, values, strict=True)]


def _by_name(inputs: Inputs, names: Sequence[str]) -> dict[str, Any]:
    """The inputs under the file's names: the same ones, or others in the same order."""
    known = {name: value for own, value in inputs for name in own}
    if set(names) <= set(known):
        return {name: known[name] for name in names}
    return dict(zip(names, [value for _, value in inputs], strict=True))


def in_order(outputs: Sequence[Named], keys: Sequence[str] = ()) -> list[np.ndarray]:
    """Outputs in the model's order, which not all converters keep.

    They keep the keys of a dictionary as names. Other outputs get numbers: ``output_0``,
    ``output_1``, … from Keras; ``Identity:0``, ``Identity_1:0``, … from TensorFlow.

    Args:
        outputs: in the order of the file.
        keys: of the dictionary that the model returns, if it returns one, in order.
    """
    by_name = {name: value for names, value in outputs for name in names}
    if keys and set(keys) <= set(by_name):
        return [by_name[key] for key in keys]
    numbers = [_number(names) for names, _ in outputs]
    if len(set(numbers)) < len(outputs) or None in numbers:
        return [value for _, value in outputs]
    return [outputs[i][1] for i in np.argsort(np.array(numbers))]


def _number(names: Iterable[str]) -> int | None:
    for name in names:
        if found := re.fullmatch(r"(?:output|Identity)(?:_(\d+))?(?::0)?", name):
            return int(found[1] or 0)
    return None
