"""Sums of products: of two tensors (attention written by hand), or of a tensor and a weight."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from ridurre.graph.labels import (
    Labels,
    LabelSpace,
    Parameter,
    Reason,
    Value,
    along,
    parameter,
    varying,
)
from ridurre.graph.rules.activation import activate, keeps_zero
from ridurre.graph.rules.base import Call, Flow, Kept, Rule, Work, register_rule
from ridurre.graph.rules.biases import own_bias
from ridurre.graph.rules.merging import is_array
from ridurre.graph.rules.products import Names, Product, Reading


@dataclass(frozen=True)
class Contraction:
    """What is multiplied with what: ``out[…] = Σ Π operand[…]``, over all names not in `out`.

    Attributes:
        operands: the names of every operand's axes.
        out: the names of the result's axes.
    """

    operands: tuple[Names, ...]
    out: Names

    @classmethod
    def parse(cls, equation: str, ranks: Sequence[int]) -> Contraction:
        """An equation of ``einsum`` for operands of these ranks; an ellipsis counts from behind."""
        left, arrow, right = equation.replace(" ", "").partition("->")
        terms = left.split(",")
        hidden = [n - len(t.replace("...", "")) for t, n in zip(terms, ranks, strict=True)]
        operands = tuple(_names(t, n) for t, n in zip(terms, hidden, strict=True))
        if arrow:
            most = max([n for t, n in zip(terms, hidden, strict=True) if "..." in t], default=0)
            return cls(operands, _names(right, most))
        letters = re.findall("[A-Za-z]", left)
        once = sorted(c for c in set(letters) if letters.count(c) == 1)
        return cls(operands, (*_names("..." if "..." in left else "", max(hidden)), *once))

    def flow(self, values: Sequence[Value], space: LabelSpace) -> Labels:
        """The labels of the result."""
        weights = [(v, n) for v, n in self._named(values) if isinstance(v, Parameter)]
        tensors = [(v, n) for v, n in self._named(values) if not isinstance(v, Parameter)]
        plain = all(len(set(names)) == len(names) for names in (*self.operands, self.out))
        if plain and not weights:
            return Product(values, self.operands, self.out, space).flow()
        if plain and len(weights) == len(tensors) == 1:
            return Reading(*tensors[0], *weights[0], self.out, space).flow()
        for value in values:
            if isinstance(value, Parameter):
                space.keep_whole(value)
            else:
                space.freeze(value.labels, Reason.SHAPE)
        return np.zeros((1,) * len(self.out), int)

    def _named(self, values: Sequence[Value]) -> list[tuple[Value, Names]]:
        return list(zip(values, self.operands, strict=True))

    def vanishes(self, values: Sequence[Value], labels: Labels) -> bool:
        """Whether the result is zero where channels were removed.

        One factor that is zero will do, if it carries all of these channels.
        """
        carried = {self.out[a] for a in varying(labels)}
        return any(
            value.vanishing and carried <= _carried(value, names)
            for value, names in self._named(values)
        )

    def work(self, values: Sequence[Value]) -> list[Work]:
        """One multiply-accumulate for every combination of positions of all axes."""
        sizes = [
            {name: n or 0 for name, n in zip(names, v.shape, strict=True) if n != 1}
            for v, names in self._named(values)
        ]
        # The operand that carries the most channels loses the most with them.
        index = max(
            range(len(values)),
            key=lambda i: (isinstance(values[i], Parameter), len(varying(values[i].labels))),
        )
        operand = values[index]
        batch = {n[0] for v, n in self._named(values) if _batched(v)}
        others = {name: n for x in sizes for name, n in x.items()}
        times = math.prod(n for x, n in others.items() if x not in batch | sizes[index].keys())
        if isinstance(operand, Parameter):
            return [Work(operand.variable, times)]
        return [Work(operand, times)]


def _names(term: str, hidden: int) -> Names:
    """The names of a term's axes; those that an ellipsis hides are numbered from behind."""
    before, ellipsis, after = term.partition("...")
    return (*before, *(range(-hidden, 0) if ellipsis else ()), *after)


def _batched(value: Value) -> bool:
    return not isinstance(value, Parameter) and bool(value.shape) and value.shape[0] is None


def _carried(value: Value, names: Names) -> set[Any]:
    """Names of the axes along which an operand has channels, or a position for each."""
    if isinstance(value, Parameter):
        return {n for n, size in zip(names, value.shape, strict=True) if size != 1}
    return {names[a] for a in varying(value.labels)}


