"""Train a pruned model back: distillation from its parent, a learning rate that ends at zero."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

from ridurre.backend import in_inference, parameters_of, view_of
from ridurre.checks import check_count, check_finite, check_fraction
from ridurre.errors import RequestError
from ridurre.graph.names import by_own_paths, named_layers, variable_paths
from ridurre.plan import PruningPlan

_CROSS_ENTROPIES = ("categorical_crossentropy", "sparse_categorical_crossentropy")


class Distillation:
    """A fine-tune function that learns from the labels and from the unpruned parent.

    The loss is ``α · own + (1 − α) · T² · KL(softmax(z_parent / T) ‖ softmax(z / T))`` over the
    classes (the last axis), where `own` is the loss that the model was compiled with and ``z`` are
    logits (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015). Regularisers count
    in full. Optimizer, metrics, sample weights and callbacks are the model's own; validation uses
    its own loss. The parent is only read, in inference mode.

    Example::

        distill = ridurre.Distillation(model, x_train, y_train, batch_size=128, verbose=2)
        ridurre.KMeansFilterPruning(0.9, compile_fn, distill, nb_finetune_epochs=5)

    Args:
        teacher: the unpruned parent, with the same inputs and outputs.
        x: what ``model.fit`` takes to train on.
        y: its labels, where `x` does not hold them.
        alpha: weight of the model's own loss, 0 to 1.
        temperature: T; a higher one shows more of what the parent thinks of the wrong classes.
        from_logits: whether the outputs are logits; probabilities are turned into logits by their
            logarithm. None to go by the compiled loss, which has to be a (sparse) categorical
            cross-entropy then.
        **fit: other arguments of ``model.fit``, as `batch_size` or `callbacks`.

    Raises:
        RequestError: `alpha` or `temperature` is out of range, `teacher` is not a model, or the
            epochs are among the arguments.
    """

    def __init__(
        self,
        teacher: keras.Model,
        x: Any,
        y: Any = None,
        *,
        alpha: float = 0.5,
        temperature: float = 4.0,
        from_logits: bool | None = None,
        **fit: Any,
    ) -> None:
        if not isinstance(teacher, keras.Model):
            raise RequestError(f"Expected teacher to be a Keras model. Received: {teacher!r}.")
        own = sorted(fit.keys() & {"epochs", "initial_epoch"})
        if own:
            raise RequestError(
                f"The loop says which epochs to train; received {own}. Give the number of epochs "
                "to the pruning method, as nb_finetune_epochs."
            )
        self.teacher = teacher
        self.alpha = check_fraction("alpha", alpha)
        self.temperature = _positive("temperature", temperature)
        self.from_logits = from_logits
        self._data, self._fit = (x, y), fit

    def __call__(
        self, model: keras.Model, initial_epoch: int, finetune_epochs: int
    ) -> keras.callbacks.History:
        """Train the model from one epoch to another; returns what ``fit`` returns.

        Args:
            model: the pruned one, compiled.
            initial_epoch: epochs done before.
            finetune_epochs: the epoch to end at.

        Raises:
            RequestError: it cannot be told whether the outputs are logits.
        """
        with self._distilling(model):
            return model.fit(
                *self._data, initial_epoch=initial_epoch, epochs=finetune_epochs, **self._fit
            )

    @contextlib.contextmanager
    def _distilling(self, model: keras.Model) -> Iterator[None]:
        """While inside, the model's training loss is the distillation loss."""
        own_loss, from_parent = model.compute_loss, self._from_parent(model)

        def compute_loss(
            x: Any = None,
            y: Any = None,
            y_pred: Any = None,
            sample_weight: Any = None,
            training: bool = True,
        ) -> Any:
            loss = own_loss(x, y, y_pred, sample_weight, training=training)
            if not training:
                return loss
            extra = from_parent(
                self.teacher(x, **in_inference(self.teacher)), y_pred, sample_weight
            )
            return self.alpha * loss + (1 - self.alpha) * extra

        model.compute_loss = compute_loss
        model.make_train_function(force=True)
        try:
            yield
        finally:
            del model.compute_loss
            model.make_train_function(force=True)

    def _from_parent(self, model: keras.Model) -> Any:
        from_logits = _reads_logits(model) if self.from_logits is None else self.from_logits
        loss = SoftenedDivergence(self.temperature, from_logits)

        def total(expected: Any, received: Any, sample_weight: Any) -> Any:
            pairs = zip(keras.tree.flatten(expected), keras.tree.flatten(received), strict=True)
            divergences = [loss(a, b, sample_weight) for a, b in pairs]
            # The model's own loss, regularisers and all, is multiplied by alpha: here is the rest.
            rest = [AsItIs()(r, r) for r in map(keras.ops.sum, model.losses)]
            return sum([*divergences, *rest])

        return total


class AsItIs(keras.losses.Loss):
    """A number that is already a loss; Keras shares it out among replicas."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The number."""
        return keras.ops.reshape(y_pred, (1,))


def _reads_logits(model: keras.Model) -> bool:
    """Whether the compiled loss takes the outputs for logits."""
    losses = [keras.losses.get(loss) for loss in keras.tree.flatten(model.loss)]
    found = [_from_logits(loss) for loss in losses]
    if not found or None in found or len(set(found)) > 1:
        raise RequestError(
            "Expected a model compiled with a (sparse) categorical cross-entropy, which says "
            "whether its outputs are logits or probabilities. Received the loss "
            f"{model.loss!r}. Say it yourself: Distillation(…, from_logits=True or False)."
        )
    return bool(found[0])


