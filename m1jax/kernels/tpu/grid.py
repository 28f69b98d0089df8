"""The grid that the forward and the backward kernel share, and the parts of the operands that its steps see.

A kernel's grid is (lane, panel, head): lanes are row x KV head x core and independent of each other; a panel is one
block of keys and queries for each core; a head is a query head of the lane's KV head, or some of them. The sequence of
the queries is laid out along that of the keys, `offset` panels further on, so that each block of queries has the same
tokens as a block of keys.

Legend: B batch, S queries, T keys, H query heads, K KV heads, G = H / K, D head_dim, P cores, N blocks of keys.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from m1jax.kernels.matmul import matmul_precision
from m1jax.kernels.tpu.rotary import LANES
from m1jax.kernels.tpu.schedule import Blocks, Tiling, unpacked_visits

Array = jax.Array

LN2 = 0.6931471805599453
MASKED = -1e30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Static:
    """What is static about an attention call, and the same for each of its kernel calls."""

    tiling: Tiling
    batch: int
    kv_heads: int
    group: int
    """Query heads of a KV head, G."""
    head_dim: int
    dtype: Any
    query_panels: int
    """Panels that hold queries."""
    aligned: bool
    """There is a query for each key: `offset` is 0, and known when the kernel is compiled."""
    window: int | None
    scale: float
    packed: bool
    """Visits come from the data; otherwise every row is one document and they are arithmetic."""
    counted: bool
    """An extra output counts the visited blocks of each lane."""
    interpret: Any

    @property
    def cores(self) -> int:
        """Cores that share the queries of one row and KV head, P."""
        return self.tiling.cores

    @property
    def total_panels(self) -> int:
        """Panels of all keys."""
        return self.tiling.keys // self.tiling.panel

    def call(self, blocks: Blocks, first_panel: int, key_panels: int, num_panels: int) -> "Call":
        """The kernel call for a range of panels of keys."""
        heads = max(n for n in range(1, blocks.heads + 1) if self.group % n == 0)
        return Call(
            **vars(self),
            blocks=dataclasses.replace(blocks, heads=heads),
            first_panel=first_panel,
            num_panels=num_panels,
            key_panels=key_panels,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call(Static):
    """What is static about one kernel call."""

    blocks: Blocks
    first_panel: int
    """First panel of keys that this call takes (a chunk of the backward pass)."""
    num_panels: int
    """Panels that its grid walks: those of its keys, and after them those of queries that see some of them."""
    key_panels: int
    """Panels of its keys."""

    @property
    def lanes(self) -> int:
        """Row x KV head x core."""
        return self.batch * self.kv_heads * self.cores

    @property
    def panel(self) -> int:
        """Tokens of a panel."""
        return self.tiling.panel

    def lane(self, n: Any) -> tuple[Any, Any, Any]:
        """(row, KV head, core) of a lane."""
        core = jax.lax.rem(n, self.cores) if self.cores > 1 else 0
        pair = jax.lax.div(n, self.cores) if self.cores > 1 else n
        if self.kv_heads == 1:
            return pair, 0, core
        return jax.lax.div(pair, self.kv_heads), jax.lax.rem(pair, self.kv_heads), core

    def query_panel(self, panel: Any, offset: Any) -> tuple[Any, Any]:
        """The panel of queries at a panel of keys, the nearest where there is none, and whether there is one."""
        if self.aligned:
            return panel, True
        inside = panel - offset
        nearest = jnp.clip(inside, 0, self.query_panels - 1)
        return nearest, nearest == inside

    def block(self, panel: Any, core: Any, query_panel: Any) -> Any:
        """The block that a core takes of a panel: first, second, second, first, ..., so that both have equal work."""
        if self.cores == 1:
            return panel
        return panel * self.cores + (core ^ (query_panel & 1))

    def visits(self, ref: Any, row: Any, i: Any) -> tuple[Any, Any]:
        """First visited and first whole block of keys of block i of queries."""
        if not self.packed:
            return unpacked_visits(i, self.blocks.height, self.window)
        blocks = self.total_panels * self.cores
        at = row * blocks + i
        return ref[at], ref[self.batch * blocks + at]

    def inside(self, i: Any, panel: Any) -> Any:
        """The tokens of block i in its panel."""
        height = self.blocks.height
        return pl.ds(pl.multiple_of((i - panel * self.cores) * height, height) if self.cores > 1 else 0, height)

    def clear(self, count: Any) -> None:
        """Counts of visited blocks, before the first step of all."""
        lane, panel, step = (pl.program_id(axis) for axis in range(3))

        @pl.when((lane == 0) & (panel == 0) & (step == 0))
        def zero() -> None:
            for n in range(self.lanes):
                count[n] = 0

    def specs(self, panel_at: Callable[[Any], Any]) -> "Specs":
        """Block specs of the operands; `panel_at` maps the grid's second index to a panel."""
        return Specs(self, panel_at)

    def dot(self, a: Array, b: Array, *, transposed: bool = False) -> Array:
        """`a @ b`, or `a @ b^T`, summed in float32."""
        axes = (((1,), (1 if transposed else 0,)), ((), ()))
        return jax.lax.dot_general(
            a, b, axes, precision=matmul_precision(self.dtype), preferred_element_type=jnp.float32
        )

    def compiler_params(self) -> Any:
        """Lanes may run on several cores; panels and heads hand scratch memory on."""
        return pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=self.tiling.vmem_bytes
        )


