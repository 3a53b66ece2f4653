"""Keep a long run on disk, step by step, so that a killed process can go on from there.

A folder holds one run: the model it began with (``original.keras``), the last good one
(``step_0004.keras``) and ``run.json``, which names it, holds its checksum, the records of all
steps, and what the run was started with. Files are written
under another name, forced to disk and then renamed, the model first: at any moment ``run.json``
describes a finished step whose model is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras

from ridurre.backend import view_of
from ridurre.errors import CheckpointError
from ridurre.files import UNFINISHED, write_whole
from ridurre.graph.names import named_layers

_FORMAT = 1
_RECORD = "run.json"
_ORIGINAL = "original.keras"
_MODELS = "step_*.keras"
_CUSTOM = (
    "Classes of your own have to be registered, or given to run_pruning as "
    "custom_objects_inside_model."
)


class Checkpoints:
    """The folder of one run.

    Args:
        folder: is made if need be.
        run: what the run was started with, as plain data; the same again continues it. None to
            only read whatever run is there, even one that is going on.

    Raises:
        CheckpointError: the folder cannot be made, or is something else.
    """

    def __init__(
        self, folder: str | os.PathLike[str], run: Mapping[str, Any] | None = None
    ) -> None:
        self.folder = Path(folder)
        self._run = None if run is None else json.loads(json.dumps(run, default=_plain))
        self._model: dict[str, str] | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"The folder {str(self.folder)!r} for checkpoints cannot be made: {error}. Expected"
                " checkpoint_dir to be a folder that can be written to."
            ) from error

    def load(self) -> dict[str, Any] | None:
        """What was last saved with `save`; None if nothing was.

        Raises:
            CheckpointError: the folder holds another run or foreign files, or one of its files is
                damaged. Nothing is changed then.
        """
        path = self.folder / _RECORD
        if not path.exists():
            self._check_empty()
            return None
        record = self._read(path)
        self._model = record["model"]
        if self._run is not None:
            self._check_same_run(record["run"], self._run)
        if self._model is not None:
            self._check_model()
        if self._run is not None:
            self._clean()
        return record["state"]

    def check_loadable(self, model: keras.Model) -> None:
        """Refuse a model that could be saved, and not be loaded again.

        Raises:
            CheckpointError: what Keras says against it.
        """
        try:
            with warnings.catch_warnings():  # of lambdas, which loading refuses
                warnings.simplefilter("ignore")
                config = keras.saving.serialize_keras_object(model)
            keras.saving.deserialize_keras_object(config)
        except Exception as error:
            raise CheckpointError(
                f"The model {model.name!r} could not be loaded from a file again: {error}\n"
                f"{_CUSTOM} Or prune without checkpoint_dir."
            ) from error

    def load_model(self) -> keras.Model | None:
        """The last good model, not compiled; None if it is still the original.

        Raises:
            CheckpointError: Keras cannot load it.
        """
        return None if self._model is None else self._load(self._model["file"])

    def load_original(self) -> keras.Model:
        """The model that the run began with, not compiled.

        Raises:
            CheckpointError: Keras cannot load it.
        """
        return self._load(_ORIGINAL)

    def _load(self, name: str) -> keras.Model:
        path = self.folder / name
        try:
            return keras.saving.load_model(path, compile=False)
        except Exception as error:
            raise CheckpointError(f"Keras cannot load {str(path)!r}: {error}\n{_CUSTOM}") from error

    def save(self, state: Mapping[str, Any], model: keras.Model, version: int) -> None:
        """Put a finished step on disk, so that it is there whatever happens next.

        Args:
            state: plain data, which `load` gives back.
            model: the last good model.
            version: how many models were good so far; 0 for the original.

        Raises:
            CheckpointError: a file cannot be written; what was saved before is still there.
        """
        path = self.folder / f"step_{version:04d}.keras"
        if version == 0 and not (self.folder / _RECORD).exists():
            _save(model, self.folder / _ORIGINAL)
        if version and (self._model is None or self._model["file"] != path.name):
            _save(model, path)
            self._model = {"file": path.name, "sha256": _file_digest(path)}
        content = {"run": self._run, "model": self._model, "state": state}
        content = json.loads(json.dumps(content, default=_plain))
        record = {"format": _FORMAT, "sha256": _text_digest(content), "content": content}
        text = json.dumps(record, indent=1)
        _write(self.folder / _RECORD, lambda p: p.write_text(text, encoding="utf-8"))
        self._clean()

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            version, digest, content = record["format"], record["sha256"], record["content"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise _damaged(path, f"{type(error).__name__}: {error}") from error
        if version != _FORMAT:
            raise _damaged(path, f"its format is {version!r}, expected {_FORMAT}")
        if digest != _text_digest(content):
            raise _damaged(path, "its checksum is not the one that was saved")
        return content

    def _check_empty(self) -> None:
        strange = sorted(p.name for p in self.folder.glob(_MODELS))
        if strange:
            raise CheckpointError(
                f"The folder {str(self.folder)!r} holds {strange} but no {_RECORD}, so they are not"
                " from a run that can be continued. Expected an empty folder or one of this run."
            )

    def _check_same_run(self, saved: Mapping[str, Any], run: Mapping[str, Any]) -> None:
        differing = [
            f"{k} was {saved.get(k)!r}, now it is {run.get(k)!r}"
            for k in sorted(saved.keys() | run.keys())
            if saved.get(k) != run.get(k)
        ]
        if differing:
            raise CheckpointError(
                f"The folder {str(self.folder)!r} holds another run: {'; '.join(differing)}. "
                "Expected the same model and settings as before; use another folder for a new run."
            )

    def _check_model(self) -> None:
        path = self.folder / self._model["file"]  # type: ignore[index]
        if not path.exists():
            raise _damaged(path, "it is not there")
        if _file_digest(path) != self._model["sha256"]:  # type: ignore[index]
            raise _damaged(path, "its checksum is not the one that was saved")

    def _clean(self) -> None:
        """Remove models of earlier steps, and what a killed process left unfinished."""
        named = self._model["file"] if self._model else None
        for path in [*self.folder.glob(_MODELS), *self.folder.glob(f"{UNFINISHED}*")]:
            if path.name != named:
                with contextlib.suppress(OSError):
                    path.unlink()


def fingerprint(model: keras.Model) -> str:
    """A checksum of a model's layers, with their settings, and of its weights."""
    digest = hashlib.sha256()
    for name, layer in named_layers(model).items():
        # The configuration of a Lambda is byte code, which differs from one process to the next.
        config = {} if isinstance(layer, keras.layers.Lambda) else layer.get_config()
        text = json.dumps([name, type(layer).__name__, config], default=_class_name)
        digest.update(text.encode())
    for variable in model.weights:  # the states of random layers are not among them
        digest.update(f"{variable.path} {variable.dtype} {tuple(variable.shape)}".encode())
        digest.update(view_of(variable).tobytes())
    return digest.hexdigest()


def _class_name(value: Any) -> str:
    return type(value).__name__


def _plain(value: Any) -> Any:
    """A NumPy number as Python's."""
    return value.item()


def _save(model: keras.Model, path: Path) -> None:
    _write(path, lambda p: keras.saving.save_model(model, p, include_optimizer=False))


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file whole or not at all, and see to it that it is on the disk."""
    try:
        write_whole(path, write)
    except Exception as error:  # a layer's own code may raise anything while it is saved
        raise CheckpointError(
            f"{str(path)!r} could not be written: {error}. The step before is still there: make "
            "room or mend the cause, and make the same call again to continue from it."
        ) from error


def _text_digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint {str(path)!r} is damaged or not one of ridurre's: {why}. Nothing was "
        "changed. Restore the file, or start anew in an empty folder."
    )
