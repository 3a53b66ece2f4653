"""Look into a layer: run its ``call`` on symbolic tensors and read the graph that this makes.

A layer of a user's own, or a model without a graph, is Python code. Run on `keras.KerasTensor`
instead of numbers, the same code leaves a graph of sub-layers and operations behind. The layer's
own weights stand in it as symbolic tensors too, so that operations on them are seen.

The code runs on a shadow of the layer, which shares everything with it but its attributes; what it
does to the attributes does not reach the layer.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
from keras.src.backend import get_keras_mask, set_keras_mask
from keras.src.models.functional import Functional

from ridurre.backend import (
    FunctionalGraph,
    Node,
    all_layers,
    parameters_of,
)
from ridurre.backend.inner import (
    Constants,
    answering_by_code,
    seeing_constants,
    symbolic,
    tensors_in,
)
from ridurre.errors import OpeningError

#: The batch size that code is run with, and what stands for the other sizes that are left open:
#: code that divides an image into patches needs enough, a table of positions not too much. (Keras
#: itself builds what is inside of a layer with 83 on some back ends.)
BATCH = 2
OPEN_SIZES = (32, 4, 64, 2, 83)


@dataclass(frozen=True)
class Opened:
    """What one call of a layer does, as plain data.

    Attributes:
        graph: its inputs (in the order of the tensors among the arguments), calls and outputs; all
            shapes are known.
        masks: the Keras masks that came with the inputs, symbolic: (input, mask).
        constants: numbers that the code makes and gives to layers or returns: (symbolic, numbers).
        parameters: the layer's own weights: (symbolic tensor, weight).
        structure: the outputs as the layer returns them.
    """

    graph: FunctionalGraph
    masks: list[tuple[keras.KerasTensor, keras.KerasTensor]]
    constants: Constants
    parameters: list[tuple[keras.KerasTensor, keras.Variable]]
    structure: Any


def open_function(function: Callable[[Any], Any]) -> FunctionalGraph:
    """What a function of one tensor does, as plain data.

    Raises:
        OpeningError: it does not run on symbolic tensors.
    """
    x = keras.KerasTensor((BATCH, 7), dtype=keras.config.floatx())
    try:
        outputs = keras.tree.flatten(function(x))
        return graph_between([x], outputs)
    except Exception as error:  # whatever a user's code raises
        raise OpeningError(f"it does not run on symbolic tensors: {error}") from error


def can_open(operation: object) -> bool:
    """Whether there is code to look into: a layer that says what it does in a ``call``.

    Not a functional model whose class computes something else than its graph.
    """
    if not isinstance(operation, keras.Layer) or isinstance(operation, Functional):
        return False
    own = type(operation).call
    return own is not keras.Layer.call and not isinstance(operation, keras.Sequential)


def open_call(layer: keras.Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opened:
    """What a call of a built layer with these arguments does, in inference mode.

    Neither the layer nor its sub-layers are changed.

    Args:
        layer: a built layer or model.
        args: of the call; tensors are symbolic.
        kwargs: the same.

    Raises:
        OpeningError: the code does not run on symbolic tensors, keeps something for later or does
            not use all of the layer's weights.
    """
    error: Exception | None = None
    for size in OPEN_SIZES:
        try:
            return _open(layer, args, kwargs, size)
        except OpeningError:
            raise
        except Exception as failure:  # whatever a user's code raises
            error = error or failure
        if not _has_open_sizes(args, kwargs):
            break
    raise OpeningError(
        f"its code does not run on symbolic tensors ({type(error).__name__}: {_first_line(error)})"
    ) from error


def _first_line(error: Exception | None) -> str:
    """What an error says, without what Keras puts in front of it and in colours."""
    lines = [re.sub("\x1b\\[\\d+m", "", line).strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith("Exception encountered when")]
    return said[0] if said else "no message"


def _has_open_sizes(*arguments: Any) -> bool:
    tensors = [t for t in keras.tree.flatten(arguments) if isinstance(t, keras.KerasTensor)]
    return any(None in t.shape[1:] for t in tensors)


def _open(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], size: int) -> Opened:
    inputs = Inputs(size)
    args, kwargs = keras.tree.map_structure(inputs, (args, kwargs))
    shadow, parameters = shadow_of(layer)
    with _without_new_nodes(layer):
        constants: Constants = []
        structure = run_code(shadow, args, kwargs, constants)
        outputs = tensors_in(structure)
        leaves = [*inputs.tensors, *(t for t, _ in [*constants, *parameters])]
        leaves += [m for _, m in inputs.masks]
        graph = FunctionalGraph(inputs.in_order, _nodes(outputs, leaves), outputs)
    used = {id(t) for t in [*outputs, *(t for node in graph.nodes for t in _tensors_of(node))]}
    constants = [(t, value) for t, value in constants if id(t) in used]
    opened = Opened(graph, inputs.masks, constants, parameters, structure)
    _check_reached(layer, opened)
    return opened


def _tensors_of(node: Node) -> list[Any]:
    return keras.tree.flatten((node.args, node.kwargs))


def run_code(
    shadow: Any, args: tuple[Any, ...], kwargs: dict[str, Any], constants: Constants
) -> Any:
    """Call a shadow, and let its code run on the symbolic tensors themselves."""
    before = dict(vars(shadow))
    found: list[tuple[Any, list[Any]]] = []

    def run(*args: Any, **kwargs: Any) -> Any:
        with seeing_constants(constants):
            outputs = symbolic(shadow.call(*args, **kwargs), constants)
        histories = [getattr(t, "_keras_history", None) for t in keras.tree.flatten(outputs)]
        found.append((outputs, histories))
        return outputs

    # Keras decides here between shapes and numbers; what stands before it (masks, types, the
    # training flag) is wanted.
    vars(shadow)["symbolic_call"] = run
    with answering_by_code(stand_in):
        shadow(*args, **kwargs)
    ((structure, histories),) = found
    for tensor, history in zip(keras.tree.flatten(structure), histories, strict=True):
        _set_history(tensor, history)  # Keras made them outputs of the shadow
    _check_memory(before, vars(shadow))
    return structure


def graph_between(leaves: list[keras.KerasTensor], outputs: list[Any]) -> FunctionalGraph:
    """All calls that lead from some symbolic tensors to others."""
    return FunctionalGraph(leaves, _nodes(outputs, leaves), outputs)


class Inputs:
    """Makes a fresh tensor of known shape for every symbolic one, and keeps them in order."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.in_order: list[keras.KerasTensor] = []
        self.masks: list[tuple[keras.KerasTensor, keras.KerasTensor]] = []
        self._made: dict[int, keras.KerasTensor] = {}

    @property
    def tensors(self) -> list[keras.KerasTensor]:
        """All that were made, each once."""
        return list(self._made.values())

    def __call__(self, x: Any) -> Any:
        """A fresh tensor, the same for the same one; everything else stays."""
        if not isinstance(x, keras.KerasTensor):
            return x
        if id(x) not in self._made:
            tensor = self._made[id(x)] = self._fresh(x)
            mask = get_keras_mask(x)
            if mask is not None:
                fresh = self._fresh(mask)
                set_keras_mask(tensor, fresh)
                self.masks.append((tensor, fresh))
        self.in_order.append(self._made[id(x)])
        return self._made[id(x)]

    def _fresh(self, x: keras.KerasTensor) -> keras.KerasTensor:
        sizes = (BATCH, *(self.size,) * len(x.shape))
        shape = [sizes[a] if n is None else n for a, n in enumerate(x.shape)]
        return keras.KerasTensor(shape, dtype=x.dtype, sparse=x.sparse)


