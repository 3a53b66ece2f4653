"""What the code of random classes does (see `random_classes`), a function for each kind of line."""

from __future__ import annotations

from architectures import Skip
from random_classes import Tensor, Writer, concatenated, in_call, is_open, line, steps

FUNCTIONS = "ops.relu ops.gelu ops.tanh ops.sigmoid ops.silu keras.activations.elu abs".split()
ACTIVATIONS = ("None", '"relu"', '"gelu"', "ops.tanh", "keras.activations.sigmoid")


# ---- sub-layers


@line(8)
def dense(w: Writer) -> None:
    x = w.pick()
    options = {"activation": w.choice(ACTIVATIONS)} if w.chance(0.6) else {}
    if w.chance(0.2):
        options["use_bias"] = "False"
    leave(w, w.dense(x, w.some_width(), **options))


def leave(w: Writer, x: Tensor) -> None:
    """Nothing has read this yet."""
    w.used.discard(x.name)


@line()
def conv(w: Writer) -> None:
    x = w.pick(3, 4)
    width = w.some_width()
    size = w.size(width, "filters")
    cls = f"L.Conv{len(x.positions)}D"
    kernel = w.choice((1, 2, 3))
    name = w.layer("conv", f'{cls}({size}, {kernel}, padding="same")', x)
    w.put(f"{name}({x.name})", x.positions, width, size)


@line(2)
def depthwise(w: Writer) -> None:
    x = w.pick(3, 4)
    cls = f"L.DepthwiseConv{len(x.positions)}D"
    w.same(f'{w.layer("depthwise", f"""{cls}(3, padding="same")""", x)}({x.name})', x)


@line()
def batch_norm(w: Writer) -> None:
    x = w.pick()
    given = w.choice(("", "", ", training=training"))
    w.same(f"{w.layer('norm', 'L.BatchNormalization()', x)}({x.name}{given})", x)


@line(2)
def layer_norm(w: Writer) -> None:
    x = w.pick()
    kind = w.choice(("LayerNormalization", "RMSNormalization", "LayerNormalization"))
    w.same(f"{w.layer('norm', f'L.{kind}()', x)}({x.name})", x)


@line(2)
def passing(w: Writer) -> None:
    x = w.pick()
    maker = w.choice(("L.Dropout(0.2)", "L.ReLU()", 'L.Activation("gelu")', "L.Identity()"))
    given = ", training=training" if "Dropout" in maker else ""
    w.same(f"{w.layer('pass', maker, x)}({x.name}{given})", x)


@line(5)
def attention(w: Writer) -> None:
    x = w.pick(3)
    y = w.reads(w.choice(t for t in w.live if len(t.positions) == 1)) if w.chance(0.2) else x
    heads, size = w.choice((1, 2, 3)), w.choice((2, 3))
    heads_size = w.size(heads, "heads")
    if w.chance(0.6) or x.width != y.width:
        maker = f"L.MultiHeadAttention({heads_size}, {w.size(size, 'key')}"
        maker += f", value_dim={w.size(4, 'value')})" if w.chance(0.3) else ")"
    else:
        groups = w.choice(n for n in (1, 2, 3) if heads % n == 0)
        maker = f"L.GroupQueryAttention({w.size(size, 'key')}, {heads_size}, {groups})"
    causal = ", use_causal_mask=True" if w.chance(0.2) else ""
    w.same(f"{w.layer('attention', maker, x, y)}({x.name}, {y.name}{causal})", x)


@line(3)
def sequential(w: Writer) -> None:
    x = w.pick()
    hidden, width = w.size(w.some_width(), "hidden"), w.some_width()
    size = w.size(width, "units")
    between = w.choice(("", "L.ReLU(), ", "L.BatchNormalization(), ", "L.Dropout(0.1), "))
    maker = f'keras.Sequential([L.Dense({hidden}, activation="relu"), {between}L.Dense({size})])'
    w.put(f"{w.layer('net', maker, x)}({x.name})", x.positions, width, size)


