"""Sums of products: what keeps channels, and weights as operands of any equation."""

from typing import Any, NamedTuple

import keras
import pytest
from keras import layers as L
from keras import ops
from rows import Tensor, blocks, layer, mix, subsets

import ridurre
from ridurre.graph.labels import LabelSpace, Value, parameter
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
