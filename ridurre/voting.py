"""Votes of single layers, merged over the layers that are tied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ridurre.criteria.weights import Norms, group_norms
from ridurre.graph import ChannelGraph, Group


def merge_votes(graph: ChannelGraph, votes: Mapping[str, Iterable[int]]) -> dict[Group, np.ndarray]:
    """Decide which coupled channels go, given what each layer wants to lose.

    Layers that share a group (through an addition, say) can only lose the same channels. Within a
    group:

    1. every layer that voted asks for as many channels as it voted for in this group;
    2. as many go as the most cautious of these layers asks for, and never all of them;
    3. channels with more votes go first; among equals the one with the smaller L1 norm, summed
       over all parameters that the coupled channel owns; then the lower index.

    Where a unit holds several channels of one layer (grouped convolutions), a layer's vote for the
    unit is the fraction of them it voted for. Votes for channels that have to stay (outputs of the
    model, protected ones) count for nothing.

    Args:
        graph: of the model.
        votes: layer name → output channels that the layer would remove. A layer that is absent
            has no say; one with an empty list asks for none.

    Returns:
        Units to remove, by group; groups that lose nothing are left out.
    """
    chosen = {}
    norms: Norms = {}
    for group in graph.groups:
        asked = (_ballot(group, name, voted) for name, voted in votes.items())
        ballots = [b for b in asked if b is not None]
        if not ballots:
            continue
        count = min(group.size - group.least, *(int(b.sum() + 1e-9) for b in ballots))
        if count:
            total = np.round(np.sum(ballots, axis=0), 9)
            size = np.sum(group_norms(graph, group, known=norms), axis=0)
            order = np.lexsort((np.arange(group.size), size, -total))
            chosen[group] = np.sort(order[:count])
    return chosen


def _ballot(group: Group, name: str, voted: Iterable[int]) -> np.ndarray | None:
    """A layer's vote for each unit, 0 to 1; None if it makes none of them."""
    members = [m for m in group.members if m.weight.layer == name and m.weight.role == "out"]
    if not members:
        return None
    units, weight = members[0].units, members[0].weight
    mask = np.zeros(weight.channels, bool)
    mask[list(voted)] = True
    mask = np.tile(mask, weight.blocks)
    inside = units >= 0
    owned = np.bincount(units[inside], minlength=group.size)
    return np.bincount(units[inside & mask], minlength=group.size) / np.maximum(owned, 1)
