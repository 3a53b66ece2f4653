"""Contract tables (see `test_rules`): attention, written by hand and by layers."""

from typing import Any

import numpy as np
from keras import layers as L
from keras import ops
from rows import Build, Row, Tensor, blocks, layer, mix, subsets


def attend(x: Tensor, width: int = 3) -> Tensor:
    """Attention with one head, written by hand."""
    query, key = L.Dense(width)(x), L.Dense(width)(x)
    scores = ops.softmax(ops.matmul(query, ops.transpose(key, (0, 2, 1))) / 2)
    return ops.matmul(scores, L.Dense(2)(x))


def heads_of(x: Tensor, heads: int = 2, size: int = 3) -> Tensor:
    """``(batch, heads, positions, size)``."""
    made = ops.reshape(L.Dense(heads * size)(x), (-1, x.shape[1], heads, size))
    return ops.transpose(made, (0, 2, 1, 3))


def attend_by_heads(x: Tensor) -> Tensor:
    query, key, value = heads_of(x), heads_of(x), heads_of(x, size=2)
    scores = ops.softmax(query @ ops.swapaxes(key, -1, -2) / 3**0.5)
    merged = ops.transpose(ops.matmul(scores, value), (0, 2, 1, 3))
    return ops.reshape(merged, (-1, x.shape[1], 4))


def attend_by_einsum(x: Tensor) -> Tensor:
    def project(size: int) -> Tensor:
        return ops.reshape(L.Dense(2 * size)(x), (-1, x.shape[1], 2, size))

    scores = ops.einsum("btnh,bsnh->bnts", project(2), ops.multiply(project(2), 0.5))
    return ops.einsum("bnts,bsnh->btnh", ops.softmax(scores), project(3))


def positive_query(x: Tensor) -> Tensor:
    """The features of the query are positive, those of the key are zero with their weights."""
    query, key = 1 + L.Dense(3, activation="elu")(x), L.Dense(3)(x)
    return ops.einsum("btf,bsf->bts", query, key)


def shared_key(x: Tensor) -> Tensor:
    """Two heads of queries, one of keys: the same position goes in all of them."""
    query = ops.reshape(L.Dense(6)(x), (-1, x.shape[1], 2, 3))
    return ops.einsum("btnh,bsh->btns", query, L.Dense(3)(x))


#: What stands between two dense layers, and how many plans there are.
CONTRACTIONS = {
    "one head": Row(attend, (3, 3), subsets(3, 3, 3, 2)),
    "heads": Row(attend_by_heads, (3, 3), subsets(3) + 2 * blocks(2, 3) + blocks(2, 2)),
    "heads by einsum": Row(attend_by_einsum, (3, 3), subsets(3) + 2 * blocks(2, 2) + blocks(2, 3)),
    "positive query": Row(positive_query, (3, 2), subsets(2, 3, 3)),
    "one key for all heads": Row(shared_key, (3, 2), subsets(2) + blocks(3, 2) + subsets(3)),
    "matmul with itself": Row(lambda x: x @ ops.transpose(x, (0, 2, 1)), (2, 4), subsets(4)),
    "einsum with itself": Row(lambda x: ops.einsum("bpc,bqc->bpq", x, x), (2, 3), 6),
    "einsum of three": Row(
        lambda x: ops.einsum("bpc,bqc,bpc->bpq", x, mix(x), mix(x)), (2, 3), subsets(3, 3, 3)
    ),
    "einsum without an arrow": Row(lambda x: ops.einsum("abk,ac", x, mix(x[:, 0], 2)), (2, 3), 0),
    "einsum with an ellipsis": Row(
        lambda x: ops.einsum("...pc,...qc->...qp", x, mix(x)), (2, 3), subsets(3, 3)
    ),
    "channels beside": Row(lambda x: ops.einsum("bpc,bpd->bcd", x, x[..., :1]), (2, 3), 3),
    "matmul of positions": Row(
        lambda x: ops.matmul(np.arange(6.0, dtype="float32").reshape(2, 3), x), (3, 4), subsets(4)
    ),
    "matmul of a row": Row(lambda x: ops.matmul(x, mix(x)[0, 0]), (2, 3), subsets(3, 3)),
    "matmul that broadcasts": Row(
        lambda x: ops.matmul(x[:, None], ops.swapaxes(mix(x)[:1, None], -1, -2)), (2, 3), 12
    ),
    "dot": Row(lambda x: ops.dot(x, ops.transpose(mix(x)[0])), (2, 3), 12),
    "dot of a row": Row(lambda x: ops.dot(x, mix(x)[0, 0]), (2, 3), 12),
    "inner": Row(lambda x: ops.inner(x, mix(x)[0]), (2, 3), 12),
    "tensordot": Row(lambda x: ops.tensordot(x, mix(x)[0], axes=[[2], [1]]), (2, 3), 12),
    "tensordot of an axis": Row(lambda x: ops.tensordot(x, mix(x)[0, 0], axes=1), (2, 3), 12),
}  # fmt: skip


