"""The command line, ``ridurre`` and ``python -m ridurre``."""

from ridurre.cli import looking, prune
from ridurre.cli.app import main

__all__ = ["looking", "main", "prune"]
