"""The command line, ``ridurre`` and ``python -m ridurre``."""

from ridurre.cli.commands import main

__all__ = ["main"]
