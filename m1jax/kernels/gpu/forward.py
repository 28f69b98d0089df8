"""The forward kernel: a tile of queries of one head, and the online softmax over the keys that it sees.

Legend: as in blocks.py; H query heads, K KV heads, G = H / K.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from m1jax.kernels.gpu.blocks import LN2, LOG2_E, MASKED, Tile, dot, over_keys

Array = jax.Array


def forward(
    q_BSHD: Array, k_BTKD: Array, v_BTKD: Array, first_BS: Array, offset_1: Array, *, scale: float, tile: Tile,
    interpret: bool,
) -> tuple[Array, Array]:  # fmt: skip
    """Output (B, S, H, D) in q's dtype and the log of the softmax's denominator (B, H, S) float32.

    S and T are multiples of the tile's sides, D a power of two. `first_BS` holds the first key that each query sees,
    T where it sees none: its output is 0 and its logarithm -1e30.
    """
    B, S, H, D = q_BSHD.shape
    T, K = k_BTKD.shape[1:3]
    M, n = tile.queries, S // tile.queries
    # Under a causal mask the last queries have most to do: they begin first, so that the others fill the end.
    block = pl.BlockSpec((None, M, None, D), lambda h, b, i: (b, n - 1 - i, h, 0))
    keys = pl.BlockSpec((None, T, None, D), lambda h, b, i: (b, 0, h // (H // K), 0))
    return pl.pallas_call(
        functools.partial(_kernel, scale=scale, tile=tile, blocks=n),
        grid=(H, B, n),
        in_specs=[
            pl.BlockSpec((1,), lambda h, b, i: (0,)),
            block,
            keys,
            keys,
            pl.BlockSpec((None, M), lambda h, b, i: (b, n - 1 - i)),
        ],
        out_specs=[block, pl.BlockSpec((None, None, M), lambda h, b, i: (b, h, n - 1 - i))],
        out_shape=[jax.ShapeDtypeStruct(q_BSHD.shape, q_BSHD.dtype), jax.ShapeDtypeStruct((B, H, S), jnp.float32)],
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        name="m1_attention_forward",
        interpret=interpret,
    )(offset_1, q_BSHD, k_BTKD, v_BTKD, first_BS)


def _kernel(
    offset: Any, q: Any, k: Any, v: Any, first: Any, out: Any, lse: Any, *, scale: float, tile: Tile, blocks: int
) -> None:
    M, N, (T, D) = tile.queries, tile.keys, k.shape
    start = offset[0] + (blocks - 1 - pl.program_id(2)) * M
    first_M, q_MD = first[...], q[...]
    at_M = start + jnp.arange(M)

    def visit(j: Any, carry: tuple[Array, ...], *, edge: bool) -> tuple[Array, ...]:
        top_M, total_M, acc_MD = carry
        rows = pl.ds(j * N, N)
        # The softmax in base 2, which the hardware has.
        scores_MN = dot(q_MD, k[rows, :].T) * (scale * LOG2_E)
        if edge:
            key_N = j * N + jnp.arange(N)
            seen_MN = (key_N[None] >= first_M[:, None]) & (key_N[None] <= at_M[:, None])
            # After the product: fused with the subtraction below, it would leave its rounding error, huge here.
            scores_MN = jnp.where(seen_MN, scores_MN, MASKED)
        now_M = jnp.maximum(top_M, scores_MN.max(axis=1))
        weight_MN = jnp.exp2(scores_MN - now_M[:, None])
        shrink_M = jnp.exp2(top_M - now_M)
        total_M = total_M * shrink_M + weight_MN.sum(axis=1)
        acc_MD = acc_MD * shrink_M[:, None] + dot(weight_MN.astype(v.dtype), v[rows, :])
        return now_M, total_M, acc_MD

    empty = jnp.full((M,), MASKED, jnp.float32), jnp.zeros((M,), jnp.float32), jnp.zeros((M, D), jnp.float32)
    top_M, total_M, acc_MD = over_keys(first_M, start, tile, T, visit, empty)
    real_M = first_M < T
    safe_M = jnp.where(real_M, total_M, 1.0)
    out[...] = jnp.where(real_M[:, None], acc_MD / safe_M[:, None], 0.0).astype(out.dtype)
    lse[...] = jnp.where(real_M, (top_M + jnp.log2(safe_M)) * LN2, MASKED)
