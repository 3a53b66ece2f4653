"""The loop: score filters, delete channels, compile, fine-tune, measure, stop or go on."""

from __future__ import annotations

import abc
import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from ridurre.ballot import Ask, Ballot
from ridurre.checkpoints import Checkpoints, fingerprint
from ridurre.checks import (
    check_bounds,
    check_callable,
    check_count,
    check_finite,
    check_fraction,
    check_optional,
)
from ridurre.errors import RequestError
from ridurre.graph.select import Selector
from ridurre.history import Step, Stopwatch
from ridurre.limits import Accuracy, Evaluate, Goals
from ridurre.progress import Bar, shown
from ridurre.reports import Report, compare
from ridurre.run import Run, seed_layers
from ridurre.surgery import distribution_of
from ridurre.targets import Target, check_targets

logger = logging.getLogger("ridurre")


class BasePruning(abc.ABC):
    """Filter pruning in rounds; a method is a subclass that says which filters of a layer go.

    Every round asks `run_pruning_for_conv2d_layer` for each selected convolution (1-, 2- and
    3-dimensional, separable and transposed ones), merges the answers of layers that are tied (see
    `ridurre.voting.merge_votes` for the exact rule), removes the channels, calls
    `model_compile_fn` and then `model_finetune_fn` on the new, smaller model. It stops, and says
    why in `stopped`, when

    * no filter was removed (``"nothing_left"``), or
    * the accuracy is below `minimum_accuracy` (``"accuracy"``): the last model that held it comes
      back, or
    * the model has come down to all targets (``"target"``), or
    * more than `maximum_pruning_percent` of the original's filters are gone, or
    * `maximum_prune_iterations` rounds are done, or
    * `stop_fn` says so (these three by their names).

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
        target: a `ridurre.targets.Target` or several, all of which have to be reached.
        evaluate_fn: ``fn(model) -> float``, the accuracy (the greater the better) of a model that
            `model_compile_fn` compiled. Instead, `run_pruning` takes `validation_data`.
        metric: the compiled metric that counts on `validation_data`.
        minimum_accuracy: the smallest accuracy accepted after a round's fine-tuning.
        stop_fn: ``fn(step) -> bool``, asked with the `Step` of every accepted round.
        seed: of all random choices; None for a different run every time.
        verbose: 1 shows progress bars, 0 none.

    Attributes:
        model: the last good model: the one a finished round left, or the original. It is still
            there when a callback raises.
        history: one `Step` for every finished round.
        stopped: why the last run ended; None while it has not.

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
        target: Target | Iterable[Target] | None = None,
        evaluate_fn: Evaluate | None = None,
        metric: str = "accuracy",
        minimum_accuracy: float | None = None,
        stop_fn: Callable[[Step], bool] | None = None,
        seed: int | None = None,
        verbose: int = 0,
    ) -> None:
        check_callable("model_compile_fn", model_compile_fn)
        check_optional("model_finetune_fn", model_finetune_fn, check_callable)
        check_optional("evaluate_fn", evaluate_fn, check_callable)
        check_optional("stop_fn", stop_fn, check_callable)
        check_count("nb_finetune_epochs", nb_finetune_epochs)
        check_count("nb_trained_for_epochs", nb_trained_for_epochs)
        check_optional("maximum_prune_iterations", maximum_prune_iterations, check_count)
        check_optional("maximum_pruning_percent", maximum_pruning_percent, check_fraction)
        check_optional("minimum_accuracy", minimum_accuracy, check_finite)
        self.pruning_factor = self.check_factor(pruning_factor)
        self.rng = np.random.default_rng(seed)
        self._run: Run | None = None
        self._compile_fn = model_compile_fn
        self._finetune_fn = model_finetune_fn
        self._finetune_epochs = nb_finetune_epochs
        self._trained_epochs = nb_trained_for_epochs
        self._maximum_iterations = maximum_prune_iterations
        self._maximum_fraction = maximum_pruning_percent
        self._layers = layers
        self._protect = protect
        self._targets = check_targets(target)
        self._evaluate_fn = evaluate_fn
        self._metric = metric
        self._minimum = minimum_accuracy
        self._stop_fn = stop_fn
        self._seed = seed
        self._verbose = verbose
        self._bins: list[tuple[int, int, float]] = []

    @property
    def model(self) -> keras.Model | None:
        """The last good model."""
        return None if self._run is None else self._run.model

    @property
    def history(self) -> list[Step]:
        """What every finished round did."""
        return [] if self._run is None else self._run.history

    @property
    def stopped(self) -> str | None:
        """Why the last run ended."""
        return None if self._run is None else self._run.stopped

    @property
    def report(self) -> Report:
        """The last good model next to the original; measured anew each time (see `compare`)."""
        if self._run is None:
            raise RequestError("There is nothing to report yet. Expected run_pruning(…) first.")
        run = self._run
        return compare(run.original, run.model, data=run.accuracy.data, history=run.history)

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
        return check_finite("a pruning factor", factor)

    def define_prune_bins(
        self, channel_number_bins: Sequence[int], pruning_factors_for_bins: Sequence[float]
    ) -> None:
        """Use different factors for layers of different width.

        A layer with n filters gets ``pruning_factors_for_bins[i]`` where ``channel_number_bins[i]
        <= n < channel_number_bins[i + 1]``, and the general factor outside all bins.

        Raises:
            RequestError: not one bound more than factors, or bounds that do not increase.
        """
        bounds, factors = check_bounds(channel_number_bins, pruning_factors_for_bins)
        factors = [self.check_factor(f) for f in factors]
        self._bins = list(zip(bounds, bounds[1:], factors, strict=False))

    def run_pruning(
        self,
        model: keras.Model,
        prune_factor_scheduler_fn: Callable[[float, int], float] | None = None,
        custom_objects_inside_model: dict[str, Any] | None = None,
        *,
        validation_data: Any = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
    ) -> tuple[keras.Model, int]:
        """Prune in rounds until a limit is reached.

        With `checkpoint_dir` every finished round is on disk before the next begins. A process
        that was killed continues from there when the same call is made again, and with the same
        `seed` ends with the same model as an undisturbed run: it and the round's number seed
        Python, NumPy, Keras, the backend and the model's random layers in every round. What a
        callback keeps between rounds is not saved, nor is the optimizer's state: a model that comes
        back from disk is compiled by `model_compile_fn`. Functions cannot be compared, so that
        changed ones go unnoticed. Two processes must not share a folder.

        Args:
            model: a built Functional or Sequential model; it is not changed. Under
                ``tf.distribute`` or ``keras.distribution`` all happens, and the result is, there.
            prune_factor_scheduler_fn: ``fn(factor, step) -> factor``, called before each round
                with the factor given to the constructor and the number of the round, from 0; its
                value is used for that round as it is. (In the classic package it was fed its own
                last value, so that factors compounded by accident.)
            custom_objects_inside_model: custom classes by name, for layers that need them.
            validation_data: what ``model.evaluate`` takes, arrays as ``(x, y)``, to find the
                accuracy by the compiled `metric`.
            checkpoint_dir: a folder for this run alone.

        Returns:
            The smaller model, compiled by the callback, and the epochs it was trained for in all.
            If nothing could be removed at all, the model that was given.

        Raises:
            ModelError: the model cannot be analysed.
            NothingToPruneError: it has no convolution that can be pruned.
            RequestError: the method returned something that is no list of filters, a layer's
                weights are not finite, or the original's accuracy is below `minimum_accuracy`.
            CheckpointError: the folder holds another run or is damaged, or cannot be written.
        """
        custom = custom_objects_inside_model or {}
        if prune_factor_scheduler_fn is not None:
            check_callable("prune_factor_scheduler_fn", prune_factor_scheduler_fn)
        if not isinstance(custom, Mapping):
            raise RequestError(
                "Expected custom_objects_inside_model to be a dictionary, name → class. "
                f"Received: {custom!r}."
            )
        self._run = run = Run(model, self._run.epochs if self._run else self._trained_epochs)
        run.accuracy = Accuracy(self._evaluate_fn, validation_data, self._metric, self._minimum)
        with keras.saving.custom_object_scope(custom):
            run.ballot = self._prepare(model)
        with keras.saving.custom_object_scope(custom), distribution_of(model), shown(self._verbose):
            run.goals = Goals(self._targets, model)
            if checkpoint_dir is not None:
                run.store = Checkpoints(checkpoint_dir, self._settings(run))
            self._begin(run)
            rounds, done = self._maximum_iterations, len(run.history)
            with Bar("Pruning", rounds, unit="round", done=done, patience=0) as bar:
                self._loop(run, prune_factor_scheduler_fn, bar)
        return run.model, run.epochs

    def _loop(self, run: Run, schedule: Callable[[float, int], float] | None, bar: Bar) -> None:
        while run.stopped is None:
            clock, step = Stopwatch(), len(run.history)
            seed = run.seed_round(self._seed, step)
            factor = self._factor(schedule, step)
            with clock.phase("cut"):
                smaller = self._cut(run, factor)
                seed_layers(smaller, seed)
            if smaller is None:
                run.stop("nothing_left")
            else:
                record = self._train(run, smaller, factor, clock)
                run.finish(record, smaller)
                run.stop(self._reason(run, record))
                bar.advance(filters=record.filters)
            run.save(self.rng)

    def _prepare(self, model: keras.Model) -> Ballot:
        """Look at the model before the first round; methods that ask no layer override this."""
        return Ballot(model, self._layers, self._protect)

    def _cut(self, run: Run, factor: float) -> keras.Model | None:
        """The next round's smaller model; None if nothing is left to remove."""
        return run.ballot.prune(run.model, self._asking(factor))

    def _factor(self, schedule: Callable[[float, int], float] | None, step: int) -> float:
        if schedule is None:
            return self.pruning_factor
        with self._calling("prune_factor_scheduler_fn"):
            factor = schedule(self.pruning_factor, step)
        return self.check_factor(factor)

    def _asking(self, factor: float) -> Ask:
        """What the method answers for a layer in a round with this factor."""

        def ask(layer: keras.Layer, kernel: np.ndarray) -> Any:
            filters = kernel.shape[-1]
            binned = (f for low, high, f in self._bins if low <= filters < high)
            return self.run_pruning_for_conv2d_layer(next(binned, factor), layer, kernel)

        return ask

    def _train(self, run: Run, model: keras.Model, factor: float, clock: Stopwatch) -> Step:
        """Compile, fine-tune and measure a round's model; what came of it."""
        with clock.phase("compile"):
            self._compile(model)
        epochs, before = run.epochs, self._accuracy(run, model, clock)
        after = before
        if self._finetune_fn is not None:
            epochs += self._finetune_epochs
            with clock.phase("finetune"), self._calling("model_finetune_fn"):
                self._finetune_fn(model, run.epochs, epochs)
            after = self._accuracy(run, model, clock)
        return run.record(
            model,
            clock,
            factor=factor,
            epochs=epochs,
            accuracy_before_finetuning=before,
            accuracy=after,
        )

    def _compile(self, model: keras.Model) -> keras.Model:
        with self._calling("model_compile_fn"):
            self._compile_fn(model)
        return model

    def _accuracy(self, run: Run, model: keras.Model, clock: Stopwatch) -> float | None:
        with clock.phase("evaluate"), self._calling("the evaluation"):
            return run.accuracy.of(model)

    def _reason(self, run: Run, record: Step) -> str | None:
        """Why the run should end after this round; None if it should not."""
        if not record.accepted:
            return "accuracy"
        if run.goals.reached(run.model):
            return "target"
        if self._maximum_fraction is not None and record.pruned_fraction > self._maximum_fraction:
            return "maximum_pruning_percent"
        if record.step + 1 == self._maximum_iterations:
            return "maximum_prune_iterations"
        return "stop_fn" if self._stop_fn is not None and self._stop_fn(record) else None

    def _begin(self, run: Run) -> None:
        """Take up a run from its folder, or see whether a new one makes sense."""
        if run.resume(self.rng, self._compile):
            return
        run.accuracy.check_original(run.model, self._compile)
        if self._maximum_iterations == 0:
            run.stop("maximum_prune_iterations")
        elif run.goals.reached(run.model):
            run.stop("target")
        run.save(self.rng)

    def _settings(self, run: Run) -> dict[str, Any]:
        """What makes a run this one, as plain data."""
        return {
            "method": type(self).__qualname__,
            "model": fingerprint(run.model),
            "layers": run.ballot.chosen,
            "protect": run.ballot.protected,
            "pruning_factor": self.pruning_factor,
            "bins": self._bins,
            "nb_finetune_epochs": self._finetune_epochs,
            "nb_trained_for_epochs": self._trained_epochs,
            "maximum_prune_iterations": self._maximum_iterations,
            "maximum_pruning_percent": self._maximum_fraction,
            "target": [repr(t) for t in self._targets],
            "metric": self._metric,
            "minimum_accuracy": self._minimum,
            "seed": self._seed,
        }

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
