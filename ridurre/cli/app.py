"""The command itself, and what all of its commands share: how errors end, common options."""

from __future__ import annotations

import contextlib
import functools
import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from ridurre.criteria.base import CRITERIA
from ridurre.errors import RidurreError, RidurreWarning

#: Exit codes besides 0, and click's 2 for wrong usage.
FAILED, INTERRUPTED = 1, 130
#: Seconds after which an interruption that nobody heard is repeated; tidying up takes less.
AGAIN = 3.0
Command = Callable[..., Any]


class Commands(click.Group):
    """A group of commands whose errors are one line on the standard error."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; errors become exit codes."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", RidurreWarning)
            warnings.showwarning = _show_warning
            try:
                with _insisting():
                    return super().invoke(ctx)
            except (click.ClickException, click.exceptions.Exit, click.Abort):
                raise
            except KeyboardInterrupt:
                click.echo("Interrupted. No file is half-written.", err=True)
                ctx.exit(INTERRUPTED)
            except Exception as error:
                if ctx.meta.get("debug"):
                    raise
                click.echo(f"Error: {_line(error)}", err=True)
                ctx.exit(FAILED)


@contextlib.contextmanager
def _insisting() -> Iterator[None]:
    """While inside, Ctrl-C is said again until somebody listens.

    Python throws an exception away that comes up in a callback of a library or while something is
    being deleted; a single KeyboardInterrupt can be lost that way.
    """
    main = threading.current_thread() is threading.main_thread()
    if not (main and hasattr(signal, "setitimer")):
        yield
        return

    def interrupt(*_: Any) -> None:
        signal.setitimer(signal.ITIMER_REAL, AGAIN)
        raise KeyboardInterrupt

    before = [signal.signal(s, interrupt) for s in (signal.SIGINT, signal.SIGALRM)]
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in zip((signal.SIGINT, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler)


def _line(error: Exception) -> str:
    """An error in one line; one that is not ours with its kind."""
    text = " ".join(str(error).split())
    if isinstance(error, RidurreError):
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"Warning: {' '.join(str(message).split())}", err=True)


def _remember(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[str(parameter.name)] = True
        logging.basicConfig(level=logging.INFO)


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    return lambda command: functools.reduce(lambda c, add: add(c), reversed(options), command)


#: Of every command.
COMMON = _options(
    click.option("--json", "as_json", is_flag=True, help="Print JSON in place of text."),
    click.option(
        "--debug", is_flag=True, expose_value=False, callback=_remember, is_eager=True,
        help="Show the traceback of an error, and what is logged.",
    ),
)  # fmt: skip

#: Of every command that loads a model.
LOADING = _options(
    click.option("--unsafe", is_flag=True, help="Run Python code that the model file holds."),
    click.option(
        "--import", "modules", multiple=True, metavar="MODULE",
        help="Import a Python module first that registers the model's own classes.",
    ),
)  # fmt: skip

#: Of every command that writes a file.
FORCE = click.option("--force", is_flag=True, help="Overwrite files that are there already.")

EXISTING = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, readable=True, path_type=Path)
NEW = click.Path(path_type=Path)

CRITERION = click.option(
    "--criterion",
    type=click.Choice(list(CRITERIA)),
    help="What makes a channel important. Default: l1; with --data a Taylor criterion.",
)
SEED = click.option("--seed", type=int, default=0, show_default=True, help="Of random choices.")
DATA = click.option(
    "--data", type=EXISTING, help="Samples: an .npz file with x, and if need be y, sample_weight."
)
LOSS = click.option("--loss", help="Name of a Keras loss, in place of the compiled model's.")


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done; 1 it cannot be done, and why; 2 wrong usage; 130 interrupted.",
)
@click.version_option(package_name="ridurre")
def main() -> None:
    """Make Keras models smaller by removing channels, and see what that does to them."""
