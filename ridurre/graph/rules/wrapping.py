"""Layers around other layers: what the inner ones do to labels is said by their own rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from ridurre.graph.labels import Labels, LabelSpace, Reason, Value
from ridurre.graph.rules.base import BARRIER, Call, Flow, Kept, Rule, Work, register_rule, rule_for
from ridurre.graph.rules.merging import combine, join

L = keras.layers


def tensors(argument: Any) -> list[Value]:
    """The tensors of an argument, however they are nested."""
    return [v for v in keras.tree.flatten(argument) if isinstance(v, Value)]


def unlabelled(shape: Sequence[int | None]) -> Value:
    """A tensor whose labels are not known yet."""
    return Value(tuple(shape), np.zeros((1,) * len(shape), int))


def enter(
    call: Call,
    layer: keras.Layer,
    inputs: list[Value],
    outputs: list[Value],
    space: LabelSpace,
    **kwargs: Any,
) -> list[Labels]:
    """Follow channels through a layer inside another one, by its own rule.

    Args:
        call: of the outer layer; the inner call is noted in `Call.inner`, in order.
        layer: the inner one.
        inputs: what it is called with; the tensors among `kwargs` are part of it.
        outputs: shapes of what it returns.
        space: where the rule reports.
        kwargs: arguments that the inner rule looks for by name.

    Returns:
        The labels of its outputs.
    """
    inner = Call(layer, call.name, tuple(inputs[:1]), kwargs, inputs, outputs)
    rule = inner_rule(layer)
    if rule is BARRIER:
        space.at(call.name, inner.kind)
    flow: Any = rule.flow(inner, space)
    space.at(call.name, call.kind)
    labels = flow if isinstance(flow, list) else [flow]
    inner.known = inner.known and not rule.barrier
    inner.outputs = [Value(v.shape, x) for v, x in zip(outputs, labels, strict=True)]
    call.inner.append(inner)
    call.known = call.known and inner.known
    return labels


def inner_rule(layer: keras.Operation) -> Rule:
    """The rule of a layer inside another one; a barrier if it wants to be called itself."""
    rule = rule_for(layer)
    return rule if type(rule).replay is Rule.replay else BARRIER


def work_inside(call: Call, times: int) -> list[Work]:
    """The multiply-accumulates of all inner calls, so many times."""
    return [
        Work(w.operand, w.times * times)
        for inner in call.inner
        for w in inner_rule(inner.operation).work(inner)
    ]


def steps(sequences: Value) -> int:
    """Length of a sequence; one that is open counts as a single step."""
    return sequences.shape[1] or 1


def one_step(sequences: Value, space: LabelSpace, reason: Reason = Reason.MIXED) -> Value:
    """What a layer sees that is applied step by step: no single step can be left out."""
    labels = space.merge(sequences.labels, [1], reason)
    return Value((sequences.shape[0], *sequences.shape[2:]), labels[:, 0])


@register_rule(L.TimeDistributed)
class TimeDistributedRule(Rule):
    """One layer for all steps; models and layers without a rule inside it are barriers."""

    sized_by_input = True

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        mask = call.argument("mask")
        for value in tensors(mask):
            space.freeze(value.labels, Reason.BROADCAST)
        output = call.outputs[0].shape
        outputs = [unlabelled((output[0], *output[2:]))]
        step = one_step(call.x, space, Reason.SHAPE)
        return [
            np.expand_dims(labels, 1)
            for labels in enter(call, call.operation.layer, [step], outputs, space)
        ]

    def config(self, call: Call, kept: Kept) -> dict[str, Any]:
        return {"layer": kept.renew(call.inner[0])}

    def work(self, call: Call) -> list[Work]:
        return work_inside(call, steps(call.x))


@register_rule(L.Bidirectional)
class BidirectionalRule(Rule):
    """Two recurrent layers, one of which reads backwards.

    Keras takes both for equally wide, so the units of the same number go together.
    """

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        layer = call.operation
        sequences, states, mask = (
            call.argument(name) for name in ("sequences", "initial_state", "mask")
        )
        for value in tensors(mask):
            space.freeze(value.labels, Reason.BROADCAST)
        given, both = tensors(states), list[list[Labels]]()
        outputs = self._outputs(call)
        for i, inner in enumerate((layer.forward_layer, layer.backward_layer)):
            own = given[len(given) // 2 * i :][: len(given) // 2]
            inputs = [sequences, *own]
            both.append(enter(call, inner, inputs, outputs, space, initial_state=own or None))
        pairs = list(zip(*both, strict=True))
        if any(a.shape != b.shape for a, b in pairs):  # Keras cannot say how wide the result is
            for labels in (*both[0], *both[1]):
                space.freeze(labels, Reason.SHAPE)
            return [np.zeros((1,) * len(v.shape), int) for v in call.outputs]
        for a, b in pairs:
            space.tie(a, b)
        return [*self._merged(call, space), *both[0][1:], *both[1][1:]]

    def _outputs(self, call: Call) -> list[Value]:
        """Shapes of what each of the layers returns."""
        mode, (first, *rest) = call.operation.merge_mode, call.outputs
        if mode == "concat":
            first = unlabelled((*first.shape[:-1], (first.shape[-1] or 0) // 2))
        states = rest if mode is not None else rest[1:]
        return [first, *states[: len(states) // 2]]

    def _merged(self, call: Call, space: LabelSpace) -> list[Labels]:
        both = [inner.outputs[0] for inner in call.inner]
        if call.operation.merge_mode is None:
            return [value.labels for value in both]
        if call.operation.merge_mode == "concat":
            return [join(both, -1, space)]
        return [combine(both, space)]

    def config(self, call: Call, kept: Kept) -> dict[str, Any]:
        forward, backward = (kept.renew(inner) for inner in call.inner)
        return {"layer": forward, "backward_layer": backward}

    def work(self, call: Call) -> list[Work]:
        return work_inside(call, 1)
