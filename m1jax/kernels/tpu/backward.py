"""The backward kernel: one pass over the scores gives dq, dk, dv and the convolution's gradients.

Prepared K and V and the sums of their gradients stay in VMEM; queries stream from the last panel to the first, so
that a panel's key gradients are complete when its own queries have been: then they are turned back, sent through the
transposed convolution `dk_t = w1 dk'_t + w0 dk'_{t+1}`, and written, once for all query heads of the KV head. A block
of dq is complete after its own step. Scores are keys by queries.

Legend: see grid.py; R queries of a block, C keys of a tile.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from m1jax.kernels.tpu import rotary
from m1jax.kernels.tpu.forward import FIRST, SAME
from m1jax.kernels.tpu.grid import LN2, MASKED, Call

Array = jax.Array

_EPILOGUE_TOKENS = 256


def backward(
    call: Call,
    visits: Array,
    offset: Array,
    weights: Array,
    q: Array,
    d_out: Array,
    out: Array,
    lse: Array,
    d_lse: Array,
    keys: Array,
    values: Array,
    k: Array,
    v: Array,
    table: Array,
    per_token: Array,
    dq: Array | None,
) -> tuple[Array, ...]:
    """Gradients of the queries and of the call's keys.

    Args:
        call: the call's shape.
        visits: see `forward`.
        offset: see `forward`.
        weights: see `forward`.
        q: (B, S, H x D).
        d_out: (B, S, H x D).
        out: (B, S, H x D), the forward kernel's.
        lse: (B, H, 1, S), the forward kernel's.
        d_lse: (B, H, 1, S).
        keys: (lanes, T, D), prepared by the forward kernel.
        values: (lanes, T, D).
        k: (B, T, K x D), raw.
        v: (B, T, K x D), raw.
        table: see `forward`.
        per_token: see `forward`.
        dq: (B, S, H x D) float32, to which this call's part is added in place; None where the call has all keys.

    Returns:
        dq, (B, S, H x D), in q's dtype where the call has all keys.
        dk and dv, (P x B, keys of the call, K x D), parts to be summed over P; float32 where P is 2.
        (lanes, 8, D) float32: sums over tokens of the terms of the four convolution weights' gradients, then the
            gradients of the convolved K and V of the call's first key, 0 where that starts a document.
        With `call.counted` the visited blocks, (lanes,) int32.
    """
    height, D = call.blocks.height, call.head_dim
    B, S, width = q.shape
    last = call.first_panel + call.num_panels - 1
    at = call.specs(lambda s: last - s)
    blocks = call.key_panels * call.cores
    part = jax.ShapeDtypeStruct(
        (call.cores * B, blocks * height, call.kv_heads * D), k.dtype if call.cores == 1 else jnp.float32
    )
    out_shape = [
        jax.ShapeDtypeStruct(q.shape, q.dtype if dq is None else jnp.float32),
        part,
        part,
        jax.ShapeDtypeStruct((call.lanes, 8, D), jnp.float32),
    ]
    out_specs = [
        at.queries(),
        at.key_gradients(),
        at.key_gradients(),
        pl.BlockSpec((1, 8, D), lambda n, s, g, *_: (n, 0, 0)),
    ]
    if call.counted:
        out_shape.append(jax.ShapeDtypeStruct((call.lanes,), jnp.int32))
        out_specs.append(pl.BlockSpec(memory_space=pltpu.SMEM))
    operands = [weights, q, d_out, out, lse, d_lse, keys, values, k, v, table, per_token]
    in_specs = [pl.BlockSpec(memory_space=pltpu.SMEM), *[at.queries()] * 3, *[at.per_query()] * 2]
    in_specs += [*[at.prepared()] * 2, *[at.keys()] * 2, at.table(), at.per_token()]
    if dq is not None:
        operands.append(dq)
        in_specs.append(at.queries())
    pairs = S * blocks * height / 2 if call.window is None else S * min(call.window, blocks * height / 2)
    return pl.pallas_call(
        functools.partial(_kernel, call, dq is not None),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(call.lanes, call.num_panels, call.group),
            in_specs=in_specs,
            out_specs=out_specs,
            scratch_shapes=[
                pltpu.VMEM((blocks, D, height), q.dtype),
                pltpu.VMEM((blocks, height, D), jnp.float32),
                pltpu.VMEM((blocks, height, D), jnp.float32),
                pltpu.VMEM((2, 8, D), jnp.float32),
                pltpu.VMEM((height, D), q.dtype),
                pltpu.VMEM((D, height), q.dtype),
                pltpu.VMEM((D, height), q.dtype),
                pltpu.VMEM((D, height), jnp.float32),
            ],
        ),
        out_shape=out_shape,
        input_output_aliases={} if dq is None else {len(operands) + 1: 0},
        compiler_params=call.compiler_params(),
        cost_estimate=pl.CostEstimate(
            flops=int(10 * B * (width // D) * pairs * D),
            transcendentals=int(B * (width // D) * pairs),
            bytes_accessed=(4 * q.size + 6 * k.size) * q.dtype.itemsize + table.size * 4 * call.kv_heads,
        ),
        interpret=call.interpret,
        name="m1_attention_backward",
    )(visits, offset, *operands)


def _kernel(call: Call, adds: bool, visits: Any, offset: Any, weights: Any, *operands: Any) -> None:
    refs = list(operands)
    q, d_out, out, lse, d_lse, keys, values, k, v, table, per_token, *refs = refs
    before = refs.pop(0) if adds else None
    dq, dk, dv, sums, *refs = refs
    count: Any = refs.pop(0) if call.counted else None
    keys_DC, dkeys, dvalues, after, q_RD, q_DR, d_out_DR, dq_DR = refs
    height = call.blocks.height
    lane, step, head = (pl.program_id(axis) for axis in range(3))
    row, kv_head, core = call.lane(lane)
    panel = call.first_panel + call.num_panels - 1 - step
    first_block = call.first_panel * call.cores
    end_block = first_block + call.key_panels * call.cores
    all_keys = call.key_panels == call.total_panels

    if count is not None:
        call.clear(count)

    @pl.when((step == 0) & (head == 0))
    def _() -> None:
        sums[...] = jnp.zeros_like(sums)
        after[...] = jnp.zeros_like(after)
        if before is not None:
            dq[...] = before[...]

        def clear(j: Any, _: Any) -> None:
            keys_DC[j] = jnp.transpose(keys[0, pl.ds(pl.multiple_of(j * height, height), height)])
            dkeys[j] = jnp.zeros(dkeys.shape[1:], jnp.float32)
            dvalues[j] = jnp.zeros(dvalues.shape[1:], jnp.float32)

        jax.lax.fori_loop(0, call.key_panels * call.cores, clear, None)

    query_panel, live = call.query_panel(panel, offset[0])

    def attend() -> None:
        i = call.block(panel, core, query_panel)
        inside = call.inside(i, panel)
        first, whole = call.visits(visits, row, i)
        first_R = per_token[0, FIRST : FIRST + 1, inside]
        q_RD[...] = rotary.turned(q[0].astype(jnp.float32), table[0, inside]).astype(q.dtype)
        q_DR[...] = jnp.transpose(q_RD[...])
        d_out_DR[...] = jnp.transpose(d_out[0])
        products = jnp.sum(d_out[0].astype(jnp.float32) * out[0].astype(jnp.float32), axis=1, keepdims=True)
        delta = jnp.transpose(jnp.broadcast_to(products, (height, rotary.LANES)))[:1] - d_lse[0, 0]
        # The softmax of a token of padding is 0: exp2(score - 1e30).
        log_sum = jnp.where(lse[0, 0] > MASKED, lse[0, 0] / LN2, -MASKED)
        dq_DR[...] = jnp.zeros_like(dq_DR)

        def tile(j: Any, start: int, size: int, first_query: int, limits: Array | None, diagonal: bool = False) -> None:
            queries = pl.ds(first_query, height - first_query)
            at = pl.ds(pl.multiple_of((j - first_block) * height, height) + start, size)
            part = pl.ds(start, size)
            scores = _masked(call.dot(keys[0, at], q_DR[:, queries]), j * height + start, limits, first_query, diagonal)
            weight = jnp.exp2(scores - log_sum[:, first_query:])
            dvalues[j - first_block, part] += call.dot(weight.astype(q.dtype), d_out[0, queries])
            dweight = call.dot(values[0, at], d_out_DR[:, queries])
            dscores = (weight * (dweight - delta[:, first_query:])).astype(q.dtype)
            dkeys[j - first_block, part] += call.dot(dscores, q_RD[queries])
            dq_DR[:, queries] += call.dot(keys_DC[j - first_block, :, part], dscores)

        def visit(j: Any, _: Any, *, edge: bool) -> None:
            if count is not None:
                count[lane] += 1
            for c in range(0, height, call.blocks.keys):
                tile(j, c, call.blocks.keys, 0, first_R if edge else None)

        stop = jnp.where(whole < i, whole, i)
        start, middle, end = first, stop, i
        if not all_keys:
            start, middle, end = jnp.maximum(start, first_block), jnp.clip(stop, first_block, end_block), i
            end = jnp.minimum(end, end_block)
        if call.packed or call.window is not None:
            jax.lax.fori_loop(start, middle, functools.partial(visit, edge=True), None)
        jax.lax.fori_loop(middle, end, functools.partial(visit, edge=False), None)

        def diagonal() -> None:
            if count is not None:
                count[lane] += 1
            side = call.blocks.keys
            limited = call.packed or (call.window is not None and call.window < height)
            for c in range(0, height, side):
                tile(i, c, side, c, first_R if limited else None, diagonal=True)

        here = (first <= i) if call.packed else True
        if not all_keys:
            here = (i < end_block) & here
        if here is True:
            diagonal()
        else:
            pl.when(here)(diagonal)
        dq_RD = rotary.turned(jnp.transpose(dq_DR[...]), table[0, inside], back=True) * LN2
        dq[0] = dq_RD.astype(dq.dtype) if before is None else before[0] + dq_RD

    if live is True:
        attend()
    else:
        pl.when(live)(attend)

    @pl.when((head == call.group - 1) & (panel < call.first_panel + call.key_panels))
    def _() -> None:
        size = min(height, _EPILOGUE_TOKENS)
        for which, raw, d_prepared, d_raw in ((0, k, dkeys, dk), (1, v, dvalues, dv)):
            w0, w1 = weights[kv_head * 4 + 2 * which], weights[kv_head * 4 + 2 * which + 1]
            following = after[which, :1]
            for start in reversed(range(0, call.panel, size)):
                part = pl.ds(start, size)
                dx = d_prepared[(panel - call.first_panel) * call.cores + start // height, pl.ds(start % height, size)]
                if which == 0:
                    dx = rotary.turned(dx, table[0, part], back=True) * call.scale
                same = per_token[0, SAME : SAME + 1, part].astype(jnp.float32)
                shared = dx * jnp.tile(rotary.columns(same), (1, call.head_dim // rotary.LANES))
                later = rotary.shifted_up(shared, following)
                x = raw[0, part].astype(jnp.float32)
                d_raw[0, part] = (w1 * dx + w0 * later).astype(d_raw.dtype)
                sums[0, 2 * which] += jnp.sum(x * later, axis=0)
                sums[0, 2 * which + 1] += jnp.sum(x * dx, axis=0)
                following = shared[:1]
            after[which, :1] = following
            sums[0, 4 + which : 5 + which] = following


def _masked(scores_CR: Array, first_key: Any, first_R: Array | None, first_query: int, diagonal: bool) -> Array:
    """Scores of keys from `first_key` on, with those that a query does not see out of the softmax."""
    if first_R is None and not diagonal:
        return scores_CR
    key = jax.lax.broadcasted_iota(jnp.int32, scores_CR.shape, 0)
    if first_R is not None:
        scores_CR = jnp.where(key >= first_R[:, first_query:] - first_key, scores_CR, MASKED)
    if diagonal:
        scores_CR = jnp.where(key <= jax.lax.broadcasted_iota(jnp.int32, scores_CR.shape, 1), scores_CR, MASKED)
    return scores_CR
