"""Sensitivities as pictures; matplotlib is imported when one is made.

`found` is a `ridurre.Sensitivity` throughout.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ridurre.figures import new_figure, plain


def curves(found: Any) -> Any:
    """A line per name, and the whole model as a dashed one."""
    figure = new_figure(9, max(4.5, 0.22 * len(found.names)))
    axes = figure.add_subplot()
    for number, name in enumerate(found.names):
        points = [p for p in found.curve(name) if p.value is not None]
        style = ("-", "--", ":", "-.")[number // 10 % 4]  # colours repeat after ten
        x, y = [0.0, *(p.amount for p in points)], [found.baseline, *(p.value for p in points)]
        axes.plot(x, y, style, marker=".", label=plain(name))
    axes.axhline(found.baseline, color="grey", linestyle="--", linewidth=0.8)
    axes.set_xlabel("amount removed")
    axes.set_ylabel(plain(found.measured))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    return figure


def heatmap(found: Any) -> Any:
    """A line of coloured cells per name, a column per amount; what is missing stays white."""
    values = [[p.value for p in found.curve(name)] for name in found.names]
    table = np.array(values, float)  # None becomes NaN
    figure = new_figure(2 + 0.8 * len(found.amounts), 1.5 + 0.3 * len(found.names))
    axes = figure.add_subplot()
    colours = "viridis" if found.higher_is_better else "viridis_r"
    image = axes.imshow(np.ma.masked_invalid(table), cmap=colours, aspect="auto")
    axes.set_xticks(range(len(found.amounts)), [f"{a:.4g}" for a in found.amounts])
    axes.set_yticks(range(len(found.names)), [plain(n) for n in found.names])
    axes.set_xlabel("amount removed")
    figure.colorbar(image, ax=axes, label=plain(found.measured))
    return figure