@register_rule("Einsum", "Matmul", "Dot", "Inner", "Tensordot")
class ContractionRule(Rule):
    """Sums of products of tensors, and of a tensor with a weight."""

    reads_weights = True

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        contraction, values = self._parts(call)
        return contraction.flow(values, space)

    def vanishes(self, call: Call) -> bool:
        contraction, values = self._parts(call)
        return contraction.vanishes(values, call.outputs[0].labels)

    def work(self, call: Call) -> list[Work]:
        contraction, values = self._parts(call)
        return contraction.work(values)

    @staticmethod
    def _parts(call: Call) -> tuple[Contraction, list[Value]]:
        values = [operand(x) for x in (*call.args, *call.kwargs.values()) if is_operand(x)]
        ranks = [len(v.shape) for v in values]
        return contraction_of(call.operation, call.kind, ranks), values


@register_rule(keras.layers.EinsumDense)
class EinsumDenseRule(Rule):
    """Any equation of a tensor and a kernel."""

    sized_by_input = True

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        layer, (contraction, values) = call.operation, self._parts(call)
        labels = contraction.flow(values, space)
        for axis, size in enumerate(call.outputs[0].shape):
            if size is None and labels.shape[axis] > 1:  # open as the layer was told, not in truth
                space.freeze(labels, Reason.SHAPE)
                labels = labels.take([0], axis)
        if layer.bias is not None:
            first = labels.ndim - len(layer.bias.shape)
            by_axis = [along(labels, a) for a in range(first, labels.ndim)]
            if not own_bias(layer.bias, by_axis, space):
                space.freeze(labels, Reason.SHAPE)
        return activate(layer.activation, labels, space)

    def vanishes(self, call: Call) -> bool:
        layer, (contraction, values) = call.operation, self._parts(call)
        labels = call.outputs[0].labels
        bias = () if layer.bias is None else layer.bias.shape
        shape = (1,) * (labels.ndim - len(bias)) + tuple(bias)
        whole = layer.bias is None or all(shape[a] > 1 for a in varying(labels))
        return whole and keeps_zero(layer.activation) and contraction.vanishes(values, labels)

    def config(self, call: Call, kept: Kept) -> dict[str, Any]:
        layer, labels = call.operation, call.outputs[0].labels
        term = layer.equation.replace(" ", "").partition(",")[0]
        hidden = labels.ndim - len(layer.partial_output_shape)
        first = hidden if term.startswith("...") else 1
        sizes = [
            kept.count(labels, first + i) if n is not None and labels.shape[first + i] > 1 else n
            for i, n in enumerate(layer.partial_output_shape)
        ]
        return {"output_shape": tuple(sizes)}

    def work(self, call: Call) -> list[Work]:
        contraction, values = self._parts(call)
        return contraction.work(values)

    @staticmethod
    def _parts(call: Call) -> tuple[Contraction, list[Value]]:
        values = [call.x, parameter(call.operation.kernel)]
        ranks = [len(v.shape) for v in values]
        return Contraction.parse(call.operation.equation, ranks), values


def is_operand(x: Any) -> bool:
    """Whether an argument is a tensor, a weight or an array of constants."""
    return isinstance(x, Value) or is_array(x)


def operand(x: Any) -> Value:
    """An operand as a value; nothing can be left out of an array of constants."""
    if isinstance(x, Value):
        return x
    shape = np.shape(x)
    return Value(shape, np.zeros((1,) * len(shape), int))


def contraction_of(operation: Any, kind: str, ranks: Sequence[int]) -> Contraction:
    """What an operation of ``keras.ops`` sums over, for operands of these ranks."""
    if kind == "Einsum":
        return Contraction.parse(operation.subscripts, ranks)
    a, b = ranks
    if kind == "Tensordot":
        return _tensordot(operation.axes, a, b)
    left, right = [f"a{i}" for i in range(a)], [f"b{i}" for i in range(b)]
    left[-1] = right[-1 if kind == "Inner" else -min(b, 2)] = "k"
    if kind == "Matmul":  # the axes before the last two run together, from behind
        for i in range(3, min(a, b) + 1):
            right[-i] = left[-i]
        longer = left if a > b else right
        batch = longer[: max(a, b) - 2] if max(a, b) > 2 else []
        rows = [n for n in left[-2:] if n != "k"] if a > 1 else []
        columns = [n for n in right[-2:] if n != "k"] if b > 1 else []
        return Contraction((tuple(left), tuple(right)), (*batch, *rows, *columns))
    out = [n for n in (*left, *right) if n != "k"]
    return Contraction((tuple(left), tuple(right)), tuple(out))


def _tensordot(axes: Any, a: int, b: int) -> Contraction:
    left, right = [f"a{i}" for i in range(a)], [f"b{i}" for i in range(b)]
    if isinstance(axes, int):
        pairs = [(a - axes + i, i) for i in range(axes)]
    else:
        first, second = ([x] if isinstance(x, int) else list(x) for x in axes)
        pairs = list(zip(first, second, strict=True))
    for i, j in pairs:
        left[i] = right[j] = f"k{i % a}"
    summed = {left[i] for i, _ in pairs}
    out = tuple(n for n in (*left, *right) if n not in summed)
    return Contraction((tuple(left), tuple(right)), out)
