"""What the command line gives: text or JSON on the standard output, and files."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import keras

from ridurre.errors import RequestError, RidurreError
from ridurre.files import write_whole
from ridurre.measure import drop_optimizer
from ridurre.reports import Report, html


def show(as_json: bool, facts: Any, text: Any) -> None:
    """Print plain data as JSON, or the text in their place."""
    click.echo(json.dumps(facts, indent=1) if as_json else str(text))


def check_free(paths: Iterable[Path | None], force: bool) -> None:
    """See to it, before any work, that files can be written and none is overwritten unasked.

    Raises:
        RequestError: one is there already, or its folder is not, or not to be written to.
    """
    for path in paths:
        if path is None:
            continue
        if path.is_dir():
            raise RequestError(f"{str(path)!r} is a folder. Expected the path of a file.")
        if path.exists() and not force:
            raise RequestError(
                f"{str(path)!r} is there already. Give --force to overwrite it, or another path."
            )
        if not path.parent.is_dir():
            raise RequestError(
                f"The folder {str(path.parent)!r} does not exist. Expected a path in one that does."
            )
        _check_writable(path.parent)


def _check_writable(folder: Path) -> None:
    """By writing: permissions alone say nothing of what the superuser or a file system can do."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RequestError(
            f"The folder {str(folder)!r} cannot be written to: {error.strerror}. Expected one that "
            "can."
        ) from error


def check_page(path: Path | None) -> None:
    """Before any work, whether a report can take the form that its path asks for.

    Raises:
        RequestError: another ending, or what it needs is not installed.
    """
    if path is None:
        return
    check_ending(path, (".html", ".md", ".json"))
    if path.suffix == ".html":
        html.check_installed()


def check_ending(path: Path, endings: tuple[str, ...]) -> None:
    """Raise `RequestError` for a path with another ending."""
    if path.suffix not in endings:
        raise RequestError(
            f"Expected a path that ends in {' or '.join(endings)}. Received: {str(path)!r}."
        )


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What cannot be written inside, of a full disk say, becomes a `RequestError` that names it."""
    try:
        yield
    except OSError as error:
        if isinstance(error, RidurreError):
            raise
        raise RequestError(
            f"{str(path)!r} could not be written: {error.strerror or error}."
        ) from error


def save_model(model: keras.Model, path: Path) -> None:
    """Write a model whole or not at all.

    The state of an optimizer that has not taken a step yet is left out: it is all zeros, and for
    Adam twice as large as the weights.

    Raises:
        RequestError: it cannot be written.
    """
    optimizer = getattr(model, "optimizer", None)

    def write(unfinished: Path) -> None:
        model.save(unfinished)
        if optimizer is not None and not int(keras.ops.convert_to_numpy(optimizer.iterations)):
            drop_optimizer(unfinished, keep_scalars=True)

    with writing(path):
        write_whole(path, write)


def save_report(report: Report, path: Path | None) -> None:
    """Write a report where one is asked for, whole or not at all.

    Raises:
        RequestError: it cannot be written.
    """
    if path is not None:
        with writing(path):
            report.save(path)
