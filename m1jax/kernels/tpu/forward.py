"""The forward kernel: prepared keys and values stay in VMEM, queries stream.

At the first heads of each panel the panel's raw K and V are convolved, K is turned and scaled, and both join the
prepared keys and values in VMEM; all heads of the KV head then attend from that panel to everything before it.

The softmax has no running maximum: weights are relative to a token's score with itself, which every token sees, so
that their sum is at least 1 and neither the weights nor the output wait for a maximum or are scaled again. Where a
sum comes near overflow, the block of queries is done again with running maxima.

Legend: see grid.py; R queries of a block.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from m1jax.kernels.tpu import rotary
from m1jax.kernels.tpu.grid import LN2, MASKED, Call
from m1jax.kernels.tpu.rotary import LANES

Array = jax.Array

_PREPARED_TOKENS = 256
_LARGEST = 2.0**96
"""Of a sum of weights; times any |v| below 2**31 it is finite in float32 and bfloat16."""
FIRST, SAME = 0, 1
"""Rows of `per_token`: the first key that a token sees; 1 where its document holds the token before it."""


def slots(call: Call) -> int:
    """Blocks of prepared keys in VMEM: all, or a ring as long as the window reaches."""
    blocks = call.total_panels * call.cores
    if call.window is None:
        return blocks
    reach = -(-(call.window - 1) // call.blocks.height) + call.cores
    return min(blocks, -(-reach // call.cores) * call.cores)


def forward(
    call: Call,
    visits: Array,
    offset: Array,
    weights: Array,
    q: Array,
    k: Array,
    v: Array,
    first_k: Array,
    first_v: Array,
    table: Array,
    per_token: Array,
    *,
    save: bool,
) -> tuple[Array, ...]:
    """Output (B, S, H x D), log-sums (B, H, 1, S), and with `save` prepared K, times scale / ln 2, and V (lanes, T, D).

    Args:
        call: the call's shape.
        visits: (2 x B x N,) int32, `schedule.visits` one after the other.
        offset: (1,) int32, panels of keys before the first query.
        weights: (4 x K,) float32, of each KV head the two weights of K's convolution and the two of V's.
        q: (B, S, H x D).
        k: (B, T, K x D), raw.
        v: (B, T, K x D), raw.
        first_k: (B, 1, K x D), raw K before key 0.
        first_v: (B, 1, K x D).
        table: (B, T, 256), `rotary.table`.
        per_token: (B, 8, T) int32.
        save: also return what the backward pass needs; and with `call.counted` the visited blocks, (lanes,) int32.
    """
    height, heads, D = call.blocks.height, call.blocks.heads, call.head_dim
    B, S, width = q.shape
    at = call.specs(lambda s: s)
    T = k.shape[1]
    out_shape = [
        jax.ShapeDtypeStruct(q.shape, q.dtype),
        jax.ShapeDtypeStruct((B, width // D, 1, S), jnp.float32),
    ]
    out_specs = [at.queries(), at.per_query()]
    if save:
        out_shape += [jax.ShapeDtypeStruct((call.lanes, T, D), q.dtype)] * 2
        out_specs += [at.lane_keys()] * 2
    if call.counted:
        out_shape.append(jax.ShapeDtypeStruct((call.lanes,), jnp.int32))
        out_specs.append(pl.BlockSpec(memory_space=pltpu.SMEM))
    pairs = S * T / 2 if call.window is None else S * min(call.window, T / 2)
    return pl.pallas_call(
        functools.partial(_kernel, call, save),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(call.lanes, call.num_panels, call.group // heads),
            in_specs=[
                pl.BlockSpec(memory_space=pltpu.SMEM),
                at.queries(),
                at.keys(),
                at.keys(),
                at.first(),
                at.first(),
                at.table(),
                at.per_token(),
            ],
            out_specs=out_specs,
            scratch_shapes=[
                pltpu.VMEM((slots(call), height, D), q.dtype),
                pltpu.VMEM((slots(call), height, D), q.dtype),
                pltpu.VMEM((2, 8, D), jnp.float32),
                pltpu.VMEM((height, LANES), jnp.int32),
                pltpu.VMEM((heads * height, call.blocks.keys), jnp.float32),
                pltpu.VMEM((heads * height, D), q.dtype),
                pltpu.VMEM((heads * height, D), jnp.float32),
                pltpu.VMEM((heads * height, LANES), jnp.float32),
                pltpu.VMEM((heads * height, LANES), jnp.float32),
            ],
        ),
        out_shape=out_shape,
        compiler_params=call.compiler_params(),
        cost_estimate=pl.CostEstimate(
            flops=int(4 * B * (width // D) * pairs * D),
            transcendentals=int(B * (width // D) * pairs),
            bytes_accessed=(2 * q.size + 2 * k.size) * q.dtype.itemsize + table.size * 4 * call.kv_heads,
        ),
        interpret=call.interpret,
        name="m1_attention_forward",
    )(visits, offset, weights, q, k, v, first_k, first_v, table, per_token)


def _kernel(call: Call, save: bool, visits: Any, offset: Any, weights: Any, *operands: Any) -> None:
    refs = list(operands)
    q, k, v, first_k, first_v, table, per_token, out, lse, *refs = refs
    saved = [refs.pop(0) for _ in range(2)] if save else None
    count: Any = refs.pop(0) if call.counted else None
    keys, values, last, limits, ahead, turned, acc, anchor, total = refs
    height, size, heads, D = call.blocks.height, call.blocks.keys, call.blocks.heads, call.head_dim
    lane, panel, step = (pl.program_id(axis) for axis in range(3))
    row, kv_head, core = call.lane(lane)

    if count is not None:
        call.clear(count)

    @pl.when(step == 0)
    def _() -> None:
        slot = _slot(call, panel * call.cores)
        part_size = min(height, _PREPARED_TOKENS)
        before = [
            jnp.where(panel == 0, first[0].astype(jnp.float32), last[which, :1])
            for which, first in enumerate((first_k, first_v))
        ]
        for start in range(0, call.panel, part_size):
            part, inside = pl.ds(start, part_size), pl.ds(start % height, part_size)
            same = rotary.columns(per_token[0, SAME : SAME + 1, part].astype(jnp.float32))
            for which, (source, prepared) in enumerate(((k, keys), (v, values))):
                # The scale is folded into K.
                w0, w1 = (weights[kv_head * 4 + 2 * which + n] * (1.0 if which else call.scale / LN2) for n in (0, 1))
                x = source[0, part].astype(jnp.float32)
                mixed = w1 * x + rotary.shifted_down(x, before[which]) * _wide(w0 * same, D)
                before[which] = x[-1:]
                if which == 0:
                    mixed = rotary.turned(mixed, table[0, part])
                mixed = mixed.astype(source.dtype)
                prepared[slot + start // height, inside] = mixed
                if saved is not None:
                    saved[which][0, part] = mixed
        for which in (0, 1):
            last[which, :1] = before[which]

    query_panel, live = call.query_panel(panel, offset[0])

    def attend() -> None:
        i = call.block(panel, core, query_panel)
        inside = call.inside(i, panel)
        first, whole = call.visits(visits, row, i)
        first_R = per_token[0, FIRST : FIRST + 1, inside]

        @pl.when(step == 0)
        def _() -> None:
            limits[...] = rotary.columns(first_R)

        own_keys = keys[_slot(call, i)].astype(jnp.float32)
        for h in range(heads):
            part = pl.ds(h * height, height)
            x = rotary.turned(q[0, :, h * D : (h + 1) * D].astype(jnp.float32), table[0, inside])
            turned[part] = x.astype(q.dtype)
            anchor[part] = jnp.broadcast_to(jnp.sum(x * own_keys, axis=1, keepdims=True), (height, LANES))
        total[...] = jnp.zeros_like(total)
        acc[...] = jnp.zeros_like(acc)

        def from_query(ref: Any, first_query: int) -> Array:
            """Of each head, the queries of the block from this one on."""
            if first_query == 0:
                return ref[...]
            return jnp.concatenate([ref[h * height + first_query : (h + 1) * height] for h in range(heads)])

        def scores_of(j: Any, start: Any, first_query: int) -> Array:
            """Of block j `size` keys from `start` on, (heads x queries from `first_query` on, size)."""
            return call.dot(from_query(turned, first_query), keys[_slot(call, j), pl.ds(start, size)], transposed=True)

        def add(scores: Array, j: Any, start: Any, first_query: int) -> None:
            """These keys' softmax relative to the anchors, and what it adds to the output."""
            weight = jnp.exp2(scores - _wide(from_query(anchor, first_query), size))
            product = call.dot(weight.astype(q.dtype), values[_slot(call, j), pl.ds(start, size)])
            left = height - first_query
            for h in range(heads):
                part, queries = slice(h * left, (h + 1) * left), pl.ds(h * height + first_query, left)
                total[queries] += _folded(weight[part])
                acc[queries] += product[part]

        def limited(scores: Array, first_key: Any, first_query: int) -> Array:
            """The scores without those of keys before a query's first."""
            first = limits[pl.ds(first_query, height - first_query)] - first_key
            key = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
            return jnp.where(key >= _wide(jnp.concatenate([first] * heads), size), scores, MASKED)

        def visit(j: Any, _: Any, *, edge: bool) -> None:
            if count is not None:
                count[lane] += 1
            scores = ahead[...]
            for c in range(0, height, size):
                # The next tile's product is asked for before this one's softmax, which it can hide behind.
                if c + size < height:
                    following = scores_of(j, c + size, 0)
                else:
                    following = None
                    ahead[...] = scores_of(j + 1, 0, 0)
                if edge:
                    scores = limited(scores, j * height + c, 0)
                add(scores, j, c, 0)
                scores = following

        stop = jnp.where(whole < i, whole, i)

        def seen() -> None:
            ahead[...] = scores_of(first, 0, 0)
            if call.packed or call.window is not None:
                jax.lax.fori_loop(first, stop, functools.partial(visit, edge=True), None)
            jax.lax.fori_loop(stop, i, functools.partial(visit, edge=False), None)
            if count is not None:
                count[lane] += 1
            scores = ahead[...]
            for c in range(0, height, size):
                following = scores_of(i, c + size, c + size) if c + size < height else None
                if call.packed or (call.window is not None and call.window < height):
                    scores = limited(scores, i * height + c, c)
                parts = []
                for h in range(heads):
                    begin = h * (height - c)
                    parts.append(_below_diagonal(scores[begin : begin + size]))
                    if c + size < height:
                        parts.append(scores[begin + size : begin + height - c])
                add(jnp.concatenate(parts), i, c, c)
                scores = following

        def finish() -> None:
            for h in range(heads):
                part = pl.ds(h * height, height)
                sums = jnp.broadcast_to(jnp.sum(total[part], axis=1, keepdims=True), (height, LANES))
                inverse = jnp.where(limits[...] >= 0, 1.0 / sums, 0.0)
                out[0, :, h * D : (h + 1) * D] = (acc[part] * _wide(inverse, D)).astype(out.dtype)
                # One transposition turns both into rows.
                lane = jax.lax.broadcasted_iota(jnp.int32, sums.shape, 1)
                both = jnp.transpose(jnp.where(lane == 0, anchor[part], sums))
                lse[0, h] = jnp.where(first_R >= 0, (both[:1] + jnp.log2(both[1:2])) * LN2, MASKED)

        def again() -> None:
            """With running maxima."""
            anchor[...] = jnp.full_like(anchor, MASKED)
            total[...] = jnp.zeros_like(total)
            acc[...] = jnp.zeros_like(acc)

            def tile(n: Any, _: Any) -> None:
                j, start = jax.lax.div(n, height // size), pl.multiple_of(jax.lax.rem(n, height // size) * size, size)
                scores = limited(scores_of(j, start, 0), j * height + start, 0)
                query = jax.lax.broadcasted_iota(jnp.int32, (height, size), 0) + (i - j) * height - start
                seen = jax.lax.broadcasted_iota(jnp.int32, (height, size), 1) <= query
                scores = jnp.where(jnp.concatenate([seen] * heads), scores, MASKED)
                now = jnp.maximum(anchor[...], jnp.max(scores, axis=1, keepdims=True))
                shrink = jnp.exp2(anchor[...] - now)
                anchor[...] = now
                total[...] *= shrink
                acc[...] *= _wide(shrink, D)
                add(scores, j, start, 0)

            jax.lax.fori_loop(first * (height // size), (i + 1) * (height // size), tile, None)
            finish()

        if call.packed:
            pl.when(first <= i)(seen)
        else:
            seen()
        overflown = jnp.logical_not(jnp.max(total[...]) <= _LARGEST)
        finish()
        pl.when(overflown)(again)

    if live is True:
        attend()
    else:
        pl.when(live)(attend)


def _slot(call: Call, j: Any) -> Any:
    return jax.lax.rem(j, slots(call)) if slots(call) < call.total_panels * call.cores else j


def _wide(x: Array, width: int) -> Array:
    """Equal lanes of (R, 128) as (R, width)."""
    return x if width == LANES else jnp.tile(x, (1, width // LANES))


def _folded(x: Array) -> Array:
    """Sums of columns that are a multiple of 128 apart."""
    return functools.reduce(jnp.add, (x[:, n : n + LANES] for n in range(0, x.shape[1], LANES)))


def _below_diagonal(scores: Array) -> Array:
    query, key = (jax.lax.broadcasted_iota(jnp.int32, scores.shape, axis) for axis in (0, 1))
    return jnp.where(key <= query, scores, MASKED)
