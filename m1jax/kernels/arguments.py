"""The arguments of attention besides q, k and v: the layer, and the rows or the new tokens that it is applied to.

Every call of a layer has the same weights, window and scale (`AttentionLayer`), and every layer of a model reads the
same tokens (`Rows` in training, `NewTokens` in generation). All implementations take these types. They compute, for
query i and key j of a row, with sums and softmax in float32:

    k'_j  = RoPE(conv_k[0] k_{j-1} + conv_k[1] k_j, p_j)    convolution: KV Shifting Attention, arXiv 2411.19574;
    v'_j  = conv_v[0] v_{j-1} + conv_v[1] v_j               it comes before RoPE on K, as in the reference code
    q'_i  = RoPE(q_i, p_i)
    out_i = sum over j of softmax_j(scale q'_i · k'_j) v'_j, over the keys that query i sees

    RoPE(x, p) turns each pair (x_d, x_{d + D/2}) by the angle p · inv_freq_d, in float32    (arXiv 2104.09864)
    query i sees key j where j <= i, both belong to one document, and i - j < window

The keys of the document before do not reach a document's first token by the convolution either: there k_{j-1} = 0.

Legend: B rows of the batch, S queries, T keys, K KV heads, D head_dim.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


# "axes" of a field: logical names of its array's axes, for `m1jax.parallel`; "static": part of the compiled program.
@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class AttentionLayer:
    """One layer's attention apart from its projections; a pytree whose leaves are the three arrays."""

    conv_k: Array = field(metadata={"axes": ("kv_heads", "conv")})
    """(K, 2), the weights of K's convolution; index 0 weighs the previous token. Used in float32."""
    conv_v: Array = field(metadata={"axes": ("kv_heads", "conv")})
    """(K, 2), the same for V."""
    inv_freq: Array = field(metadata={"axes": (None,)})
    """(D / 2,) float32, radians per position."""
    window: int | None = field(metadata={"static": True})
    """Number of keys that a token sees, itself included; None for all keys up to itself."""
    scale: float = field(metadata={"static": True})
    """Factor of the scores, 1 / sqrt(D) in Baichuan-M1."""
    impl: str = field(default="reference", metadata={"static": True})
    """Implementation that `kernels.attention` and `kernels.decode_attention` choose: see there."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Where the keys and queries of a call are; a pytree, in which an int as `q_offset` is static."""

    positions: Array = field(metadata={"axes": ("batch", "sequence")})
    """(B, T) int32, positions of the keys, as RoPE counts them."""
    segment_ids: Array | None = field(metadata={"axes": ("batch", "sequence")})
    """(B, T) int32, a number for each document of a row, different from its neighbours'; 0 is padding, whose output is
    0. None: every row is one document without padding."""
    prev_kv: tuple[Array, Array] | None = field(default=None, metadata={"axes": ("batch", "kv_heads", None)})
    """K and V as projected, (B, K, D) each, of the token before key 0; zeros in rows where that token does not belong
    to the document of key 0. None means zeros."""
    q_offset: int | Array = field(default=0, metadata={"axes": ()})
    """Index of the key at which the first query is, an int or an int32 scalar; the other queries follow it."""

    @property
    def documents(self) -> Array:
        """(B, T) int32, `segment_ids`, or ones where every row is one document."""
        return jnp.ones(self.positions.shape, jnp.int32) if self.segment_ids is None else self.segment_ids

    def of_queries(self, per_key: Array, queries: int) -> Array:
        """(B, S) of `per_key` (B, T), `positions` or `documents`: the entries of the keys at which queries are."""
        return jax.lax.dynamic_slice_in_dim(per_key, self.q_offset, queries, axis=1)


def _flatten(rows: Rows) -> tuple[tuple[Any, ...], int | None]:
    static = rows.q_offset if isinstance(rows.q_offset, int) else None
    return (rows.positions, rows.segment_ids, rows.prev_kv, rows.q_offset if static is None else None), static


def _unflatten(static: int | None, children: tuple[Any, ...]) -> Rows:
    positions, segment_ids, prev_kv, offset = children
    return Rows(
        positions=positions, segment_ids=segment_ids, prev_kv=prev_kv, q_offset=offset if static is None else static
    )


# An int must not become an array on its way through jit or shard_map: the reference then masks every key of the row.
jax.tree_util.register_pytree_node(Rows, _flatten, _unflatten)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class NewTokens:
    """The tokens that a call appends to a cache: padding to the left, to the right or both of a row changes nothing."""

    lengths: Array
    """(B,) int32, tokens already in the cache: the position of each row's first new token."""
    real: Array
    """(B, S) bool, which tokens are real; the real ones of a row are neighbours. The output at the others is 0."""

    @property
    def positions(self) -> Array:
        """(B, S) int32, positions of the real tokens."""
        return self.lengths[:, None] + jnp.cumsum(self.real, axis=1, dtype=jnp.int32) - 1

    @property
    def counts(self) -> Array:
        """(B,) int32, real tokens of each row."""
        return jnp.sum(self.real, axis=1, dtype=jnp.int32)


def map_arrays[Arguments: (AttentionLayer, Rows)](
    function: Callable[[Array, tuple[str | None, ...]], Any], arguments: Arguments
) -> Arguments:
    """The arguments with `function(array, axes)` in place of each array, where `axes` are its logical axes."""
    changed: dict[str, Any] = {}
    for each in dataclasses.fields(arguments):
        value, axes = getattr(arguments, each.name), each.metadata.get("axes")
        if axes is not None and not isinstance(value, int):
            changed[each.name] = jax.tree.map(functools.partial(lambda axes, x: function(x, axes), axes), value)
    return dataclasses.replace(arguments, **changed)
