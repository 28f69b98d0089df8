"""The tiles of the GPU kernels, the shared memory that they take, and what a block of them visits.

Legend: M queries of a tile, N keys of a tile, D head_dim, B batch, S queries, T keys.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from m1jax.kernels.matmul import matmul_precision

Array = jax.Array

MASKED = -1e30
LN2 = 0.6931471805599453
LOG2_E = 1 / LN2
KIBIBYTE = 1024

SHARED_MEMORY = {"8.0": 163 * KIBIBYTE, "9.0": 227 * KIBIBYTE}
"""Bytes that one block of threads may have, by compute capability: A100; H100, H200 and GH200 (CUDA C++ Programming
Guide, table of technical specifications)."""


@dataclasses.dataclass(frozen=True)
class Tile:
    """The shape of one kernel's inner product, and how Triton compiles it."""

    queries: int
    keys: int
    warps: int
    stages: int
    """Tiles of the loop's operands in shared memory at once: one in use, the others on their way."""


@dataclasses.dataclass(frozen=True)
class Tiles:
    """The tiles of the three kernels."""

    forward: Tile
    dq: Tile
    dkv: Tile


_TILES = {
    ("8.0", 64): Tiles(Tile(128, 128, 8, 2), Tile(128, 64, 8, 2), Tile(32, 128, 8, 2)),
    ("8.0", 128): Tiles(Tile(128, 64, 8, 2), Tile(64, 64, 4, 2), Tile(64, 64, 8, 2)),
    ("8.0", 256): Tiles(Tile(64, 32, 8, 3), Tile(64, 32, 8, 2), Tile(32, 32, 8, 2)),
    ("9.0", 64): Tiles(Tile(128, 128, 8, 2), Tile(128, 64, 8, 2), Tile(64, 128, 8, 2)),
    ("9.0", 128): Tiles(Tile(128, 128, 8, 2), Tile(128, 64, 8, 2), Tile(32, 128, 8, 2)),
    ("9.0", 256): Tiles(Tile(128, 64, 8, 2), Tile(64, 32, 8, 3), Tile(16, 64, 8, 2)),
}


def tiles(chip: str, head_dim: int) -> Tiles:
    """Tiles for a compute capability of SHARED_MEMORY and a head_dim of 64, 128 or 256, in bfloat16.

    Chosen without a GPU: of about thirty tried, large ones of which ptxas spills no register.
    """
    return _TILES[chip, head_dim]


def shared_bytes(kernel: str, tile: Tile, head_dim: int) -> int:
    """An upper bound of the shared memory of a kernel ("forward", "dq" or "dkv") in bfloat16, in bytes.

    What stays: the operands of the loop that do not change. What streams: `stages` of those that do. And the weights
    of a tile (with their gradients, where they are transposed), which pass from one product's result to the next one's
    operand.
    """
    queries, keys = (2 * side * head_dim for side in (tile.queries, tile.keys))
    weights = 2 * tile.queries * tile.keys
    if kernel == "forward":
        return queries + tile.stages * 2 * keys + weights
    if kernel == "dq":
        return 2 * queries + tile.stages * 2 * keys + weights
    return 2 * keys + tile.stages * 2 * queries + 2 * weights


def dot(a: Array, b: Array) -> Array:
    """`a @ b` summed in float32."""
    return jax.lax.dot_general(
        a, b, (((1,), (0,)), ((), ())), precision=matmul_precision(a.dtype), preferred_element_type=jnp.float32
    )


def seen(key_N: Array, first_M: Array, at_M: Array) -> Array:
    """(M, N) bool: which keys the queries at keys `at_M` see, whose first ones are `first_M`."""
    return (key_N[None] >= first_M[:, None]) & (key_N[None] <= at_M[:, None])


def over_keys(first_M: Array, start: Any, tile: Tile, keys: int, visit: Any, carry: Any) -> Any:
    """`carry` after `visit(j, carry, edge=…)` of every tile j of keys that one of a tile's queries sees.

    `edge` says that some query does not see all of it. `first_M` holds the first key that each query sees, `keys`
    where it sees none; the first query is at key `start`.
    """
    M, N = tile.queries, tile.keys
    last = jnp.max(jnp.where(first_M < keys, start + jnp.arange(M), -1))
    stop = pl.cdiv(last + 1, N)
    begin = jnp.minimum(jax.lax.div(jnp.min(first_M), N), stop)
    whole = jnp.clip(pl.cdiv(jnp.max(first_M), N), begin, stop)
    diagonal = jnp.clip(jax.lax.div(start + 1, N), whole, stop)
    return _three_loops(begin, whole, diagonal, stop, visit, carry)


def over_queries(last_N: Array, start: Any, offset: Any, tile: Tile, queries: int, visit: Any, carry: Any) -> Any:
    """As `over_keys`, of every tile of queries that sees one of a tile's keys.

    `last_N` holds the last key whose query sees each key, -1 where none does; the first key of the tile is `start`,
    query 0 is at key `offset`.
    """
    M, N = tile.queries, tile.keys
    end = jnp.clip(jnp.max(last_N) + 1 - offset, 0, queries)
    stop = pl.cdiv(end, M)
    first = jnp.min(jnp.where(last_N >= 0, start + jnp.arange(N), start + N))
    begin = jnp.minimum(jax.lax.div(jnp.maximum(first - offset, 0), M), stop)
    whole = jnp.clip(pl.cdiv(jnp.maximum(start + N - 1 - offset, 0), M), begin, stop)
    shared = jnp.clip(jax.lax.div(jnp.clip(jnp.min(last_N) + 1 - offset, 0, queries), M), whole, stop)
    return _three_loops(begin, whole, shared, stop, visit, carry)


def _three_loops(begin: Any, whole: Any, edge: Any, stop: Any, visit: Any, carry: Any) -> Any:
    """Tiles from `begin` on, of which those from `whole` up to `edge` need no mask."""
    for lower, upper, masked in ((begin, whole, True), (whole, edge, False), (edge, stop, True)):

        def body(j: Any, carry: Any, masked: bool = masked) -> Any:
            return visit(j, carry, edge=masked)

        carry = jax.lax.fori_loop(lower, upper, body, carry)
    return carry
