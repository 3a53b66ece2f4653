"""Contract tables (see `test_rules`): attention, written by hand and by layers."""

import numpy as np
from keras import layers as L
from keras import ops
from rows import Row, Tensor, blocks, mix, subsets


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
