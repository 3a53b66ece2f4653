"""What a rule is, and the table of all rules."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import keras
import numpy as np

from ridurre.backend import library_operation
from ridurre.backend.opening import Opened
from ridurre.graph.labels import FIXED, Labels, LabelSpace, Parameter, Reason, Value

Flow = Labels | Parameter | list[Labels]


@dataclass
class Call:
    """One call of a layer or operation, as a rule sees it.

    Attributes:
        operation: the layer or operation that is called.
        name: its name, behind the names of the nested models it stands in.
        args, kwargs: the call's arguments, every tensor as a `Value`.
        inputs: all tensors among the arguments, in order.
        outputs: the resulting tensors; their labels are known after the rule has run.
        known: whether a rule described the operation, or its code was looked into.
        opened: what the layer's code does, if there is no rule for it.
        inner: the calls inside this one, where its rule or its code shows them.
        place: the call of a layer whose code makes this one, and the number of it there.
    """

    operation: keras.Operation
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: list[Value]
    outputs: list[Value] = field(default_factory=list)
    known: bool = True
    opened: Opened | None = None
    inner: list[Call] = field(default_factory=list)
    place: tuple[Call, int] | None = None

    @property
    def kind(self) -> str:
        """The class of the layer or operation."""
        return type(self.operation).__name__

    @property
    def x(self) -> Value:
        """The first input."""
        return self.inputs[0]

    @property
    def holders(self) -> list[keras.Operation]:
        """The layers in whose code this call is made, the innermost first."""
        found: list[keras.Operation] = []
        place = self.place
        while place:
            found, place = [*found, place[0].operation], place[0].place
        return found

    def argument(self, name: str) -> Any:
        """An argument of the call by its name; None if it was not given."""
        return argument_of(self.operation, name, self.args, self.kwargs)


def argument_of(
    operation: keras.Operation, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """An argument of a call by its name; None if it was not given."""
    signature = inspect.signature(operation.call)
    # Keras drops `training` and `mask` where a layer does not take them.
    taken = {k: v for k, v in kwargs.items() if k in signature.parameters}
    return signature.bind(*args, **taken).arguments.get(name)


class Work(NamedTuple):
    """Multiply-accumulates: every element of `operand` takes part in `times` of them per sample.

    A tensor's batch axis does not count as elements. Where `axes` are given, only these count: two
    tensors that a layer makes inside have the sizes of some axes of its weights.
    """

    operand: keras.Variable | Value
    times: int
    axes: tuple[int, ...] | None = None

    @property
    def sizes(self) -> dict[int, int]:
        """Size of every axis that counts; 0 if it is not static."""
        inner = isinstance(self.operand, Value)
        return {
            a: n or 0
            for a, n in enumerate(self.operand.shape)
            if a >= inner and (self.axes is None or a in self.axes)
        }

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample."""
        return self.times * math.prod(self.sizes.values())


class Kept(Protocol):
    """What is left after a plan, in the terms a rule needs."""

    def count(self, labels: Labels, axis: int) -> int:
        """How many positions are left along an axis of a tensor with these labels."""

    def positions(self, labels: Labels, axis: int) -> np.ndarray:
        """Which positions are left: a boolean array of the size of `labels` along `axis`."""

    def size(self, variable: keras.Variable, axis: int) -> int:
        """How many positions of this axis of this weight are left."""

    def renew(self, call: Call) -> keras.Operation:
        """The smaller copy of a layer inside another one: one for all that share it."""


