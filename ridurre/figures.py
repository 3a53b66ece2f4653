"""Figures and films: how they are made and saved; matplotlib is imported when one is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ridurre.errors import RequestError
from ridurre.files import write_whole
from ridurre.optional import load

#: Seconds that a GIF rests on its last frame before it begins again.
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
    path = Path(path)
    writers = {".gif": _write_gif, ".mp4": _write_mp4}
    write = writers.get(path.suffix.lower())
    if write is None:
        raise RequestError(f"Expected a file that ends in .gif or .mp4. Received: {str(path)!r}.")
    if write is _write_mp4:
        _check_ffmpeg(path)
    draw(0)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # nothing moves from now on, and frames are made faster
    write_whole(path, lambda unfinished: write(figure, map(draw, range(count)), unfinished, fps))


def _write_gif(figure: Any, frames: Iterator[Any], path: Path, fps: float) -> None:
    """Every frame takes as long, and the last one longer."""
    Image = load("PIL.Image", "Pictures")
    canvas = load("matplotlib.backends.backend_agg", "Pictures").FigureCanvasAgg(figure)
    images = []
    for _ in frames:
        canvas.draw()
        images.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    durations = [round(1000 / fps)] * len(images)
    durations[-1] += round(1000 * REST)
    images[0].save(
        path, save_all=True, append_images=images[1:], duration=durations, loop=0, format="GIF"
    )


def _write_mp4(figure: Any, frames: Iterator[Any], path: Path, fps: float) -> None:
    writer = load("matplotlib.animation", "Pictures").FFMpegWriter(fps=fps, codec="h264")
    with writer.saving(figure, str(path), dpi=100):
        for _ in frames:
            writer.grab_frame()


def _check_ffmpeg(path: Path) -> None:
    if not load("matplotlib.animation", "Pictures").FFMpegWriter.isAvailable():
        raise RequestError(
            "MP4 films need the program ffmpeg, which is not on the PATH. Install it (say, "
            "apt install ffmpeg, brew install ffmpeg), or write a .gif, which needs nothing more. "
            f"Received: {str(path)!r}."
        )
