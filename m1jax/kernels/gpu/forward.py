"""The forward kernel: a tile of queries of one head, and the online softmax over the keys that it sees.

Legend: see grid.py.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from m1jax.kernels.gpu import grid
from m1jax.kernels.gpu.blocks import LN2, LOG2_E, MASKED, Tile, dot, over_keys, seen

Array = jax.Array


def forward(
    q_BSHD: Array, k_BTKD: Array, v_BTKD: Array, first_BS: Array, offset_1: Array, *, scale: float, tile: Tile,
    interpret: bool,
) -> tuple[Array, Array]:  # fmt: skip
    """Output (B, S, H, D) in q's dtype and the log of the softmax's denominator (B, H, S) float32.

    S and T are multiples of the tile's sides, D a power of two. `first_BS` holds the first key that each query sees,
    T where it sees none: its output is 0 and its logarithm -1e30.
    """
    B, S, H, _ = q_BSHD.shape
    at = grid.of_queries(q_BSHD, k_BTKD, tile)
    out, lse = at.run(
        "forward",
        _kernel,
        offset_1,
        [*at.inputs(q_BSHD, k_BTKD, v_BTKD), (at.by_query, first_BS)],
        [(at.queries, grid.like(q_BSHD)), (at.by_head_and_query, jax.ShapeDtypeStruct((B, H, S), jnp.float32))],
        scale=scale,
        interpret=interpret,
    )
    return out, lse


def _kernel(offset: Any, q: Any, k: Any, v: Any, first: Any, out: Any, lse: Any, *, scale: float, tile: Tile) -> None:
    M, N, (T, D) = tile.queries, tile.keys, k.shape
    start = offset[0] + grid.tile_of_queries(pl.program_id(2), pl.num_programs(2)) * M
    first_M, q_MD = first[...], q[...]
    at_M = start + jnp.arange(M)

    def visit(j: Any, carry: tuple[Array, ...], *, edge: bool) -> tuple[Array, ...]:
        top_M, total_M, acc_MD = carry
        keys = pl.ds(j * N, N)
        # The softmax in base 2, which the hardware has.
        scores_MN = dot(q_MD, k[keys, :].T) * (scale * LOG2_E)
        if edge:
            # After the product: fused with the subtraction below, it would leave its rounding error, huge here.
            scores_MN = jnp.where(seen(j * N + jnp.arange(N), first_M, at_M), scores_MN, MASKED)
        now_M = jnp.maximum(top_M, scores_MN.max(axis=1))
        weight_MN = jnp.exp2(scores_MN - now_M[:, None])
        shrink_M = jnp.exp2(top_M - now_M)
        total_M = total_M * shrink_M + weight_MN.sum(axis=1)
        acc_MD = acc_MD * shrink_M[:, None] + dot(weight_MN.astype(v.dtype), v[keys, :])
        return now_M, total_M, acc_MD

    empty = jnp.full((M,), MASKED, jnp.float32), jnp.zeros((M,), jnp.float32), jnp.zeros((M, D), jnp.float32)
    top_M, total_M, acc_MD = over_keys(first_M, start, tile, T, visit, empty)
    real_M = first_M < T
    safe_M = jnp.where(real_M, total_M, 1.0)
    out[...] = jnp.where(real_M[:, None], acc_MD / safe_M[:, None], 0.0).astype(out.dtype)
    lse[...] = jnp.where(real_M, (top_M + jnp.log2(safe_M)) * LN2, MASKED)
