"""The backward kernels: one for dq, by tiles of queries; one for dk and dv, by tiles of keys. Both compute the scores
again; neither adds to memory that another writes, so that results are the same at every run.

Legend: as in blocks.py; H query heads, K KV heads, G = H / K.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from m1jax.kernels.gpu.blocks import LOG2_E, Tile, dot, over_keys, over_queries

Array = jax.Array


def dq(
    q_BSHD: Array, k_BTKD: Array, v_BTKD: Array, d_out_BSHD: Array, first_BS: Array, lse_BHS: Array, delta_BHS: Array,
    offset_1: Array, *, scale: float, tile: Tile, interpret: bool,
) -> Array:  # fmt: skip
    """The gradient of q, (B, S, H, D) in its dtype.

    `lse_BHS` is the forward kernel's in base 2, and +1e30 where a query sees nothing; `delta_BHS` is the sum of the
    output times its gradient, less the gradient of the logarithm.
    """
    B, S, H, D = q_BSHD.shape
    T, K = k_BTKD.shape[1:3]
    M, n = tile.queries, S // tile.queries
    block = pl.BlockSpec((None, M, None, D), lambda h, b, i: (b, n - 1 - i, h, 0))
    keys = pl.BlockSpec((None, T, None, D), lambda h, b, i: (b, 0, h // (H // K), 0))
    row = pl.BlockSpec((None, None, M), lambda h, b, i: (b, h, n - 1 - i))
    return pl.pallas_call(
        functools.partial(_dq_kernel, scale=scale, tile=tile, blocks=n),
        grid=(H, B, n),
        in_specs=[
            pl.BlockSpec((1,), lambda h, b, i: (0,)),
            block,
            keys,
            keys,
            block,
            pl.BlockSpec((None, M), lambda h, b, i: (b, n - 1 - i)),
            row,
            row,
        ],
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct(q_BSHD.shape, q_BSHD.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        name="m1_attention_dq",
        interpret=interpret,
    )(offset_1, q_BSHD, k_BTKD, v_BTKD, d_out_BSHD, first_BS, lse_BHS, delta_BHS)


def _dq_kernel(
    offset: Any, q: Any, k: Any, v: Any, d_out: Any, first: Any, lse: Any, delta: Any, dq: Any, *, scale: float,
    tile: Tile, blocks: int,
) -> None:  # fmt: skip
    M, N, (T, D) = tile.queries, tile.keys, k.shape
    start = offset[0] + (blocks - 1 - pl.program_id(2)) * M
    first_M, q_MD, d_out_MD, lse_M, delta_M = first[...], q[...], d_out[...], lse[...], delta[...]
    at_M = start + jnp.arange(M)

    def visit(j: Any, dq_MD: Array, *, edge: bool) -> Array:
        rows = pl.ds(j * N, N)
        k_ND = k[rows, :]
        weight_MN = jnp.exp2(dot(q_MD, k_ND.T) * (scale * LOG2_E) - lse_M[:, None])
        if edge:
            key_N = j * N + jnp.arange(N)
            seen_MN = (key_N[None] >= first_M[:, None]) & (key_N[None] <= at_M[:, None])
            weight_MN = jnp.where(seen_MN, weight_MN, 0.0)
        d_scores_MN = weight_MN * (dot(d_out_MD, v[rows, :].T) - delta_M[:, None])
        return dq_MD + dot(d_scores_MN.astype(k.dtype), k_ND)

    dq_MD = over_keys(first_M, start, tile, T, visit, jnp.zeros((M, D), jnp.float32))
    dq[...] = (dq_MD * scale).astype(dq.dtype)


def dkv(
    q_BSHD: Array, k_BTKD: Array, v_BTKD: Array, d_out_BSHD: Array, first_BS: Array, last_BT: Array, lse_BHS: Array,
    delta_BHS: Array, offset_1: Array, *, scale: float, tile: Tile, interpret: bool,
) -> tuple[Array, Array]:  # fmt: skip
    """The gradients of k and v, (B, T, K, D) in their dtype; the query heads of a KV head are summed in registers.

    `last_BT` holds the last key whose query sees each key, -1 where none does; the others as of `dq`.
    """
    B, S, H, D = q_BSHD.shape
    T, K = k_BTKD.shape[1:3]
    N, G = tile.keys, H // K
    block = pl.BlockSpec((None, N, None, D), lambda h, b, j: (b, j, h, 0))
    queries = pl.BlockSpec((None, S, G, D), lambda h, b, j: (b, 0, h, 0))
    rows = pl.BlockSpec((None, G, S), lambda h, b, j: (b, h, 0))
    return pl.pallas_call(
        functools.partial(_dkv_kernel, scale=scale, tile=tile),
        grid=(K, B, T // N),
        in_specs=[
            pl.BlockSpec((1,), lambda h, b, j: (0,)),
            queries,
            block,
            block,
            queries,
            pl.BlockSpec((None, S), lambda h, b, j: (b, 0)),
            pl.BlockSpec((None, N), lambda h, b, j: (b, j)),
            rows,
            rows,
        ],
        out_specs=[block, block],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k_BTKD, v_BTKD)],
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        name="m1_attention_dkv",
        interpret=interpret,
    )(offset_1, q_BSHD, k_BTKD, v_BTKD, d_out_BSHD, first_BS, last_BT, lse_BHS, delta_BHS)


def _dkv_kernel(
    offset: Any, q: Any, k: Any, v: Any, d_out: Any, first: Any, last: Any, lse: Any, delta: Any, dk: Any, dv: Any, *,
    scale: float, tile: Tile,
) -> None:  # fmt: skip
    M, N, (S, G, D) = tile.queries, tile.keys, q.shape
    start = pl.program_id(2) * N
    k_ND, v_ND, last_N = k[...], v[...], last[...]
    key_N = start + jnp.arange(N)

    def visit(i: Any, carry: tuple[Array, Array], *, g: Any, edge: bool) -> tuple[Array, Array]:
        dk_ND, dv_ND = carry
        rows = pl.ds(i * M, M)
        q_MD, d_out_MD = q[rows, g, :], d_out[rows, g, :]
        weight_NM = jnp.exp2(dot(k_ND, q_MD.T) * (scale * LOG2_E) - lse[g, rows][None])
        if edge:
            at_M = offset[0] + i * M + jnp.arange(M)
            seen_NM = (key_N[:, None] >= first[rows][None]) & (key_N[:, None] <= at_M[None])
            weight_NM = jnp.where(seen_NM, weight_NM, 0.0)
        dv_ND += dot(weight_NM.astype(v.dtype), d_out_MD)
        d_scores_NM = weight_NM * (dot(v_ND, d_out_MD.T) - delta[g, rows][None])
        dk_ND += dot(d_scores_NM.astype(k.dtype), q_MD)
        return dk_ND, dv_ND

    def head(g: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        return over_queries(last_N, start, offset[0], tile, S, functools.partial(visit, g=g), carry)

    empty = jnp.zeros((N, D), jnp.float32)
    dk_ND, dv_ND = jax.lax.fori_loop(0, G, head, (empty, empty))
    dk[...] = (dk_ND * scale).astype(dk.dtype)
    dv[...] = dv_ND.astype(dv.dtype)
