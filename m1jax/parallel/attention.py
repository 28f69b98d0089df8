"""`kernels.attention` over a mesh: heads over `tensor`, rows over `replica`, `data` and `fsdp`, tokens over `context`.

A row of S tokens is split into C contiguous context shards of s = S / C tokens, as the batch arrives; every layer and
the loss keep that order.

- Window layers fetch a halo of W tokens from the shards before, in ceil(W / s) hops: the W - 1 keys that a shard's
  first query sees, and one raw token more, for the first key's convolution. The load is even from token W on.
- Global layers, and windows beyond S - s, gather K and V along `context`; the gradient is then a reduce-scatter. Under
  a causal mask contiguous shards would do 1 : 3 : 5 … : 2C - 1 of the work, the last of them (2C - 1) / C of the mean.
  So each shard swaps the second half of its queries with the shard that mirrors it (i with C - 1 - i), and swaps the
  outputs back: the halves 2i and 2C - 1 - 2i together cost every shard the same.

Legend: B rows, S queries, T keys, H query heads, K KV heads, D head_dim, of the whole; s, h, … of one shard.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from m1jax import kernels
from m1jax.errors import UserError
from m1jax.kernels import AttentionLayer, Rows
from m1jax.kernels.arguments import map_arrays
from m1jax.parallel import rules
from m1jax.parallel.mesh import BATCH_AXES

Array = jax.Array
_Axes = tuple[str | None, ...]


def partitioned(mesh: Mesh, attention: kernels.AttentionFunction = kernels.attention) -> kernels.AttentionFunction:
    """`attention` under shard_map over `mesh`, with the arguments and results of `kernels.attention`.

    Arrays may have any sharding; the result has that of activations in `parallel.rules`. Differentiable in all that
    `attention` is. KV heads that `tensor` does not divide are on every device, which cuts out those that its query
    heads read. On a mesh of one device it is `attention` itself.

    Raises UserError (when called) where rows, tokens or heads do not divide over the mesh, and for `prev_kv`,
    `q_offset` or T != S where `context` exceeds 1: such calls continue a row, but `context` needs complete rows.
    """
    return attention if mesh.size == 1 else functools.partial(_over_mesh, mesh, attention)


def _over_mesh(
    mesh: Mesh,
    attention: kernels.AttentionFunction,
    q: Array,
    k: Array,
    v: Array,
    layer: AttentionLayer,
    rows: Rows,
    *,
    return_lse: bool = False,
) -> Any:
    _check(mesh, q, k, rows)
    H, K = q.shape[2], k.shape[2]
    tensor, context = mesh.shape["tensor"], mesh.shape["context"]
    if context > 1:  # a halo before the row is padding, which only ids can say
        rows = dataclasses.replace(rows, segment_ids=rows.documents)
    copied = K % tensor > 0
    over = {**rules.ACTIVATIONS, **rules.PARAMETERS, "kv_heads": None if copied else "tensor"}
    queries, keys = ("batch", "sequence", "heads"), ("batch", "sequence", "kv_heads")

    def spec(_: Array, axes: _Axes) -> PartitionSpec:
        return PartitionSpec(*(over[axis] if axis else None for axis in axes))

    def shard(q: Array, k: Array, v: Array, layer: AttentionLayer, rows: Rows) -> Any:
        if copied:
            own = functools.partial(_own_kv_heads, num_heads=H, num_kv_heads=K, parts=tensor)
            k, v, layer, rows = own(k, keys), own(v, keys), map_arrays(own, layer), map_arrays(own, rows)
        local = functools.partial(attention, return_lse=return_lse)
        if context == 1:
            return local(q, k, v, layer, rows)
        return _over_context(local, q, k, v, layer, rows, context)

    # Replication is not tracked (check_vma), because Pallas calls do not declare it; the gradient of what several
    # devices read is summed over them either way.
    run = jax.shard_map(
        shard,
        mesh=mesh,
        in_specs=(spec(q, queries), spec(k, keys), spec(v, keys), map_arrays(spec, layer), map_arrays(spec, rows)),
        out_specs=(spec(q, queries),) * 2 if return_lse else spec(q, queries),
        check_vma=False,
    )
    return run(q, k, v, layer, rows)


def _check(mesh: Mesh, q: Array, k: Array, rows: Rows) -> None:
    (B, S, H, _), T = q.shape, k.shape[1]
    context = mesh.shape["context"]
    for size, what, parts, axes in (
        (B, "rows", math.prod(mesh.shape[axis] for axis in BATCH_AXES), "replica x data x fsdp"),
        (S, "tokens of a row", context, "context"),
        (H, "query heads", mesh.shape["tensor"], "tensor"),
    ):
        if size % parts:
            raise UserError(
                f"attention cannot cut {size} {what} over {parts} devices (mesh axes {axes}): choose a divisor."
            )
    q_offset, prev_kv = rows.q_offset, rows.prev_kv
    whole = prev_kv is None and T == S and isinstance(q_offset, int) and q_offset == 0
    if context > 1 and not whole:
        raise UserError(
            f"attention over mesh.context = {context} takes whole rows, not {S} queries at offset {q_offset} of {T} "
            f"keys{'' if prev_kv is None else ' with prev_kv'}: set mesh.context = 1."
        )


def _over_context(
    local: Callable[..., Any], q: Array, k: Array, v: Array, layer: AttentionLayer, rows: Rows, context: int
) -> Any:
    """Attention of a shard's queries, with the keys of the shards before it."""
    s, window = q.shape[1], layer.window
    if window is None or window > s * (context - 1):
        gather = functools.partial(lax.all_gather, axis_name="context", axis=1, tiled=True)
        return _mirrored(local, q, _gathered(k), _gathered(v), layer, jax.tree.map(gather, rows), context)
    k, v, rows = jax.tree.map(lambda x: _with_halo(x, window, context), (k, v, rows))
    return local(q, k, v, layer, dataclasses.replace(rows, q_offset=window))


