"""The grid that the forward and the backward kernel share, and what its steps see.

A kernel's grid is (lane, group, head): lanes are row x KV head x core and independent of each other; a group is one
block of keys and queries for each core; a head is a query head of the lane's KV head, or some of them. The sequence of
the queries is laid out in the frame of the keys, `offset` groups further on, so that a block of queries stands at a
block of keys.

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
from m1jax.kernels.tpu.schedule import Blocks, unpacked_visits

Array = jax.Array

LN2 = 0.6931471805599453
MASKED = -1e30


@dataclasses.dataclass(frozen=True)
class Call:
    """What is static about one kernel call."""

    batch: int
    kv_heads: int
    group: int
    head_dim: int
    dtype: Any
    blocks: Blocks
    cores: int
    first_group: int
    """First group of keys that this call takes (a chunk of the backward pass)."""
    num_groups: int
    """Groups that its grid walks: those of its keys, and after them those of queries that see some of them."""
    key_groups: int
    """Groups of its keys."""
    query_groups: int
    """Groups that hold queries."""
    total_groups: int
    aligned: bool
    """The queries stand at the keys, one for one: `offset` is 0 and known to be."""
    window: int | None
    scale: float
    packed: bool
    """Visits come from the data; otherwise every row is one document and they are arithmetic."""
    counted: bool
    """An extra output counts the visited blocks of each lane."""
    vmem_bytes: int
    interpret: Any

    @property
    def lanes(self) -> int:
        """Row x KV head x core."""
        return self.batch * self.kv_heads * self.cores

    def lane(self, n: Any) -> tuple[Any, Any, Any]:
        """(row, KV head, core) of a lane."""
        core = jax.lax.rem(n, self.cores) if self.cores > 1 else 0
        pair = jax.lax.div(n, self.cores) if self.cores > 1 else n
        if self.kv_heads == 1:
            return pair, 0, core
        return jax.lax.div(pair, self.kv_heads), jax.lax.rem(pair, self.kv_heads), core

    def query_group(self, group: Any, offset: Any) -> tuple[Any, Any]:
        """The group of queries at a group of keys, the nearest where there is none, and whether there is one."""
        if self.aligned:
            return group, True
        inside = group - offset
        nearest = jnp.clip(inside, 0, self.query_groups - 1)
        return nearest, nearest == inside

    def block(self, group: Any, core: Any, query_group: Any) -> Any:
        """The block that a core takes of a group: first, second, second, first, ..., so that both have equal work."""
        if self.cores == 1:
            return group
        return group * self.cores + (core ^ (query_group & 1))

    def visits(self, ref: Any, row: Any, i: Any) -> tuple[Any, Any]:
        """First visited and first whole block of keys of block i of queries."""
        if not self.packed:
            return unpacked_visits(i, self.blocks.rows, self.window)
        blocks = self.total_groups * self.cores
        at = row * blocks + i
        return ref[at], ref[self.batch * blocks + at]

    def specs(self, group_at: Callable[[Any], Any]) -> "Specs":
        """Block specs of the operands; `group_at` maps the grid's second index to a group."""
        return Specs(self, group_at)

    def dot(self, a: Array, b: Array, *, transposed: bool = False) -> Array:
        """`a @ b`, or `a @ b^T`, summed in float32."""
        axes = (((1,), (1 if transposed else 0,)), ((), ()))
        return jax.lax.dot_general(
            a, b, axes, precision=matmul_precision(self.dtype), preferred_element_type=jnp.float32
        )

    def compiler_params(self) -> Any:
        """Lanes may run on several cores; groups and heads hand scratch memory on."""
        return pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=self.vmem_bytes
        )