@line(2)
def einsum_dense(w: Writer) -> None:
    x = w.pick(3)
    width = w.some_width()
    size = w.size(width, "units")
    # Keras takes a size that is not said for open, whatever comes in.
    maker = f'L.EinsumDense("abc,cd->abd", ({x.positions[0]}, {size}), bias_axes="d")'
    w.put(f"{w.layer('einsum', maker, x)}({x.name})", x.positions, width, size)


@line(2)
def recurrent(w: Writer) -> None:
    x = w.pick(3)
    width = w.choice((2, 3, 5))
    size = w.size(width, "units")
    maker = f"L.{w.choice(('GRU', 'LSTM', 'SimpleRNN'))}({size}, return_sequences=True)"
    w.put(f"{w.layer('recurrent', maker, x)}({x.name})", x.positions, width, size)


@line(2)
def repeated(w: Writer) -> None:
    """Layers in a list, in a loop."""
    x = w.pick()
    name = w.fresh("layers")
    maker = w.choice((f'L.Dense({w.like(x)}, activation="relu")', "L.BatchNormalization()"))
    w.make(f"self.{name} = [{maker} for _ in range(2)]")
    for index in range(2):
        w.builds(f"self.{name}[{index}]", x)
    y = w.same(x.name, x)
    w.call.append(f"for layer in self.{name}:")
    w.call.append(f"    {y.name} = {w.choice((f'{y.name} + ', ''))}layer({y.name})")


@line(2)
def shared(w: Writer) -> None:
    """One sub-layer, called twice."""
    x = w.pick()
    y = w.mate(x)
    width = w.some_width()
    size = w.size(width, "units")
    name = w.layer("shared", f"L.Dense({size})", x)
    w.put(f"{name}({x.name}) + {name}({y.name})", x.positions, width, size)


@line(4)
def another_class(w: Writer) -> None:
    """A layer of a random class."""
    if w.depth > 1:
        raise Skip
    x = w.pick()
    inner = Writer(w.rng, x.positions, x.width, w.depth + 1)
    for kind, seed in steps(w.rng, w.rng.randint(2, 4)):
        inner.run(kind, seed)
    source = inner.finish(w.rng)
    (y,) = source.outputs
    w.needs.append(source)
    given = [f"{k}={w.size(n)}" for k, n in source.arguments if w.chance(0.5)]
    name = w.fresh("own")
    w.make(f"self.{name} = {source.name}({', '.join(given)})")
    if source.builds:
        w.builds(f"self.{name}", x)
    elif w.style == "builds":
        w.style = "plain"
    size = x.size if y.size == "shape[-1]" else ""
    w.put(f"self.{name}({x.name})", y.positions, y.width, size)


# ---- weights of its own


@line(4)
def scale(w: Writer) -> None:
    x = w.pick()
    gamma = w.weight("gamma", [w.like(x)])
    text = w.choice(
        (
            f"{x.name} * {gamma}",
            f"{gamma} * {x.name}",
            f"ops.multiply({x.name}, {gamma})",
            f"ops.add({x.name}, ops.tanh({gamma}))",
            f"{x.name} * (1 + {gamma})",
            f"{x.name} - {gamma}",
        )
    )
    w.same(text, x)


@line(2)
def scale_of_a_pair(w: Writer) -> None:
    """Weights in a list."""
    x = w.pick()
    name = w.fresh("pair")
    text = f'self.add_weight(shape=({w.like(x)},), name=f"{name}_{{i}}")'
    w.build.append(f"self.{name} = [{text} for i in range(2)]")
    w.same(f"{x.name} * self.{name}[0] + self.{name}[1]", x)


