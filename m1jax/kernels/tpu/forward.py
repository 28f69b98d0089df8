"""The forward kernel: prepared keys stay in VMEM, queries stream, scores are transposed.

At the first head of each group the group's raw K and V are convolved, K is turned, and both join the prepared keys
and values in VMEM; all heads of the KV head then attend from that group to everything before it. Scores stand keys
by queries, so that the softmax's maxima and sums run along sublanes, which is vector arithmetic, and what belongs to
a query is a row of lanes.

Legend: as in grid.py; R queries of a block, C keys of a tile.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from m1jax.kernels.tpu import rotary
from m1jax.kernels.tpu.grid import LN2, MASKED, Call

Array = jax.Array

_PREPARED_ROWS = 256
FIRST, SAME = 0, 1
"""Rows of `token_rows`: the first key that a token sees; 1 where its document holds the token before it."""


def slots(call: Call) -> int:
    """Blocks of prepared keys in VMEM: all, or a ring as long as the window reaches."""
    blocks = call.total_groups * call.cores
    if call.window is None:
        return blocks
    reach = -(-(call.window - 1) // call.blocks.rows) + call.cores
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
    token_rows: Array,
    *,
    save: bool,
) -> tuple[Array, ...]:
    """Output (B, S, H x D), log-sums (B, H, 1, S), and with `save` prepared K and V (lanes, T, D) each.

    Args:
        call: the call's shape.
        visits: (2 x B x N,) int32, `schedule.visits` one after the other.
        offset: (1,) int32, groups of keys before the first query.
        weights: (4 x K,) float32, of each KV head the two weights of K's convolution and the two of V's.
        q: (B, S, H x D).
        k: (B, T, K x D), raw.
        v: (B, T, K x D), raw.
        first_k: (B, 1, K x D), raw K before key 0.
        first_v: (B, 1, K x D).
        table: (B, T, 256), `rotary.table`.
        token_rows: (B, 8, T) int32.
        save: also return what the backward pass needs; and with `call.counted` the visited blocks, (lanes,) int32.
    """
    rows, D = call.blocks.rows, call.head_dim
    B, S, width = q.shape
    at = call.specs(lambda s: s)
    T = k.shape[1]
    out_shape = [
        jax.ShapeDtypeStruct(q.shape, q.dtype),
        jax.ShapeDtypeStruct((B, width // D, 1, S), jnp.float32),
    ]
    out_specs = [at.queries(), at.query_rows()]
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
            grid=(call.lanes, call.num_groups, call.group),
            in_specs=[
                pl.BlockSpec(memory_space=pltpu.SMEM),
                at.queries(),
                at.keys(),
                at.keys(),
                at.first(),
                at.first(),
                at.table(),
                at.token_rows(),
            ],
            out_specs=out_specs,
            scratch_shapes=[
                pltpu.VMEM((slots(call), rows, D), q.dtype),
                pltpu.VMEM((slots(call), D, rows), q.dtype),
                pltpu.VMEM((2, 8, D), jnp.float32),
                pltpu.VMEM((call.blocks.keys, rows), jnp.float32),
                pltpu.VMEM((D, rows), q.dtype),
                pltpu.VMEM((D, rows), jnp.float32),
                pltpu.VMEM((1, rows), jnp.float32),
                pltpu.VMEM((1, rows), jnp.float32),
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
    )(visits, offset, weights, q, k, v, first_k, first_v, table, token_rows)


def _kernel(call: Call, save: bool, visits: Any, offset: Any, weights: Any, *operands: Any) -> None:
    refs = list(operands)
    q, k, v, first_k, first_v, table, token_rows, out, lse, *refs = refs
    saved = [refs.pop(0) for _ in range(2)] if save else None
    count: Any = refs.pop(0) if call.counted else None
    keys, values, last, ahead, q_DR, acc_DR, top, total = refs
    rows = call.blocks.rows
    lane, group, head = (pl.program_id(axis) for axis in range(3))
    row, kv_head, core = call.lane(lane)

    if count is not None:

        @pl.when((lane == 0) & (group == 0) & (head == 0))
        def zero() -> None:
            for n in range(call.lanes):
                count[n] = 0

    @pl.when(head == 0)
    def _() -> None:
        slot = group * call.cores
        if slots(call) < call.total_groups * call.cores:
            slot = jax.lax.rem(slot, slots(call))
        for source, first, which in ((k, first_k, 0), (v, first_v, 1)):
            w0, w1 = weights[kv_head * 4 + 2 * which], weights[kv_head * 4 + 2 * which + 1]
            before = jnp.where(group == 0, first[0].astype(jnp.float32), last[which, :1])
            for start in range(0, call.cores * rows, min(rows, _PREPARED_ROWS)):
                part = pl.ds(start, min(rows, _PREPARED_ROWS))
                x = source[0, part].astype(jnp.float32)
                same = rotary.column(token_rows[0, SAME : SAME + 1, part])
                mixed = w1 * x + w0 * (rotary.shifted_down(x, before) * same)
                before = x[-1:]
                if which == 0:
                    mixed = rotary.turned(mixed, table[0, part])
                mixed = mixed.astype(source.dtype)
                block, inside = slot + start // rows, pl.ds(start % rows, min(rows, _PREPARED_ROWS))
                if which == 0:
                    keys[block, inside] = mixed
                else:
                    values[block, :, inside] = jnp.transpose(mixed)
                if saved is not None:
                    saved[which][0, part] = mixed
            last[which, :1] = before

    query_group, live = call.query_group(group, offset[0])

    def attend() -> None:
        i = call.block(group, core, query_group)
        inside = pl.ds(pl.multiple_of((i - group * call.cores) * rows, rows) if call.cores > 1 else 0, rows)
        first, whole = call.visits(visits, row, i)
        first_R = token_rows[0, FIRST : FIRST + 1, inside]
        turned = rotary.turned(q[0].astype(jnp.float32), table[0, inside]) * (call.scale / LN2)
        q_DR[...] = jnp.transpose(turned.astype(q.dtype))
        top[...] = jnp.full_like(top, MASKED)
        total[...] = jnp.zeros_like(total)
        acc_DR[...] = jnp.zeros_like(acc_DR)
        scores_of = functools.partial(_scores, call, keys, q_DR)
        update = functools.partial(_update, call, values, acc_DR, top, total)
        size = call.blocks.keys

        def visit(j: Any, _: Any, *, edge: bool) -> None:
            if count is not None:
                count[lane] += 1
            scores = ahead[...]
            for c in range(0, rows, size):
                # The next tile's product is asked for before this one's softmax, which it can hide behind.
                if c + size < rows:
                    following = scores_of(j, c + size, size, 0)
                else:
                    following = None
                    ahead[...] = scores_of(j + 1, 0, size, 0)
                scores = masked(scores, j * rows + c, first_R if edge else None, 0, diagonal=False)
                update(scores, j, c, 0)
                scores = following

        stop = jnp.where(whole < i, whole, i)

        def before_diagonal() -> None:
            ahead[...] = scores_of(first, 0, size, 0)
            if call.packed or call.window is not None:
                jax.lax.fori_loop(first, stop, functools.partial(visit, edge=True), None)
            jax.lax.fori_loop(stop, i, functools.partial(visit, edge=False), None)

        def diagonal() -> None:
            if count is not None:
                count[lane] += 1
            limits = first_R if call.packed or (call.window is not None and call.window < rows) else None
            scores = ahead[...]
            for c in range(0, rows, size):
                following = scores_of(i, c + size, size, c + size) if c + size < rows else None
                update(masked(scores, i * rows + c, limits, c, diagonal=True), i, c, c)
                scores = following

        def seen() -> None:
            before_diagonal()
            diagonal()

        if call.packed:
            pl.when(first <= i)(seen)
        else:
            seen()
        real = (first_R >= 0) & (total[...] > 0)
        safe = jnp.where(real, total[...], 1.0)
        out_DR = acc_DR[...] * jnp.where(real, 1.0 / safe, 0.0)
        out[0] = jnp.transpose(out_DR.astype(out.dtype))
        lse[0, 0] = jnp.where(real, (top[...] + jnp.log2(safe)) * LN2, MASKED)

    if live is True:
        attend()
    else:
        pl.when(live)(attend)


def _slot(call: Call, j: Any) -> Any:
    return jax.lax.rem(j, slots(call)) if slots(call) < call.total_groups * call.cores else j


def _scores(call: Call, keys: Any, q_DR: Any, j: Any, start: int, size: int, first_query: int) -> Array:
    """`size` keys of block j from `start` on, by queries from `first_query` on."""
    return call.dot(keys[_slot(call, j), pl.ds(start, size)], q_DR[:, first_query:])


def _update(
    call: Call, values: Any, acc_DR: Any, top: Any, total: Any, scores_CR: Array, j: Any, start: int, first_query: int
) -> None:
    """One step of the online softmax with the scores of the keys of block j from `start` on."""
    queries = pl.ds(first_query, scores_CR.shape[1])
    before = top[:, queries]
    now = jnp.maximum(before, scores_CR.max(axis=0, keepdims=True))
    weight = jnp.exp2(scores_CR - now)
    shrink = jnp.exp2(before - now)
    top[:, queries] = now
    total[:, queries] = total[:, queries] * shrink + weight.sum(axis=0, keepdims=True)
    product = call.dot(values[_slot(call, j), :, pl.ds(start, scores_CR.shape[0])], weight.astype(values.dtype))
    acc_DR[:, queries] = acc_DR[:, queries] * shrink + product


def masked(scores_CR: Array, first_key: Any, first_R: Array | None, first_query: int, diagonal: bool) -> Array:
    """Scores of keys from `first_key` on, with those that a query does not see out of the softmax."""
    if first_R is None and not diagonal:
        return scores_CR
    key = jax.lax.broadcasted_iota(jnp.int32, scores_CR.shape, 0)
    if first_R is not None:
        scores_CR = jnp.where(key >= first_R[:, first_query:] - first_key, scores_CR, MASKED)
    if diagonal:
        scores_CR = jnp.where(key <= jax.lax.broadcasted_iota(jnp.int32, scores_CR.shape, 1), scores_CR, MASKED)
    return scores_CR
