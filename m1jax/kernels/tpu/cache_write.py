"""New tokens into the slots of a cache, in place, as a Pallas kernel for TPU.

XLA's scatter would change the layout of the whole cache and back. Here only the tiles that hold the new tokens' slots
are read, changed and written.

Legend: B batch, N new tokens padded, T slots of the cache, K KV heads, D head_dim.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from m1jax.kernels.matmul import matmul_precision

Array = jax.Array

ALIGNED = 16
"""Rows of a bfloat16 tile."""


def write(
    k_BKTD: Array,
    v_BKTD: Array,
    new_k_BKND: Array,
    new_v_BKND: Array,
    new_positions_BN: Array,
    lengths: Array,
    *,
    tokens: int,
    interpret: bool,
) -> tuple[Array, Array]:
    """The cache with the token of position p in slot p mod T; of more than T new tokens the last T are written.

    A row's new positions follow `lengths` (B,); position -1 is no token; `tokens` of the N can be real.
    """
    B, K, T, D = k_BKTD.shape
    N, tile = new_k_BKND.shape[2], min(ALIGNED, T)
    tiles = -(-T // tile)
    # Tokens side by side can begin anywhere in a tile, and go on in slot 0 where the last tile is cut short.
    visits = min(tiles, -(-(tokens - 1) // tile) + 1 + (T % tile > 0))

    def visited(b: Array, i: Array, lengths: Array) -> tuple[Array | int, ...]:
        return b, 0, lax.rem(lax.div(lax.rem(lengths[b], T), tile) + i, tiles), 0

    new = pl.BlockSpec((1, K, N, D), lambda b, i, lengths: (b, 0, 0, 0))
    slots = pl.BlockSpec((1, K, tile, D), visited)
    return pl.pallas_call(
        functools.partial(_kernel, slots=T, tiles=tiles),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(B, visits),
            in_specs=[pl.BlockSpec((1, 1, N), lambda b, i, lengths: (b, 0, 0)), new, new, slots, slots],
            out_specs=[slots, slots],
        ),
        out_shape=[jax.ShapeDtypeStruct(k_BKTD.shape, k_BKTD.dtype), jax.ShapeDtypeStruct(v_BKTD.shape, v_BKTD.dtype)],
        input_output_aliases={4: 0, 5: 1},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="m1_cache_write",
    )(lengths, new_positions_BN[:, None], new_k_BKND, new_v_BKND, k_BKTD, v_BKTD)


def _kernel(
    lengths_ref: Any,
    new_at_ref: Any,
    new_k_ref: Any,
    new_v_ref: Any,
    k_ref: Any,
    v_ref: Any,
    k_out_ref: Any,
    v_out_ref: Any,
    *,
    slots: int,
    tiles: int,
) -> None:
    heads, tile = k_ref.shape[1:3]
    length = lengths_ref[pl.program_id(0)]
    here = lax.rem(lax.div(lax.rem(length, slots), tile) + pl.program_id(1), tiles)
    new_at = new_at_ref[0]  # (1, N)
    kept = (new_at >= 0) & (new_at > jnp.max(new_at) - slots)
    slot = here * tile + lax.broadcasted_iota(jnp.int32, (tile, 1), 0)
    into = kept & (lax.rem(jnp.maximum(new_at, 0), slots) == slot)  # (tile, N)
    written = jnp.max(into.astype(jnp.float32), axis=1, keepdims=True) > 0
    for old_ref, new_ref, out_ref in ((k_ref, new_k_ref, k_out_ref), (v_ref, new_v_ref, v_out_ref)):
        for h in range(heads):
            # A product with ones and zeros chooses rows exactly.
            chosen = lax.dot_general(
                into.astype(new_ref.dtype),
                new_ref[0, h],
                (((1,), (0,)), ((), ())),
                precision=matmul_precision(new_ref.dtype),
                preferred_element_type=jnp.float32,
            ).astype(old_ref.dtype)
            out_ref[0, h] = jnp.where(written, chosen, old_ref[0, h])