@line(5)
def matrix(w: Writer) -> None:
    x = w.pick()
    width = w.some_width()
    size = w.size(width, "units")
    n = w.like(x)
    letters = "abcd"[: len(x.positions) + 1]
    kind = w.choice(("matmul", "at", "einsum", "ellipsis", "tensordot", "transposed", "bias"))
    if kind == "transposed":
        kernel = w.weight("kernel", [size, n])
        turn = w.choice((f"ops.transpose({kernel})", f"ops.swapaxes({kernel}, 0, 1)"))
        text = f"ops.matmul({x.name}, {turn})"
    else:
        kernel = w.weight("kernel", [n, size])
        text = {
            "matmul": f"ops.matmul({x.name}, {kernel})",
            "at": f"{x.name} @ {kernel}",
            "einsum": f'ops.einsum("{letters}y,yz->{letters}z", {x.name}, {kernel})',
            "ellipsis": f'ops.einsum("...y,yz->...z", {x.name}, {kernel})',
            "tensordot": f"ops.tensordot({x.name}, {kernel}, axes=1)",
            "bias": f"ops.matmul({x.name}, {kernel}) + ",
        }[kind]
        if kind == "bias":
            text += w.weight("bias", [size], initializer='"zeros"')
    w.put(text, x.positions, width, size)


@line(3)
def places(w: Writer) -> None:
    """A table of positions."""
    x = w.pick(3, where=lambda t: not is_open(t))
    n, width = x.positions[0], w.like(x)
    extra = w.choice((0, 0, 2))
    kind = w.choice(("batch", "plain", "expand", "layer"))
    cut = f"[:{w.choice((f'{x.name}.shape[1]', str(n)))}]" if extra else ""
    if kind == "layer":
        name = w.layer("places", f"L.Embedding({n}, {width})")
        w.inner_builds[-1] = f"{name}.build(({n},))"
        text = f"{x.name} + {name}(ops.arange({n}))"
    elif kind == "batch":
        table = w.weight("places", ["1", str(n + extra), width])
        text = f"{x.name} + {table}" + (f"[:, {cut[1:]}" if cut else "")
    else:
        table = w.weight("places", [str(n + extra), width]) + cut
        text = f"{x.name} + " + (f"ops.expand_dims({table}, 0)" if kind == "expand" else table)
    w.same(text, x)


@line(2)
def scalar(w: Writer) -> None:
    x = w.pick()
    y = w.mate(x)
    alpha = w.weight("alpha", [])
    w.same(f"{x.name} + {alpha} * {y.name}", x)


@line(2)
def blend(w: Writer) -> None:
    """A weight between two tensors."""
    x = w.pick()
    y = w.mate(x)
    gate = w.fresh("g")
    w.call.append(f"{gate} = ops.sigmoid({w.weight('mix', [w.like(x)])})")
    w.same(f"{gate} * {x.name} + (1 - {gate}) * {y.name}", x)


# ---- operations


@line(3)
def function(w: Writer) -> None:
    x = w.pick()
    w.same(f"{w.choice(FUNCTIONS)}({x.name})", x)


@line(2)
def arithmetic(w: Writer) -> None:
    x = w.pick()
    text = w.choice(("0.5 * {0}", "ops.where({0} > 0, {0}, 0.1 * {0})", "{0} * ops.sigmoid({0})"))
    w.same(text.format(x.name), x)


@line(6)
def residual(w: Writer) -> None:
    x = w.pick()
    size = w.like(x)
    if w.chance(0.7):
        inner = w.dense(x, w.some_width(), activation='"relu"')
        y = w.dense(inner, x.width, size)
    else:
        y = w.mate(x)
    w.same(w.choice((f"{x.name} + {y.name}", f"ops.add({y.name}, {x.name})")), x)


@line(3)
def merge(w: Writer) -> None:
    x = w.pick()
    y = w.mate(x)
    text = w.choice(("{0} * {1}", "ops.maximum({0}, {1})", "{0} - {1}", "({0} + {1}) / 2"))
    w.same(text.format(x.name, y.name), x)


@line(3)
def concatenate(w: Writer) -> None:
    x = w.pick()
    near = [y for y in w.live if y.positions == x.positions and y.width + x.width <= 14]
    y = w.reads(w.choice(near)) if near and w.chance(0.6) else w.dense(x, w.some_width())
    concatenated(w, x, y)


