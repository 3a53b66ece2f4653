"""Figures and films: how they are made and saved; matplotlib is imported when one is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ridurre.errors import RequestError
from ridurre.files import write_whole
from ridurre.optional import load

#: Seconds that a film rests on its last frame before it begins again.
REST = 1.5


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure, sizes in inches; no window opens."""
    Figure = load("matplotlib.figure", "Pictures").Figure
    return Figure((width, height), layout="constrained")


def plain(name: str) -> str:
    """A name as it stands: dollars would begin a formula, an underscore would hide a label."""
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def saved(figure: Any, path: str | os.PathLike[str] | None) -> Any:
    """The figure, written to a file if a path is given: whole or not at all."""
    if path is not None:
        path = Path(path)
        path = path if path.suffix else path.with_name(path.name + ".png")
        write_whole(path, lambda p: figure.savefig(p, dpi=150))
    return figure


def filmed(
    figure: Any,
    draw: Callable[[int], Any],
    count: int,
    path: str | os.PathLike[str],
    fps: float,
) -> None:
    """Write a film of a figure that changes, whole or not at all.

    Args:
        figure: of matplotlib.
        draw: ``fn(i)``, makes the figure show frame i.
        count: number of frames.
        path: ends in ``.gif`` or ``.mp4``.
        fps: frames per second.

    Raises:
        RequestError: another ending, or what is needed for this one is not installed.
    """
    writer = _writer(Path(path), fps)
    draw(0)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # nothing moves from now on, and frames are made faster

    def write(unfinished: Path) -> None:
        with writer.saving(figure, str(unfinished), dpi=100):
            for frame in range(count):
                draw(frame)
                writer.grab_frame()
            for _ in range(round(fps * REST)):
                writer.grab_frame()

    write_whole(path, write)


def _writer(path: Path, fps: float) -> Any:
    """What writes films of this ending."""
    animation = load("matplotlib.animation", "Pictures")
    if path.suffix.lower() == ".gif":
        return animation.PillowWriter(fps=fps)
    if path.suffix.lower() != ".mp4":
        raise RequestError(f"Expected a file that ends in .gif or .mp4. Received: {str(path)!r}.")
    if not animation.FFMpegWriter.isAvailable():
        raise RequestError(
            "MP4 films need the program ffmpeg, which is not on the PATH. Install it (say, "
            "apt install ffmpeg, brew install ffmpeg), or write a .gif, which needs nothing more. "
            f"Received: {str(path)!r}."
        )
    return animation.FFMpegWriter(fps=fps, codec="h264")
