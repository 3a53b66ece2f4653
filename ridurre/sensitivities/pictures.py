"""Sensitivities as pictures; matplotlib is imported when one is made.

`found` is a `ridurre.Sensitivity` throughout.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ridurre.optional import load


def curves(found: Any) -> Any:
    """A line per name, and the whole model as a dashed one."""
    figure = _figure(9, max(4.5, 0.22 * len(found.names)))
    axes = figure.add_subplot()
    for number, name in enumerate(found.names):
        points = [p for p in found.curve(name) if p.value is not None]
        style = ("-", "--", ":", "-.")[number // 10 % 4]  # colours repeat after ten
        x, y = [0.0, *(p.amount for p in points)], [found.baseline, *(p.value for p in points)]
        axes.plot(x, y, style, marker=".", label=_plain(name))
    axes.axhline(found.baseline, color="grey", linestyle="--", linewidth=0.8)
    axes.set_xlabel("amount removed")
    axes.set_ylabel(_plain(found.measured))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    return figure


def heatmap(found: Any) -> Any:
    """A line of coloured cells per name, a column per amount; what is missing stays white."""
    values = [[p.value for p in found.curve(name)] for name in found.names]
    table = np.array(values, float)  # None becomes NaN
    figure = _figure(2 + 0.8 * len(found.amounts), 1.5 + 0.3 * len(found.names))
    axes = figure.add_subplot()
    colours = "viridis" if found.higher_is_better else "viridis_r"
    image = axes.imshow(np.ma.masked_invalid(table), cmap=colours, aspect="auto")
    axes.set_xticks(range(len(found.amounts)), [f"{a:.4g}" for a in found.amounts])
    axes.set_yticks(range(len(found.names)), [_plain(n) for n in found.names])
    axes.set_xlabel("amount removed")
    figure.colorbar(image, ax=axes, label=_plain(found.measured))
    return figure


def saved(figure: Any, path: str | os.PathLike[str] | None) -> Any:
    """The figure, written to a file if a path is given."""
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _figure(width: float, height: float) -> Any:
    Figure = load("matplotlib.figure", "Pictures").Figure  # opens no window
    return Figure((width, height), layout="constrained")


def _plain(name: str) -> str:
    """A name as it stands: dollars would begin a formula, an underscore would hide a label."""
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name