@dataclasses.dataclass(frozen=True)
class Specs:
    """Where a grid step finds its part of each operand."""

    call: Call
    group_at: Callable[[Any], Any]

    def queries(self) -> pl.BlockSpec:
        """Of (B, S, H x D): one block of a grid step's heads."""

        def at(n: Any, s: Any, g: Any, visits: Any, offset: Any) -> Any:
            row, block, head = self._query(n, s, g, offset)
            return row, block, head

        return pl.BlockSpec((1, self.call.blocks.rows, self.call.blocks.heads * self.call.head_dim), at)

    def query_rows(self) -> pl.BlockSpec:
        """Of (B, H, 1, S): one block of a grid step's heads."""

        def at(n: Any, s: Any, g: Any, visits: Any, offset: Any) -> Any:
            row, block, head = self._query(n, s, g, offset)
            return row, head, 0, block

        return pl.BlockSpec((1, self.call.blocks.heads, 1, self.call.blocks.rows), at)

    def _query(self, n: Any, s: Any, g: Any, offset: Any) -> tuple[Any, Any, Any]:
        call = self.call
        row, head, core = call.lane(n)
        steps = call.group // call.blocks.heads
        group = self.group_at(s)
        nearest, _ = call.query_group(group, offset[0])
        if not call.aligned:
            # While there is no query, stay at the block that comes next or came last, so that nothing is written.
            early = (nearest > group - offset[0]) == (self.group_at(1) > self.group_at(0))
            g = jnp.where(nearest == group - offset[0], g, jnp.where(early, 0, steps - 1))
        return row, call.block(nearest, core, nearest), head * steps + g

    def keys(self) -> pl.BlockSpec:
        """Of (B, T, K x D): one group of one head; beyond the call's keys, the nearest."""

        def at(n: Any, s: Any, g: Any, visits: Any, offset: Any) -> Any:
            row, head, _ = self.call.lane(n)
            return row, self._key_group(s), head

        return pl.BlockSpec((1, self.call.cores * self.call.blocks.rows, self.call.head_dim), at)

    def key_gradients(self) -> pl.BlockSpec:
        """Of (P x B, T of the call, K x D): one group of one head."""

        def at(n: Any, s: Any, g: Any, visits: Any, offset: Any) -> Any:
            row, head, core = self.call.lane(n)
            return core * self.call.batch + row, self._key_group(s) - self.call.first_group, head

        return pl.BlockSpec((1, self.call.cores * self.call.blocks.rows, self.call.head_dim), at)

    def prepared(self) -> pl.BlockSpec:
        """Of (lanes, T, D): all keys of the call, in one buffer as they come once a lane."""
        call = self.call
        rows = call.key_groups * call.cores * call.blocks.rows
        return pl.BlockSpec(
            (1, rows, call.head_dim),
            lambda n, s, g, *_: (n, call.first_group // call.key_groups, 0),
            pipeline_mode=pl.Buffered(1),
        )

    def lane_keys(self) -> pl.BlockSpec:
        """Of (N, T, D) with an entry a lane: one group."""
        rows = self.call.cores * self.call.blocks.rows
        return pl.BlockSpec((1, rows, self.call.head_dim), lambda n, s, g, visits, offset: (n, self.group_at(s), 0))

    def first(self) -> pl.BlockSpec:
        """Of (B, 1, K x D): one head."""

        def at(n: Any, s: Any, g: Any, visits: Any, offset: Any) -> Any:
            row, head, _ = self.call.lane(n)
            return row, 0, head

        return pl.BlockSpec((1, 1, self.call.head_dim), at)

    def table(self) -> pl.BlockSpec:
        """Of (B, T, 256): one group."""
        rows = self.call.cores * self.call.blocks.rows
        return pl.BlockSpec((1, rows, 2 * LANES), lambda n, s, g, *_: (self.call.lane(n)[0], self.group_at(s), 0))

    def token_rows(self) -> pl.BlockSpec:
        """Of (B, 8, T): one group."""
        rows = self.call.cores * self.call.blocks.rows
        return pl.BlockSpec((1, 8, rows), lambda n, s, g, *_: (self.call.lane(n)[0], 0, self.group_at(s)))

    def _key_group(self, s: Any) -> Any:
        call, group = self.call, self.group_at(s)
        if call.key_groups == call.num_groups:
            return group
        return jnp.clip(group, call.first_group, call.first_group + call.key_groups - 1)
