"""What sums of products do to labels: tensors tie their channels, weights read and make them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ridurre.graph.labels import Labels, LabelSpace, Parameter, Reason, Value, along, varying

#: Names of axes, one per axis of a tensor. Axes of the same name run together.
Names = tuple[Any, ...]


def spread(labels: Labels, names: Sequence[Any], order: Sequence[Any]) -> Labels:
    """Labels with their axes in another order, those they lack of size 1.

    They do not vary along axes that are left out.
    """
    names = list(names)
    kept = [n for n in order if n in names]
    rest = [a for a, n in enumerate(names) if n not in kept]
    moved = labels.transpose([*(names.index(n) for n in kept), *rest])
    moved = moved.reshape(moved.shape[: len(kept)])
    return np.expand_dims(moved, [a for a, n in enumerate(order) if n not in names])


class Product:
    """Tensors with tensors: their channels are tied wherever they meet."""

    def __init__(
        self, values: Sequence[Value], names: Sequence[Names], out: Names, space: LabelSpace
    ) -> None:
        self.names = names
        self.out = out
        self.values = values
        self.labels = [v.labels for v in values]
        self.space = space

    def flow(self) -> Labels:
        everywhere = {name for names in self.names for name in names}
        for name in everywhere:
            if not self._meets(name):
                self._merge(name)
        self._merge_what_others_lack()
        shared = [n for n in everywhere if len(self._holding(n)) > 1]
        self._tie(shared)
        for name in everywhere - set(self.out):
            self._drop(name)
        return self._result()

    def _holding(self, name: Any) -> list[int]:
        """Operands that have an axis and are not just repeated along it."""
        return [
            i
            for i, names in enumerate(self.names)
            if name in names and self.values[i].shape[names.index(name)] != 1
        ]

    def _varying(self, index: int) -> set[Any]:
        return {self.names[index][a] for a in varying(self.labels[index])}

    def _meets(self, name: Any) -> bool:
        """Whether channels along an axis can go: from all operands at once, and as zeros."""
        holding = self._holding(name)
        if not any(name in self._varying(i) for i in holding):
            return True
        if not all(name in self._varying(i) for i in holding):
            return False
        return name in self.out or any(self.values[i].vanishing for i in holding)

    def _merge(self, name: Any) -> None:
        for i in self._holding(name):
            self.labels[i] = self.space.merge(self.labels[i], [self.names[i].index(name)])

    def _merge_what_others_lack(self) -> None:
        """Channels that are summed away cannot differ along an axis that the other lacks."""
        for i, names in enumerate(self.names):
            varies = self._varying(i)
            if varies - set(self.out):
                alone = [n for n in varies if self._holding(n) == [i]]
                axes = [names.index(n) for n in alone]
                self.labels[i] = self.space.merge(self.labels[i], axes)

    def _tie(self, shared: Sequence[Any]) -> None:
        parts = self._spread([*shared, *(n for n in self.out if n not in shared)])
        parts = [x for x in parts if any(n > 1 for n in x.shape[: len(shared)])]
        for other in parts[1:]:
            self.space.tie(parts[0], other)

    def _drop(self, name: Any) -> None:
        """Channels that were summed away; others go with all of theirs."""
        for i, names in enumerate(self.names):
            if name in self._varying(i):
                axis = names.index(name)
                if self._varying(i) <= {name}:
                    self.labels[i] = np.zeros((1,) * self.labels[i].ndim, int)
                else:
                    self.labels[i] = self.space.merge(self.labels[i], [axis])

    def _spread(self, order: Sequence[Any]) -> list[Labels]:
        pairs = zip(self.labels, self.names, strict=True)
        return [spread(labels, names, order) for labels, names in pairs]

    def _result(self) -> Labels:
        parts = self._spread(self.out)
        axes = {a for x in parts for a in varying(x)}
        for labels in parts:
            if set(varying(labels)) == axes:
                return labels
        for labels in parts:  # an outer product: a position goes with either of its factors
            self.space.freeze(labels, Reason.BROADCAST)
        return np.zeros((1,) * len(self.out), int)


class Reading:
    """A tensor with a weight: what is summed over is read, the weight's own axes are made."""

    def __init__(
        self, x: Value, names: Names, weight: Parameter, w: Names, out: Names, space: LabelSpace
    ) -> None:
        self.x, self.names = x, names
        self.weight, self.w = weight, w
        self.out, self.space = out, space

    def flow(self) -> Labels:
        space, weight = self.space, self.weight
        labels = self._readable()
        shared = [n for n in self.w if n in self.names]
        made = [n for n in self.w if n not in self.names and n in self.out]
        space.keep_whole(weight, [self.w.index(n) for n in self.w if n not in shared + made])
        varies = {self.names[a] for a in varying(labels)}
        batch = [n for n in shared if n in self.out and n in varies]
        read = [n for n in shared if n not in batch]
        for name in read:
            role = "channel" if name in self.out else "in"
            found = along(labels, self.names.index(name)) if name in varies else np.zeros(1, int)
            space.own_axis(weight, self.w.index(name), found, role)
        if varies - set(shared):  # channels beside those that are summed over: they pass
            for name in made:
                self._made_of_fixed(name)
            return spread(labels, self.names, self.out)
        if batch:
            return self._by_batch(labels, batch, [n for n in read if n in varies], made)
        return spread(self._produce(made), made, self.out)

    def _readable(self) -> Labels:
        """The tensor's labels, that vary along the weight's axes or along others, not both."""
        labels = self.x.labels
        axes = {n: self.names.index(n) for n in self.names}
        summed = [axes[n] for n in self.names if n not in self.w and n not in self.out]
        labels = self.space.merge(labels, summed)
        varies = [self.names[a] for a in varying(labels)]
        if any(n in self.w for n in varies):
            return self._weighted(
                self.space.merge(labels, [axes[n] for n in varies if n not in self.w])
            )
        return labels

    def _weighted(self, labels: Labels) -> Labels:
        """Along an axis of which the weight has one value for all, or no zeros, all stay."""
        for name in [self.names[a] for a in varying(labels)]:
            stuck = self.weight.shape[self.w.index(name)] == 1
            summed = name not in self.out
            if summed and (stuck or not (self.weight.vanishing or self.x.vanishing)):
                labels = self.space.merge(labels, [self.names.index(name)])
        return labels

    def _by_batch(
        self, labels: Labels, batch: list[Any], read: list[Any], made: list[Any]
    ) -> Labels:
        """Every group by itself: it goes whole, or the same position of all groups."""
        space, weight = self.space, self.weight
        if read and not made:  # nothing is made in a group: only the whole group can go
            labels = space.merge(labels, [self.names.index(n) for n in read])
        ins = spread(labels, self.names, [*batch, *(read if made else ())])
        sizes = ins.shape[: len(batch)]
        if not made:
            for index, name in enumerate(batch):
                space.own_axis(weight, self.w.index(name), along(ins, index), "channel")
            return spread(ins, batch, self.out)
        outs = self._made_by_group(sizes, batch, made)
        both = np.concatenate([ins.reshape(*sizes, -1), outs.reshape(*sizes, -1)], axis=-1)
        groups, n_in = math.prod(sizes), ins.size // math.prod(sizes)
        whole = n_in == 1 or groups >= max(n_in, outs.size // groups)
        space.box(both, prefer=0 if whole else len(batch))
        for index, name in enumerate(batch):
            space.own_axis(weight, self.w.index(name), along(both, index), "channel")
        for index, name in enumerate(made, len(batch)):
            space.own_axis(weight, self.w.index(name), along(outs, index), "out")
        return spread(outs, [*batch, *made], self.out)

    def _made_by_group(self, sizes: tuple[int, ...], batch: list[Any], made: list[Any]) -> Labels:
        """Labels of the channels of every group, the same at every call."""
        weight, order = self.weight, [self.w.index(n) for n in (*batch, *made)]
        wide = [weight.shape[a] or 1 for a in order[len(batch) :]]
        axes = tuple(-1 if (own := weight.axes[a]) is None else own for a in order)
        return self.space.made(weight.variable, axes, (*sizes, *wide))

    def _produce(self, made: list[Any]) -> Labels:
        own = [self.weight.axes[self.w.index(n)] for n in made]
        found = [a for a in own if a is not None]
        labels = self.space.produce(self.weight.variable, *found) if found else np.zeros(1, int)
        return labels.reshape([self.weight.shape[self.w.index(n)] or 1 for n in made])

    def _made_of_fixed(self, name: Any) -> None:
        axis = self.weight.axes[self.w.index(name)]
        if axis is not None:
            self.space.freeze(self.space.produce(self.weight.variable, axis), Reason.SHAPE)
