"""Random classes of layers and models, as Python code.

A `Writer` writes the lines of a class: sub-layers and sizes into ``__init__``, weights into
``build``, operations into ``call``. Sizes are arguments of the constructor, attributes, or stand in
the code; tensors are reshaped with sizes from any of these or from ``x.shape``; ``build`` builds
what is inside or is left to Keras; ``get_config`` is there or not. Like a model of `architectures`,
a class is a list of steps ``(name in LINES, seed)``, and any part of such a list is one too.

To add a kind of step, write a function of a `Writer` and decorate it with `@line()`. It must leave
each tensor that it makes with `Writer.put`.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import keras
from architectures import Skip
from keras import layers as L
from keras import ops

PACKAGE = "random_classes"
WIDEST = 14


@dataclass(frozen=True)
class Tensor:
    """A tensor in a class's code.

    Attributes:
        name: of the variable that holds it.
        positions: sizes of the axes between the batch and the channels; None where open.
        width: its channels.
        size: how code says the width, given the shape of the input as ``shape``; empty if it
            cannot.
    """

    name: str
    positions: tuple[int | None, ...]
    width: int
    size: str


@dataclass(frozen=True)
class Source:
    """A class as text.

    Attributes:
        name: of the class.
        text: its code.
        needs: classes that the code calls.
        arguments: sizes that its constructor takes, with their defaults.
        outputs: what a call returns.
        builds: whether ``build`` builds all there is inside.
        kinds: the steps that were taken.
    """

    name: str
    text: str
    needs: tuple[Source, ...]
    arguments: tuple[tuple[str, int], ...]
    outputs: tuple[Tensor, ...]
    builds: bool
    kinds: tuple[str, ...]

    def whole(self) -> str:
        """The code with all classes that it needs, inner ones first."""
        return "\n\n".join([*dict.fromkeys(s.whole() for s in self.needs), self.text])


@functools.cache
def class_of(source_text: str, needs: tuple[type, ...] = ()) -> type:
    """The class that a text defines, registered for Keras' files."""
    names = {"keras": keras, "L": L, "ops": ops, "__name__": PACKAGE}
    names |= {cls.__name__: cls for cls in needs}
    before = set(names)
    exec(source_text, names)
    (name,) = names.keys() - before - {"__builtins__"}
    return keras.saving.register_keras_serializable(package=PACKAGE)(names[name])


def made(source: Source) -> type:
    """The class of a source."""
    return class_of(source.text, tuple(made(s) for s in dict.fromkeys(source.needs)))


