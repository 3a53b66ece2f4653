"""Attention layers, each of them as one: heads, their sizes and the width around them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from ridurre.backend import AttentionParts, attention_kernel, attention_parts, shape_of
from ridurre.graph.labels import Labels, LabelSpace, Reason, Value, along, varying
from ridurre.graph.rules.base import Call, Flow, Kept, Rule, Work, fixed, register_rule
from ridurre.graph.rules.biases import own_bias
from ridurre.graph.rules.contraction import Contraction
from ridurre.graph.rules.convolution import channels_of, on_axis

L = keras.layers
MASKS = ("query_mask", "value_mask", "key_mask", "attention_mask")


class Projected(Rule):
    """Attention between projections with kernels ``(in, heads, size)``.

    Heads and positions within all heads can go independently of each other; where the size of the
    queries shrinks, they make up for the scale ``1 / √size`` that the layer computes with.
    """

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        parts = attention_parts(call.operation)
        query, value, key = self._inputs(call)
        outs = self._outputs(parts, query, space)
        heads, shared, size, value_size = self._inside(parts, space)
        if _fused(call) and len(size) == len(value_size):
            space.tie(size, value_size)
        for part, x, by_head, by_size in (
            (parts.query, query, heads, size),
            (parts.key, key, shared, size),
            (parts.value, value, shared, value_size),
            (parts.gate, query, heads, value_size),
        ):
            if part is not None:
                space.own(part.kernel, 0, channels_of(x, len(x.shape) - 1, space), "in")
                space.own(part.kernel, 1, by_head, "out")
                space.own(part.kernel, 2, by_size, "out")
                if not own_bias(part.bias, (by_head, by_size), space):
                    space.freeze(by_head, Reason.SHAPE)
        space.own(parts.output.kernel, 0, heads, "in")
        space.own(parts.output.kernel, 1, value_size, "in")
        self._mask(call, heads, space)
        rank = len(call.outputs[0].shape)
        labels = outs.reshape((1,) * (rank - outs.ndim) + outs.shape)
        if len(call.outputs) == 1:
            return labels
        if len(query.shape) == 3:
            return [labels, on_axis(heads, 1, 4)]
        space.freeze(heads, Reason.SHAPE)
        return [labels, fixed(call.outputs[1])]

    def _outputs(self, parts: AttentionParts, query: Value, space: LabelSpace) -> Labels:
        """The channels that the layer makes; they are named first, so that they are its own."""
        kernel, bias = parts.output.kernel, parts.output.bias
        outs = space.produce(kernel, *range(2, len(kernel.shape)))
        if not own_bias(bias, [along(outs, a) for a in range(outs.ndim)], space):
            space.freeze(outs, Reason.SHAPE)
        return outs

    def _inside(
        self, parts: AttentionParts, space: LabelSpace
    ) -> tuple[Labels, Labels, Labels, Labels]:
        """Labels of the heads, of those of keys and values, and of the sizes of both."""
        heads, size = space.produce(parts.query.kernel, 1), space.produce(parts.query.kernel, 2)
        return heads, heads, size, space.produce(parts.value.kernel, 2)

    def vanishes(self, call: Call) -> bool:
        return len(call.outputs) == 1

    def weights(
        self, call: Call, kept: Kept, variable: keras.Variable, value: np.ndarray
    ) -> np.ndarray:
        query = attention_parts(call.operation).query
        size = kept.size(query.kernel, 2)
        scaled = variable is query.kernel or variable is query.bias
        if size == query.kernel.shape[2] or not scaled:
            return value
        return (value * math.sqrt(size / query.kernel.shape[2])).astype(value.dtype)

    def work(self, call: Call) -> list[Work]:
        parts = attention_parts(call.operation)
        query, value, _ = self._inputs(call)
        queries, keys = (math.prod(n or 0 for n in x.shape[1:-1]) for x in (query, value))
        axes = getattr(call.operation, "attention_axes", None) or [1]
        pairs = queries * math.prod(value.shape[a] or 0 for a in axes)
        projections = [
            Work(parts.query.kernel, queries),
            Work(parts.key.kernel, keys),
            Work(parts.value.kernel, keys),
            Work(parts.output.kernel, queries),
        ]
        if parts.gate is not None:
            projections.append(Work(parts.gate.kernel, queries))
        # Scores and their sums with the values: every pair of positions, head and size.
        sums = [Work(parts.query.kernel, pairs, (1, 2)), Work(parts.output.kernel, pairs, (0, 1))]
        return projections + sums

    @staticmethod
    def _inputs(call: Call) -> tuple[Value, Value, Value]:
        query, value, key = (call.argument(n) for n in ("query", "value", "key"))
        return query, value, value if key is None else key

    @staticmethod
    def _mask(call: Call, heads: Labels, space: LabelSpace) -> None:
        """What masks stays; a mask of its own for every head keeps them all."""
        for name in MASKS:
            mask = call.argument(name)
            if isinstance(mask, Value):
                space.freeze(mask.labels, Reason.MIXED)
            if mask is not None and len(mask.shape) > 3:
                space.freeze(heads, Reason.SHAPE)


def _fused(call: Call) -> bool:
    """Whether Keras calls one operation for all, which on JAX needs values as wide as queries.

    Sizes that are equal stay equal, on every back end: models are saved.
    """
    rank = len(call.argument("query").shape)
    return rank == 3 and not call.operation.dropout and len(call.outputs) == 1


@register_rule(L.MultiHeadAttention)
class MultiHeadAttentionRule(Projected):
    """Every head has keys and values of its own."""

    def config(self, call: Call, kept: Kept) -> dict[str, Any]:
        parts = attention_parts(call.operation)
        kernel = parts.output.kernel
        made = tuple(kept.size(kernel, a) for a in range(2, len(kernel.shape)))
        given = call.operation.get_config()["output_shape"]
        as_query = given is None and made == (kept.size(parts.query.kernel, 0),)
        return {
            "num_heads": kept.size(parts.query.kernel, 1),
            "key_dim": kept.size(parts.query.kernel, 2),
            "value_dim": kept.size(parts.value.kernel, 2),
            "output_shape": None if as_query else made,
            **attention_kernel(call.operation),
        }


@register_rule(L.GroupQueryAttention)
class GroupQueryAttentionRule(Projected):
    """Several heads of queries share one of keys and values, and all sizes are equal.

    A head of keys goes with all its queries; or the same query goes in every group.
    """

    def _outputs(self, parts: AttentionParts, query: Value, space: LabelSpace) -> Labels:
        """As many channels as the query has, by which the layer knows their number."""
        outs = super()._outputs(parts, query, space)
        space.tie(outs, channels_of(query, len(query.shape) - 1, space))
        return outs

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        query, value, _ = self._inputs(call)
        last = len(query.shape) - 1
        space.tie(channels_of(query, last, space), channels_of(value, last, space))
        return super().flow(call, space)

    def _inside(
        self, parts: AttentionParts, space: LabelSpace
    ) -> tuple[Labels, Labels, Labels, Labels]:
        heads, size = space.produce(parts.query.kernel, 1), space.produce(parts.query.kernel, 2)
        by_group = heads.reshape(shape_of(parts.key.kernel)[1], -1)
        if len(varying(by_group)) > 1:
            space.box(by_group)
        return heads, by_group, size, size

    def config(self, call: Call, kept: Kept) -> dict[str, Any]:
        parts = attention_parts(call.operation)
        return {
            "num_query_heads": kept.size(parts.query.kernel, 1),
            "num_key_value_heads": kept.size(parts.key.kernel, 1),
            "head_dim": kept.size(parts.query.kernel, 2),
            **attention_kernel(call.operation),
        }


def _names(rank: int, *last: str) -> tuple[Any, ...]:
    return (*range(rank - 2), *last)


@register_rule(L.Attention, L.AdditiveAttention)
class AttentionRule(Rule):
    """No projections: queries and keys meet channel by channel, those of the values pass."""

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        scoring, mixing = self._sums(call)
        query, key, value = self._inputs(call)
        self._own_scale(call, query, space)
        scores = scoring.flow(self._factors(call), space)
        scores = space.merge(scores, [scores.ndim - 1])
        for mask in keras.tree.flatten(call.argument("mask")):
            if isinstance(mask, Value):
                space.freeze(mask.labels, Reason.MIXED)
        labels = mixing.flow([self._as_scores(query, key, scores), value], space)
        return [labels, scores] if len(call.outputs) > 1 else labels

    def vanishes(self, call: Call) -> bool:
        *_, value = self._inputs(call)
        return value.vanishing and len(call.outputs) == 1

    def work(self, call: Call) -> list[Work]:
        scoring, mixing = self._sums(call)
        query, key, value = self._inputs(call)
        scores = self._as_scores(query, key, np.zeros((1,) * len(query.shape), int))
        return scoring.work([query, key]) + mixing.work([scores, value])

    @staticmethod
    def _inputs(call: Call) -> tuple[Value, Value, Value]:
        query, value, *rest = call.argument("inputs")
        return query, rest[0] if rest else value, value

    @staticmethod
    def _sums(call: Call) -> tuple[Contraction, Contraction]:
        rank = len(call.x.shape)
        queries, keys = _names(rank, "t", "d"), _names(rank, "s", "d")
        scores, values = _names(rank, "t", "s"), _names(rank, "s", "e")
        scoring = Contraction((queries, keys), scores)
        return scoring, Contraction((scores, values), _names(rank, "t", "e"))

    @staticmethod
    def _as_scores(query: Value, key: Value, labels: Labels) -> Value:
        return Value((*query.shape[:-1], key.shape[-2]), labels)

    @classmethod
    def _factors(cls, call: Call) -> Sequence[Value]:
        """Queries and keys. A sum of functions of both needs zeros of both, or a scale of zero."""
        query, key, _ = cls._inputs(call)
        if call.operation.score_mode == "dot" and call.kind == "Attention":
            return query, key
        scaled = call.kind == "AdditiveAttention" and call.operation.use_scale
        zero = scaled or (query.vanishing and key.vanishing)
        return replace(query, vanishing=zero), replace(key, vanishing=zero)

    @staticmethod
    def _own_scale(call: Call, query: Value, space: LabelSpace) -> None:
        scale = call.operation.scale
        if scale is not None and len(scale.shape):
            space.own(scale, 0, along(query.labels, -1), "channel")


@register_rule("DotProductAttention")
class DotProductAttentionRule(Rule):
    """``(batch, positions, heads, size)`` three times: all their channels go together.

    Keras takes the size of the values for that of the queries, so these are tied as well.
    """

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        values = [call.argument(n) for n in ("query", "key", "value")]
        for name in ("bias", "mask"):
            extra = call.argument(name)
            if isinstance(extra, Value):
                space.freeze(extra.labels, Reason.MIXED)
        if any(v.shape[2:] != values[0].shape[2:] for v in values) or self._by_head(call):
            for value in values:
                space.freeze(value.labels, Reason.SHAPE)
            return fixed(call.outputs[0])
        names = (("b", "t", "n", "h"), ("b", "s", "n", "h"), ("b", "s", "n", "h"))
        parts = [replace(v, labels=self._complete(v, values, space)) for v in values]
        return Contraction(names, names[0]).flow(parts, space)

    @staticmethod
    def _by_head(call: Call) -> bool:
        """Whether every head has a bias or a mask of its own."""
        extras = (call.argument(name) for name in ("bias", "mask"))
        return any(x is not None and x.shape[1] != 1 for x in extras)

    @staticmethod
    def _complete(value: Value, values: Sequence[Value], space: LabelSpace) -> Labels:
        """Positions within a head are summed over: they go where queries or keys are zero."""
        zero = values[0].vanishing or values[1].vanishing
        return value.labels if zero else space.merge(value.labels, [3])

    def vanishes(self, call: Call) -> bool:
        return call.argument("value").vanishing

    def replay(
        self,
        call: Call,
        kept: Kept,
        operation: keras.Operation,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        given = inspect.signature(operation.call).bind(*args, **kwargs).arguments
        if given.get("scale") is None:
            given["scale"] = 1 / math.sqrt(call.x.shape[3] or 1)
        return operation(**given)

    def work(self, call: Call) -> list[Work]:
        query, value = call.argument("query"), call.argument("value")
        return [Work(query, value.shape[1] or 0), Work(value, query.shape[1] or 0)]
