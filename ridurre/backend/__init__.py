"""The only package that touches Keras' private API or a particular backend.

Keras has no public way to read the graph of a functional model (which operation was called on
which tensors, with which arguments). What is needed of the private one is wrapped here, once, and
``tests/test_backend.py`` holds it against the installed version.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
from keras.src.applications import convnext, inception_resnet_v2
from keras.src.backend import get_keras_mask, set_keras_mask
from keras.src.layers.rnn import conv_lstm
from keras.src.models.functional import Functional, functional_like_constructor

from ridurre.backend.precision import full_precision
from ridurre.errors import ModelError, NotAModelError

LayerScale = convnext.LayerScale
StochasticDepth = convnext.StochasticDepth
CustomScaleLayer = inception_resnet_v2.CustomScaleLayer
ConvLSTMCell = conv_lstm.ConvLSTMCell


@dataclass(frozen=True)
class Node:
    """One call of an operation inside a functional model."""

    operation: keras.Operation
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[keras.KerasTensor]


@dataclass(frozen=True)
class FunctionalGraph:
    """A functional model as plain data: its inputs, its calls in running order, its outputs."""

    inputs: list[keras.KerasTensor]
    nodes: list[Node]
    outputs: list[keras.KerasTensor]


def has_graph(operation: object) -> bool:
    """Whether this is a model whose computation is a graph that Keras knows.

    A class that overrides ``call`` computes something else than its graph says.
    """
    if isinstance(operation, keras.Sequential):
        return operation._functional is not None and type(operation).call is keras.Sequential.call
    return isinstance(operation, Functional) and type(operation).call is Functional.call


def functional_graph(model: keras.Model) -> FunctionalGraph:
    """Read the graph of a functional or sequential model; nothing is changed.

    Raises:
        ModelError: the model has no graph (see `has_graph`).
    """
    if not has_graph(model):
        raise ModelError(f"{model.name!r} ({type(model).__name__}) has no graph of layers.")
    inner = model._functional if isinstance(model, keras.Sequential) else model
    by_depth = inner._nodes_by_depth
    nodes = [
        Node(n.operation, n.arguments.args, n.arguments.kwargs, list(n.outputs))
        for depth in sorted(by_depth, reverse=True)
        for n in by_depth[depth]
        if not n.is_input
    ]
    return FunctionalGraph(list(inner.inputs), nodes, list(inner.outputs))


def in_order_of_calls(operation: keras.Operation, nodes: list[Node]) -> list[Node]:
    """Calls of one operation in the order in which they were made; they may run in another."""
    made = {id(n.outputs[0]): i for i, n in enumerate(operation._inbound_nodes)}
    return sorted(nodes, key=lambda node: made[id(node.outputs[0])])


def match_inputs(model: keras.Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments of a model's call in the order of `model.inputs`, as Keras matches them."""
    given = args[0] if args else kwargs["inputs"]
    own = model.inputs if isinstance(model, keras.Sequential) else model.input
    if isinstance(given, dict) and not isinstance(own, dict):
        return [given[t.name] for t in model.inputs]
    return keras.tree.flatten(given)


def standardize_inputs(model: keras.Model, x: Any) -> list[Any]:
    """Samples as tensors in the order, of the types and of the ranks of `model.inputs`."""
    inner = model._functional if isinstance(model, keras.Sequential) else model
    return list(inner._standardize_inputs(x))


