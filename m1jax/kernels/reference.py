"""Attention in plain jax.numpy, for any device: exact, with memory and time bounded by causal and window spans.

Legend: B batch, S queries, T keys, H query heads, K KV heads, G = H / K, D head_dim, M = G x queries of a block.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from m1jax.kernels.matmul import matmul_precision

Array = jax.Array

# Queries a block. 128 was the fastest of 128, 256 and 512 on two CPU cores at S = 512 and 2048, D = 32 and 64.
_BLOCK = 128
# Finite in place of -inf: a row without any key (padding) then has finite values and gradients.
_MASKED = -1e30

_Span = tuple[int, int, int, int]
"""A block's queries (from, up to) and the keys that its causal and window span can reach (from, up to)."""
_Place = tuple[Array, Array, Array | None]
"""Segment ids (B, T), the key at which the first query stands, the window."""


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    conv_k: Array,
    conv_v: Array,
    inv_freq: Array,
    positions: Array,
    segment_ids: Array,
    window: int | None,
    scale: float,
    prev_kv: tuple[Array, Array] | None = None,
    q_offset: int | Array = 0,
    return_lse: bool = False,
) -> Any:
    """`kernels.attention` by blocks of queries, each against the keys that its causal and window span can reach."""
    assert not isinstance(q_offset, int) or k.shape[1] >= q_offset + q.shape[1], "a query must stand at a key"
    q, k, v = prepared(
        q,
        k,
        v,
        conv_k=conv_k,
        conv_v=conv_v,
        inv_freq=inv_freq,
        positions=positions,
        segment_ids=segment_ids,
        prev_kv=prev_kv,
        q_offset=q_offset,
    )
    out, lse = _blockwise(q, k, v, segment_ids, window, scale, q_offset)
    return (out, lse) if return_lse else out


def prepared(
    q: Array,
    k: Array,
    v: Array,
    *,
    conv_k: Array,
    conv_v: Array,
    inv_freq: Array,
    positions: Array,
    segment_ids: Array,
    prev_kv: tuple[Array, Array] | None,
    q_offset: int | Array,
) -> tuple[Array, Array, Array]:
    """q, k and v as the scores and the weighted sum read them: after the convolution, then RoPE."""
    starts = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)))
    prev_k, prev_v = prev_kv if prev_kv is not None else (None, None)
    k = rotate(convolve(k, _previous(k, starts, prev_k), conv_k), positions, inv_freq)
    v = convolve(v, _previous(v, starts, prev_v), conv_v)
    q = rotate(q, jax.lax.dynamic_slice_in_dim(positions, q_offset, q.shape[1], axis=1), inv_freq)
    return q, k, v


def convolve(x_BTKD: Array, before_BTKD: Array, weight_K2: Array) -> Array:
    """`w[0] x_{t-1} + w[1] x_t` per KV head (KV Shifting Attention, arXiv 2411.19574), where `before` holds x_{t-1}.

    Computed in float32, returned in x's dtype.
    """
    weight = weight_K2.astype(jnp.float32)
    mixed = before_BTKD.astype(jnp.float32) * weight[:, :1] + x_BTKD.astype(jnp.float32) * weight[:, 1:]
    return mixed.astype(x_BTKD.dtype)


def _previous(x_BTKD: Array, starts_BT: Array, first_BKD: Array | None) -> Array:
    """x_{t-1}: 0 where a document starts, `first_BKD` (None for zeros) before the first key."""
    first = jnp.zeros_like(x_BTKD[:, :1]) if first_BKD is None else first_BKD[:, None].astype(x_BTKD.dtype)
    return jnp.where(starts_BT[:, :, None, None], 0, jnp.concatenate([first, x_BTKD[:, :-1]], axis=1))


