"""`kernels.attention` on TPU: shapes made to fit the kernels, and their gradient.

Legend: see grid.py.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from m1jax.errors import UserError
from m1jax.hardware import TPUS
from m1jax.kernels import visible
from m1jax.kernels.arguments import AttentionLayer, Rows
from m1jax.kernels.names import ATTENTION
from m1jax.kernels.tpu import rotary, schedule, tuning
from m1jax.kernels.tpu.backward import backward
from m1jax.kernels.tpu.forward import forward
from m1jax.kernels.tpu.grid import Static

Array = jax.Array


def attention(
    q: Array,
    k: Array,
    v: Array,
    layer: AttentionLayer,
    rows: Rows,
    *,
    return_lse: bool = False,
    chip: str | None = None,
    tiling: schedule.Tiling | None = None,
    packed: bool = True,
    interpret: Any = False,
) -> Any:
    """`kernels.attention` by Pallas kernels; the convolution and RoPE are done inside them.

    The arguments that `kernels.attention` does not have: see `operands`.

    Raises:
        UserError: a shape, dtype or device that the kernels do not support.
    """
    B, S, H, D = q.shape
    static, arrays = operands(q, k, v, layer, rows, chip=chip, tiling=tiling, packed=packed, interpret=interpret)
    out, lse = _attention(static, *arrays)
    out = out.reshape(B, -1, H, static.head_dim)
    lse = lse.reshape(B, H, -1).transpose(0, 2, 1)
    if static.aligned:
        out, lse = out[:, :S], lse[:, :S]
    else:
        shift = _shift(static.tiling, rows)
        out, lse = (jax.lax.dynamic_slice_in_dim(x, shift, S, axis=1) for x in (out, lse))
    out = _narrow(out, D)
    return (out, lse) if return_lse else out


def operands(
    q: Array,
    k: Array,
    v: Array,
    layer: AttentionLayer,
    rows: Rows,
    *,
    chip: str | None = None,
    tiling: schedule.Tiling | None = None,
    packed: bool = True,
    counted: bool = False,
    interpret: Any = False,
) -> tuple[Static, tuple[Array, ...]]:
    """The arguments of `run_forward`, made from those of `kernels.attention`.

    Args:
        q: see `kernels.attention`; so are k, v, layer and rows.
        k: see there.
        v: see there.
        layer: see there.
        rows: see there.
        chip: "v5e", "v5p", "v6e" or "tpu7x"; None means that of the devices.
        tiling: sizes of blocks; None means those of the table.
        packed: False promises that every row is one document from key 0 on, without padding, which makes the schedule
            arithmetic that libtpu's static profiler can follow.
        counted: add an output that counts visited blocks.
        interpret: run on a CPU: True, or `pltpu.InterpretParams`.
    """
    B, S, H, D = q.shape
    T, K = k.shape[1:3]
    chip = chip or tuning.chip()
    _check(q, k, v, chip)
    wide = rotary.LANES if D <= rotary.LANES else 2 * rotary.LANES
    tiling = tiling or tuning.tiling(chip, wide, T, B * K, q.dtype)
    panel = tiling.panel
    aligned = isinstance(rows.q_offset, int) and rows.q_offset == 0 and S == T
    query_panels = tiling.keys // panel
    if not aligned:
        query_panels = min(query_panels, -(-(S + panel - 1) // panel))
    static = Static(
        tiling=tiling,
        batch=B,
        kv_heads=K,
        group=H // K,
        head_dim=wide,
        dtype=q.dtype,
        query_panels=query_panels,
        aligned=aligned,
        window=layer.window,
        scale=layer.scale,
        packed=packed,
        counted=counted,
        interpret=interpret,
    )

    def padded(x: Array, tokens: int) -> Array:
        """(B, T, N, D) as (B, tokens, N x padded D)."""
        x = jnp.pad(x, ((0, 0), (0, tokens - x.shape[1]), (0, 0), (0, 0)))
        return _widen(x, wide).reshape(B, tokens, -1)

    prev_k, prev_v = rows.prev_kv if rows.prev_kv is not None else (jnp.zeros((B, K, D), k.dtype),) * 2
    if aligned:
        queries = padded(q, tiling.keys)
    else:
        frame = jnp.zeros((B, query_panels * panel, H * wide), q.dtype)
        queries = jax.lax.dynamic_update_slice(frame, padded(q, S), (0, _shift(tiling, rows), 0))
    to_keys = ((0, 0), (0, tiling.keys - T))
    segments = jnp.pad(rows.documents, to_keys)
    first_BT = visible.first_keys(segments, layer.window)
    per_token = jnp.stack([first_BT, visible.same_as_previous(segments).astype(jnp.int32)], axis=1)
    frequencies = jnp.pad(layer.inv_freq.astype(jnp.float32), (0, (wide - D) // 2))
    return static, (
        queries,
        padded(k, tiling.keys),
        padded(v, tiling.keys),
        jnp.concatenate([layer.conv_k, layer.conv_v], axis=1).astype(jnp.float32),
        padded(prev_k.astype(k.dtype)[:, None], 1),
        padded(prev_v.astype(v.dtype)[:, None], 1),
        jnp.stack(schedule.visits(first_BT, tiling.forward.height)).reshape(-1),
        (jnp.asarray(rows.q_offset, jnp.int32) // panel)[None],
        rotary.table(jnp.pad(rows.positions, to_keys), frequencies),
        jnp.pad(per_token, ((0, 0), (0, 6), (0, 0))),
    )


def _shift(tiling: schedule.Tiling, rows: Rows) -> Array:
    """Index of the first query in its panel."""
    return jnp.asarray(rows.q_offset, jnp.int32) % tiling.panel


def _check(q: Array, k: Array, v: Array, chip: str) -> None:
    H, D = q.shape[2:]
    K = k.shape[2]
    if D > 256 or D % 2:
        raise UserError(f"attention pallas_tpu has head_dim {D}: even sizes up to 256 are supported; use reference.")
    if H % K:
        raise UserError(f"attention pallas_tpu has {H} query heads for {K} KV heads: make it a multiple.")
    if not q.dtype == k.dtype == v.dtype or q.dtype not in (jnp.float32, jnp.bfloat16):
        raise UserError(
            f"attention pallas_tpu has q, k, v of {q.dtype}, {k.dtype}, {v.dtype}: all float32 or all bfloat16 is "
            "supported; set model.compute_dtype."
        )
    if chip not in TPUS:
        raise UserError(
            f"attention pallas_tpu has no kernel for {chip}: {', '.join(TPUS)} are supported; set "
            "model.attention to reference."
        )


def _widen(x: Array, padded: int) -> Array:
    """Each half of the last axis padded by zeros, so that RoPE's pairs stay half of it apart."""
    D = x.shape[-1]
    if padded == D:
        return x
    halves = x.reshape(*x.shape[:-1], 2, D // 2)
    return jnp.pad(halves, [(0, 0)] * (x.ndim) + [(0, (padded - D) // 2)]).reshape(*x.shape[:-1], padded)


def _narrow(x: Array, size: int) -> Array:
    """The inverse of `_widen`."""
    padded = x.shape[-1]
    if padded == size:
        return x
    return x.reshape(*x.shape[:-1], 2, padded // 2)[..., : size // 2].reshape(*x.shape[:-1], size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(static: Static, *operands: Array) -> tuple[Array, Array]:
    out, lse = run_forward(static, operands, save=False)[:2]
    return out, lse


def run_forward(static: Static, operands: tuple[Array, ...], *, save: bool) -> tuple[Array, ...]:
    """The forward kernel on `operands`."""
    q, k, v, weights, first_k, first_v, visits, offset, table, per_token = operands
    panels = static.tiling.keys // static.tiling.panel
    call = static.call(static.tiling.forward, 0, panels, panels)
    more = weights.reshape(-1), q, k, v, first_k, first_v, table, per_token
    return forward(call, visits, offset, *more, save=save)


def _forward_rule(static: Static, *operands: Array) -> tuple[tuple[Array, Array], tuple[Any, ...]]:
    saved = run_forward(static, operands, save=True)[:4]
    out, lse, keys, values = (checkpoint_name(x, ATTENTION) for x in saved)
    return (out, lse), (operands, out, lse, keys, values)


def _backward_rule(static: Static, saved: tuple[Any, ...], gradients: tuple[Array, Array]) -> tuple[Any, ...]:
    operands, out, lse, keys, values = saved
    dq, dk, dv, dweights, first_dk, first_dv, _ = run_backward(static, operands, out, lse, keys, values, gradients)
    return dq, dk, dv, dweights, first_dk, first_dv, None, None, jnp.zeros_like(operands[8]), None


def run_backward(
    static: Static,
    operands: tuple[Array, ...],
    out: Array,
    lse: Array,
    keys: Array,
    values: Array,
    gradients: tuple[Array, Array],
) -> tuple[Any, ...]:
    """Gradients of q, k, v, the convolution's weights and the pair before key 0; and the visited blocks."""
    q, k, v, weights, first_k, first_v, visits, offset, table, per_token = operands
    tiling, (B, T, _), K, D = static.tiling, k.shape, static.kv_heads, static.head_dim
    P, panels, chunks = tiling.cores, T // tiling.panel, tiling.chunks
    chunk = panels // chunks
    reach = panels if static.window is None else -(-(static.window - 1) // tiling.forward.height) + 1
    dq = None if chunks == 1 else jnp.zeros(q.shape, jnp.float32)
    parts, heads, counts = [], [], []
    dweights = jnp.zeros((K, 4), jnp.float32)
    for first in range(0, panels, chunk):
        call = static.call(tiling.backward, first, chunk, min(panels - first, chunk + -(-reach // P)))
        more = q, gradients[0], out, lse, gradients[1], keys, values, k, v, table, per_token, dq
        dq, dk, dv, sums, *count = backward(call, visits, offset, weights.reshape(-1), *more)
        sums = sums.reshape(B, K, P, 8, D)
        parts.append([part.reshape(P, B, -1, K, D) for part in (dk, dv)])
        heads.append([sums[:, :, :, 4 + which].sum(2) for which in (0, 1)])
        counts += count
        dweights += sums[:, :, :, :4].sum((0, 2, 4))
    results, firsts = [], []
    for which, (raw, before) in enumerate(((k, first_k), (v, first_v))):
        w0 = weights[:, 2 * which, None]
        # The first key of a chunk adds to the gradient of the key before it, which is another chunk's or the caller's.
        for at, (part, head) in enumerate(zip(parts, heads, strict=True)):
            begin = at * chunk * tiling.panel
            row = before[:, 0] if at == 0 else raw[:, begin - 1]
            owed = head[which]
            dweights = dweights.at[:, 2 * which].add((owed * row.reshape(B, K, D)).sum((0, 2)))
            if at:
                parts[at - 1][which] = parts[at - 1][which].at[0, :, -1].add((w0 * owed).astype(part[which].dtype))
        firsts.append((w0 * heads[0][which]).reshape(B, 1, K * D).astype(before.dtype))
        summed = [part[which][0] if P == 1 else part[which].sum(0) for part in parts]
        whole = summed[0] if chunks == 1 else jnp.concatenate(summed, axis=1)
        results.append(whole.reshape(B, T, K * D).astype(raw.dtype))
    assert dq is not None
    return dq.astype(q.dtype), *results, dweights, *firsts, counts


_attention.defvjp(_forward_rule, _backward_rule)