def infer(operation: keras.Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a layer or operation on tensors in inference mode, as `model.predict` does.

    No gradient is recorded, and stateful layers stay as they are. A call that was written with
    ``training=True`` is in inference mode all the same, as Keras has it. Products are in full
    precision: what is computed here is compared, or solved for.
    """
    with _no_gradient(), full_precision(), keras.StatelessScope():
        return operation(*args, **(kwargs | in_inference(operation)))


def in_inference(operation: keras.Operation) -> dict[str, bool]:
    """The argument that says so, if a call of this layer takes one; code of one's own may not."""
    takes = getattr(operation, "_call_has_context_arg", {}).get("training", False)
    return {"training": False} if takes else {}


def _no_gradient() -> contextlib.AbstractContextManager[Any]:
    """PyTorch keeps what a gradient would need unless told otherwise."""
    if keras.backend.backend() != "torch":
        return contextlib.nullcontext()
    import torch  # noqa: PLC0415 - only the backend in use is loaded

    return torch.no_grad()


def keras_mask(tensor: Any) -> Any:
    """The mask that Keras attached to a tensor, or None."""
    return get_keras_mask(tensor)


def mask_tensor(tensor: Any, mask: Any) -> Any:
    """The tensor, with a Keras mask attached unless that is None."""
    if mask is not None:
        set_keras_mask(tensor, mask)
    return tensor


def check_model(model: object) -> None:
    """Refuse what cannot be analysed, with a sentence that says what to do.

    Raises:
        NotAModelError: not a Keras 3 model.
        ModelError: not built, or quantised.
    """
    if not isinstance(model, keras.Model):
        raise NotAModelError(
            "Expected a Keras 3 model (keras.Model, Functional or Sequential). "
            f"Received: {type(model).__module__}.{type(model).__qualname__}."
        )
    if isinstance(model, keras.Sequential) and model._functional is None:
        raise ModelError(
            f"The model {model.name!r} is not built, so its layers have no channels yet. Start it "
            "with keras.Input(shape), or call model.build(input_shape) first."
        )
    if not has_graph(model):
        _check_code(model)
    for layer in model._flatten_layers():
        if getattr(layer, "quantization_mode", None) is not None:
            raise ModelError(
                f"The layer {layer.name!r} is quantised ({layer.quantization_mode}). Prune the "
                "float model first and quantise the result."
            )
        if getattr(layer, "lora_enabled", False):
            raise ModelError(
                f"LoRA is enabled on the layer {layer.name!r}, so its kernel is a sum of two. "
                "Merge it first: build the model without LoRA and assign `layer.kernel`, which "
                "Keras returns merged, to the new layer's kernel."
            )


def _check_code(model: keras.Model) -> None:
    """Refuse a model without a graph whose code cannot be looked into."""
    name = f"The model {model.name!r} ({type(model).__name__})"
    if isinstance(model, Functional | keras.Sequential):
        raise ModelError(
            f"{name} is a Functional or Sequential model with a `call` of its own, so that its "
            "graph does not say what it computes. Write it as a plain keras.Model with layers as "
            "attributes, or as keras.Model(inputs, outputs) without a `call`."
        )
    if not model.built:
        raise ModelError(
            f"{name} is not built, so its layers have no channels yet. Call it once on a batch of "
            "data first."
        )


def input_source(tensor: keras.KerasTensor) -> keras.layers.InputLayer:
    """The input layer that a functional model's input tensor comes from."""
    return tensor._keras_history.operation


def parameters_of(layer: keras.Layer) -> set[int]:
    """Ids of the variables of a layer, of layers inside it too, that count as parameters.

    These are the ones that training would change, frozen or not; batch-norm statistics and
    random-number states are not.
    """
    return {id(v) for x in [layer, *all_layers(layer)] for v in x._trainable_variables}


def own_variables(layer: keras.Layer) -> list[keras.Variable]:
    """The variables of a layer, its sub-layers' included, in a stable order.

    Behind them stands what stateful recurrent layers keep between batches, which Keras does not
    list.
    """
    parts = [x for x in [layer, *all_layers(layer)] if isinstance(x, keras.layers.RNN)]
    return [*layer.variables, *(v for x in parts for v in keras.tree.flatten(x.states or []))]


def library_operation(operation: keras.Operation) -> str | None:
    """Name of the class if it is one of Keras' own stateless operations (``keras.ops``)."""
    cls = type(operation)
    if isinstance(operation, keras.Layer) or not cls.__module__.startswith("keras.src."):
        return None
    return cls.__name__


def settings_of(operation: keras.Operation) -> dict[str, Any]:
    """What an operation of ``keras.ops`` was made with, by the names of its arguments."""
    books = {"name", "_inbound_nodes", "_outbound_nodes", "_remat_mode", "_auto_config"}
    return {k: v for k, v in vars(operation).items() if k not in books}


def is_functional_like(cls: type) -> bool:
    """Whether ``cls(inputs, outputs, name=…)`` makes a model of this class."""
    return cls is Functional or bool(functional_like_constructor(cls))


def to_numpy(value: Any) -> np.ndarray:
    """A variable or tensor of any backend as a NumPy array."""
    if isinstance(value, keras.Variable):  # of which a mirrored one has to be read first
        value = keras.ops.convert_to_tensor(value)
    return np.asarray(keras.ops.convert_to_numpy(value))


def view_of(variable: keras.Variable) -> np.ndarray:
    """A variable's value to look at and not to write into: no copy is made where that can be."""
    if keras.backend.backend() == "tensorflow":
        try:
            return np.asarray(memoryview(variable.value.value()))
        except (TypeError, ValueError, BufferError, AttributeError):
            pass  # bfloat16 has no buffer, and a distributed variable no value of its own
    return to_numpy(variable)


def shape_of(variable: keras.Variable) -> tuple[int, ...]:
    """A variable's shape; TensorFlow's own property builds new objects at every look."""
    return variable._shape


class AttentionParts(NamedTuple):
    """The projections inside an attention layer; Keras has public names for some of them only."""

    query: keras.layers.EinsumDense
    key: keras.layers.EinsumDense
    value: keras.layers.EinsumDense
    output: keras.layers.EinsumDense
    gate: keras.layers.EinsumDense | None


def attention_parts(layer: keras.Layer) -> AttentionParts:
    """The projections of a MultiHeadAttention or GroupQueryAttention that was built."""
    names = ("query", "key", "value", "output", "gate")
    return AttentionParts(*(getattr(layer, f"_{name}_dense", None) for name in names))


def attention_kernel(layer: keras.Layer) -> dict[str, Any]:
    """What the configuration of an attention layer leaves out: the kernel that it asks for."""
    return {"flash_attention": True} if layer._flash_attention else {}


def all_layers(layer: keras.Layer) -> list[keras.Layer]:
    """All layers inside a layer or model, at every depth, outer ones first."""
    return list(layer._flatten_layers(include_self=False, recursive=True))


def run_compiled(model: keras.Model) -> Callable[[Any], Any]:
    """The model's inference as one compiled function that returns when the result is there."""
    if keras.backend.backend() == "jax":
        state = (
            [v.value for v in model.trainable_variables],
            [v.value for v in model.non_trainable_variables],
        )
        return compiled(lambda x: model.stateless_call(*state, x, **in_inference(model))[0])
    return compiled(lambda x: model(x, **in_inference(model)))


def compiled(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A function of tensors, compiled where the back end can, that returns when it has run."""
    if keras.backend.backend() == "jax":
        import jax  # noqa: PLC0415 - only the backend in use is loaded

        fast = jax.jit(function)
        return lambda x: jax.block_until_ready(fast(x))
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf  # noqa: PLC0415

        function = tf.function(function)
    return lambda x: keras.tree.map_structure(to_numpy, function(x))


def build_shape(layer: keras.Layer) -> tuple[int | None, ...]:
    """The input shape that a layer with one input was built for."""
    config = layer.get_build_config() or {}
    return tuple(config["input_shape"])


def bytes_per_number(operation: keras.Operation) -> int:
    """Size of the numbers that a layer computes."""
    dtype = getattr(operation, "compute_dtype", None) or keras.config.floatx()
    return 2 if "16" in str(dtype) else 8 if "64" in str(dtype) else 4


def node_counts(model: keras.Model) -> list[tuple[str, int, int]]:
    """How often every operation of a model was called and used, at every depth."""
    if not has_graph(model):
        return [_count(x) for x in (model, *all_layers(model))]
    counts = []
    for node in functional_graph(model).nodes:
        op = node.operation
        counts.append(_count(op))
        if has_graph(op):
            counts += node_counts(op)
        elif isinstance(op, keras.Layer):
            counts += map(_count, all_layers(op))
    return counts


def _count(op: Any) -> tuple[str, int, int]:
    return op.name, len(op._inbound_nodes), len(op._outbound_nodes)