def attention(heads: int, size: int, *, cross: bool = False, **options: Any) -> Build:
    """Multi-head attention of a tensor to itself, or to others with channels of their own."""
    calls = {
        n: options.pop(n) for n in ("use_causal_mask", "return_attention_scores") if n in options
    }

    def build(x: Tensor) -> Tensor:
        layer = L.MultiHeadAttention(heads, size, **options)
        return layer(x, mix(x, 2), mix(x, 3), **calls) if cross else layer(x, x, **calls)

    return build


def masked(x: Tensor) -> Tensor:
    mask = np.tril(np.ones((3, 3), bool))[None]
    return L.MultiHeadAttention(2, 2)(x, x, attention_mask=mask)


def own_masks(x: Tensor) -> Tensor:
    """A mask of its own for every head: heads stay, their sizes do not."""
    mask = np.arange(2 * 2 * 2).reshape(1, 2, 2, 2) != 3
    return L.MultiHeadAttention(2, 3)(x, x, attention_mask=mask)


def grouped(heads: int, shared: int, size: int, **options: Any) -> Build:
    def build(x: Tensor) -> Tensor:
        return L.GroupQueryAttention(size, heads, shared, **options)(x, mix(x, x.shape[-1]))

    return build


def attend_plainly(**options: Any) -> Build:
    return lambda x: L.Attention(**options)([mix(x), mix(x, 2), mix(x)])


def fused(x: Tensor, *, scale: float | None = None) -> Tensor:
    query, key, value = (ops.reshape(L.Dense(4)(x), (-1, x.shape[1], 2, 2)) for _ in range(3))
    return ops.dot_product_attention(query, key, value, scale=scale)


def there_and_back(tied: bool) -> Build:
    """The first channel chooses rows of the table and has to stay."""

    def build(x: Tensor) -> Tensor:
        table = L.ReversibleEmbedding(4, 3, tie_weights=tied, mask_zero=True)
        return table(x + table(ops.cast(x[:, :, 0] > 0, "int32")), reverse=True)

    return build


def einsum(equation: str, *args: Any, **options: Any) -> Build:
    return layer(L.EinsumDense, equation, *args, **options)


def two_left(*widths: int) -> int:
    """Number of non-empty subsets that leave two or more: see `own_bias`."""
    return sum(2**n - 2 - n for n in widths)


#: Of two heads of three whole ones go, or the same positions in both, or both one and the other.
HEADS = blocks(3, 2) + 2 + 2 * (3 + 3)
#: The same of two heads of two.
SMALL_HEADS = blocks(2, 2) + 2 + 2 * 2
#: Two heads of three where two positions have to stay.
WIDE_HEADS = 3 * 3 + 2 + 2 * 3