def shadow_of(layer: Any) -> tuple[Any, list[tuple[keras.KerasTensor, keras.Variable]]]:
    """A second object with the layer's attributes, its own weights replaced by symbolic tensors."""
    own = {id(v) for v in [*layer._trainable_variables, *layer._non_trainable_variables]}
    made: dict[int, tuple[keras.KerasTensor, keras.Variable]] = {}

    def replace(value: Any) -> Any:
        if isinstance(value, keras.Variable) and id(value) in own:
            if id(value) not in made:
                made[id(value)] = (_parameter(layer, value), value)
            return made[id(value)][0]
        if isinstance(value, dict):
            return _rebuilt(value, {k: replace(v) for k, v in value.items()})
        if isinstance(value, list | tuple) and type(value).__name__ != "TrackedSet":
            new = [replace(v) for v in value]
            same = all(a is b for a, b in zip(value, new, strict=True))
            return value if same else tuple(new) if isinstance(value, tuple) else new
        return value

    shadow: Any = object.__new__(type(layer))
    state = {k: v if k in _BOOKS else replace(v) for k, v in vars(layer).items()}
    vars(shadow).update(state | {"_losses": [], "_inbound_nodes": [], "_outbound_nodes": []})
    return shadow, list(made.values())


def stand_in(layer: Any) -> Any:
    """Something with the layer's code and attributes, its own weights symbolic."""
    return shadow_of(layer)[0]


