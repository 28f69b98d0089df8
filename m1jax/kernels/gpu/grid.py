"""The grids of the GPU kernels: where a grid step finds its part of each operand, and how a kernel is called.

Legend: B batch, S queries, T keys, H query heads, K KV heads, G = H / K, D head_dim; M queries, N keys of a tile.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from m1jax.kernels.gpu.blocks import Tile

Array = jax.Array


@dataclass(frozen=True)
class Grid:
    """The steps of a kernel, and the part that a step takes of an operand, by the operand's axes."""

    tile: Tile
    steps: tuple[int, int, int]
    queries: pl.BlockSpec
    """Of (B, S, H, D)."""
    keys: pl.BlockSpec
    """Of (B, T, K, D)."""
    by_query: pl.BlockSpec
    """Of (B, S)."""
    by_head_and_query: pl.BlockSpec
    """Of (B, H, S)."""
    by_key: pl.BlockSpec
    """Of (B, T)."""

    def inputs(self, q_BSHD: Array, k_BTKD: Array, v_BTKD: Array) -> list[tuple[pl.BlockSpec, Array]]:
        """The operands that every kernel has."""
        return [(self.queries, q_BSHD), (self.keys, k_BTKD), (self.keys, v_BTKD)]

    def run(
        self,
        name: str,
        kernel: Callable[..., None],
        offset_1: Array,
        operands: Sequence[tuple[pl.BlockSpec, Array]],
        results: Sequence[tuple[pl.BlockSpec, jax.ShapeDtypeStruct]],
        *,
        scale: float,
        interpret: bool,
    ) -> list[Array]:
        """The results of `kernel`, which takes references to `offset_1`, the operands and the results."""
        specs, arrays = zip(*operands, strict=True)
        out_specs, out_shape = zip(*results, strict=True)
        return pl.pallas_call(
            functools.partial(kernel, scale=scale, tile=self.tile),
            grid=self.steps,
            in_specs=[pl.BlockSpec((1,), lambda h, b, i: (0,)), *specs],
            out_specs=list(out_specs),
            out_shape=list(out_shape),
            compiler_params=plgpu.CompilerParams(num_warps=self.tile.warps, num_stages=self.tile.stages),
            name=f"m1_attention_{name}",
            interpret=interpret,
        )(offset_1, *arrays)


def of_queries(q_BSHD: Array, k_BTKD: Array, tile: Tile) -> Grid:
    """(H, B, S / M) steps: one takes the tile `tile_of_queries` of one head, and all keys of its KV head."""
    B, S, H, D = q_BSHD.shape
    T, K = k_BTKD.shape[1:3]
    M, n = tile.queries, S // tile.queries
    return Grid(
        tile,
        (H, B, n),
        pl.BlockSpec((None, M, None, D), lambda h, b, i: (b, tile_of_queries(i, n), h, 0)),
        pl.BlockSpec((None, T, None, D), lambda h, b, i: (b, 0, h // (H // K), 0)),
        pl.BlockSpec((None, M), lambda h, b, i: (b, tile_of_queries(i, n))),
        pl.BlockSpec((None, None, M), lambda h, b, i: (b, h, tile_of_queries(i, n))),
        pl.BlockSpec((None, T), lambda h, b, i: (b, 0)),
    )


def tile_of_queries(step: Any, steps: Any) -> Any:
    """Under a causal mask the last queries have most to do: they begin first, so that the others fill the end."""
    return steps - 1 - step


def of_keys(q_BSHD: Array, k_BTKD: Array, tile: Tile) -> Grid:
    """(K, B, T / N) steps: one takes a tile of keys of one KV head, and all queries of its G heads."""
    B, S, H, D = q_BSHD.shape
    T, K = k_BTKD.shape[1:3]
    N, G = tile.keys, H // K
    return Grid(
        tile,
        (K, B, T // N),
        pl.BlockSpec((None, S, G, D), lambda h, b, j: (b, 0, h, 0)),
        pl.BlockSpec((None, N, None, D), lambda h, b, j: (b, j, h, 0)),
        pl.BlockSpec((None, S), lambda h, b, j: (b, 0)),
        pl.BlockSpec((None, G, S), lambda h, b, j: (b, h, 0)),
        pl.BlockSpec((None, N), lambda h, b, j: (b, j)),
    )


def like(x: Array) -> jax.ShapeDtypeStruct:
    """A result with the shape and dtype of an operand."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype)
