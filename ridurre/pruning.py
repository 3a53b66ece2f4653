"""The loop: score filters, delete channels, compile, fine-tune, measure, stop or go on."""

from __future__ import annotations

import abc
import contextlib
import logging
import numbers
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from ridurre.checks import (
    check_callable,
    check_count,
    check_fraction,
    check_indices,
    check_list,
)
from ridurre.dependency import DependencyGraph
from ridurre.errors import NothingToPruneError, RequestError
from ridurre.graph.rules.convolution import filter_kernel
from ridurre.graph.select import Selector
from ridurre.measure import model_complexity
from ridurre.voting import merge_votes

logger = logging.getLogger("ridurre")


@dataclass(frozen=True)
class Step:
    """What one round of pruning did.

    Attributes:
        step: number of the round, from 0.
        factor: the pruning factor of this round.
        filters, parameters, macs: of the model after the round (`macs` is None where the model
            leaves its input size open).
        pruned_fraction: fraction of the original's filters that are gone.
        epochs: epochs trained so far.
        seconds: duration of the round, fine-tuning included.
    """

    step: int
    factor: float
    filters: int
    parameters: int
    macs: int | None
    pruned_fraction: float
    epochs: int
    seconds: float


class BasePruning(abc.ABC):
    """Filter pruning in rounds; a method is a subclass that says which filters of a layer go.

    Every round asks `run_pruning_for_conv2d_layer` for each selected convolution (1-, 2- and
    3-dimensional, separable and transposed ones), merges the answers of layers that are tied (see
    `ridurre.voting.merge_votes` for the exact rule), removes the channels, calls
    `model_compile_fn` and then `model_finetune_fn` on the new, smaller model. It stops when

    * no filter was removed, or
    * more than `maximum_pruning_percent` of the original's filters are gone, or
    * `maximum_prune_iterations` rounds are done.

    Example::

        class WeakestFilter(ridurre.BasePruning):
            def run_pruning_for_conv2d_layer(self, pruning_factor, layer, layer_weight_mtx):
                return [int(np.abs(layer_weight_mtx).sum((0, 1, 2)).argmin())]

    Args:
        pruning_factor: handed to `run_pruning_for_conv2d_layer`, which gives it its meaning.
        model_compile_fn: ``fn(model)``, compiles the smaller model.
        model_finetune_fn: ``fn(model, initial_epoch, finetune_epochs)``, trains it; the last
            argument is the absolute epoch to end at, as in ``fit(initial_epoch=…, epochs=…)``.
            None for no fine-tuning; then no epochs are counted either.
        nb_finetune_epochs: epochs of fine-tuning per round.
        nb_trained_for_epochs: epochs that the model was trained for before.
        maximum_prune_iterations: number of rounds at most; None for no limit. (The classic
            package ran one more.)
        maximum_pruning_percent: a fraction from 0 to 1 of the filters; the loop ends once *more*
            than that is gone. None for no limit.
        layers: which layers to prune: a name, a regular expression, an index into
            ``model.layers``, a layer, a predicate ``layer -> bool``, or a list of these. Layers
            tied to these shrink along. All by default.
        protect: layers whose channels must stay, named the same way. Both are looked up once, in
            the model as it is before the first round.
        seed: of all random choices; None for a different run every time.
        verbose: 1 shows a progress bar over the rounds, 0 nothing.

    Attributes:
        model: the last good model: the one a finished round left, or the original. It is still
            there when a callback raises.
        history: one `Step` for every finished round.

    Raises:
        RequestError: an argument is of the wrong kind or out of range.
    """

    def __init__(
        self,
        pruning_factor: float,
        model_compile_fn: Callable[[keras.Model], Any],
        model_finetune_fn: Callable[[keras.Model, int, int], Any] | None,
        nb_finetune_epochs: int,
        nb_trained_for_epochs: int,
        maximum_prune_iterations: int | None,
        maximum_pruning_percent: float | None,
        *,
        layers: Selector | None = None,
        protect: Selector | None = None,
        seed: int | None = None,
        verbose: int = 0,
    ) -> None:
        check_callable("model_compile_fn", model_compile_fn)
        if model_finetune_fn is not None:
            check_callable("model_finetune_fn", model_finetune_fn)
        check_count("nb_finetune_epochs", nb_finetune_epochs)
        check_count("nb_trained_for_epochs", nb_trained_for_epochs)
        if maximum_prune_iterations is not None:
            check_count("maximum_prune_iterations", maximum_prune_iterations)
        if maximum_pruning_percent is not None:
            check_fraction("maximum_pruning_percent", maximum_pruning_percent)
        self.pruning_factor = self.check_factor(pruning_factor)
        self.model: keras.Model | None = None
        self.history: list[Step] = []
        self.rng = np.random.default_rng(seed)
        self._compile_fn = model_compile_fn
        self._finetune_fn = model_finetune_fn
        self._finetune_epochs = nb_finetune_epochs
        self._epochs = nb_trained_for_epochs
        self._maximum_iterations = maximum_prune_iterations
        self._maximum_fraction = maximum_pruning_percent
        self._layers = layers
        self._protect = protect
        self._verbose = verbose
        self._bins: list[tuple[int, int, float]] = []

    @abc.abstractmethod
    def run_pruning_for_conv2d_layer(
        self, pruning_factor: float, layer: keras.Layer, layer_weight_mtx: np.ndarray
    ) -> Sequence[int]:
        """Which filters of one layer should go.

        Args:
            pruning_factor: this round's factor, or that of the layer's bin.
            layer: the convolution; it is only to be read.
            layer_weight_mtx: a copy of its kernel, height × width × in × out.

        Returns:
            Indices of the filters to remove, each once, never all of them.
        """

    def check_factor(self, factor: float) -> float:
        """Validate a pruning factor; subclasses narrow what they accept.

        Raises:
            RequestError: not a finite number.
        """
        if not isinstance(factor, numbers.Real) or not np.isfinite(factor):
            raise RequestError(f"Expected a pruning factor, a finite number. Received: {factor!r}.")
        return float(factor)

    def define_prune_bins(
        self, channel_number_bins: Sequence[int], pruning_factors_for_bins: Sequence[float]
    ) -> None:
        """Use different factors for layers of different width.

        A layer with n filters gets ``pruning_factors_for_bins[i]`` where ``channel_number_bins[i]
        <= n < channel_number_bins[i + 1]``, and the general factor outside all bins.

        Raises:
            RequestError: not one bound more than factors, or bounds that do not increase.
        """
        bounds = check_list("channel_number_bins", channel_number_bins)
        factors = check_list("pruning_factors_for_bins", pruning_factors_for_bins)
        if len(bounds) != len(factors) + 1:
            raise RequestError(
                "Expected one channel number more than pruning factors (the bounds of the bins). "
                f"Received: {len(bounds)} channel numbers and {len(factors)} factors."
            )
        numeric = all(isinstance(b, numbers.Real) for b in bounds)
        if not numeric or not all(a < b for a, b in zip(bounds, bounds[1:], strict=False)):
            raise RequestError(f"Expected increasing channel numbers. Received: {bounds}.")
        factors = [self.check_factor(f) for f in factors]
        self._bins = list(zip(bounds, bounds[1:], factors, strict=False))

    def run_pruning(
        self,
        model: keras.Model,
        prune_factor_scheduler_fn: Callable[[float, int], float] | None = None,
        custom_objects_inside_model: dict[str, Any] | None = None,
    ) -> tuple[keras.Model, int]:
        """Prune in rounds until a limit is reached.

        Args:
            model: a built Functional or Sequential model; it is not changed.
            prune_factor_scheduler_fn: ``fn(factor, step) -> factor``, called before each round
                with the factor given to the constructor and the number of the round, from 0; its
                value is used for that round as it is. (In the classic package it was fed its own
                last value, so that factors compounded by accident.)
            custom_objects_inside_model: custom classes by name, for layers that need them.

        Returns:
            The smaller model, compiled by the callback, and the epochs trained in all. If nothing
            could be removed at all, the model that was given.

        Raises:
            ModelError: the model cannot be analysed.
            NothingToPruneError: it has no convolution that can be pruned.
            RequestError: the method returned something that is no list of filters, or a layer's
                weights are not finite.
        """
        custom = custom_objects_inside_model or {}
        if prune_factor_scheduler_fn is not None:
            check_callable("prune_factor_scheduler_fn", prune_factor_scheduler_fn)
        if not isinstance(custom, Mapping):
            raise RequestError(
                "Expected custom_objects_inside_model to be a dictionary, name → class. "
                f"Received: {custom!r}."
            )
        with keras.saving.custom_object_scope(custom):
            return self._run(model, prune_factor_scheduler_fn)

    def _run(
        self, model: keras.Model, schedule: Callable[[float, int], float] | None
    ) -> tuple[keras.Model, int]:
        self.model, self.history = model, []
        before = self._require_prunable(model)
        rounds = self._maximum_iterations
        bar = keras.utils.Progbar(
            rounds, verbose=self._verbose, unit_name="round", stateful_metrics=["filters"]
        )
        step = 0
        while rounds is None or step < rounds:
            start = time.perf_counter()
            factor = self._factor(schedule, step)
            smaller = self._prune(self.model, factor)
            if smaller is None:
                logger.info("Round %d: nothing left to remove; pruning ends.", step)
                break
            self._train(smaller)
            self.model = smaller
            record = self._record(step, factor, before, time.perf_counter() - start)
            bar.update(step + 1, [("filters", record.filters)])
            step += 1
            if self._maximum_fraction is not None:
                if record.pruned_fraction > self._maximum_fraction:
                    break
        return self.model, self._epochs

    def _factor(self, schedule: Callable[[float, int], float] | None, step: int) -> float:
        if schedule is None:
            return self.pruning_factor
        with self._calling("prune_factor_scheduler_fn"):
            factor = schedule(self.pruning_factor, step)
        return self.check_factor(factor)

    def _prune(self, model: keras.Model, factor: float) -> keras.Model | None:
        """One round's smaller model; None if nothing is to be removed."""
        graph = DependencyGraph(model, protect=self._protected)
        votes = {name: self._ask(graph, name, factor) for name in self._prunable(graph)}
        chosen = merge_votes(graph, votes)
        if not chosen:
            return None
        plan = graph.get_pruning_plan(chosen)
        logger.info("%s", plan)
        return plan.exec()

    def _prunable(self, graph: DependencyGraph) -> list[str]:
        """Selected convolutions that have a channel to lose."""
        made = {name for group in graph.groups for name in group.producers}
        chosen = {id(graph.layers[name]) for name in self._chosen}  # a layer may have two names
        names = [n for n, layer in graph.layers.items() if n in made and id(layer) in chosen]
        return [n for n in names if filter_kernel(graph.layers[n]) is not None]

    def _require_prunable(self, model: keras.Model) -> int:
        """Number of filters of the original; raises if none of them can be removed."""
        graph = DependencyGraph(model, protect=self._protect)
        # Layers are new ones after every round; their names stay.
        everything = list(graph.layers)
        self._chosen = everything if self._layers is None else graph.select(self._layers)
        protected = [] if self._protect is None else graph.select(self._protect)
        self._protected = [re.compile(f"^{re.escape(name)}$") for name in protected]
        if not self._prunable(graph):
            raise NothingToPruneError(
                f"The model {model.name!r} has no convolution whose filters can be pruned"
                + ("." if self._layers is None else f" among the selected layers {self._layers!r}.")
                + " Filters tied to the model's inputs or outputs, protected ones and those that "
                "flow into layers without a rule have to stay."
            )
        return model_complexity(model).filters

    def _ask(self, graph: DependencyGraph, name: str, factor: float) -> list[int]:
        """What the method answers for one layer, checked."""
        layer = graph.layers[name]
        kernel = filter_kernel(layer)
        if kernel is None:
            raise RequestError(f"The layer {name!r} makes no filters.")
        if not np.isfinite(kernel).all():
            raise RequestError(
                f"The kernel of layer {name!r} holds values that are not finite (NaN or infinity); "
                "its filters cannot be ranked. Training has probably diverged."
            )
        count = kernel.shape[-1]
        answer = self.run_pruning_for_conv2d_layer(self._binned(factor, count), layer, kernel)
        what = f"layer {name!r} (as returned by run_pruning_for_conv2d_layer)"
        indices = check_indices(answer, count, what)
        if len(indices) == count:
            raise RequestError(
                f"run_pruning_for_conv2d_layer returned all {count} filters of layer {name!r}; at "
                "least one has to stay."
            )
        fixed = indices[~graph.removable(name)[indices]]
        if fixed.size:
            logger.info("Channels %s of %s have to stay, whatever its vote.", fixed.tolist(), name)
        return indices.tolist()

    def _binned(self, factor: float, filters: int) -> float:
        return next((f for low, high, f in self._bins if low <= filters < high), factor)

    def _train(self, model: keras.Model) -> None:
        with self._calling("model_compile_fn"):
            self._compile_fn(model)
        if self._finetune_fn is not None:
            end = self._epochs + self._finetune_epochs
            with self._calling("model_finetune_fn"):
                self._finetune_fn(model, self._epochs, end)
            self._epochs = end

    @contextlib.contextmanager
    def _calling(self, name: str) -> Iterator[None]:
        """Let a callback's own exception pass, with a note on where the last good model is."""
        try:
            yield
        except Exception as error:
            error.add_note(
                f"Raised by {name} in pruning round {len(self.history)}. The last good model is in "
                "the attribute `model` of the pruning object."
            )
            raise

    def _record(self, step: int, factor: float, before: int, seconds: float) -> Step:
        size = model_complexity(self.model)
        record = Step(
            step=step,
            factor=factor,
            filters=size.filters,
            parameters=size.parameters,
            macs=size.macs,
            pruned_fraction=(before - size.filters) / before,
            epochs=self._epochs,
            seconds=seconds,
        )
        self.history.append(record)
        logger.info("%s", record)
        return record