@dataclasses.dataclass(frozen=True)
class Specs:
    """Where a grid step finds its part of each operand."""

    call: Call
    panel_at: Callable[[Any], Any]

    def queries(self) -> pl.BlockSpec:
        """Of (B, S, H x D): one block of a grid step's heads."""

        def at(n: Any, s: Any, g: Any, visits: Any, offset: Any) -> Any:
            row, block, head = self._query(n, s, g, offset)
            return row, block, head

        return pl.BlockSpec((1, self.call.blocks.height, self.call.blocks.heads * self.call.head_dim), at)

    def per_query(self) -> pl.BlockSpec:
        """Of (B, H, 1, S): one block of a grid step's heads."""

        def at(n: Any, s: Any, g: Any, visits: Any, offset: Any) -> Any:
            row, block, head = self._query(n, s, g, offset)
            return row, head, 0, block

        return pl.BlockSpec((1, self.call.blocks.heads, 1, self.call.blocks.height), at)

    def _query(self, n: Any, s: Any, g: Any, offset: Any) -> tuple[Any, Any, Any]:
        call = self.call
        row, head, core = call.lane(n)
        steps = call.group // call.blocks.heads
        panel = self.panel_at(s)
        nearest, _ = call.query_panel(panel, offset[0])
        if not call.aligned:
            # While there is no query, stay at the block that comes next or came last, so that nothing is written.
            early = (nearest > panel - offset[0]) == (self.panel_at(1) > self.panel_at(0))
            g = jnp.where(nearest == panel - offset[0], g, jnp.where(early, 0, steps - 1))
        return row, call.block(nearest, core, nearest), head * steps + g

    def keys(self) -> pl.BlockSpec:
        """Of (B, T, K x D): one panel of one head; beyond the call's keys, the nearest."""

        def at(n: Any, s: Any, g: Any, visits: Any, offset: Any) -> Any:
            row, head, _ = self.call.lane(n)
            return row, self._key_panel(s), head

        return pl.BlockSpec((1, self.call.panel, self.call.head_dim), at)

    def key_gradients(self) -> pl.BlockSpec:
        """Of (P x B, T of the call, K x D): one panel of one head."""

        def at(n: Any, s: Any, g: Any, visits: Any, offset: Any) -> Any:
            row, head, core = self.call.lane(n)
            return core * self.call.batch + row, self._key_panel(s) - self.call.first_panel, head

        return pl.BlockSpec((1, self.call.panel, self.call.head_dim), at)

    def prepared(self) -> pl.BlockSpec:
        """Of (lanes, T, D): all keys of the call, in one buffer as they come once a lane."""
        call = self.call
        tokens = call.key_panels * call.panel
        return pl.BlockSpec(
            (1, tokens, call.head_dim),
            lambda n, s, g, *_: (n, call.first_panel // call.key_panels, 0),
            pipeline_mode=pl.Buffered(1),
        )

    def lane_keys(self) -> pl.BlockSpec:
        """Of (N, T, D) with an entry a lane: one panel."""
        return pl.BlockSpec(
            (1, self.call.panel, self.call.head_dim), lambda n, s, g, visits, offset: (n, self.panel_at(s), 0)
        )

    def first(self) -> pl.BlockSpec:
        """Of (B, 1, K x D): one head."""

        def at(n: Any, s: Any, g: Any, visits: Any, offset: Any) -> Any:
            row, head, _ = self.call.lane(n)
            return row, 0, head

        return pl.BlockSpec((1, 1, self.call.head_dim), at)

    def table(self) -> pl.BlockSpec:
        """Of (B, T, 256): one panel."""
        return pl.BlockSpec(
            (1, self.call.panel, 2 * LANES), lambda n, s, g, *_: (self.call.lane(n)[0], self.panel_at(s), 0)
        )

    def per_token(self) -> pl.BlockSpec:
        """Of (B, 8, T): one panel."""
        return pl.BlockSpec((1, 8, self.call.panel), lambda n, s, g, *_: (self.call.lane(n)[0], 0, self.panel_at(s)))

    def _key_panel(self, s: Any) -> Any:
        call, panel = self.call, self.panel_at(s)
        if call.key_panels == call.num_panels:
            return panel
        return jnp.clip(panel, call.first_panel, call.first_panel + call.key_panels - 1)
