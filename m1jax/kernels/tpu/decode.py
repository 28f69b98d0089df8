"""Attention of new tokens on a warm cache, as one Pallas kernel for TPU.

The cache streams through VMEM once, block by block, and only as far as a row has tokens; the queries of all heads that
share a KV head, and of all new tokens, are one matrix. Convolution and RoPE touch the new tokens alone and
stay in XLA (`kernels.decode.prepared`). The kernel reads the cache as it was and the new tokens beside it, so that in a
ring no new token overwrites one that another still sees; a second kernel then writes them (`tpu/cache_write.py`).

Legend: B batch, S new tokens, T slots of the cache, H query heads, K KV heads, G = H / K, D head_dim, M = G x S padded.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from m1jax.errors import UserError
from m1jax.kernels import decode
from m1jax.kernels.arguments import AttentionLayer, NewTokens
from m1jax.kernels.decode import LayerCache
from m1jax.kernels.matmul import matmul_precision
from m1jax.kernels.tpu.cache_write import ALIGNED, write

Array = jax.Array

HEAD_DIMS = (64, 128, 256)
_MASKED = -1e30
_NO_POSITION = -1
# Queries of one KV head (of its G query heads) that one call takes; more new tokens (prompts) take several.
_MAX_QUERIES = 512
# A grid step reads several blocks of K and as many of V, all at once: together large enough to hide the latency of
# memory, each small enough to end near a row's last token.
_BLOCK_BYTES = 256 * 1024
_BLOCKS = 4
_LANES = 128


def attention(
    q_BSHD: Array,
    k_BSKD: Array,
    v_BSKD: Array,
    cache: LayerCache,
    layer: AttentionLayer,
    new: NewTokens,
    *,
    interpret: bool = False,
    static: bool = False,
) -> tuple[Array, LayerCache]:
    """`kernels.decode_attention` on a TPU; head_dim is 64, 128 or 256.

    More than 512 queries of one KV head's group are taken in turns, each on the cache of those before. `interpret` runs
    the kernel on any device. `static` reads every slot, without a branch on data: for the static profiler, which takes
    no such branch.
    """
    B, S, H, D = q_BSHD.shape
    K = k_BSKD.shape[2]
    if D not in HEAD_DIMS or H % K:
        raise UserError(
            f"attention 'pallas_tpu' decodes head_dim {', '.join(map(str, HEAD_DIMS))} and query heads that KV heads "
            f"divide, not head_dim {D} with {H} query and {K} KV heads: set model.attention to 'reference'."
        )
    turn = functools.partial(_turn, layer, interpret=interpret, static=static)
    most = max(1, _MAX_QUERIES // (H // K))
    if most >= S:
        return turn(q_BSHD, k_BSKD, v_BSKD, cache, new)
    turns = -(-S // most)

    def cut(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (0, turns * most - S), *[(0, 0)] * (x.ndim - 2)))
        return jnp.moveaxis(padded.reshape(B, turns, most, *x.shape[2:]), 1, 0)

    def one(
        state: tuple[LayerCache, Array], part: tuple[Array, Array, Array, Array]
    ) -> tuple[tuple[LayerCache, Array], Array]:
        cache, lengths = state
        q, k, v, real = part
        new = NewTokens(lengths=lengths, real=real)
        out, cache = turn(q, k, v, cache, new)
        return (cache, lengths + new.counts), out

    (cache, _), out = lax.scan(one, (cache, new.lengths), jax.tree.map(cut, (q_BSHD, k_BSKD, v_BSKD, new.real)))
    return jnp.moveaxis(out, 0, 1).reshape(B, turns * most, H, D)[:, :S], cache


def _turn(
    layer: AttentionLayer,
    q_BSHD: Array,
    k_BSKD: Array,
    v_BSKD: Array,
    cache: LayerCache,
    new: NewTokens,
    *,
    interpret: bool,
    static: bool,
) -> tuple[Array, LayerCache]:
    B, S, H, D = q_BSHD.shape
    K = k_BSKD.shape[2]
    G, M, N = H // K, _up(H // K * S, ALIGNED), _up(S, _LANES)
    ready, positions_BS = decode.prepared(q_BSHD, k_BSKD, v_BSKD, cache, layer, new), new.positions
    queries, tokens = ((0, 0), (0, 0), (0, M - G * S), (0, 0)), ((0, 0), (0, 0), (0, N - S), (0, 0))
    new_k, new_v = jnp.pad(ready.k, tokens), jnp.pad(ready.v, tokens)
    at = jnp.pad(jnp.tile(positions_BS, (1, G)), queries[1:3], constant_values=_NO_POSITION)
    new_at = jnp.pad(jnp.where(new.real, positions_BS, _NO_POSITION), tokens[1:3], constant_values=_NO_POSITION)
    out_BKMD = attend(
        jnp.pad(ready.q.reshape(B, K, G * S, D), queries),
        at[..., None],
        new_k,
        new_v,
        new_at[:, None],
        cache.k,
        cache.v,
        new.lengths,
        window=layer.window,
        scale=layer.scale,
        interpret=interpret,
        static=static,
    )
    # The barrier orders the kernels: without it XLA would copy the cache, so as to write to none that is read.
    out_BKMD, k, v = lax.optimization_barrier((out_BKMD, cache.k, cache.v))
    k, v = write(k, v, new_k, new_v, new_at, new.lengths, tokens=S, interpret=interpret)
    out = out_BKMD[:, :, : G * S].reshape(B, K, G, S, D).transpose(0, 3, 1, 2, 4).reshape(B, S, H, D)
    return jnp.where(new.real[:, :, None, None], out, 0), LayerCache(k, v, ready.last_k, ready.last_v)


def attend(
    q_BKMD: Array,
    positions_BM1: Array,
    new_k_BKND: Array,
    new_v_BKND: Array,
    new_positions_B1N: Array,
    k_BKTD: Array,
    v_BKTD: Array,
    lengths: Array,
    *,
    window: int | None,
    scale: float,
    interpret: bool,
    static: bool,
) -> Array:
    """The kernel: queries (B, K, M, D) at positions (B, M, 1) over N new tokens and `lengths` (B,) past ones.

    Position -1 is no token. Returns (B, K, M, D) in q's dtype.
    """
    B, K, M, D = q_BKMD.shape
    N, T = new_k_BKND.shape[2], k_BKTD.shape[2]
    block, total, parts = cut(T, D, k_BKTD.dtype.itemsize)
    queries = pl.BlockSpec((1, 1, M, D), lambda b, h, t, lengths: (b, h, 0, 0))
    new = pl.BlockSpec((1, 1, N, D), lambda b, h, t, lengths: (b, h, 0, 0))

    def of_part(part: int) -> pl.BlockSpec:
        def index(b: Array, h: Array, t: Array, lengths: Array) -> tuple[Array | int, ...]:
            last = total - 1 if static else last_block(lengths[b], T, block)
            return b, h, block_index(t, part, parts, last), 0

        return pl.BlockSpec((1, 1, block, D), index)

    slots = [of_part(part) for part in range(parts)]
    read = 2 * B * K * T * D * k_BKTD.dtype.itemsize
    return pl.pallas_call(
        functools.partial(_kernel, slots=T, parts=parts, window=window, scale=scale, static=static),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(B, K, -(-total // parts)),
            in_specs=[
                queries,
                pl.BlockSpec((1, M, 1), lambda b, h, t, lengths: (b, 0, 0)),
                new,
                new,
                pl.BlockSpec((1, 1, N), lambda b, h, t, lengths: (b, 0, 0)),
                *slots,
                *slots,
            ],
            out_specs=queries,
            scratch_shapes=[
                pltpu.VMEM((M, _LANES), jnp.float32),
                pltpu.VMEM((M, _LANES), jnp.float32),
                pltpu.VMEM((M, D), jnp.float32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct(q_BKMD.shape, q_BKMD.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=4 * B * K * M * (T + N) * D,
            transcendentals=B * K * M * (T + N),
            bytes_accessed=read + 2 * q_BKMD.size * q_BKMD.dtype.itemsize,
        ),
        interpret=interpret,
        name="m1_decode_attention",
    )(lengths, q_BKMD, positions_BM1, new_k_BKND, new_v_BKND, new_positions_B1N, *[k_BKTD] * parts, *[v_BKTD] * parts)


def cut(slots: int, head_dim: int, itemsize: int) -> tuple[int, int, int]:
    """How a grid reads one KV head's slots: slots of a block, number of blocks, blocks of a step."""
    block = min(_BLOCK_BYTES // (head_dim * itemsize), slots)
    total = -(-slots // block)
    return block, total, min(_BLOCKS, total)


def last_block(length: Array | int, slots: int, block: int) -> Array:
    """Number of the last block that holds one of a row's tokens, 0 where it has none."""
    used = jnp.minimum(length, slots)
    return lax.div(jnp.maximum(used, 1) - 1, block)


def block_index(step: Array | int, part: int, parts: int, last: Array | int) -> Array:
    """The block that a step's `part` reads; behind block `last` it stays as it was, and nothing is read."""
    return parts * jnp.minimum(step, lax.div(jnp.maximum(last - part, 0), parts)) + part


def _kernel(
    lengths_ref: Any,
    q_ref: Any,
    at_ref: Any,
    new_k_ref: Any,
    new_v_ref: Any,
    new_at_ref: Any,
    *refs: Any,
    slots: int,
    parts: int,
    window: int | None,
    scale: float,
    static: bool,
) -> None:
    k_refs, v_refs = refs[:parts], refs[parts : 2 * parts]
    out_ref, top_ref, total_ref, sum_ref = refs[2 * parts :]
    b, t, block = pl.program_id(0), pl.program_id(2), k_refs[0].shape[2]
    length, at_M1 = lengths_ref[b], at_ref[0]
    precision = matmul_precision(q_ref.dtype)

    def add(keys_ND: Array, values_ND: Array, positions_1N: Array) -> None:
        """The online softmax (arXiv 1805.02867) with more keys."""
        raw = lax.dot_general(
            q_ref[0, 0], keys_ND, (((1,), (1,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
        )
        behind = at_M1 - positions_1N
        seen = (positions_1N >= 0) & (behind >= 0)
        if window is not None:
            seen &= behind < window
        scores = jnp.where(seen, raw * scale, _MASKED)
        before = top_ref[:, :1]
        top = jnp.maximum(before, jnp.max(scores, axis=1, keepdims=True))
        weights = jnp.exp(scores - top)
        fade = jnp.exp(before - top)
        total = fade * total_ref[:, :1] + jnp.sum(weights, axis=1, keepdims=True)
        top_ref[...] = jnp.broadcast_to(top, top_ref.shape)
        total_ref[...] = jnp.broadcast_to(total, total_ref.shape)
        sum_ref[...] = fade * sum_ref[...] + lax.dot_general(
            weights.astype(values_ND.dtype),
            values_ND,
            (((1,), (0,)), ((), ())),
            precision=precision,
            preferred_element_type=jnp.float32,
        )

    @pl.when(t == 0)
    def _new_tokens() -> None:
        top_ref[...] = jnp.full_like(top_ref, _MASKED)
        total_ref[...] = jnp.zeros_like(total_ref)
        sum_ref[...] = jnp.zeros_like(sum_ref)
        add(new_k_ref[0, 0], new_v_ref[0, 0], new_at_ref[0])

    def past_tokens(first: Array, part: int) -> None:
        last = length - 1
        slot = first + lax.broadcasted_iota(jnp.int32, (1, block), 1)
        turned = lax.rem(last, slots)  # the slot of the row's last token; later slots hold tokens a turn older
        positions = slot + (last - turned) - jnp.where(slot > turned, slots, 0)
        values = v_refs[part][0, 0]
        if slots % block:  # what lies behind the last slot may be anything, NaN too
            positions = jnp.where(slot < slots, positions, _NO_POSITION)
            row = first + lax.broadcasted_iota(jnp.int32, (block, 1), 0)
            values = jnp.where(row < slots, values, 0)
        add(k_refs[part][0, 0], values, positions)

    used = slots if static else jnp.minimum(length, slots)
    for part in range(parts):
        first = (parts * t + part) * block
        pl.when(first < used)(functools.partial(past_tokens, first, part))

    @pl.when(t == pl.num_programs(2) - 1)
    def _divided() -> None:
        out_ref[0, 0] = (sum_ref[...] / total_ref[:, :1]).astype(out_ref.dtype)


def _up(size: int, step: int) -> int:
    return -(-size // step) * step