class Rule:
    """What one kind of layer or operation does to labels, and how it is rebuilt smaller.

    The rule itself is this base class's behaviour for anything unknown: a *barrier*, through which
    no channel can be followed. A rule for your own layer is a subclass with `flow` and, if the
    layer's configuration names a size, `config`::

        @ridurre.register_rule(ChannelScale)          # a layer with one weight per channel
        class ChannelScaleRule(ridurre.Rule):
            def flow(self, call, space):
                labels = call.x.labels
                space.own(call.operation.scale, 0, ridurre.graph.along(labels, -1), "channel")
                return labels
    """

    #: A barrier knows nothing of the channels that pass; it is listed in the graph's report.
    barrier = True
    #: Whether `config` depends on the input's labels and not only on the layer's weights, so that
    #: all calls of a shared layer must agree.
    sized_by_input = False
    #: Whether `flow` understands a `Parameter` among the inputs (and may return one). All other
    #: rules see one as a tensor that carries the labels of its last axis.
    reads_weights = False
    #: Whether every number of the result comes from the numbers at its own place alone.
    by_number = False
    #: Whether the outputs are zero wherever all inputs are (see `Value.vanishing`).
    keeps_zero = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "flow" in cls.__dict__:
            cls.barrier = False

    def flow(self, call: Call, space: LabelSpace) -> Flow:
        """The labels of the call's outputs.

        Args:
            call: the call; `call.inputs` hold shapes and labels, `call.outputs` shapes only.
            space: where ties, frozen labels and owned weight positions are reported.

        Returns:
            For each output (or for the only one) an array of labels of the output's rank.
        """
        for value in call.inputs:
            space.freeze(value.labels, Reason.NO_RULE)
        return [fixed(value) for value in call.outputs]

    def config(self, call: Call, kept: Kept) -> dict[str, Any]:
        """The changes to the layer's or operation's configuration, given what is kept."""
        del call, kept
        return {}

    def replay(
        self,
        call: Call,
        kept: Kept,
        operation: keras.Operation,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Call the new operation in the smaller model and return its outputs.

        Args:
            call: the call in the original model.
            kept: what is left.
            operation: the new layer or operation.
            args: the original call's, with the smaller model's tensors filled in.
            kwargs: the same.
        """
        del call, kept
        return operation(*args, **kwargs)

    def vanishes(self, call: Call) -> bool:
        """Whether the call's outputs are zero where channels were removed (`Value.vanishing`)."""
        return self.keeps_zero and all(v.vanishing for v in call.inputs)

    def weights(
        self, call: Call, kept: Kept, variable: keras.Variable, value: np.ndarray
    ) -> np.ndarray:
        """The value that a weight of the smaller layer gets.

        Args:
            call: the first call of the layer in the original model.
            kept: what is left.
            variable: the weight of the original layer.
            value: what is kept of it; a rule whose layer computes with its own sizes (a scale of
                one over their root, say) makes up for that here.
        """
        del call, kept, variable
        return value

    def work(self, call: Call) -> list[Work]:
        """The multiply-accumulates of this call for one sample; none for batch norm and the like.

        They are products of sizes, which is what lets the cost of any cut be known beforehand.
        """
        del call
        return []


def fixed(value: Value) -> Labels:
    """Labels of a tensor of which nothing can be removed."""
    return np.full((1,) * len(value.shape), FIXED)


def as_tensor(weight: Parameter, space: LabelSpace) -> Value:
    """A weight as a tensor that carries the labels of its last axis; the others stay whole."""
    rank = len(weight.shape)
    space.keep_whole(weight, range(rank - 1))
    labels = np.zeros((1,) * rank, int)
    if rank and weight.axes[-1] is not None:
        made = space.produce(weight.variable, weight.axes[-1])
        labels = made.reshape((1,) * (rank - 1) + (-1,))
    return Value(weight.shape, labels, vanishing=weight.vanishing)


BARRIER = Rule()
_RULES: dict[type | str, Rule] = {}


def register_rule(*classes: type | str) -> Callable[[type[Rule]], type[Rule]]:
    """Class decorator: this rule describes exactly these layer classes (not their subclasses).

    Args:
        classes: layer classes; or, for Keras' own stateless operations, class names ("Transpose").

    Raises:
        ValueError: one of them has a rule already.
    """

    def decorate(rule: type[Rule]) -> type[Rule]:
        for cls in classes:
            if cls in _RULES:
                raise ValueError(
                    f"{cls} already has a rule, {type(_RULES[cls]).__name__}; remove that first "
                    "with ridurre.unregister_rule."
                )
        for cls in classes:
            _RULES[cls] = rule()
        return rule

    return decorate


def unregister_rule(cls: type | str) -> None:
    """Forget the rule of a class, which makes it a barrier."""
    _RULES.pop(cls)


def rule_for(operation: keras.Operation) -> Rule:
    """The rule of exactly this class; a barrier if there is none."""
    return _RULES.get(library_operation(operation) or type(operation), BARRIER)


def rules() -> dict[type | str, Rule]:
    """All rules by layer class or operation name."""
    return dict(_RULES)
