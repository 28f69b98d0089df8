"""The backward kernels: one for dq, by tiles of queries; one for dk and dv, by tiles of keys. Both compute the scores
again; neither adds to memory that another writes, so that results are the same at every run.

Legend: see grid.py.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from m1jax.kernels.gpu import grid
from m1jax.kernels.gpu.blocks import LOG2_E, Tile, dot, over_keys, over_queries, seen

Array = jax.Array


def dq(
    q_BSHD: Array, k_BTKD: Array, v_BTKD: Array, d_out_BSHD: Array, first_BS: Array, lse_BHS: Array, delta_BHS: Array,
    offset_1: Array, *, scale: float, tile: Tile, interpret: bool,
) -> Array:  # fmt: skip
    """The gradient of q, (B, S, H, D) in its dtype.

    `lse_BHS` is the forward kernel's in base 2, and +1e30 where a query sees nothing; `delta_BHS` is the sum of the
    output times its gradient, less the gradient of the logarithm.
    """
    at = grid.of_queries(q_BSHD, k_BTKD, tile)
    more = (at.by_query, first_BS), (at.by_head_and_query, lse_BHS), (at.by_head_and_query, delta_BHS)
    (found,) = at.run(
        "dq",
        _dq_kernel,
        offset_1,
        [*at.inputs(q_BSHD, k_BTKD, v_BTKD), (at.queries, d_out_BSHD), *more],
        [(at.queries, grid.like(q_BSHD))],
        scale=scale,
        interpret=interpret,
    )
    return found


def _dq_kernel(
    offset: Any, q: Any, k: Any, v: Any, d_out: Any, first: Any, lse: Any, delta: Any, dq: Any, *,
    scale: float, tile: Tile,
) -> None:  # fmt: skip
    M, N, (T, D) = tile.queries, tile.keys, k.shape
    start = offset[0] + grid.tile_of_queries(pl.program_id(2), pl.num_programs(2)) * M
    first_M, q_MD, d_out_MD, lse_M, delta_M = first[...], q[...], d_out[...], lse[...], delta[...]
    at_M = start + jnp.arange(M)

    def visit(j: Any, dq_MD: Array, *, edge: bool) -> Array:
        keys = pl.ds(j * N, N)
        k_ND = k[keys, :]
        weight_MN = jnp.exp2(dot(q_MD, k_ND.T) * (scale * LOG2_E) - lse_M[:, None])
        if edge:
            weight_MN = jnp.where(seen(j * N + jnp.arange(N), first_M, at_M), weight_MN, 0.0)
        d_scores_MN = weight_MN * (dot(d_out_MD, v[keys, :].T) - delta_M[:, None])
        return dq_MD + dot(d_scores_MN.astype(k.dtype), k_ND)

    dq_MD = over_keys(first_M, start, tile, T, visit, jnp.zeros((M, D), jnp.float32))
    dq[...] = (dq_MD * scale).astype(dq.dtype)


def dkv(
    q_BSHD: Array, k_BTKD: Array, v_BTKD: Array, d_out_BSHD: Array, first_BS: Array, last_BT: Array, lse_BHS: Array,
    delta_BHS: Array, offset_1: Array, *, scale: float, tile: Tile, interpret: bool,
) -> tuple[Array, Array]:  # fmt: skip
    """The gradients of k and v, (B, T, K, D) in their dtype; the query heads of a KV head are summed in registers.

    `last_BT` holds the last key whose query sees each key, -1 where none does; the other arguments: see `dq`.
    """
    at = grid.of_keys(q_BSHD, k_BTKD, tile)
    more = (at.by_query, first_BS), (at.by_head_and_query, lse_BHS), (at.by_head_and_query, delta_BHS)
    dk, dv = at.run(
        "dkv",
        _dkv_kernel,
        offset_1,
        [*at.inputs(q_BSHD, k_BTKD, v_BTKD), (at.queries, d_out_BSHD), *more, (at.by_key, last_BT)],
        [(at.keys, grid.like(k_BTKD)), (at.keys, grid.like(v_BTKD))],
        scale=scale,
        interpret=interpret,
    )
    return dk, dv


def _dkv_kernel(
    offset: Any, q: Any, k: Any, v: Any, d_out: Any, first: Any, lse: Any, delta: Any, last: Any, dk: Any, dv: Any, *,
    scale: float, tile: Tile,
) -> None:  # fmt: skip
    M, N, (S, G, D) = tile.queries, tile.keys, q.shape
    start = pl.program_id(2) * N
    k_ND, v_ND, last_N = k[...], v[...], last[...]
    key_N = start + jnp.arange(N)

    def visit(i: Any, carry: tuple[Array, Array], *, g: Any, edge: bool) -> tuple[Array, Array]:
        dk_ND, dv_ND = carry
        queries = pl.ds(i * M, M)
        q_MD, d_out_MD = q[queries, g, :], d_out[queries, g, :]
        weight_NM = jnp.exp2(dot(k_ND, q_MD.T) * (scale * LOG2_E) - lse[g, queries][None])
        if edge:
            at_M = offset[0] + i * M + jnp.arange(M)
            seen_NM = (key_N[:, None] >= first[queries][None]) & (key_N[:, None] <= at_M[None])
            weight_NM = jnp.where(seen_NM, weight_NM, 0.0)
        dv_ND += dot(weight_NM.astype(v.dtype), d_out_MD)
        d_scores_NM = weight_NM * (dot(v_ND, d_out_MD.T) - delta[g, queries][None])
        dk_ND += dot(d_scores_NM.astype(k.dtype), q_MD)
        return dk_ND, dv_ND

    def head(g: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        return over_queries(last_N, start, offset[0], tile, S, functools.partial(visit, g=g), carry)

    empty = jnp.zeros((N, D), jnp.float32)
    dk_ND, dv_ND = jax.lax.fori_loop(0, G, head, (empty, empty))
    dk[...] = (dk_ND * scale).astype(dk.dtype)
    dv[...] = dv_ND.astype(dv.dtype)