@line(4)
def gate(w: Writer) -> None:
    """Two halves, one of which weighs the other."""
    x, n = w.pick(), w.choice((2, 3, 3, 5))
    size = w.size(n, "half")
    both = w.dense(x, 2 * n, f"2 * {size}")
    a, b = w.fresh("a"), w.fresh("b")
    half = w.choice((in_call(size), f"{both.name}.shape[-1] // 2"))
    w.call.append(
        w.choice(
            (
                f"{a}, {b} = ops.split({both.name}, 2, axis=-1)",
                f"{a}, {b} = {both.name}[..., :{half}], {both.name}[..., {half}:]",
                f"{a}, {b} = {both.name}[..., ::2], {both.name}[..., 1::2]",
            )
        )
    )
    w.put(f"{a} * ops.sigmoid({b})", x.positions, n, size)


@line(3)
def squeeze(w: Writer) -> None:
    """Squeeze and excite."""
    x = w.pick(3, 4)
    pooled = w.reads(w.pooled(x))
    hidden = w.dense(pooled, w.some_width(), activation='"relu"')
    y = w.dense(hidden, x.width, w.like(x), activation='"sigmoid"')
    nones = ", ".join(["None"] * len(x.positions))
    ones = "1, " * len(x.positions)
    form = w.choice(
        (f"{y.name}[:, {nones}]", f"ops.reshape({y.name}, (-1, {ones}{w.width_in_call(x)}))")
    )
    w.same(f"{x.name} * {form}", x)


@line(2)
def mix_positions(w: Writer) -> None:
    """Tokens are mixed as channels are, as in MLP-Mixer."""
    x = w.pick(3, where=lambda t: not is_open(t))
    n = x.positions[0]
    turned = w.choice((f"ops.transpose({x.name}, (0, 2, 1))", f"ops.swapaxes({x.name}, 1, 2)"))
    name = w.fresh("tokens")
    w.make(f"self.{name} = L.Dense({n})")
    w.builds(f"self.{name}", x)
    w.inner_builds[-1] = f"self.{name}.build((shape[0], {x.size or x.width}, {n}))"
    w.same(f"ops.transpose(self.{name}({turned}), (0, 2, 1))", x)


@line(3)
def shuffle(w: Writer) -> None:
    """Channels in groups, shuffled."""
    x = w.pick(3)
    groups, each = w.choice(((2, 2), (2, 3), (3, 2), (2, 4)))
    width = groups * each
    h, d = w.size(groups, "groups"), w.size(each, "each")
    size = f"{h} * {d}"
    y = w.dense(x, width, size)
    total = w.width_in_call(y)
    start, z = lead(w, y), w.fresh("z")
    parts = [f"{h}, {d}", f"{h}, {total} // {h}"]
    if "-1" not in start:
        parts += [f"-1, {d}", f"{h}, -1"]
    w.call.append(f"{z} = ops.reshape({y.name}, ({start}, {w.choice(parts)}))")
    weighed = ""
    if w.chance(0.3):
        shape = w.choice(([h, d], [h, "1"], [d]))
        weighed = f" * {w.weight('per_head', shape)}"
    w.call.append(f"{z} = {z}{weighed}")
    if w.chance(0.6):
        w.call.append(f"{z} = ops.transpose({z}, (0, 1, 3, 2))")
    w.put(f"ops.reshape({z}, ({start}, {total}))", x.positions, width, size)


def lead(w: Writer, x: Tensor) -> str:
    """Batch and positions, for a reshape."""
    options = [f"ops.shape({x.name})[0], ops.shape({x.name})[1]"]
    if not is_open(x):
        options += [f"-1, {x.positions[0]}", f"-1, {x.name}.shape[1]"]
    return w.choice(options)