def rotate(x_BSND: Array, positions_BS: Array, inv_freq: Array) -> Array:
    """RoPE (arXiv 2104.09864) in half-split pairs, computed in float32, returned in x's dtype."""
    angle = positions_BS[:, :, None, None].astype(jnp.float32) * inv_freq
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    low, high = jnp.split(x_BSND.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1).astype(x_BSND.dtype)


def _blockwise(
    q_BSHD: Array,
    k_BTKD: Array,
    v_BTKD: Array,
    segments_BT: Array,
    window: int | None,
    scale: float,
    q_offset: int | Array,
) -> tuple[Array, Array]:
    B, S, H, D = q_BSHD.shape
    T, K = k_BTKD.shape[1:3]
    spans = []
    for start in range(0, S, _BLOCK):
        stop = min(S, start + _BLOCK)
        if isinstance(q_offset, int):
            first = 0 if window is None else max(0, start + q_offset - window + 1)
            spans.append((start, stop, first, stop + q_offset))
        else:  # known on the device only: all keys, masked
            spans.append((start, stop, 0, T))
    # These layouts make the products plain batched matrix products, which XLA's CPU backend runs fastest; the query
    # group is folded into the rows of one matrix, so K and V are never repeated.
    q_BKGSD = q_BSHD.reshape(B, S, K, H // K, D).transpose(0, 2, 3, 1, 4)
    k_BKTD, v_BKTD = k_BTKD.transpose(0, 2, 1, 3), v_BTKD.transpose(0, 2, 1, 3)
    place = segments_BT, jnp.int32(q_offset), None if window is None else jnp.int32(window)
    out_BKGSD, lse_BKGS = _attended(tuple(spans), scale, q_BKGSD, k_BKTD, v_BKTD, place)
    real_BSH = (jax.lax.dynamic_slice_in_dim(segments_BT, q_offset, S, axis=1) > 0)[:, :, None]
    out = jnp.where(real_BSH[..., None], out_BKGSD.transpose(0, 3, 1, 2, 4).reshape(B, S, H, D), 0)
    return out.astype(q_BSHD.dtype), jnp.where(real_BSH, lse_BKGS.transpose(0, 3, 1, 2).reshape(B, S, H), _MASKED)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attended(
    spans: tuple[_Span, ...], scale: float, q_BKGSD: Array, k_BKTD: Array, v_BKTD: Array, place: _Place
) -> tuple[Array, Array]:
    """Output (B, K, G, S, D) and log-sum (B, K, G, S) of each block of queries over its span of keys, float32.

    The backward pass has its own rule (FlashAttention, arXiv 2205.14135, algorithm 4): it forms a block's scores again
    from the log-sums, so that what is kept grows with the row and not with its square.
    """
    outs, lses = [], []
    for span in spans:
        start, stop, first, last = span
        q_BKMD = _folded(q_BKGSD[:, :, :, start:stop])
        scores_BKMT = _product("bkmd,bktd->bkmt", q_BKMD, k_BKTD[:, :, first:last]) * scale
        scores_BKMT = jnp.where(_seen(span, q_BKGSD.shape[2], place), scores_BKMT, _MASKED)
        top_BKM1 = scores_BKMT.max(axis=-1, keepdims=True)
        weights_BKMT = jnp.exp(scores_BKMT - top_BKM1)
        total_BKM1 = weights_BKMT.sum(axis=-1, keepdims=True)
        out_BKMD = _product("bkmt,bktd->bkmd", weights_BKMT.astype(v_BKTD.dtype), v_BKTD[:, :, first:last]) / total_BKM1
        lse_BKM = (top_BKM1 + jnp.log(total_BKM1))[..., 0]
        outs.append(out_BKMD.reshape(q_BKGSD[:, :, :, start:stop].shape))
        lses.append(lse_BKM.reshape(q_BKGSD[:, :, :, start:stop].shape[:-1]))
    return jnp.concatenate(outs, axis=3), jnp.concatenate(lses, axis=3)


def _attended_forward(
    spans: tuple[_Span, ...], scale: float, q_BKGSD: Array, k_BKTD: Array, v_BKTD: Array, place: _Place
) -> tuple[tuple[Array, Array], Any]:
    out, lse = _attended(spans, scale, q_BKGSD, k_BKTD, v_BKTD, place)
    return (out, lse), (q_BKGSD, k_BKTD, v_BKTD, lse, place)


def _attended_backward(spans: tuple[_Span, ...], scale: float, saved: Any, cotangents: Any) -> Any:
    q_BKGSD, k_BKTD, v_BKTD, lse_BKGS, place = saved
    d_out_BKGSD, d_lse_BKGS = cotangents
    dtype = q_BKGSD.dtype
    d_out_BKGSD = d_out_BKGSD.astype(dtype)
    d_k, d_v = jnp.zeros(k_BKTD.shape, jnp.float32), jnp.zeros(v_BKTD.shape, jnp.float32)
    d_qs = []
    for span in spans:
        start, stop, first, last = span
        q, d_out = (_folded(x[:, :, :, start:stop]) for x in (q_BKGSD, d_out_BKGSD))
        lse, d_lse = (_folded(x[:, :, :, start:stop])[..., None] for x in (lse_BKGS, d_lse_BKGS))
        k, v = k_BKTD[:, :, first:last], v_BKTD[:, :, first:last]
        scores_BKMT = _product("bkmd,bktd->bkmt", q, k) * scale
        weights_BKMT = jnp.where(_seen(span, q_BKGSD.shape[2], place), jnp.exp(scores_BKMT - lse), 0)
        d_weights_BKMT = _product("bkmd,bktd->bkmt", d_out, v)
        # Made of the same numbers as what it is taken from: where a query sees few keys, they cancel to nothing.
        mean_BKM1 = jnp.sum(weights_BKMT * d_weights_BKMT, axis=-1, keepdims=True)
        d_scores_BKMT = (scale * weights_BKMT * (d_weights_BKMT - mean_BKM1 + d_lse)).astype(dtype)
        d_v = d_v.at[:, :, first:last].add(_product("bkmt,bkmd->bktd", weights_BKMT.astype(dtype), d_out))
        d_k = d_k.at[:, :, first:last].add(_product("bkmt,bkmd->bktd", d_scores_BKMT, q))
        d_q = _product("bkmt,bktd->bkmd", d_scores_BKMT, k)
        d_qs.append(d_q.astype(dtype).reshape(q_BKGSD[:, :, :, start:stop].shape))
    return jnp.concatenate(d_qs, axis=3), d_k.astype(k_BKTD.dtype), d_v.astype(v_BKTD.dtype), None


_attended.defvjp(_attended_forward, _attended_backward)


def _product(subscripts: str, a: Array, b: Array) -> Array:
    """Summed in float32."""
    return jnp.einsum(subscripts, a, b, precision=matmul_precision(a.dtype), preferred_element_type=jnp.float32)


def _folded(x_BKGS: Array) -> Array:
    """(B, K, G, S, ...) as (B, K, M, ...)."""
    B, K, _, _, *rest = x_BKGS.shape
    return x_BKGS.reshape(B, K, -1, *rest)


def _seen(span: _Span, group: int, place: _Place) -> Array:
    """(B, 1, M, T) bool: which keys of a span each query of its block sees; a query of padding sees padding."""
    start, stop, first, last = span
    segments_BT, offset, window = place
    behind_ST = offset + jnp.arange(start, stop)[:, None] - jnp.arange(first, last)
    seen_ST = behind_ST >= 0 if window is None else (behind_ST >= 0) & (behind_ST < window)
    q_segments_BS = jax.lax.dynamic_slice_in_dim(segments_BT, start + offset, stop - start, axis=1)
    seen_BST = seen_ST & (q_segments_BS[:, :, None] == segments_BT[:, None, first:last])
    return jnp.tile(seen_BST, (1, group, 1))[:, None]