def _own_kv_heads(x: Array, axes: _Axes, *, num_heads: int, num_kv_heads: int, parts: int) -> Array:
    """The KV heads that this tensor shard's query heads read, cut out of an array of all; other arrays are unchanged.

    A head is repeated where the shard's border cuts the query heads that read it into several groups.
    """
    if "kv_heads" not in axes:
        return x
    axis = axes.index("kv_heads")
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

    With the few KV heads as an axis of their own, XLA makes tiles that it does not cut between tokens, and turns the
    gradient's reduce-scatter into an all-reduce, which sends twice as much.
    """
    flat = lax.all_gather(x_BsKD.reshape(*x_BsKD.shape[:2], -1), "context", axis=1, tiled=True)
    return flat.reshape(*flat.shape[:2], *x_BsKD.shape[2:])


def _mirrored(
    local: Callable[..., Any],
    q_BsHD: Array,
    k_BSKD: Array,
    v_BSKD: Array,
    layer: AttentionLayer,
    rows: Rows,
    context: int,
) -> Any:
    """`local` over gathered keys: each shard does the first half of its queries and the second half of its mirror's."""
    s = q_BsHD.shape[1]
    kept, mine = s - s // 2, lax.axis_index("context")

    def part(q: Array, q_offset: Array) -> Any:
        return local(q, k_BSKD, v_BSKD, layer, dataclasses.replace(rows, q_offset=q_offset))

    first = part(q_BsHD[:, :kept], mine * s)
    if kept == s:
        return first
    swap = functools.partial(lax.ppermute, axis_name="context", perm=[(i, context - 1 - i) for i in range(context)])
    second = part(swap(q_BsHD[:, kept:]), (context - 1 - mine) * s + kept)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, swap(b)], axis=1), first, second)
