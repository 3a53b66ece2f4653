"""Export a model to a file for a runtime, and hold the file against the model."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ridurre.backend import has_graph, infer, to_numpy
from ridurre.data import random_inputs
from ridurre.errors import NotAModelError, RequestError, VerificationError, nearest
from ridurre.files import UNFINISHED
from ridurre.runtimes import RUNTIMES, Inputs, Runtime, named_inputs
from ridurre.verification import largest_difference, usual_tolerance


def export(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    verify: bool = True,
    inputs: Any = None,
    tolerance: float | None = None,
    overwrite: bool = False,
    **options: Any,
) -> float | None:
    """Export a model with `keras.Model.export`, run the file and compare it with the model.

    Nothing stands at `path` before the file has passed, so whatever is found there is whole and
    agrees with the model, and an older file that is to be replaced stays until then.

    Args:
        model: any built Keras 3 model that Keras can export; its weights are not touched.
        path: of the file, or of the folder of a TensorFlow SavedModel. OpenVINO puts a ``.bin``
            beside the ``.xml``.
        format: ``"onnx"``, ``"openvino"``, ``"litert"`` or ``"tf_saved_model"``; by default what
            the ending says: ``.onnx``, ``.xml``, ``.tflite``, or no ending at all.
        verify: run the exported file with its runtime, which has to be installed (``pip install
            onnxruntime``, ``openvino``, ``ai-edge-litert``), in single precision on the CPU.
        inputs: what to feed model and file; random by default, see `ridurre.verify`.
        tolerance: largest allowed difference, relative to the largest value of each output; by
            default 1e-4, and 1e-2 (float16) or 5e-2 (bfloat16) where a layer computes in these.
            A file with quantised weights needs more.
        overwrite: replace what stands at `path`.
        **options: for `keras.Model.export`: ``input_signature=…``, ``opset_version=…``, or
            attributes of LiteRT's converter (``optimizations=…``).

    Returns:
        The largest relative difference over all outputs, or None without a check.

    Raises:
        RequestError: an unknown format, a path that is taken, or a package that is missing.
        VerificationError: the file cannot be run, or does not compute what the model computes.
        NotAModelError: not a Keras model.
    """
    if not isinstance(model, keras.Model):
        raise NotAModelError(f"Expected a Keras 3 model. Received: {type(model).__qualname__}.")
    path = Path(path)
    format = _format(path, format)
    runtime = RUNTIMES[format]
    for taken in (path, *(path.with_suffix(ending) for ending in runtime.parts)):
        _check_free(taken, overwrite)
    if verify:
        runtime.load()  # before a conversion that may take minutes
    if inputs is None and (verify or has_graph(model)):
        inputs = random_inputs(model)
    # Keras refuses to export to ONNX what was never called, as a model from a file.
    expected = None if inputs is None else infer(model, (inputs,), {})
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=path.parent) as folder:
        file = Path(folder, path.name)
        _convert(model, file, format, options)
        difference = None
        if verify:
            received = _outputs(file, runtime, named_inputs(model, inputs), expected)
            difference = _compare(model, expected, received, runtime.title, tolerance)
        _move(Path(folder), path.parent, overwrite)
    return difference


def _format(path: Path, format: str | None) -> str:
    """The format that was asked for, or that the ending of the path says."""
    if format is None:
        for name, runtime in RUNTIMES.items():
            if path.suffix == runtime.ending:
                return name
        endings = ", ".join(f"{r.ending or 'no ending'} ({r.title})" for r in RUNTIMES.values())
        raise RequestError(
            f"The ending of {path.name!r} names no format: {endings}. Use one of these endings, or "
            f"say format=, one of {', '.join(RUNTIMES)}."
        )
    if format not in RUNTIMES:
        raise RequestError(
            f"Expected format to be one of {', '.join(RUNTIMES)}. Received: {format!r}."
            + nearest(str(format), RUNTIMES)
        )
    return format


def _check_free(path: Path, overwrite: bool) -> None:
    """A path where nothing stands, or what may be replaced."""
    if not path.exists():
        return
    if not overwrite:
        raise RequestError(
            f"{path} exists and is not overwritten. Choose another path, or say overwrite=True."
        )
    if path.is_dir() and not (path / "saved_model.pb").exists():
        raise RequestError(
            f"{path} is a folder and no SavedModel, and is not replaced. Choose another path."
        )


def _convert(model: keras.Model, file: Path, format: str, options: dict[str, Any]) -> None:
    """Let Keras write the file."""
    try:
        model.export(str(file), format=format, **{"verbose": False} | options)
    except ImportError as error:
        missing = f": pip install {error.name}" if error.name else f". {error}"
        raise RequestError(
            f"Keras needs a package that is not installed to export {format!r} on the back end "
            f"{keras.backend.backend()}{missing}"
        ) from error


def _outputs(file: Path, runtime: Runtime, inputs: Inputs, like: Any) -> list[np.ndarray]:
    """What the file computes, in the order of the model's outputs `like`."""
    keys = sorted(like) if isinstance(like, dict) else []
    try:
        return runtime.outputs(file, inputs, keys)
    except Exception as error:
        raise VerificationError(
            f"The exported {runtime.title} file does not run on inputs of the model: "
            f"{type(error).__name__}: {error}\nNothing was written. If the file takes inputs of "
            "another size (input_signature=…), give some as inputs=."
        ) from error


def _compare(
    model: keras.Model,
    expected: Any,
    received: Sequence[np.ndarray],
    title: str,
    tolerance: float | None,
) -> float:
    """The largest relative difference; raises `VerificationError` if it is over the tolerance."""
    outputs = [to_numpy(y) for y in keras.tree.flatten(expected)]
    whose = ("Keras model", f"exported {title} file")
    difference = largest_difference(outputs, received, whose)
    allowed = usual_tolerance(model) if tolerance is None else tolerance
    if not difference <= allowed:
        raise VerificationError(
            f"The exported {title} file differs from the Keras model by {difference:.3g} of the "
            f"largest output; allowed is {allowed:g}. Nothing was written. If the file computes "
            "with fewer bits than the model, allow more with tolerance=."
        )
    return difference


def _move(source: Path, target: Path, overwrite: bool) -> None:
    """Move everything in a folder to another one."""
    entries = sorted(source.iterdir())
    for entry in entries:
        _check_free(target / entry.name, overwrite)
    for entry in entries:
        place = target / entry.name
        if place.is_dir():
            shutil.rmtree(place)
        entry.replace(place)
