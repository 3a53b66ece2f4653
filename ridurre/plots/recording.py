"""What `ridurre.Recorder` has written: numbers over time, pictures and films."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ridurre.checks import check_choice, check_finite
from ridurre.errors import CheckpointError, RequestError, UnknownLayerError, nearest
from ridurre.figures import filmed, new_figure, plain, saved
from ridurre.masks import Masks
from ridurre.plots.panels import MaskPanels, Shape, WeightPanels, short_names
from ridurre.snapshots import PATTERN, Histogram, Snapshot

Layers = str | Iterable[str] | None


@dataclass(frozen=True, eq=False)
class Moment:
    """What is kept in memory of a record: all but the masks."""

    epoch: float
    logs: Mapping[str, float]
    kept: Mapping[str, int]
    channels: Mapping[str, int]
    histograms: Mapping[str, Histogram]

    @classmethod
    def of(cls, snapshot: Snapshot) -> Moment:
        """The moment of a snapshot."""
        parts = snapshot.parts.items()
        return cls(
            snapshot.epoch,
            snapshot.logs,
            {path: part.kept for path, part in parts},
            {path: part.channels for path, part in parts},
            {path: part.histogram for path, part in parts},
        )


class Recording:
    """The records in a folder that `ridurre.Recorder` has written to, also while it still writes.

    Example::

        recording = ridurre.Recording("recording")
        recording.animate("masks.gif")
        recording.animate("weights.mp4", what="weights", fps=8)
        recording.plot_masks(layers="conv1", path="conv1.png")
        recording.plot_sparsity("sparsity.png")

    All that is counted refers to the first record: a weight is gone if it is exactly zero, or was
    removed with its channel. Which channels were removed cannot be told from the smaller kernel:
    pictures show what is left in the corner at the top left, and the rest in another colour.

    Args:
        folder: of the recorder.

    Raises:
        CheckpointError: there are no records, or one cannot be read.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._paths = sorted(self.folder.glob(PATTERN))
        if not self._paths:
            raise CheckpointError(
                f"{str(self.folder)!r} holds no records. Expected the folder of a "
                "ridurre.Recorder that model.fit has used."
            )
        self._first = {p: part.shape for p, part in Snapshot.load(self._paths[0]).parts.items()}
        self._moments = [Moment.of(Snapshot.load(path)) for path in self._paths]

    def __len__(self) -> int:
        return len(self._moments)

    def __repr__(self) -> str:
        return (
            f"Recording({str(self.folder)!r}: {len(self)} records, epochs {self.epochs[0]:g} to "
            f"{self.epochs[-1]:g}, {self.total_sparsity[-1]:.1%} of the weights gone)"
        )

    @property
    def epochs(self) -> list[float]:
        """For every record how many epochs training had come to, as ``fit`` counts them."""
        return [m.epoch for m in self._moments]

    @property
    def logs(self) -> list[dict[str, float]]:
        """For every record what training said: loss, metrics; empty before training."""
        return [dict(m.logs) for m in self._moments]

    @property
    def sparsity(self) -> dict[str, list[float]]:
        """For every kernel, record by record, the fraction of its weights that is gone."""
        return {
            path: [1 - m.kept[path] / math.prod(shape) for m in self._moments]
            for path, shape in self._first.items()
        }

    @property
    def total_sparsity(self) -> list[float]:
        """The same of all kernels together."""
        size = sum(map(math.prod, self._first.values()))
        return [1 - sum(m.kept.values()) / size for m in self._moments]

    @property
    def channels(self) -> dict[str, list[int]]:
        """For every kernel the channels that it makes and that have a weight that is not zero."""
        return {path: [m.channels[path] for m in self._moments] for path in self._first}

    def masks(self, at: int = -1) -> Masks:
        """Which weights are not zero in one record.

        Args:
            at: number of the record, from 0, or from the end.
        """
        return self._snapshot(at).masks

    def plot_masks(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        at: int = -1,
        layers: Layers = None,
    ) -> Any:
        """The masks of one record as a matplotlib figure, a picture per kernel.

        Inputs go downwards and outputs to the right; the cell of two of them holds the taps of a
        convolution, height × width. Large kernels are drawn as means over blocks.

        Args:
            path: of a file to write it to as well.
            at: number of the record, from 0, or from the end.
            layers: names of kernels or layers; None for all.

        Raises:
            RequestError: no such record, or matplotlib is not installed.
            UnknownLayerError: no such kernel.
        """
        panels = MaskPanels(chosen_of(self._first, layers))
        self._show_masks(panels, self._position(at))
        return saved(panels.figure, path)

    def plot_weights(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        at: int = -1,
        layers: Layers = None,
    ) -> Any:
        """The distributions of one record's weights that are not zero; see `plot_masks`."""
        panels = self._weight_panels(layers)
        self._show_weights(panels, self._position(at))
        return saved(panels.figure, path)

    def plot_sparsity(
        self, path: str | os.PathLike[str] | None = None, *, layers: Layers = None
    ) -> Any:
        """How much is gone over time as a matplotlib figure: a line per kernel, and all together.

        Args:
            path: of a file to write it to as well.
            layers: names of kernels or layers; None for all.
        """
        chosen, sparsity = list(chosen_of(self._first, layers)), self.sparsity
        figure = new_figure(9, max(4.5, 0.22 * len(chosen)))
        axes = figure.add_subplot()
        labels = short_names(chosen)
        rising = all(a <= b for a, b in zip(self.epochs, self.epochs[1:], strict=False))
        x: list[float] = self.epochs if rising else list(range(len(self)))
        for number, name in enumerate(chosen):
            style = ("-", "--", ":", "-.")[number // 10 % 4]  # colours repeat after ten
            axes.plot(x, sparsity[name], style, marker=".", label=plain(labels[name]))
        axes.plot(x, self.total_sparsity, color="black", linewidth=2.5, label="all")
        axes.set_xlabel("epochs" if rising else "number of the record")
        axes.set_ylabel("fraction of the weights that is gone")
        axes.set_ylim(-0.02, 1.02)
        axes.locator_params(axis="x", integer=all(float(value).is_integer() for value in x))
        axes.grid(alpha=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
        return saved(figure, path)

    def animate(
        self,
        path: str | os.PathLike[str],
        what: str = "masks",
        *,
        layers: Layers = None,
        fps: float = 4,
    ) -> Path:
        """Write a film with a frame per record; a GIF rests on the last one.

        Args:
            path: ends in ``.gif``, or in ``.mp4`` where ffmpeg is installed.
            what: ``"masks"`` or ``"weights"``: the distributions of those that are not zero.
            layers: names of kernels or layers; None for all.
            fps: frames per second.

        Returns:
            The path.

        Raises:
            RequestError: arguments that make no sense, or ffmpeg or matplotlib is missing.
            UnknownLayerError: no such kernel.
        """
        check_choice("what", what, ("masks", "weights"))
        if check_finite("fps", fps) <= 0:
            raise RequestError(f"Expected fps above 0. Received: {fps!r}.")
        if what == "masks":
            masks = MaskPanels(chosen_of(self._first, layers))
            figure, draw = masks.figure, functools.partial(self._show_masks, masks)
        else:
            weights = self._weight_panels(layers)
            figure, draw = weights.figure, functools.partial(self._show_weights, weights)
        filmed(figure, draw, len(self), path, fps)
        return Path(path)

    def _position(self, at: int) -> int:
        count = len(self)
        if not isinstance(at, int) or not -count <= at < count:
            raise RequestError(
                f"Expected at, a record from 0 to {count - 1} (or -1 for the last). "
                f"Received: {at!r}."
            )
        return at % count

    def _snapshot(self, at: int) -> Snapshot:
        return Snapshot.load(self._paths[self._position(at)])

    def _weight_panels(self, layers: Layers) -> WeightPanels:
        names = chosen_of(self._first, layers)
        return WeightPanels([{n: m.histograms[n] for n in names} for m in self._moments])

    def _show_masks(self, panels: MaskPanels, number: int) -> None:
        parts = self._snapshot(number).parts
        panels.show({name: parts[name].keep for name in panels.axes}, self._title(number))

    def _show_weights(self, panels: WeightPanels, number: int) -> None:
        moment = self._moments[number]
        sparsity = self.sparsity
        captions = {name: f"{sparsity[name][number]:.1%} gone" for name in panels.axes}
        panels.show(moment.histograms, captions, self._title(number))

    def _title(self, number: int) -> str:
        lost = self.total_sparsity[number]
        epoch = f"{self.epochs[number]:.2f}".rstrip("0").rstrip(".")
        return f"{number + 1}/{len(self)} · epoch {epoch} · {lost:.1%} of the weights gone"


def chosen_of(shapes: Mapping[str, Shape], layers: Layers) -> dict[str, Shape]:
    """The kernels that names of kernels or layers mean; raises `UnknownLayerError`."""
    if layers is None:
        return dict(shapes)
    wanted = [layers] if isinstance(layers, str) else list(layers)
    found: dict[str, Shape] = {}
    for name in wanted:
        meant = {p: s for p, s in shapes.items() if p == name or p.rpartition("/")[0] == name}
        if not meant:
            known = [*shapes, *(p.rpartition("/")[0] for p in shapes)]
            raise UnknownLayerError(
                f"There is no kernel of the name {name!r}.{nearest(str(name), known)} Expected "
                f"some of {', '.join(shapes)}, or of their layers."
            )
        found |= meant
    return found
