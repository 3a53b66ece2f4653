"""Finished points on disk, a line each, so that a killed run goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ridurre.backend import has_graph
from ridurre.checkpoints import fingerprint
from ridurre.data import Batch
from ridurre.errors import CheckpointError

_FILE = "sensitivity.jsonl"
_FORMAT = 1
Key = tuple[str, float]
#: value, how much went (where only measuring tells), seconds.
Result = tuple[float | None, int | None, float]


class Journal:
    """One file of JSON lines: what the run is, then a line per finished point.

    A line counts when its end is there: what a kill left of the last one is cut off.

    Args:
        folder: is made if need be.
        run: what the run was started with, as plain data; the same again continues it.

    Raises:
        CheckpointError: the folder holds another run, or cannot be read or written.
    """

    def __init__(self, folder: str | os.PathLike[str], run: Mapping[str, Any]) -> None:
        self.path = Path(folder) / _FILE
        self.done: dict[Key, Result] = {}
        self._run = json.loads(json.dumps({"format": _FORMAT, **run}))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._begin()
        except OSError as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"{str(self.path)!r} cannot be used: {error}. Expected a folder to write to."
            ) from error

    def add(self, key: Key, result: Result) -> None:
        """Put a finished point on disk."""
        self.done[key] = result
        self._append({"key": key, "result": result})

    def _begin(self) -> None:
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if not whole:
            self._check_ours(content)
        lines = [self._parsed(line) for line in whole.splitlines()]
        if lines:
            self._check_same_run(lines[0])
        self.done = {self._key(x): self._result(x) for x in lines[1:]}
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))
        if not lines:
            self._append(self._run)

    def _check_ours(self, content: bytes) -> None:
        """A first line without an end is what a kill left of ours, or a foreign file."""
        if not _line(self._run).startswith(content):
            raise self._damaged("its first line is not one of ridurre's")

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise self._damaged(str(error)) from error
        if not isinstance(entry, dict):
            raise self._damaged(f"a line is {entry!r}")
        return entry

    def _check_same_run(self, saved: dict[str, Any]) -> None:
        if "format" not in saved:
            raise self._damaged("its first line is not one of ridurre's")
        differing = [
            f"{k} was {saved.get(k)!r}, now it is {self._run.get(k)!r}"
            for k in sorted(saved.keys() | self._run.keys())
            if saved.get(k) != self._run.get(k)
        ]
        if differing:
            raise CheckpointError(
                f"The folder {str(self.path.parent)!r} holds another run: {'; '.join(differing)}. "
                "Expected the same model, data and arguments as before; use another folder for a "
                "new run."
            )

    def _key(self, entry: dict[str, Any]) -> Key:
        try:
            name, number = entry["key"]
            return name, number
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(f"a line is {entry!r}") from error

    def _result(self, entry: dict[str, Any]) -> Result:
        try:
            value, removed, seconds = entry["result"]
            return value, removed, seconds
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(f"a line is {entry!r}") from error

    def _append(self, entry: Mapping[str, Any]) -> None:
        try:
            with self.path.open("ab") as file:
                file.write(_line(entry))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise CheckpointError(
                f"{str(self.path)!r} could not be written: {error}. What was measured before is "
                "still there: make room, and make the same call again to continue from it."
            ) from error

    def _damaged(self, why: str) -> CheckpointError:
        return CheckpointError(
            f"{str(self.path)!r} is damaged or not one of ridurre's: {why}. Nothing was changed. "
            "Restore the file, or start anew in an empty folder."
        )


def _line(entry: Mapping[str, Any]) -> bytes:
    return (json.dumps(entry) + "\n").encode()


def model_digest(model: keras.Model) -> str | None:
    """A checksum of a model; of a subclassed one, of its weights only."""
    if has_graph(model):
        return fingerprint(model)
    return data_digest(Batch(model.get_weights()))


def data_digest(data: Batch | None) -> str | None:
    """A checksum of samples, in their order."""
    if data is None:
        return None
    digest = hashlib.sha256()
    for array in keras.tree.flatten([data.x, data.y, data.sample_weight]):
        if array is not None:
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