def _from_logits(loss: Any) -> bool | None:
    """What a cross-entropy takes its predictions for; None if it is another loss."""
    if getattr(loss, "__name__", None) in _CROSS_ENTROPIES:
        return False
    known = (keras.losses.CategoricalCrossentropy, keras.losses.SparseCategoricalCrossentropy)
    return loss.get_config()["from_logits"] if isinstance(loss, known) else None


class SoftenedDivergence(keras.losses.Loss):
    """T² · KL between softened outputs."""

    def __init__(self, temperature: float, from_logits: bool, **options: Any) -> None:
        super().__init__(**options)
        self.temperature, self.from_logits = temperature, from_logits

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """One divergence per sample, given the outputs of teacher and student."""
        teacher, student = self._soften(y_true), self._soften(y_pred)
        divergence = keras.ops.sum(keras.ops.exp(teacher) * (teacher - student), axis=-1)
        return self.temperature**2 * divergence

    def _soften(self, outputs: Any) -> Any:
        """Logarithms of the softened probabilities."""
        if not self.from_logits:
            outputs = keras.ops.log(keras.ops.maximum(outputs, keras.config.epsilon()))
        return keras.ops.log_softmax(outputs / self.temperature)


@keras.saving.register_keras_serializable(package="ridurre")
class LinearToZero(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises to a peak, then falls to zero, both in a straight line.

    Args:
        peak: the highest rate.
        steps: batches until it is zero, and it stays there.
        warmup: fraction of the steps to rise in.

    Raises:
        RequestError: an argument is out of range.
    """

    def __init__(self, peak: float, steps: int, warmup: float = 0.1) -> None:
        super().__init__()
        check_count("steps", steps)
        if steps == 0:
            raise RequestError("Expected at least one step. Received: steps=0.")
        self.peak, self.steps = check_finite("peak", peak), int(steps)
        self.warmup = check_fraction("warmup", warmup, below_one=True)

    def __call__(self, step: Any) -> Any:
        """The rate at a step, from 0."""
        step = keras.ops.cast(step, keras.config.floatx())
        rise = self.warmup * self.steps
        left = (self.steps - step) / (self.steps - rise)
        # The first step of a rise is not lost: it begins one step in.
        part = keras.ops.minimum((step + 1) / (rise + 1), left) if rise else left
        return self.peak * keras.ops.clip(part, 0.0, 1.0)

    def get_config(self) -> dict[str, Any]:
        """What the constructor takes."""
        return {"peak": self.peak, "steps": self.steps, "warmup": self.warmup}


def retraining_rate(
    original: keras.Model,
    cut: PruningPlan | keras.Model,
    maximum: float,
    steps: int,
    *,
    budget: float = 0.0,
    warmup: float = 0.1,
) -> LinearToZero:
    """A learning rate for fine-tuning that ends at zero and is as high as the damage asks for.

    The peak is ``maximum · ‖W − W'‖₂ / (‖W‖₂ · √s)``, where W' is W with the removed part set to
    zero and s the fraction of W that this is; not less than ``maximum · budget`` and not more than
    `maximum`. Where nothing was removed, it is ``maximum · budget``. (ALLR of Zimmer et al., "How I
    Learned to Stop Worrying and Love Retraining", ICLR 2023; there, too, 10 % warm-up.)

    Args:
        original: the model before the cut.
        cut: the plan of it, or the smaller model before its training.
        maximum: the highest rate that the original was trained with.
        steps: batches of fine-tuning: epochs × batches per epoch.
        budget: epochs of fine-tuning, divided by those that the original was trained for.
        warmup: fraction of the steps to rise in.

    Raises:
        RequestError: `cut` is larger than the original, or an argument is out of range.
    """
    removed, lost = _removed(original, cut)
    weights = _parameters(original)
    size, norm = sum(v.size for v in weights.values()), _squares(weights.values())
    if removed < 0:
        raise RequestError("Expected a plan or a smaller model. Received one that is larger.")
    part = float(np.sqrt(lost / norm / (removed / size))) if norm and removed else 0.0
    share = min(1.0, max(part, check_fraction("budget", budget)))
    return LinearToZero(check_finite("maximum", maximum) * share, steps, warmup)


def _removed(original: keras.Model, cut: PruningPlan | keras.Model) -> tuple[int, float]:
    """How many parameters went, and the sum of their squares."""
    before = _parameters(original)
    if isinstance(cut, PruningPlan):
        removed = by_own_paths(cut.removed, named_layers(original))
        kept = {path: _kept(value, removed.get(path, {})) for path, value in before.items()}
    else:
        kept = _parameters(cut)
    count = sum(v.size for v in before.values()) - sum(v.size for v in kept.values())
    return count, max(0.0, _squares(before.values()) - _squares(kept.values()))


def _kept(value: np.ndarray, gone: dict[int, np.ndarray]) -> np.ndarray:
    for axis, indices in gone.items():
        value = np.delete(value, indices, axis)
    return value


def _parameters(model: keras.Model) -> dict[str, np.ndarray]:
    """The parameters of a model, by their paths in plans."""
    layers = named_layers(model)
    paths = variable_paths(layers)
    counted = set[int]().union(*map(parameters_of, layers.values()))
    variables = {id(v): v for layer in layers.values() for v in layer.weights}
    return {paths[key]: view_of(v) for key, v in variables.items() if key in counted}


def _squares(values: Iterable[np.ndarray]) -> float:
    return float(sum(np.square(v, dtype="float64").sum() for v in values))


def _positive(name: str, value: Any) -> float:
    number = check_finite(name, value)
    if number <= 0:
        raise RequestError(f"Expected {name} to be positive. Received: {value!r}.")
    return number
