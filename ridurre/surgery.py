"""Do it: build the smaller model that a plan describes."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import keras
import numpy as np

from ridurre.backend import has_graph
from ridurre.backend.making import recreate
from ridurre.backend.training import compile_like
from ridurre.errors import ModelError, RuleError
from ridurre.graph import ChannelGraph
from ridurre.graph.rules import Call
from ridurre.graph.trace import Trace
from ridurre.plan import Planner, PruningPlan
from ridurre.rebuilding import Rebuilder

logger = logging.getLogger("ridurre")


def apply(model: keras.Model, plan: PruningPlan, *, keep_compiled: bool = False) -> keras.Model:
    """Carry out a plan on the model that it was made for.

    Args:
        model: the original, or an equal one (loaded from a file, say); it is not touched.
        plan: what goes.
        keep_compiled: compile the new model like the original, with the optimizer's state cut to
            match, so that training continues where it was.

    Returns:
        A new model, not compiled unless asked for.

    Raises:
        PlanMismatchError: the plan does not fit this model.
    """
    graph = ChannelGraph(model)
    return rebuild(graph, Planner(graph).labels_of(plan), keep_compiled=keep_compiled)


def rebuild(graph: ChannelGraph, alive: np.ndarray, *, keep_compiled: bool = False) -> keras.Model:
    """The model with only the labels that are alive, weights included.

    Args:
        graph: of the original model, which is not touched.
        alive: for every label whether it stays.
        keep_compiled: see `apply`.

    Raises:
        RequestError: what is left cannot be sharded as the ``keras.distribution`` says.
    """
    with distribution_of(graph.model):
        rebuilder = Rebuilder(graph, alive)
        rebuilder.check_sharding()
        model = rebuilder.whole(graph.model)
        rebuilder.copy_state()
        if keep_compiled:
            rebuilder.copy_training(graph.model, model)
        return model


def outermost(trace: Trace) -> list[Call]:
    """The first calls of layers whose code was looked into, without those that lie in others."""
    inside = {id(c.operation) for call in trace.opened for c in trace.opened if c.name != call.name
              and c.name.startswith(call.name + "/")}  # fmt: skip
    first = {id(c.operation): c for c in reversed(trace.opened)}
    return [c for key, c in first.items() if key not in inside]


def misfit(
    graph: ChannelGraph, call: Call, alive: np.ndarray, known: dict[str, str], *, whole: bool
) -> str:
    """Why a layer whose code was looked into cannot be brought to a smaller form, if it cannot.

    Args:
        graph: of the model.
        call: the layer's first call.
        alive: for every label whether it stays.
        known: answers found before, by what they depend on; is added to.
        whole: ask also where nothing of the layer goes: whether it can be made anew.

    Returns:
        The reason; nothing if it can.
    """
    rebuilder = Rebuilder(graph, alive)
    forms = rebuilder.smaller_forms(call)
    if not whole and not any(form.changes() for form in forms):
        return ""
    key = " and ".join(form.key() for form in forms)
    if key not in known:
        try:
            rebuilder.smaller(call)
            known[key] = ""
        except (RuleError, ModelError) as error:
            known[key] = str(error)
    return known[key]


def duplicate(model: keras.Model, *, keep_compiled: bool = False) -> keras.Model:
    """The same model anew: layers, weights and connections of its own.

    Args:
        model: a Functional or Sequential model, or a subclassed one that can be re-created from its
            configuration.
        keep_compiled: compile it like the original, optimizer state included.

    Raises:
        ModelError: the model cannot be analysed or re-created.
    """
    if isinstance(model, keras.Model) and not has_graph(model) and model.built:
        return _duplicate_subclassed(model, keep_compiled)
    graph = ChannelGraph(model)
    everything = np.ones(graph.trace.space.size, bool)
    return rebuild(graph, everything, keep_compiled=keep_compiled)


def _duplicate_subclassed(model: keras.Model, keep_compiled: bool) -> keras.Model:
    with distribution_of(model):
        new: Any = recreate(model, {})
        if not new.built:
            config = model.get_build_config()
            if config is None:
                raise ModelError(
                    f"The model {model.name!r} ({type(model).__name__}) does not say what shapes "
                    "it was built for. Give the class a `get_build_config`."
                )
            new.build_from_config(config)
        new.set_weights(model.get_weights())
        new.trainable = model.trainable
        if keep_compiled:
            compile_like(new, model)
        return new


def distribution_of(model: keras.Model) -> contextlib.AbstractContextManager[Any]:
    """The scope to make a model in that is to be distributed like this one.

    TensorFlow's models know their ``tf.distribute`` strategy; a ``keras.distribution`` is global.
    """
    strategy = getattr(model, "distribute_strategy", None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()