class Writer:
    """The code of a class so far.

    Args:
        rng: every random choice comes from it.
        positions, width: of the input.
        depth: how deep this class is nested in others.
        model: whether it is a model; its outputs are small then.
    """

    def __init__(
        self,
        rng: random.Random,
        positions: tuple[int | None, ...],
        width: int,
        depth: int = 0,
        model: bool = False,
    ) -> None:
        self.rng, self.depth, self.model = rng, depth, model
        self.live = [Tensor("x", positions, width, "shape[-1]")]
        self.used: set[str] = set()
        self.sizes: dict[str, int] = {}
        self.arguments: dict[str, int] = {}
        self.needs: list[Source] = []
        self.kinds: list[str] = []
        self.init: list[str] = []
        self.build: list[str] = []
        self.inner_builds: list[str] = []
        self.call: list[str] = []
        self.count = 0
        self.style = rng.choice(("plain", "plain", "builds", "builds", "lazy"))
        self.config = rng.choice(("says", "says", "says", "auto", "silent"))

    # choices

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def choice(self, options: Iterable):
        return self.rng.choice(list(options))

    def some_width(self) -> int:
        return self.rng.choice((3, 3, 5, 5, 7, 2, 4, 6))

    def pick(self, *ranks: int, where: Callable[[Tensor], bool] = lambda x: True) -> Tensor:
        """A tensor that exists, rather a late one."""
        found = [x for x in self.live if (not ranks or len(x.positions) + 2 in ranks) and where(x)]
        if not found:
            raise Skip
        return self.reads(self.rng.choice(found[-2:] if self.chance(0.7) else found))

    def reads(self, x: Tensor) -> Tensor:
        self.used.add(x.name)
        return x

    def mate(self, x: Tensor) -> Tensor:
        """Another tensor of the same shape."""
        same = [y for y in self.live if (y.positions, y.width) == (x.positions, x.width)]
        if same and self.chance(0.6):
            return self.reads(self.choice(same))
        return self.dense(x, x.width)

    # writing

    def fresh(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def size(self, value: int, stem: str = "size") -> str:
        """How ``__init__`` and everything after it says a size."""
        known = [k for k, v in self.sizes.items() if v == value]
        if known and self.chance(0.3):
            return f"self.{self.choice(known)}"
        kind = self.choice(("argument", "argument", "attribute", "number"))
        if kind == "number":
            return str(value)
        name = self.fresh(stem)
        self.sizes[name] = value
        if kind == "argument":
            self.arguments[name] = value
        self.init.append(f"self.{name} = {name if kind == 'argument' else value}")
        return f"self.{name}"

    def like(self, x: Tensor) -> str:
        """How to say the width of a tensor when layers are made: as it is known, or in numbers."""
        return x.size if x.size and self.chance(0.8) else str(x.width)

    def width_in_call(self, x: Tensor) -> str:
        """How ``call`` says the width of a tensor."""
        options = [f"{x.name}.shape[-1]"] * 3 + [f"ops.shape({x.name})[-1]"]
        if x.size:
            options += [in_call(x.size)] * 3
        return self.choice([*options, str(x.width)] if self.chance(0.3) else options)

    def layer(self, stem: str, maker: str, *inputs: Tensor) -> str:
        """Make a sub-layer, in ``build`` if its size is that of the input; returns its name."""
        name = self.fresh(stem)
        self.make(f"self.{name} = {maker}")
        self.builds(f"self.{name}", *inputs)
        return f"self.{name}"

    def make(self, text: str) -> None:
        (self.build if "shape[" in text else self.init).append(text)

    def builds(self, layer: str, *inputs: Tensor) -> None:
        """Where ``build`` builds what is inside, this layer too."""
        self.inner_builds += [f"{layer}.build({', '.join(map(shape_text, inputs))})"]
        if not all(x.size for x in inputs) and self.style == "builds":
            self.style = "plain"
        self.build.append(f"#{len(self.inner_builds) - 1}")

    def weight(self, stem: str, sizes: list[str], **options: str) -> str:
        """A weight of the class's own; returns its name."""
        name = self.fresh(stem)
        shape = "".join(f"{n}, " for n in sizes).strip()
        more = "".join(f", {k}={v}" for k, v in options.items())
        text = f'self.{name} = self.add_weight(shape=({shape}), name="{name}"{more})'
        (self.init if "shape[" not in shape and self.chance(0.4) else self.build).append(text)
        return f"self.{name}"

    def put(
        self, text: str, positions: tuple[int | None, ...], width: int, size: str = ""
    ) -> Tensor:
        """One more line of ``call``, and the tensor that it makes."""
        if not 0 < width <= WIDEST:
            raise Skip
        x = Tensor(self.fresh("x"), positions, width, size)
        self.call.append(f"{x.name} = {text}")
        self.live.append(x)
        return x

    def same(self, text: str, x: Tensor) -> Tensor:
        """One more line, whose result has the shape of a tensor."""
        return self.put(text, x.positions, x.width, x.size)

    def dense(self, x: Tensor, width: int, size: str = "", **options: str) -> Tensor:
        """A dense sub-layer; the tensor is read by what asked for it."""
        self.reads(x)
        size = size or self.size(width, "units")
        more = "".join(f", {k}={v}" for k, v in options.items())
        y = self.put(
            f"{self.layer('dense', f'L.Dense({size}{more})', x)}({x.name})",
            x.positions,
            width,
            size,
        )
        return self.reads(y)

    def run(self, kind: str, seed: int) -> bool:
        """Take one step; whether it found something to do."""
        lists = "live init build inner_builds call needs kinds".split()
        before = {k: list(getattr(self, k)) for k in lists}
        others = self.used.copy(), self.sizes.copy(), self.arguments.copy(), self.style
        self.rng = random.Random(seed)
        try:
            LINES[kind](self)
        except Skip:
            vars(self).update(before)
            self.used, self.sizes, self.arguments, self.style = others
            return False
        self.kinds.append(kind)
        return True

    # the whole

    def leaves(self) -> list[Tensor]:
        return [x for x in self.live if x.name not in self.used]

    def finish(self, rng: random.Random) -> Source:
        """The class as it stands; what nothing reads is returned."""
        self.rng = rng
        if self.live[-1].name == "x":
            self.same("ops.relu(x)", self.reads(self.live[0]))
        leaves = self.leaves()
        if self.model:
            for x in leaves:
                if x.positions and self.chance(0.6):
                    x = self.pooled(x)
                self.used.discard(self.dense(x, 2, "2").name)
            leaves = self.leaves()
        elif len(leaves) > 1 and (self.depth or self.chance(0.6)):
            leaves = [self.joined(leaves)]
        returned = leaves[0].name if len(leaves) == 1 else self._several(leaves)
        return self._source(tuple(leaves), returned)

    def _several(self, leaves: list[Tensor]) -> str:
        names = ", ".join(x.name for x in leaves)
        return self.choice((names, f"[{names}]"))

    def joined(self, leaves: list[Tensor]) -> Tensor:
        """One tensor of several."""
        if len({x.positions for x in leaves}) > 1:
            leaves = [self.pooled(x) if x.positions else x for x in leaves]
        while len(leaves) > 1:
            a, b, *rest = leaves
            if a.width + b.width > WIDEST:
                a, b = self.dense(a, 3), self.dense(b, 4)
            leaves = [*rest, concatenated(self, self.reads(a), self.reads(b))]
        return leaves[0]

    def pooled(self, x: Tensor) -> Tensor:
        axes = tuple(range(1, len(x.positions) + 1))
        axis = axes[0] if len(axes) == 1 and self.chance(0.5) else axes
        function = self.choice(("mean", "mean", "max", "sum"))
        return self.put(f"ops.{function}({self.reads(x).name}, axis={axis})", (), x.width, x.size)

    def _source(self, outputs: tuple[Tensor, ...], returned: str) -> Source:
        cls = "keras.Model" if self.model else "L.Layer"
        silent = self.config == "silent"
        given = "".join(f", {k}={v}" for k, v in self.arguments.items())
        lines = [f"    def __init__(self{given}, **kwargs):", "        super().__init__(**kwargs)"]
        lines += [f"        {text}" for text in self.init]
        build = self._build_lines()
        if build:
            lines += ["", "    def build(self, shape):", *(f"        {t}" for t in build)]
        lines += ["", "    def call(self, x, training=False):"]
        lines += [f"        {t}" for t in [*self.call, f"return {returned}"]]
        if (self.config == "says" and self.arguments) or silent:
            sizes = "" if silent else ", ".join(f'"{k}": self.{k}' for k in self.arguments)
            lines += ["", "    def get_config(self):"]
            lines += ["        return super().get_config()" + (f" | {{{sizes}}}" if sizes else "")]
        body = "\n".join(lines)
        name = "Own" + hashlib.sha1(body.encode()).hexdigest()[:8]
        return Source(
            name,
            f"class {name}({cls}):\n{body}\n",
            tuple(self.needs),
            () if silent else tuple(self.arguments.items()),
            outputs,
            self.style == "builds",
            tuple(self.kinds),
        )

    def _build_lines(self) -> list[str]:
        lines = []
        for text in self.build:
            if not text.startswith("#"):
                lines.append(text)
            elif self.style == "builds":
                lines.append(self.inner_builds[int(text[1:])])
        if lines and self.style == "builds":
            lines.append("super().build(shape)" if self.model else "self.built = True")
        return lines


def in_call(size: str) -> str:
    """A size as ``call`` says it."""
    return size.replace("shape[", "x.shape[")


def shape_text(x: Tensor) -> str:
    """The shape of a tensor, in ``build``."""
    if x.name == "x":
        return "shape"
    start = "*shape[:-1]" if x.positions else "shape[0]"
    return f"({start}, {x.size or x.width})"


def concatenated(w: Writer, x: Tensor, y: Tensor) -> Tensor:
    size = f"{x.size} + {y.size}" if x.size and y.size else ""
    axis = w.choice((-1, -1, len(x.positions) + 1))
    return w.put(
        f"ops.concatenate([{x.name}, {y.name}], axis={axis})", x.positions, x.width + y.width, size
    )


LINES: dict[str, Callable[[Writer], None]] = {}
NAMES: list[str] = []


def line(weight: int = 4) -> Callable:
    """Decorator: one kind of step, drawn in proportion to its weight."""

    def register(function: Callable[[Writer], None]) -> Callable[[Writer], None]:
        LINES[function.__name__] = function
        NAMES.extend([function.__name__] * weight)
        return function

    return register


def steps(rng: random.Random, count: int) -> tuple[tuple[str, int], ...]:
    """Random steps of a class."""
    return tuple((rng.choice(NAMES), rng.randrange(2**16)) for _ in range(count))


def is_open(x: Tensor) -> bool:
    return None in x.positions
