"""Sparsity and channel counts for TensorBoard."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from ridurre.backend.training import attach_state
from ridurre.checks import check_count
from ridurre.optional import load
from ridurre.snapshots import Histogram, Part, Snapshot


class SparsityBoard(keras.callbacks.Callback):
    """Writes what pruning does to a model for TensorBoard, on every backend.

    Scalars ``sparsity/<kernel>`` (fraction of its weights that is exactly zero),
    ``channels/<kernel>`` (channels that it makes and that have a weight that is not zero),
    ``total/sparsity``, ``total/nonzero`` (weights) and ``total/channels``, and histograms
    ``weights/<kernel>`` of the weights that are not zero. The steps are epochs trained: 0 is the
    model before training. `keras.callbacks.TensorBoard` may write to the same folder.

    Example::

        board = ridurre.SparsityBoard("logs/sparsity")
        model.fit(x, y, epochs=20, callbacks=[pruning, board])
        # tensorboard --logdir logs

    Args:
        log_dir: is made if need be.
        every: how many epochs there are from one entry to the next.
        histograms: write histograms too.

    Raises:
        RequestError: arguments that make no sense, or tensorboardX is not installed.
    """

    def __init__(
        self, log_dir: str | os.PathLike[str], *, every: int = 1, histograms: bool = True
    ) -> None:
        super().__init__()
        check_count("every", every, 1)
        self._log_dir, self._every, self._histograms = os.fspath(log_dir), every, histograms
        self._make = load("tensorboardX", "Entries for TensorBoard").SummaryWriter
        self._writer: Any = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Open a file and look at the model as it is."""
        self.close()
        self._writer = self._make(self._log_dir, filename_suffix=f".{time.time_ns()}")
        self._start: Snapshot | None = Snapshot.of(self.model)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Write what the model was before training."""
        if self._start is not None:
            self._write(self._start.parts, epoch)
            self._start = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write what is due."""
        if (epoch + 1) % self._every == 0:
            attach_state(self.model)
            self._write(Snapshot.of(self.model).parts, epoch + 1)

    def on_train_end(self, logs: Any = None) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file, if there is one: after training that was interrupted, say."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None

    def _write(self, parts: Mapping[str, Part], step: int) -> None:
        for path, part in parts.items():
            self._writer.add_scalar(f"sparsity/{path}", 1 - part.kept / part.size, step)
            self._writer.add_scalar(f"channels/{path}", part.channels, step)
            if self._histograms and part.kept:
                self._write_histogram(f"weights/{path}", part.histogram, step)
        kept, size = (sum(n) for n in zip(*((p.kept, p.size) for p in parts.values()), strict=True))
        self._writer.add_scalar("total/sparsity", 1 - kept / size, step)
        self._writer.add_scalar("total/nonzero", kept, step)
        self._writer.add_scalar("total/channels", sum(p.channels for p in parts.values()), step)
        self._writer.flush()

    def _write_histogram(self, tag: str, histogram: Histogram, step: int) -> None:
        """The counts that are known already; the sums are those of the middles of the bins."""
        used = np.flatnonzero(histogram.counts)
        if not used.size:
            return  # nothing finite
        counts, edges = histogram.counts.astype(float), histogram.edges
        middles = (edges[1:] + edges[:-1]) / 2
        inside = slice(used[0], used[-1] + 1)
        self._writer.add_histogram_raw(
            tag,
            min=edges[used[0]],
            max=edges[used[-1] + 1],
            num=counts.sum(),
            sum=counts @ middles,
            sum_squares=counts @ middles**2,
            bucket_limits=edges[1:][inside].tolist(),
            bucket_counts=counts[inside].tolist(),
            global_step=step,
        )
