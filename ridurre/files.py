"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: How the name of a file begins while it is being written.
UNFINISHED = "unfinished_"


def write_whole(path: str | os.PathLike[str], write: Callable[[Path], Any]) -> None:
    """Write a file under another name, force it to disk, then rename it.

    Whatever happens, `path` holds what it held before or all of the new content.

    Args:
        path: of the file; one that is there is replaced.
        write: ``fn(path)``, writes the content to the path that it is given, which has the same
            ending.

    Raises:
        Exception: whatever `write` raises, or `OSError`; nothing is left behind.
    """
    path = Path(path)
    unfinished = path.with_name(UNFINISHED + path.name)
    try:
        write(unfinished)
        sync(unfinished)
        unfinished.replace(path)
        sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file whole or not at all."""
    write_whole(path, lambda p: p.write_text(text, encoding="utf-8"))


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot, and needs not
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
