"""Facts by layer, and the network that they make."""

from __future__ import annotations

import numpy as np

from ridurre.graph import Call, ChannelGraph, Labels
from ridurre.graph.labels import Reason, varying
from ridurre.measure import Complexity
from ridurre.reports.facts import LayerFacts, Node, Pair

_LEFT = "could be pruned, and was left alone"
_TOGETHER = "can only go all together, and some have to stay"


def layer_facts(
    before: ChannelGraph | None,
    old: Complexity | None,
    after: ChannelGraph | None,
    new: Complexity | None,
) -> tuple[LayerFacts, ...]:
    """Every layer of either model by name; what both have comes first, in running order."""
    olds, news = _Costs(old), _Costs(new)
    made = (_made(before), _made(after))
    why = {} if before is None else _reasons(before)
    found = []
    for name in dict.fromkeys([*olds.kinds, *news.kinds]):
        channels = (made[0].get(name), made[1].get(name))
        parameters = (olds.parameters.get(name), news.parameters.get(name))
        macs = (olds.macs.get(name), news.macs.get(name))
        compared = before is not None and after is not None
        status = _status(channels, parameters, name in why) if compared else "same"
        found.append(
            LayerFacts(
                name,
                (olds.kinds | news.kinds)[name],
                channels,
                parameters,
                macs,
                status,
                why.get(name, _LEFT if status == "left" else ""),
            )
        )
    return tuple(found)


def network(before: ChannelGraph | None, after: ChannelGraph | None) -> tuple[Node, ...]:
    """The calls of the original, each with those whose outputs it reads."""
    if before is None:
        return ()
    owner = before.solution.owners(before.groups)
    makers = {id(v): i for i, call in enumerate(before.trace.calls) for v in call.outputs}
    left = {} if after is None else {c.name: _width(after, c) for c in after.trace.calls}
    nodes = []
    for call in before.trace.calls:
        inputs = {makers[id(v)] for v in call.inputs if id(v) in makers}
        groups = set(np.unique(owner[_labels(before, call)]).tolist()) - {-1}
        channels = (_width(before, call), left.get(call.name))
        nodes.append(
            Node(call.name, call.kind, tuple(sorted(inputs)), tuple(sorted(groups)), channels)
        )
    return tuple(nodes)


class _Costs:
    """Kinds, parameters and MACs by the name of the layer, all calls of it together."""

    def __init__(self, complexity: Complexity | None) -> None:
        self.kinds: dict[str, str] = {}
        self.parameters: dict[str, int] = {}
        self.macs: dict[str, int | None] = {}
        for x in complexity.layers if complexity is not None else ():
            self.kinds[x.name] = x.kind
            self.parameters[x.name] = self.parameters.get(x.name, 0) + int(x.parameters)
            more = self.macs.get(x.name, 0)
            self.macs[x.name] = None if x.macs is None or more is None else more + int(x.macs)


def _made(graph: ChannelGraph | None) -> dict[str, int]:
    """How many channels of their own layers make, by name."""
    if graph is None:
        return {}
    made = {c.name: graph.made_by(c) for c in graph.trace.calls}
    return {name: len(labels) for name, labels in made.items() if labels is not None}


def _reasons(graph: ChannelGraph) -> dict[str, str]:
    """Why channels of layers cannot go; layers all of whose channels can are not in it."""
    solution = graph.solution
    owner = solution.owners(graph.groups)
    found: dict[str, str] = {}
    for call in graph.trace.calls:
        if not call.known:
            found[call.name] = (
                f"{Reason.NO_RULE.value}; describe it with @ridurre.register_rule({call.kind})"
            )
        labels = graph.made_by(call)
        if labels is None or call.name in found:
            continue
        stuck = solution.hard_frozen[solution.hard[labels]]
        stuck |= solution.soft_frozen[solution.soft[labels]]
        if stuck.any():
            some = "" if stuck.all() else f"{stuck.sum()} of {len(labels)} cannot go: "
            found[call.name] = some + graph.explain(int(labels[stuck][0]))
        elif (owner[labels] < 0).all():
            found[call.name] = _TOGETHER
    return found


def _status(channels: Pair, parameters: Pair, stuck: bool) -> str:
    if parameters[0] is None or parameters[1] is None:
        return "added" if parameters[0] is None else "removed"
    if channels[0] != channels[1]:
        return "grown" if (channels[1] or 0) > (channels[0] or 0) else "cut"
    if stuck:
        return "fixed"
    if channels[0] is not None:
        return "left"
    return "same" if parameters[0] == parameters[1] else "follows"


def _labels(graph: ChannelGraph, call: Call) -> Labels:
    made = graph.made_by(call)
    return call.outputs[0].labels if made is None else made


def _width(graph: ChannelGraph, call: Call) -> int | None:
    """Number of channels of a call's output; None where no single axis has them."""
    made = graph.made_by(call)
    if made is not None:
        return len(made)
    axes = varying(call.outputs[0].labels)
    return call.outputs[0].labels.shape[axes[0]] if len(axes) == 1 else None