def _rebuilt(old: dict[Any, Any], new: dict[Any, Any]) -> dict[Any, Any]:
    return old if all(old[k] is v for k, v in new.items()) else new


#: Attributes in which Keras keeps books of a layer's state.
_BOOKS = frozenset(
    """_trainable_variables _non_trainable_variables _layers _metrics _seed_generators _tracker
    _tracked _inbound_nodes _outbound_nodes _losses _losses_override _loss_ids _torch_params
    _parameters _buffers _modules optimizer _optimizer""".split()
)


def _parameter(layer: Any, variable: keras.Variable) -> keras.KerasTensor:
    """A weight as the layer's code sees it: in the type that it computes with."""
    is_float = "float" in variable.dtype
    dtype = layer.compute_dtype if layer.autocast and is_float else variable.dtype
    return _Weight(variable.shape, dtype=dtype, name=variable.name)


class _Weight(keras.KerasTensor):
    """A weight in a layer's code: ``table[:n]`` is one, and nothing to Keras' symbolic tensors."""

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key if isinstance(key, tuple | list | int) else (key,))


@contextlib.contextmanager
def _without_new_nodes(layer: keras.Layer) -> Iterator[None]:
    """Forget the calls that are made inside."""
    layers: list[Any] = [layer, *all_layers(layer)]
    counts = [(x, len(x._inbound_nodes), len(x._outbound_nodes)) for x in layers]
    try:
        yield
    finally:
        for x, calls, uses in counts:
            del x._inbound_nodes[calls:], x._outbound_nodes[uses:]


@contextlib.contextmanager
def forgetting_calls(layers: list[keras.Layer]) -> Iterator[None]:
    """Forget the symbolic calls of these layers, and of all in them, that are made inside."""
    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(_without_new_nodes(layer))
        yield


def _set_history(tensor: Any, history: Any) -> None:
    if history is not None:
        tensor._keras_history = history
    elif hasattr(tensor, "_keras_history"):
        del tensor._keras_history


def _nodes(outputs: list[Any], ends: list[keras.KerasTensor]) -> list[Node]:
    """All calls that lead from the ends to the outputs, each behind those it needs."""
    leaves = {id(t) for t in ends}
    found: dict[int, Node] = {}
    stack: list[tuple[Any, bool]] = [(_node_of(t, leaves), False) for t in reversed(outputs)]
    while stack:
        node, ready = stack.pop()
        if node is None or id(node) in found:
            continue
        if ready:
            arguments = node.arguments
            found[id(node)] = Node(
                node.operation, arguments.args, arguments.kwargs, list(node.outputs)
            )
            continue
        stack.append((node, True))
        stack += [(_node_of(t, leaves), False) for t in reversed(node.arguments.keras_tensors)]
    return list(found.values())


def _node_of(tensor: Any, leaves: set[int]) -> Any:
    history = getattr(tensor, "_keras_history", None)
    if id(tensor) in leaves:
        return None
    if history is None or history.operation is None:
        raise OpeningError("its code makes a tensor of its own that no operation returned")
    return history.operation._inbound_nodes[history.node_index]


def _check_memory(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Code that keeps tensors on ``self`` computes something else the next time."""
    new = [k for k, v in after.items() if before.get(k) is not v]
    kept = [k for k in new if any(map(_is_symbolic, keras.tree.flatten(after[k])))]
    if kept:
        raise OpeningError(f"its code keeps tensors on itself, as {kept[0]!r}")


def _is_symbolic(x: Any) -> bool:
    return isinstance(x, keras.KerasTensor)


def _check_reached(layer: Any, opened: Opened) -> None:
    """Weights that are not used in inference could not follow when their neighbours shrink."""
    nodes, ends = opened.graph.nodes, opened.graph.outputs
    used = {id(t) for t in keras.tree.flatten([(n.args, n.kwargs) for n in nodes] + [ends])}
    seen = {id(v) for t, v in opened.parameters if id(t) in used}
    for node in nodes:
        if isinstance(node.operation, keras.Layer):
            seen |= {id(v) for v in node.operation.variables}
    counted = parameters_of(layer)
    for variable in layer.variables:
        if id(variable) in counted - seen:
            raise OpeningError(f"its weight {variable.path!r} is not used in inference")
