"""`kernels.attention` over a mesh: heads over `tensor`, rows over `replica`, `data` and `fsdp`, tokens over `context`.

A row of S tokens lies contiguously over C context shards of s = S / C tokens, as the batch arrives; every layer and the
loss keep that order.

- Window layers fetch a halo of W tokens from the shards before, in ceil(W / s) hops: the W - 1 keys that a shard's
  first query sees, and one raw token more, for the first key's convolution. The load is even from token W on.
- Global layers, and windows beyond S - s, gather K and V along `context`; the gradient is then a reduce-scatter. Under
  a causal mask contiguous shards would do 1 : 3 : 5 … : 2C - 1 of the work, the last of them (2C - 1) / C of the mean.
  So each shard swaps the second half of its queries with the shard that mirrors it (i with C - 1 - i), and swaps the
  outputs back: the halves 2i and 2C - 1 - 2i together cost every shard the same.

Legend: B rows, S queries, T keys, H query heads, K KV heads, D head_dim, of the whole; s, h, … of one shard.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from m1jax import kernels
from m1jax.errors import UserError
from m1jax.parallel.mesh import BATCH_AXES

Array = jax.Array


def partitioned(mesh: Mesh, attention: kernels.AttentionFunction = kernels.attention) -> kernels.AttentionFunction:
    """`attention` under shard_map over `mesh`, with the arguments and results of `kernels.attention`.

    Every array may lie anywhere; the result lies as `parallel.rules` lays activations. Differentiable in all that
    `attention` is. KV heads that `tensor` does not divide are held by every device, which cuts out those that its query
    heads read. On a mesh of one device it is `attention` itself.

    Raises UserError (when called) where rows, tokens or heads do not divide over the mesh, and for `prev_kv`,
    `q_offset` or T != S where `context` exceeds 1: such calls continue a row, and there a row is whole.
    """
    return attention if mesh.size == 1 else functools.partial(_over_mesh, mesh, attention)


def _over_mesh(
    mesh: Mesh,
    attention: kernels.AttentionFunction,
    q: Array,
    k: Array,
    v: Array,
    *,
    conv_k: Array,
    conv_v: Array,
    inv_freq: Array,
    positions: Array,
    segment_ids: Array | None,
    window: int | None,
    prev_kv: tuple[Array, Array] | None = None,
    q_offset: int | Array = 0,
    return_lse: bool = False,
    **settings: Any,
) -> Any:
    (B, S, H, _), (T, K) = q.shape, k.shape[1:3]
    tensor, context = mesh.shape["tensor"], mesh.shape["context"]
    rows = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    for size, what, parts, axes in (
        (B, "rows", rows, "replica x data x fsdp"),
        (S, "tokens of a row", context, "context"),
        (H, "query heads", tensor, "tensor"),
    ):
        if size % parts:
            raise UserError(
                f"attention cannot cut {size} {what} over {parts} devices (mesh axes {axes}): choose a divisor."
            )
    whole = prev_kv is None and T == S and isinstance(q_offset, int) and q_offset == 0
    if context > 1 and not whole:
        raise UserError(
            f"attention over mesh.context = {context} takes whole rows, not {S} queries at offset {q_offset} of {T} "
            f"keys{'' if prev_kv is None else ' with prev_kv'}: set mesh.context = 1."
        )
    if context > 1 and segment_ids is None:  # a halo before the row is padding, which only ids can say
        segment_ids = jnp.ones((B, S), jnp.int32)
    heads = None if K % tensor else "tensor"
    tokens, keys = PartitionSpec(BATCH_AXES, "context"), PartitionSpec(BATCH_AXES, "context", heads)
    queries, before = PartitionSpec(BATCH_AXES, "context", "tensor"), PartitionSpec(BATCH_AXES, heads)
    weights = PartitionSpec(heads)

    def shard(q: Array, inv_freq: Array, ids: tuple[Array, Any], kv: Any) -> Any:
        (k, v), conv, prev_kv = kv
        if heads is None and tensor > 1:
            own = functools.partial(_own_kv_heads, num_heads=H, num_kv_heads=K, parts=tensor)
            k, v = own(k, axis=2), own(v, axis=2)
            conv = tuple(own(weight, axis=0) for weight in conv)
            prev_kv = prev_kv and tuple(own(x, axis=1) for x in prev_kv)
        local = functools.partial(
            attention,
            conv_k=conv[0],
            conv_v=conv[1],
            inv_freq=inv_freq,
            window=window,
            return_lse=return_lse,
            **settings,
        )
        if context == 1:
            return local(q, k, v, positions=ids[0], segment_ids=ids[1], prev_kv=prev_kv, q_offset=q_offset)
        if window is None or window > S - S // context:
            positions, segment_ids = (lax.all_gather(x, "context", axis=1, tiled=True) for x in ids)
            k, v = (_gathered(x) for x in (k, v))
            return _mirrored(
                functools.partial(local, k=k, v=v, positions=positions, segment_ids=segment_ids), q, context
            )
        k, v, positions, segment_ids = (_with_halo(x, window, context) for x in (k, v, *ids))
        return local(q, k, v, positions=positions, segment_ids=segment_ids, q_offset=window)

    # Replication is not tracked (check_vma), because Pallas calls do not declare it; the gradient of what several
    # devices read is summed over them either way.
    run = jax.shard_map(
        shard,
        mesh=mesh,
        in_specs=(queries, PartitionSpec(), (tokens, tokens), ((keys, keys), (weights, weights), before)),
        out_specs=(queries, queries) if return_lse else queries,
        check_vma=False,
    )
    return run(q, inv_freq, (positions, segment_ids), ((k, v), (conv_k, conv_v), prev_kv))


def _own_kv_heads(x: Array, *, axis: int, num_heads: int, num_kv_heads: int, parts: int) -> Array:
    """Of all KV heads along `axis` those that this tensor shard's query heads read.

    A head that serves several groups of its query heads, where the shard's border cuts a group, is there that often.
    """
    mine, group = num_heads // parts, num_heads // num_kv_heads
    each = math.gcd(mine, group)
    first = lax.axis_index("tensor") * mine
    own = [lax.dynamic_slice_in_dim(x, (first + j) // group, 1, axis) for j in range(0, mine, each)]
    return jnp.concatenate(own, axis) if len(own) > 1 else own[0]


def _with_halo(x: Array, tokens: int, context: int) -> Array:
    """(B, tokens + s, …): this shard's (B, s, …) behind the tokens before it, zeros (padding) before the row."""
    s = x.shape[1]
    parts = [x]
    for hop in range(1, -(-tokens // s) + 1):
        wanted = min(s, tokens - (hop - 1) * s)
        forward = [(i, i + hop) for i in range(context - hop)]
        parts.append(lax.ppermute(x[:, s - wanted :], "context", forward))
    return jnp.concatenate(parts[::-1], axis=1)


def _gathered(x_BsKD: Array) -> Array:
    """(B, S, K, D) of all shards, sent as (B, S, K D).

    Of the few KV heads XLA would make tiles that it does not cut between tokens, and of the gradient's reduce-scatter
    an all-reduce, which sends twice as much.
    """
    flat = lax.all_gather(x_BsKD.reshape(*x_BsKD.shape[:2], -1), "context", axis=1, tiled=True)
    return flat.reshape(*flat.shape[:2], *x_BsKD.shape[2:])


def _mirrored(local: kernels.AttentionFunction, q_BsHD: Array, context: int) -> Any:
    """`local` over gathered keys: each shard does the first half of its queries and the second half of its mirror's."""
    s = q_BsHD.shape[1]
    kept, mine = s - s // 2, lax.axis_index("context")
    first = local(q_BsHD[:, :kept], q_offset=mine * s)
    if kept == s:
        return first
    swap = functools.partial(lax.ppermute, axis_name="context", perm=[(i, context - 1 - i) for i in range(context)])
    second = local(swap(q_BsHD[:, kept:]), q_offset=(context - 1 - mine) * s + kept)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, swap(b)], axis=1), first, second)
