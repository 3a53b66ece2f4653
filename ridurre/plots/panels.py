"""Small pictures side by side, one per kernel, which can be shown one moment after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ridurre.figures import new_figure, plain
from ridurre.optional import load
from ridurre.snapshots import BINS, Histogram

KEPT, ZERO, REMOVED = "#1b4f72", "#ececec", "#f5a65b"
#: Cells of a picture along each axis; kernels with more are drawn as means over blocks.
CELLS = 160
#: Characters of a name over a picture.
LONGEST = 24

Shape = tuple[int, ...]


def as_image(keep: np.ndarray, whole: Shape) -> np.ndarray:
    """A mask as rows of inputs and columns of outputs; each cell is a grid of a filter's taps.

    Args:
        keep: the mask, ``(…, inputs, outputs)``.
        whole: the shape before channels were removed; the rest of the picture is NaN.

    Returns:
        1 where a weight is kept and 0 where it is zero, two axes.
    """
    full = np.full(whole, np.nan, "float32")
    full[tuple(slice(n) for n in keep.shape)] = keep
    while full.ndim < 4:
        full = full[None]
    *_, height, width, inputs, outputs = full.shape
    depth = full.size // (height * width * inputs * outputs)
    full = full.reshape(depth * height, width, inputs, outputs)
    return full.transpose(2, 0, 3, 1).reshape(inputs * depth * height, outputs * width)


def coarser(image: np.ndarray, cells: int = CELLS) -> np.ndarray:
    """An image of at most so many cells along each axis: means over blocks, NaN left out."""
    there = np.isfinite(image)
    totals = np.where(there, image, 0)
    numbers = there.astype("float32")
    for axis in (0, 1):
        starts = np.arange(0, image.shape[axis], math.ceil(image.shape[axis] / cells))
        totals = np.add.reduceat(totals, starts, axis)
        numbers = np.add.reduceat(numbers, starts, axis)
    return np.where(numbers > 0, totals / np.maximum(numbers, 1), np.nan)


class Panels:
    """A figure of panels, one per kernel.

    Args:
        names: of the kernels.
    """

    def __init__(self, names: list[str]) -> None:
        rows = max(1, round(math.sqrt(len(names) / 1.6)))
        columns = math.ceil(len(names) / rows)
        side = 4.2 if len(names) == 1 else 1.9
        self.figure = new_figure(side * columns + 0.5, (side + 0.25) * math.ceil(rows) + 0.8)
        grid = self.figure.subplots(rows, columns, squeeze=False).ravel()
        for spare in grid[len(names) :]:
            spare.set_visible(False)
        self.axes = dict(zip(names, grid[: len(names)], strict=True))
        self.labels = short_names(names)
        self._heading = self.figure.suptitle(" ", fontsize="medium")

    def _caption(self, name: str, text: str) -> None:
        self.axes[name].set_title(f"{plain(self.labels[name])}\n{text}", fontsize="small")

    def _title(self, title: str) -> None:
        self._heading.set_text(plain(title))


class MaskPanels(Panels):
    """Masks as pictures: inputs downwards, outputs to the right.

    Args:
        whole: by name the shape of a kernel before channels were removed.
    """

    def __init__(self, whole: Mapping[str, Shape]) -> None:
        super().__init__(list(whole))
        self._whole = whole
        self._images: dict[str, Any] = {}
        colors = load("matplotlib.colors", "Pictures")
        patches = load("matplotlib.patches", "Pictures")
        shades = colors.LinearSegmentedColormap.from_list("masks", [ZERO, KEPT])
        self._shades = shades.with_extremes(bad=REMOVED)
        parts = {"kept": KEPT, "zero": ZERO, "removed with its channel": REMOVED}
        handles = [patches.Patch(fc=c, ec="black", lw=0.5, label=n) for n, c in parts.items()]
        legend = self.figure.legend(
            handles=handles, loc="outside lower center", ncols=3, fontsize="small", frameon=False
        )
        legend.set_title("inputs ↓, outputs →, the taps of a filter together", {"size": "small"})

    def show(self, masks: Mapping[str, np.ndarray], title: str) -> None:
        """Draw masks, keep-arrays by name."""
        for name, whole in self._whole.items():
            keep = masks.get(name, np.zeros((0,) * len(whole), bool))
            self._draw(name, coarser(as_image(keep, whole)))
            self._caption(name, gone(keep, whole))
        self._title(title)

    def _draw(self, name: str, image: np.ndarray) -> None:
        if name in self._images:
            self._images[name].set_data(np.ma.masked_invalid(image))
            return
        axes = self.axes[name]
        axes.set_xticks([])
        axes.set_yticks([])
        self._images[name] = axes.imshow(
            np.ma.masked_invalid(image),
            cmap=self._shades,
            vmin=0,
            vmax=1,
            aspect="auto",
            interpolation="nearest",
        )


class WeightPanels(Panels):
    """Distributions of the weights that are not zero.

    Args:
        moments: all that will be shown, histograms by name: they share their axes.
    """

    def __init__(self, moments: list[Mapping[str, Histogram]]) -> None:
        super().__init__(list(dict.fromkeys(name for moment in moments for name in moment)))
        self._exponents: dict[str, int] = {}
        self._lines: dict[str, Any] = {}
        for name in self.axes:
            self._prepare(name, [moment[name] for moment in moments if name in moment])
        self.figure.supxlabel("weight", fontsize="small")
        self.figure.supylabel("number of weights", fontsize="small")

    def _prepare(self, name: str, histograms: list[Histogram]) -> None:
        exponent = max(h.exponent for h in histograms)
        counts = np.stack([h.widened(exponent).counts for h in histograms])
        edges = histograms[0].widened(exponent).edges
        used = np.flatnonzero(counts.any(0))
        first, last = (used[0], used[-1]) if used.size else (0, BINS - 1)
        self._exponents[name] = exponent
        axes = self.axes[name]
        axes.set_xlim(edges[first], edges[last + 1])
        axes.set_ylim(0, 1.05 * max(1, counts.max()))
        axes.tick_params(labelsize="x-small")
        axes.locator_params(nbins=4)

    def show(
        self, histograms: Mapping[str, Histogram], captions: Mapping[str, str], title: str
    ) -> None:
        """Draw one moment."""
        for name in self.axes:
            histogram = histograms.get(name, Histogram.of(np.zeros(0)))
            wide = histogram.widened(self._exponents[name])
            if name in self._lines:
                self._lines[name].set_data(wide.counts)
            else:
                self._lines[name] = self.axes[name].stairs(
                    wide.counts, wide.edges, fill=True, color=KEPT
                )
            self._caption(name, captions[name])
        self._title(title)


def gone(keep: np.ndarray, whole: Shape) -> str:
    """How much is gone of a kernel, and its shape if it is another one than it was."""
    part = f"{1 - np.count_nonzero(keep) / max(1, math.prod(whole)):.1%}"
    if keep.shape == whole:
        return f"{part} zero"
    return f"{part} gone, {'×'.join(map(str, keep.shape))}"


def short_names(names: list[str]) -> dict[str, str]:
    """Names of layers where they say enough, without the middle of what is long."""
    layers = [name.rpartition("/")[0] or name for name in names]
    chosen = layers if len(set(layers)) == len(names) else names
    half = LONGEST // 2
    return {
        name: text if len(text) <= LONGEST else f"{text[: half - 1]}…{text[-half:]}"
        for name, text in zip(names, chosen, strict=True)
    }
