"""What a strategy of masks from importances is, and its extension points."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import keras
import numpy as np

from ridurre.checks import check_finite, received
from ridurre.data import Batches
from ridurre.errors import NothingToPruneError, RequestError
from ridurre.graph.select import find_layer
from ridurre.levels import rounded
from ridurre.masks import Masks
from ridurre.strategies.helpers import Nested
from ridurre.strategies.layers import last_layers
from ridurre.surgery import duplicate
from ridurre.tables import aligned
from ridurre.weights import Weight, Which, layers_of, weights_of

#: All samples are one batch, so that gradients are of the loss of all.
_WHOLE = 1 << 62


class Pruning(abc.ABC):
    """Masks for the weights of a model, so that it is compressed as asked.

    The interface is that of ShrinkBench: Blalock et al., "What is the State of Neural Network
    Pruning?", MLSys 2020. A strategy of your own says which weights stay::

        class GlobalMagWeight(VisionPruning):
            def model_masks(self):
                importances = map_importances(np.abs, self.params())
                flat_importances = flatten_importances(importances)
                threshold = fraction_threshold(flat_importances, self.fraction)
                return importance_masks(importances, threshold)

        sparse = GlobalMagWeight(model, compression=4).apply()

    Masks are made once, of the model as it is then; after more training make a new strategy.

    Args:
        model: any built Keras 3 model. It is never changed.
        inputs: samples, where gradients or activations are needed; or whatever `model.fit` takes,
            labels included, and no `outputs` then. All samples of arrays are one batch.
        outputs: labels, where gradients are needed.
        compression: original / remaining parameters of the whole model, from 1 up. What masks
            leave counts as remaining, so do all weights that are not prunable, biases and batch
            norm's scale and offset included; batch norm's statistics do not.
        loss: for gradients: a Keras loss, its name, or ``fn(y_true, y_pred)``; the compiled
            model's by default.
        classifier: whether to prune the classifier too: the layers with kernels from which an
            output of the model is reached without another kernel in between.
        weights: which weights of prunable layers may go: ``"kernels"``, ``"all"`` or a predicate
            of a variable. The default is kernels; whole channels take their biases along.
        seed: of all random choices.

    Attributes:
        model: see above, as `inputs`, `outputs`, `compression`, `loss`, `classifier` and `seed`.
        prunable: the layers that are pruned, a list in running order.

    Raises:
        RequestError: arguments that make no sense, or a compression that cannot be reached.
        NothingToPruneError: no layer can be pruned.
        NotAModelError, ModelError: not a Keras model, not built, or quantised.
    """

    #: What `weights` is where nothing is said.
    usual_weights: ClassVar[str] = "kernels"

    def __init__(
        self,
        model: keras.Model,
        inputs: Any = None,
        outputs: Any = None,
        compression: float = 1,
        *,
        loss: Any = None,
        classifier: bool = False,
        weights: Which | None = None,
        seed: int = 0,
    ) -> None:
        self.model, self.inputs, self.outputs, self.loss = model, inputs, outputs, loss
        self.compression, self.classifier, self.seed = compression, classifier, seed
        self.weights: Which = self.usual_weights if weights is None else weights
        self.prunable = [layer for layer in self._weights if self.can_prune(layer)]
        self._check_compression()

    # --- what subclasses say ---

    @abc.abstractmethod
    def model_masks(self) -> Mapping[Any, Mapping[str, Any]]:
        """The masks, ``{layer: {param: mask}}``: True (or 1) where a weight stays.

        What has no mask stays whole.
        """

    def can_prune(self, layer: keras.Layer) -> bool:
        """Whether a layer may be pruned; here, every one that is no classifier.

        Called while the strategy is made, for every layer that has weights of the kind asked for.
        """
        return self.classifier or all(layer is not last for last in self._last_layers)

    # --- what they can build upon ---

    @property
    def fraction(self) -> float:
        """The fraction of the prunable weights that stays: ``(total / compression − fixed) / n``.

        n is the number of prunable weights, fixed that of all others.
        """
        count = self._prunable_count
        fixed = self._total - count
        return min(1.0, max(0.0, (self._total / self.compression - fixed) / count))

    def params(self, only_prunable: bool = True) -> Nested:
        """Values of the weights that may go, ``{layer: {param: array}}``; not to be written into.

        Args:
            only_prunable: leave out layers that are not pruned. With False, the weights of the
                same kind of all other layers are there too.
        """
        return {layer: self.module_params(layer) for layer in self._layers(only_prunable)}

    def module_params(self, layer: keras.Layer | str) -> dict[str, np.ndarray]:
        """The same of one layer; a layer without such weights has none.

        Parameters have the names of Keras' variables, "kernel" or "bias"; where a layer is made of
        layers, numbers tell them apart: "kernel", "kernel_1".
        """
        return {name: _read_only(w.value) for name, w in self._of(layer).items()}

    # --- what users call ---

    def masks(self) -> Masks:
        """The masks of all weights that have one.

        Raises:
            RequestError: there are masks of what is not prunable, of wrong shapes, or with other
                values than 0 and 1; or data are missing, or importances are NaN.
        """
        return self._masks

    def apply(self) -> keras.Model:
        """A new model with the masked weights at zero, compiled like the original.

        Raises:
            RequestError: see `masks`.
        """
        new = duplicate(self.model, keep_compiled=True)
        self.masks().assign(new)
        return new

    def summary(self) -> str:
        """A table with a line for every weight of the model, and the compression of all.

        Raises:
            RequestError: see `masks`.
        """
        masks, rows = self.masks(), []
        for w in weights_of(self.model, None, "all"):
            kept = int(np.count_nonzero(masks[w.path])) if w.path in masks else w.size
            prunable = "yes" if any(w.variable is p.variable for p in self._pruned) else "no"
            rows.append((w.path, str(w.shape), prunable, *_numbers(kept, w.size)))
        remaining = self._total - masks.size + masks.kept
        head = ("weight", "shape", "prunable", "kept", "of", "compression")
        total = ("total", "", "", *_numbers(remaining, self._total))
        return aligned([head, *rows, total], left=3)

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={_text(value)}" for name, value in self._given().items())
        return f"{type(self).__name__}({given})"

    def _given(self) -> dict[str, Any]:
        """Arguments worth printing: the compression, and what is not as usual."""
        usual = {"loss": None, "classifier": False, "weights": self.usual_weights, "seed": 0}
        changed = {k: getattr(self, k) for k, v in usual.items() if getattr(self, k) != v}
        return {"compression": self.compression, **changed}

    # --- inside ---

    @cached_property
    def _weights(self) -> dict[keras.Layer, dict[str, Weight]]:
        """Every layer with the weights that `weights` names, by their names within the layer."""
        found: dict[keras.Layer, dict[str, Weight]] = {}
        for w in weights_of(self.model, None, self.weights):
            found.setdefault(w.owner, {})[w.name] = w
        return found

    @cached_property
    def _named(self) -> dict[str, keras.Layer]:
        return layers_of(self.model)

    @cached_property
    def _masks(self) -> Masks:
        found = self.model_masks()
        if not isinstance(found, Mapping) or not all(
            isinstance(m, Mapping) for m in found.values()
        ):
            raise RequestError(
                f"{type(self).__name__}.model_masks should return {{layer: {{param: mask}}}}. "
                f"Received: {received(found)}."
            )
        return Masks(
            {
                self._prunable_weight(layer, name).path: self._checked(layer, name, mask)
                for layer, masks in found.items()
                for name, mask in masks.items()
            }
        )

    @cached_property
    def _total(self) -> int:
        return sum(w.size for w in weights_of(self.model, None, "all"))

    @cached_property
    def _last_layers(self) -> list[keras.Layer]:
        return last_layers(self.model)

    @property
    def _pruned(self) -> list[Weight]:
        """All prunable weights."""
        return [w for layer in self.prunable for w in self._weights[layer].values()]

    @property
    def _prunable_count(self) -> int:
        return sum(w.size for w in self._pruned)

    @property
    def _kept_count(self) -> int:
        """How many of the prunable weights stay."""
        return rounded(self.fraction * self._prunable_count)

    @cached_property
    def _data(self) -> Batches:
        """Inputs, with outputs if there are any.

        Raises:
            RequestError: there are no inputs, or they are no data.
        """
        if self.inputs is None:
            raise RequestError(
                f"{type(self).__name__} needs samples. Expected inputs=…, arrays or what model.fit "
                "takes. Received: None."
            )
        if self.outputs is None:
            return Batches(self.inputs, batch_size=_WHOLE, seed=None)
        leaves = keras.tree.flatten((self.inputs, self.outputs))
        if not all(hasattr(leaf, "__array__") for leaf in leaves):
            raise RequestError(
                "Expected inputs and outputs to be arrays; data sets with labels are given as "
                f"inputs alone. Received: {type(self.inputs).__name__} and "
                f"{type(self.outputs).__name__}."
            )
        return Batches((self.inputs, self.outputs), batch_size=_WHOLE, seed=None)

    def _layers(self, only_prunable: bool) -> list[keras.Layer]:
        return list(self.prunable if only_prunable else self._weights)

    def _of(self, layer: Any) -> dict[str, Weight]:
        return self._weights.get(self._layer(layer), {})

    def _layer(self, layer: keras.Layer | str) -> keras.Layer:
        """A layer of the model, given itself or its name; raises `UnknownLayerError`."""
        return self._named[find_layer(self._named, layer)]

    def _prunable_weight(self, layer: Any, name: str) -> Weight:
        if not any(layer is one for one in self.prunable):
            raise RequestError(
                f"{type(self).__name__} gave a mask for {getattr(layer, 'name', layer)!r}, which "
                f"is not prunable. Expected some of {[one.name for one in self.prunable]}, by the "
                "layer. Override can_prune for other layers; classifier=True adds the last ones."
            )
        if name not in self._weights[layer]:
            raise RequestError(
                f"{type(self).__name__} gave a mask for {name!r} of {layer.name!r}. Expected some "
                f"of {list(self._weights[layer])}; weights='all' is for biases and scales too."
            )
        return self._weights[layer][name]

    def _checked(self, layer: keras.Layer, name: str, mask: Any) -> np.ndarray:
        shape, array = self._weights[layer][name].shape, np.asarray(mask)
        good = array.shape == shape and array.dtype.kind in "fiub"
        if not good or not np.isin(array, (0, 1)).all():
            raise RequestError(
                f"{type(self).__name__} gave {name!r} of {layer.name!r} no usable mask. Expected "
                f"an array of the shape {shape} with 1 (or True) where a weight stays and 0 where "
                f"it goes. Received: {received(mask)}."
            )
        return array.astype(bool)

    def _least(self) -> int:
        """How many of the prunable weights stay in any case."""
        return 0

    def _check_compression(self) -> None:
        if not self.prunable:
            raise NothingToPruneError(
                f"{type(self).__name__} finds no layer to prune in the model {self.model.name!r}. "
                "The classifier counts only with classifier=True; see can_prune."
            )
        if check_finite("compression", self.compression) < 1:
            raise RequestError(
                "Expected a compression from 1 up: original / remaining parameters, 4 for a "
                f"quarter. Received: {self.compression!r}."
            )
        stay = self._total - self._prunable_count + self._least()
        if self._total / self.compression < stay - 0.5:
            raise RequestError(
                f"A compression of {self.compression} cannot be reached: {stay} of the model's "
                f"{self._total} parameters stay in any case. Expected {self._total / stay:.6g} at "
                "most. More is prunable with classifier=True, weights='all', or your can_prune."
            )


def _read_only(value: np.ndarray) -> np.ndarray:
    """A view that cannot be written into; types that NumPy does not know become float32."""
    known = value.dtype.kind == "f" and value.dtype.itemsize >= 4
    array = value.view() if known else value.astype("float32")
    array.flags.writeable = False
    return array


def _numbers(kept: int, size: int) -> tuple[str, str, str]:
    return str(kept), str(size), f"{size / kept:.2f}" if kept else "inf"


def _text(value: Any) -> str:
    return getattr(value, "__name__", repr(value))