@line(5)
def attention_by_hand(w: Writer) -> None:
    """From scratch: sizes are attributes or stand in the code."""
    x = w.pick(3)
    heads, each = w.choice(((1, 3), (2, 2), (2, 3), (3, 2)))
    h, d = w.size(heads, "heads"), w.size(each, "each")
    start = lead(w, x)
    if w.chance(0.4):
        qkv = w.dense(x, 3 * heads * each if heads * each < 5 else 12, f"3 * {h} * {d}")
        if qkv.width != 3 * heads * each:
            raise Skip
        z = w.fresh("z")
        w.call.append(f"{z} = ops.reshape({qkv.name}, ({start}, 3, {h}, {d}))")
        q, k, v = (f"{z}[:, :, {i}]" for i in range(3))
    else:
        made = [w.dense(x, heads * each, f"{h} * {d}") for _ in range(3)]
        q, k, v = (f"ops.reshape({y.name}, ({start}, {h}, {d}))" for y in made)
    if w.chance(0.5):
        s, o = w.fresh("s"), w.fresh("o")
        scale = w.choice((f"{in_call(d)} ** 0.5", "1.5", "1.0"))
        w.call.append(f'{s} = ops.einsum("bqhd,bkhd->bhqk", {q}, {k}) / {scale}')
        w.call.append(f'{o} = ops.einsum("bhqk,bkhd->bqhd", ops.softmax({s}), {v})')
    else:
        a, b, c, s, o = (w.fresh(n) for n in "abcso")
        for name, text in ((a, q), (b, k), (c, v)):
            w.call.append(f"{name} = ops.transpose({text}, (0, 2, 1, 3))")
        w.call.append(f"{s} = ops.matmul({a}, ops.transpose({b}, (0, 1, 3, 2)))")
        w.call.append(f"{o} = ops.matmul(ops.softmax({s} * 0.5, axis=-1), {c})")
        w.call.append(f"{o} = ops.transpose({o}, (0, 2, 1, 3))")
    total = f"{h} * {d}"
    y = w.put(f"ops.reshape({o}, ({start}, {total}))", x.positions, heads * each, f"{h} * {d}")
    if w.chance(0.7):
        leave(w, w.dense(y, x.width, w.like(x)))


@line(1)
def stacked(w: Writer) -> None:
    """Two tensors of a shape, channel by channel."""
    x = w.pick(3, where=lambda t: t.width < 7)
    y = w.mate(x)
    z = w.fresh("z")
    w.call.append(f"{z} = ops.stack([{x.name}, {y.name}], axis={w.choice((-1, 2))})")
    n = w.width_in_call(x)
    size = f"2 * ({x.size})" if x.size else ""
    w.put(f"ops.reshape({z}, ({lead(w, x)}, 2 * ({n})))", x.positions, 2 * x.width, size)


@line(2)
def pool(w: Writer) -> None:
    x = w.pick(3, 4)
    if len(x.positions) == 1 and w.chance(0.4):
        w.put(f"{x.name}[:, {w.choice((0, -1))}]", (), x.width, x.size)
    else:
        w.pooled(x)


@line(2)
def pool_with_query(w: Writer) -> None:
    """A weight looks for what it likes among the positions."""
    x = w.pick(3)
    query = w.weight("query", [w.like(x)])
    s = w.fresh("s")
    score = w.choice((f"ops.sum({x.name} * {query}, axis=-1)", f"ops.dot({x.name}, {query})"))
    w.call.append(f"{s} = ops.softmax({score}, axis=1)")
    w.put(f'ops.einsum("bs,bsd->bd", {s}, {x.name})', (), x.width, x.size)


@line(1)
def across(w: Writer) -> None:
    """What cannot go on without all channels, or counts them."""
    x = w.pick()
    text = w.choice(
        (
            "{0} - ops.mean({0}, axis=-1, keepdims=True)",
            "{0} / {0}.shape[-1] ** 0.5",
            "ops.softmax({0}, axis=-1)",
            "ops.cumsum({0}, axis=-1)",
        )
    )
    w.same(text.format(x.name), x)
