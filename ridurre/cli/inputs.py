"""What the command line is given, as what the library takes: models, data, targets."""

from __future__ import annotations

import importlib
import math
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ridurre.errors import RequestError, RidurreWarning
from ridurre.targets import ActivationMemory, FileSize, Filters, Latency, MACs, Params, Target

_PARTS = ("x", "y", "sample_weight")
_MARKS_OF_CODE = ("safe_mode", "unsafe_deserialization")


def read_model(path: Path, *, unsafe: bool = False, modules: tuple[str, ...] = ()) -> keras.Model:
    """A model from a file, in Keras' safe mode unless `unsafe`; compiled where that is possible.

    Args:
        path: of a ``.keras`` file.
        unsafe: run Python code that the file holds (layers of type Lambda).
        modules: Python modules to import first, which register the model's own classes.

    Raises:
        RequestError: Keras cannot load it, or it holds code.
    """
    import_modules(modules)
    if path.suffix == ".keras" and not zipfile.is_zipfile(path):
        raise RequestError(
            f"{str(path)!r} is no whole .keras file: it may have been cut off while it was copied "
            "or written. Expected a file that model.save(…) wrote."
        )

    def load(compiled: bool) -> keras.Model:
        return keras.saving.load_model(path, compile=compiled, safe_mode=not unsafe)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Skipping variable loading for optimizer")
        try:
            return load(True)
        except Exception as error:
            if _holds_code(error):
                raise RequestError(
                    f"{str(path)!r} holds Python code, which would run when it is loaded (a Lambda "
                    "layer, say). Give --unsafe if you trust where the file comes from."
                ) from error
        try:
            model = load(False)
        except Exception as error:
            raise RequestError(
                f"Keras cannot load {str(path)!r}: {error} Expected a file that model.save(…) "
                "wrote; classes of its own need --import MODULE."
            ) from error
    warnings.warn(
        f"{str(path)!r} was loaded without its loss, metrics and optimizer, which Keras cannot "
        "restore; --import MODULE names what they need.",
        RidurreWarning,
        stacklevel=2,
    )
    return model


def import_modules(modules: tuple[str, ...]) -> None:
    """Import what registers a model's own classes.

    Raises:
        RequestError: one cannot be imported.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise RequestError(
                f"The module {module!r} cannot be imported: {error}. Expected --import with a "
                "module on Python's path (PYTHONPATH)."
            ) from error


def _holds_code(error: Exception) -> bool:
    return any(mark in str(error) for mark in _MARKS_OF_CODE)


def read_data(path: Path | None, model: keras.Model) -> Any:
    """Samples as `model.fit` takes them: x, (x, y) or (x, y, sample_weight); None without a path.

    Args:
        path: of an ``.npz`` file with arrays called x, y and sample_weight, the last two if need
            be, or one called like each input of the model in place of x; or an ``.npy`` file of x.
        model: that they are for.

    Raises:
        RequestError: the file is none of these.
    """
    if path is None:
        return None
    arrays = _arrays(path)
    names = [tensor.name for tensor in model.inputs]
    if "x" not in arrays and all(name in arrays for name in names):
        arrays["x"] = {name: arrays.pop(name) for name in names}
    if "x" not in arrays or not arrays.keys() <= set(_PARTS):
        raise RequestError(
            f"{str(path)!r} holds the arrays {sorted(arrays)}. Expected x, and if need be y and "
            f"sample_weight; or in place of x the model's inputs {names}."
        )
    parts = [arrays.get(name) for name in _PARTS]
    while parts[-1] is None:
        parts.pop()
    return parts[0] if len(parts) == 1 else tuple(parts)


def _arrays(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:  # NumPy leaves open what it cannot read
            content = np.load(file, allow_pickle=False)
            return {"x": content} if isinstance(content, np.ndarray) else dict(content)
    except Exception as error:  # NumPy, zipfile and zlib each have their own
        raise RequestError(
            f"{str(path)!r} cannot be read: {error} Expected an .npz file of arrays without "
            "Python objects, as numpy.savez(path, x=…, y=…) writes."
        ) from error


#: By the name that the command line has for it: what makes a target of a number.
TARGETS: dict[str, Callable[[float], Target]] = {
    "filters": Filters,
    "params": Params,
    "macs": MACs,
    "memory": ActivationMemory,
    "file": FileSize,
    "latency": Latency,
    "ms": lambda value: Latency(milliseconds=value),
}


def parse_target(text: str) -> Target:
    """A target from ``name=number``: ``macs=0.5`` or ``macs=50%``, ``params=200000``, ``ms=4``.

    Raises:
        RequestError: another text.
    """
    name, _, value = text.partition("=")
    if name not in TARGETS:
        raise RequestError(
            f"Expected a target name=number, such as macs=0.5, with one of {', '.join(TARGETS)}. "
            f"Received: {text!r}."
        )
    return TARGETS[name](_number(value, text))


def _number(value: str, text: str) -> float:
    """A whole number is absolute, any other or one with a percent sign a fraction."""
    try:
        if value.endswith("%"):
            return float(value[:-1]) / 100
        number = float(value)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise RequestError(
            f"Expected a number after the sign, such as macs=0.5. Received: {text!r}."
        )
    return int(number) if value.strip().isdigit() else number