ATTENTION = {
    "multi-head": Row(attention(3, 2), (2, 3), subsets(3, 3, 3)),
    "no bias": Row(attention(2, 3, use_bias=False), (2, 2), subsets(2, 2, 2, 3)),
    "no bias but dropout": Row(
        attention(2, 2, value_dim=3, use_bias=False, dropout=0.1), (2, 2), subsets(2, 2, 2, 2, 3)
    ),
    "cross": Row(
        attention(2, 2, value_dim=3, dropout=0.1, cross=True, output_shape=4), (3, 2),
        subsets(2, 2, 3, 2, 4) + two_left(3),
    ),
    "two axes of output": Row(
        attention(2, 2, output_shape=(2, 3)), (2, 2), subsets(2, 2) + WIDE_HEADS
    ),
    "causal": Row(attention(2, 3, use_causal_mask=True), (3, 2), subsets(2, 2, 2) + two_left(3)),
    "scores": Row(
        attention(3, 2, return_attention_scores=True), (2, 2), subsets(2, 2, 3)
    ),
    "gate": Row(attention(2, 3, use_gate=True), (2, 2), subsets(2, 2, 2) + two_left(3)),
    "axes": Row(attention(2, 2, attention_axes=(2,)), (2, 3, 2), subsets(2, 2, 2)),
    "window": Row(attention(2, 2, sliding_window=2), (3, 2), subsets(2, 2, 2)),
    "a mask": Row(masked, (3, 2), subsets(2, 2, 2)),
    "masks of heads": Row(own_masks, (2, 2), subsets(2, 2) + two_left(3)),
    "grouped query": Row(grouped(6, 2, 3), (2, 2), subsets(2, 2, 2, 3) + two_left(3)),
    "multi query": Row(
        grouped(3, 1, 2, use_bias=False, use_gate=True), (2, 2), subsets(2, 2, 2, 3, 2)
    ),
    "as many queries": Row(grouped(2, 2, 2), (2, 2), subsets(2, 2, 2, 2)),
    "attention": Row(lambda x: L.Attention()([x, x]), (2, 3), subsets(3)),
    "attention of three": Row(attend_plainly(use_scale=True), (2, 3), subsets(3, 3, 3, 2)),
    "attention by sums": Row(attend_plainly(score_mode="concat"), (2, 2), subsets(2, 3, 3, 2)),
    "additive": Row(
        lambda x: L.AdditiveAttention()([x, ops.sigmoid(mix(x))]), (2, 3), subsets(3, 3)
    ),
    "additive without scale": Row(
        lambda x: L.AdditiveAttention(use_scale=False)([x, mix(x)]), (2, 3), subsets(3, 3)
    ),
    "attention with scores": Row(
        lambda x: list(L.Attention()([x, mix(x)], return_attention_scores=True)), (2, 3), 12
    ),
    "fused": Row(fused, (3, 2), subsets(2) + 3 * SMALL_HEADS),
    "fused with a scale": Row(lambda x: fused(x, scale=0.5), (2, 2), subsets(2) + 3 * SMALL_HEADS),
    "einsum dense": Row(einsum("abc,cd->abd", (2, 3), bias_axes="d"), (2, 3), subsets(3, 3)),
    "einsum dense to heads": Row(
        einsum("abc,cde->abde", (2, 2, 3), bias_axes="de"), (2, 2), subsets(2) + WIDE_HEADS
    ),
    "einsum dense from heads": Row(
        lambda x: L.EinsumDense("abcd,cde->abe", (2, 3), bias_axes="e")(L.Reshape((2, 2, 3))(x)),
        (2, 6),
        subsets(3) + HEADS,
    ),
    "einsum dense with an ellipsis": Row(
        einsum("...x,xyz->...zy", (2, 3), bias_axes="zy", activation="tanh"), (1, 2, 2),
        subsets(2) + WIDE_HEADS,
    ),
    "einsum dense before an ellipsis": Row(
        einsum("ab...,bc->ac...", 3, bias_axes="c"), (2, 3), subsets(2), 1
    ),
    "einsum dense over positions": Row(einsum("abc,bd->adc", (5, 3)), (2, 3), subsets(3)),
    "einsum dense over positions with a bias": Row(
        einsum("abc,bd->adc", (5, 3), bias_axes="dc"), (2, 3), two_left(3)
    ),
    "einsum dense by groups": Row(
        lambda x: L.EinsumDense("agc,gcd->agd", (2, 2), bias_axes="gd")(L.Reshape((2, 3))(x)),
        (6,), blocks(3, 2),
    ),
    "embedding there and back": Row(there_and_back(True), (2, 3), 2 * 3),
    "embedding there and back by another": Row(there_and_back(False), (2, 3), 2 * 3),
}  # fmt: skip
