"""The command ``ridurre``: sees to a quiet start, then hands over to `ridurre.cli`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator


def main() -> None:
    """Run the command line; Ctrl-C while Keras is being imported ends it like any later one."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # At once, as there is nothing to clean up yet: some libraries go on after a KeyboardInterrupt.
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    with _silent_libraries():
        from ridurre.cli import main as commands  # noqa: PLC0415
    signal.signal(signal.SIGINT, before)
    commands(prog_name="ridurre")


@contextlib.contextmanager
def _silent_libraries() -> Iterator[None]:
    """Nothing reaches the standard error: TensorFlow greets there, whatever its log level is.

    Exceptions pass, and are shown after it.
    """
    error = sys.__stderr__.fileno() if sys.__stderr__ else 2
    kept = os.dup(error)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), error)
        yield
    finally:
        os.dup2(kept, error)
        os.close(kept)


if __name__ == "__main__":
    main()
