"""The single weights of a model: which there are, and how they are laid out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import keras
import numpy as np

from ridurre.backend import all_layers, check_model, has_graph, parameters_of, shape_of, view_of
from ridurre.errors import ModelError, NothingToPruneError, RequestError
from ridurre.graph.names import named_layers
from ridurre.graph.select import Selector, select_layers
from ridurre.linear import DEPTHWISE

#: Which weights of a layer are meant: "kernels", "all" or a predicate.
Which: TypeAlias = "str | Callable[[keras.Variable], bool]"


@dataclass(frozen=True, eq=False)
class Weight:
    """A weight of a model that training would change.

    Attributes:
        path: a unique name: that of the layer and the variable's own (numbered if it occurs twice),
            the same in every copy of the model.
        layer: full name of the layer it belongs to.
        owner: that layer.
        variable: its value, ``(…, inputs, outputs)`` for kernels.
    """

    path: str
    layer: str
    owner: keras.Layer
    variable: keras.Variable

    @property
    def name(self) -> str:
        """Its name within the layer."""
        return self.path.removeprefix(f"{self.layer}/")

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return shape_of(self.variable)

    @property
    def size(self) -> int:
        """Number of weights in it."""
        return int(np.prod(self.shape))

    @property
    def value(self) -> np.ndarray:
        """Its value, to look at and not to write into."""
        return view_of(self.variable)

    @property
    def outputs(self) -> int:
        """How many outputs it makes: ``value.reshape(-1, outputs)`` has a column for each."""
        last = 2 if isinstance(self.owner, DEPTHWISE) else 1
        return int(np.prod(self.shape[-last:]))


def is_kernel(variable: keras.Variable) -> bool:
    """Whether a weight is multiplied with inputs: kernels and embeddings, no biases or scales."""
    return len(shape_of(variable)) > 1 and "bias" not in variable.name


def layers_of(model: keras.Model) -> dict[str, keras.Layer]:
    """All layers by their full names; layers inside layers are not listed.

    Raises:
        NotAModelError, ModelError: not a Keras model, not built, or quantised.
    """
    if isinstance(model, keras.Model) and not has_graph(model) and model.built:
        return _unnested(model)
    check_model(model)
    return named_layers(model)


def _unnested(model: keras.Model) -> dict[str, keras.Layer]:
    """The layers of a subclassed model, which has no graph: those that lie in no other layer.

    They go by class and number.
    """
    layers = all_layers(model)
    inner = {id(x) for layer in layers for x in all_layers(layer)}
    # Keras numbers layers without a name of their own anew in every copy; their order stays.
    found: dict[str, keras.Layer] = {}
    for index, layer in enumerate(layers):
        if id(layer) in inner:
            continue
        if getattr(layer, "quantization_mode", None) is not None:
            raise ModelError(
                f"The layer {layer.name!r} is quantised ({layer.quantization_mode}). Prune the "
                "float model first and quantise the result."
            )
        found[f"{type(layer).__name__}_{index}"] = layer
    return found


def weights_of(
    model: keras.Model, layers: Selector | None = None, which: Which = "kernels"
) -> list[Weight]:
    """The weights of a model that can be pruned one by one, in running order.

    Args:
        model: any built Keras 3 model.
        layers: which layers are meant (see `ridurre.DependencyGraph`); None for all.
        which: ``"kernels"``: what is multiplied with inputs (no biases, scales and offsets);
            ``"all"``: every parameter; or a predicate of a variable.

    Raises:
        NothingToPruneError: there are none.
        NotAModelError, ModelError: not a Keras model, not built, or quantised.
        UnknownLayerError: `layers` names what is not there.
    """
    named = layers_of(model)
    chosen = list(named) if layers is None else select_layers(model, named, layers)
    wanted, found = _predicate(which), dict[int, Weight]()
    for name in chosen:
        for own, v in parameter_names(named[name]).items():
            if id(v) not in found and wanted(v):
                found[id(v)] = Weight(f"{name}/{own}", name, named[name], v)
    if not found:
        raise NothingToPruneError(
            f"The model {model.name!r} has no weights to prune"
            + ("." if layers is None else f" in {chosen}.")
        )
    return list(found.values())


def parameter_names(layer: keras.Layer) -> dict[str, keras.Variable]:
    """The parameters of a layer, of layers inside it too, by names that are unique within it."""
    counted, found = parameters_of(layer), dict[str, keras.Variable]()
    for v in layer.variables:
        if id(v) in counted:
            same = sum(1 for known in found.values() if known.name == v.name)
            found[f"{v.name}_{same}" if same else v.name] = v
    return found


def _predicate(which: Which) -> Callable[[keras.Variable], bool]:
    if which == "kernels":
        return is_kernel
    if which == "all":
        return lambda variable: True
    if callable(which):
        return which
    raise RequestError(
        "Expected weights to be 'kernels', 'all' or a predicate of a variable. "
        f"Received: {which!r}."
    )


def prunable_layers(model: keras.Model) -> list[str]:
    """Full names of the layers that make channels of their own: convolutions, dense layers, ….

    A list of strategies has one for each of them. Depthwise convolutions make none.
    """
    kernels = weights_of(model)
    return list(dict.fromkeys(w.layer for w in kernels if not isinstance(w.owner, DEPTHWISE)))
