"""Sums of products: what keeps channels, and weights as operands of any equation."""

from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops
from rows import Tensor, blocks, layer, mix, subsets

import ridurre
from ridurre.graph.labels import LabelSpace, Parameter, Reason, Value, parameter
from ridurre.graph.rules import Call, rule_for
from ridurre.graph.rules.contraction import Contraction
from ridurre.testing import check_rule

pytestmark = pytest.mark.core


def sigmoid(x: Tensor) -> Tensor:
    return ops.sigmoid(L.Dense(3)(x))


#: Products that are not zero where channels are: they would be missed in the sum.
STUCK = {
    "two sigmoids": lambda x: ops.einsum("bpc,bqc->bpq", sigmoid(x), sigmoid(x)),
    "two exponentials": lambda x: ops.exp(mix(x)) @ ops.transpose(ops.exp(mix(x)), (0, 2, 1)),
    "normalised without a scale": lambda x: ops.einsum(
        "bpc,bqc->bpq", L.LayerNormalization(scale=False)(mix(x)), 1 + mix(x)
    ),
    "an outer product": lambda x: ops.einsum("bpc,bpd->bcd", mix(x), mix(x, 2)),
    "one that stays": lambda x: ops.einsum("bpc,bqc->bpq", mix(x), x[..., :3]),
}


@pytest.mark.parametrize("name", STUCK)
def test_a_sum_that_would_miss_something_keeps_all(name: str) -> None:
    inputs = keras.Input((2, 4))
    model = keras.Model(inputs, L.Dense(2)(STUCK[name](inputs)))
    graph = ridurre.DependencyGraph(model)
    assert not any(graph.removable(n).any() for n in graph.layers if "dense" in n)


