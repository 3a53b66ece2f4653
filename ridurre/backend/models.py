"""Models as graphs, also those that have none: what their code does is looked into."""

from __future__ import annotations

from typing import Any

import keras

from ridurre.backend import FunctionalGraph, Node, functional_graph, has_graph
from ridurre.backend.opening import Opened, open_call
from ridurre.errors import ModelError, OpeningError


def graph_of(model: Any) -> FunctionalGraph:
    """The graph of a model; that of one without a graph is a single call of itself.

    Raises:
        ModelError: the model has no graph, and its code does not show what it does.
    """
    if has_graph(model):
        return functional_graph(model)
    opened, args, kwargs = _open_model(model)
    inputs = [t for t in keras.tree.flatten((args, kwargs)) if isinstance(t, keras.KerasTensor)]
    outputs = [keras.KerasTensor((None, *t.shape[1:]), t.dtype) for t in opened.graph.outputs]
    return FunctionalGraph(inputs, [Node(model, args, kwargs, outputs)], outputs)


def inputs_of(model: Any) -> Any:
    """Symbolic inputs of a model, in the structure that its call takes them in."""
    if isinstance(model, keras.Sequential):
        return model.inputs[0]
    if has_graph(model):
        return model.input
    _, args, kwargs = _open_model(model)
    return args[0] if len(args) == 1 and not kwargs else (args or kwargs)


def _open_model(model: Any) -> tuple[Opened, tuple[Any, ...], dict[str, Any]]:
    """A model's code, on what it was built for: what it takes for types is not written down."""
    config = model.get_build_config()
    problems: list[Any] = []
    for dtype in (model.compute_dtype, "int32") if config else ():
        args, kwargs = _built_for(config, dtype)
        try:
            return open_call(model, args, kwargs), args, kwargs
        except OpeningError as error:
            problems.append(error)
    problem = problems[0] if config else "it does not say what it was built for (get_build_config)"
    raise ModelError(
        f"The model {model.name!r} ({type(model).__name__}) is Python code, and what it does "
        f"to channels cannot be seen: {problem}. Functional and Sequential models can be pruned; "
        "rebuild it with keras.Model(inputs, outputs)."
    )


def _built_for(config: dict[str, Any], dtype: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def tensors(shape: Any) -> Any:
        if isinstance(shape, dict):
            return {k: tensors(v) for k, v in shape.items()}
        if shape and isinstance(shape[0], list | tuple | dict):
            return [tensors(v) for v in shape]
        return keras.KerasTensor((None, *shape[1:]), dtype=dtype)

    if "input_shape" in config:
        return (tensors(config["input_shape"]),), {}
    named = {k.removesuffix("_shape"): tensors(v) for k, v in config["shapes_dict"].items() if v}
    return (), named