class Reading(keras.layers.Layer):
    """Any equation of a tensor and a weight."""

    def __init__(self, equation: str, shape: Any, reverse: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.equation, self.shape, self.reverse = equation, tuple(shape), reverse

    def build(self, input_shape: Any) -> None:
        self.w = self.add_weight(shape=self.shape, name="w")

    def call(self, x: Tensor) -> Tensor:
        return ops.einsum(self.equation, *([self.w, x] if self.reverse else [x, self.w]))

    def get_config(self) -> dict[str, Any]:
        own = {"equation": self.equation, "shape": self.shape, "reverse": self.reverse}
        return super().get_config() | own


class ReadingRule(ridurre.Rule):
    """What the graph does with an operation whose operand is a weight."""

    def flow(self, call: ridurre.graph.Call, space: LabelSpace) -> Any:
        return self._contraction(call).flow(self._values(call), space)

    def config(self, call: ridurre.graph.Call, kept: ridurre.graph.Kept) -> dict[str, Any]:
        w = call.operation.w
        return {"shape": [kept.size(w, a) for a in range(len(w.shape))]}

    @staticmethod
    def _values(call: ridurre.graph.Call) -> list[Value]:
        values = [call.x, parameter(call.operation.w)]
        return values[::-1] if call.operation.reverse else values

    @classmethod
    def _contraction(cls, call: ridurre.graph.Call) -> Contraction:
        ranks = [len(v.shape) for v in cls._values(call)]
        return Contraction.parse(call.operation.equation, ranks)


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Any:
    keras.saving.register_keras_serializable(package="tests")(Reading)
    ridurre.register_rule(Reading)(ReadingRule)
    yield
    ridurre.unregister_rule(Reading)


class Equation(NamedTuple):
    """An equation of a tensor with channels last and a weight."""

    equation: str
    weight: tuple[int, ...]
    shape: tuple[int, ...]
    plans: int


EQUATIONS = {
    "a dense layer": Equation("bpc,cd->bpd", (3, 5), (2, 3), subsets(3, 5)),
    "turned around": Equation("bpc,dc->bpd", (5, 3), (2, 3), subsets(3, 5)),
    "heads": Equation("bpc,cnh->bpnh", (3, 2, 3), (2, 3), subsets(3) + blocks(3, 2) + 14),
    "heads before": Equation("bpc,nch->bnph", (2, 3, 2), (2, 3), subsets(3) + 2 * blocks(2, 2)),
    "over positions": Equation("bpc,pq->bqc", (4, 5), (4, 3), subsets(3)),
    "a scale": Equation("bpc,c->bpc", (3,), (2, 3), subsets(3)),
    "a scale of positions": Equation("bpc,pc->bpc", (2, 3), (2, 3), subsets(3)),
    "a score": Equation("bpc,c->bp", (3,), (2, 3), subsets(3)),
    "a weight that is summed by itself": Equation("bpc,cdz->bpd", (3, 2, 4), (2, 3), subsets(3, 2)),
    "a tensor that is summed by itself": Equation("bpc,d->bpd", (5,), (2, 3), subsets(5)),
    "all channels in all positions": Equation("bpc,pcd->bd", (2, 3, 5), (2, 3), subsets(3, 5)),
    "an ellipsis": Equation("...c,cd->...d", (3, 2), (2, 3), subsets(3, 2)),
    "an outer product": Equation("bpc,d->bpcd", (2,), (2, 3), subsets(3)),
    "every channel by itself": Equation(
        "bpc,cd->bpcd", (3, 2), (2, 3), subsets(3) + blocks(3, 2) + subsets(2)
    ),  # whole channels go, or the same output of every channel
}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", EQUATIONS)
def test_a_weight_as_operand(name: str, reverse: bool, reading: None) -> None:
    equation, weight, shape, plans = EQUATIONS[name]
    if reverse:
        terms, out = equation.split("->")
        equation = ",".join(terms.split(",")[::-1]) + "->" + out
    build = layer(Reading, equation, weight, reverse)
    assert check_rule(build, shape) == plans


def interpret(space: LabelSpace, operation: Any, *args: Any) -> Any:
    """What an operation of ``keras.ops`` does to values, as the trace of a model has it."""
    symbolic = [keras.KerasTensor(a.shape) if isinstance(a, Value) else a for a in args]
    outputs = [Value(tuple(operation.symbolic_call(*symbolic).shape), np.zeros(0, int))]
    call = Call(operation, "op", args, {}, [a for a in args if isinstance(a, Value)], outputs)
    rule = rule_for(operation)
    assert rule.reads_weights
    flow = rule.flow(call, space)
    if isinstance(flow, Parameter):
        assert flow.shape == outputs[0].shape
        return flow
    call.outputs = [Value(outputs[0].shape, flow)]
    return Value(outputs[0].shape, flow, vanishing=rule.vanishes(call))


def node_of(tensor: Any) -> Any:
    """The operation that made a symbolic tensor."""
    return tensor._keras_history.operation


def ops_class(name: str) -> Any:
    a, b = keras.KerasTensor((2, 3, 3)), keras.KerasTensor((3, 3))
    return node_of(getattr(ops, name.lower())(a, b))


MOVED = {
    "transpose": (("transpose",), (2, 3, 5), (2, 1, 0)),
    "transpose by axes": (("transpose", (2, 0, 1)), (2, 3, 5), (2, 0, 1)),
    "swapaxes": (("swapaxes", 0, -1), (2, 3, 5), (2, 1, 0)),
    "moveaxis": (("moveaxis", 0, -1), (2, 3, 5), (1, 2, 0)),
    "expand_dims": (("expand_dims", 1), (3, 5), (0, None, 1)),
    "squeeze": (("squeeze", 1), (3, 1, 5), (0, 2)),
    "reshape with new ones": (("reshape", (1, 3, 1, 5)), (3, 5), (None, 0, None, 1)),
    "reshape without ones": (("reshape", (3, 5)), (1, 3, 5), (1, 2)),
    "cast": (("cast", "float16"), (3, 5), (0, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVED)
def test_a_weight_that_is_moved_is_still_one(name: str) -> None:
    (op, *args), shape, axes = MOVED[name]
    weight = parameter(keras.Variable(np.zeros(shape, "float32")))
    inputs = keras.KerasTensor(shape)
    made = getattr(ops, op)(inputs, *args)
    moved = interpret(LabelSpace(), node_of(made), weight)
    assert moved.axes == axes
    assert moved.variable is weight.variable


def channels(space: LabelSpace, *shape: int) -> Value:
    """A tensor with channels of its own along the last axis."""
    labels = space.fresh(shape[-1]).reshape((1,) * (len(shape) - 1) + (-1,))
    return Value((None, *shape[1:]), labels, vanishing=True)


def owned(space: LabelSpace, weight: Parameter) -> dict[int, tuple[list[Any], str]]:
    return {
        axis: (w.labels.tolist(), w.role)
        for (key, axis), w in space.weights.items()
        if key == id(weight.variable)
    }


def test_a_weight_that_is_added_goes_with_the_channels() -> None:
    space = LabelSpace()
    x = channels(space, 1, 4, 3)
    table = parameter(keras.Variable(np.zeros((4, 3), "float32")))
    result = interpret(space, ops_class("Add"), x, table)
    assert result.labels is x.labels or (result.labels == x.labels).all()
    assert result.vanishing
    assert [p.least for p in space.parts] == [2]
    assert owned(space, table) == {
        0: ([[0]] * 4, "channel"),
        1: ([[1], [2], [3]], "channel"),
    }


def test_a_weight_along_another_axis_is_no_bias() -> None:
    """Keras on TensorFlow adds it along the last axis, should that have as many channels."""
    space = LabelSpace()
    x = channels(space, 1, 4, 3)
    by_row = parameter(keras.Variable(np.zeros((4, 1), "float32")))
    assert interpret(space, ops_class("Multiply"), x, by_row).labels is not None
    assert not space.frozen
    assert not interpret(space, ops_class("Add"), x, by_row).labels.any()
    assert space.frozen


def test_one_and_a_scale_is_no_longer_zero() -> None:
    space = LabelSpace()
    x = channels(space, 1, 4, 3)
    gamma = parameter(keras.Variable(np.zeros(3, "float32")))
    scale = interpret(space, ops_class("Add"), gamma, 1.0)
    assert isinstance(scale, Parameter)
    assert not scale.vanishing
    assert interpret(space, ops_class("Multiply"), x, scale).vanishing
    assert owned(space, gamma) == {0: ([[1], [2], [3]], "channel")}
    loud = Value(x.shape, x.labels)
    assert not interpret(space, ops_class("Multiply"), loud, scale).vanishing
    assert interpret(space, ops_class("Multiply"), loud, gamma).vanishing


def test_a_table_read_backwards() -> None:
    space = LabelSpace()
    x = channels(space, 1, 4, 3)
    table = parameter(keras.Variable(np.zeros((7, 3), "float32")))
    space.freeze(space.produce(table.variable, 0), Reason.PROTECTED)
    turned = interpret(space, node_of(ops.transpose(keras.KerasTensor((7, 3)))), table)
    logits = interpret(space, ops_class("Matmul"), x, turned)
    assert logits.labels.shape == (1, 1, 7)
    assert owned(space, table)[1] == ([[1], [2], [3]], "in")
