"""Attention in plain jax.numpy, for any device: exact, with memory and time bounded by causal and window spans.

The formulas and their sources: see arguments.py.

Legend: B batch, S queries, T keys, H query heads, K KV heads, G = H / K, D head_dim, M = G x queries of a block.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from m1jax.kernels.arguments import AttentionLayer, Rows
from m1jax.kernels.matmul import matmul_precision

Array = jax.Array

# Queries a block. 128 was the fastest of 128, 256 and 512 on two CPU cores at S = 512 and 2048, D = 32 and 64.
_BLOCK = 128
# Finite in place of -inf: a row without any key (padding) then has finite values and gradients.
_MASKED = -1e30

_Span = tuple[int, int, int, int]
"""A block's queries (from, up to) and the keys that its causal and window span can reach (from, up to)."""
_Mask = tuple[Array, Array, Array | None]
"""What queries see: segment ids (B, T), the index of the first query's key, the window."""


def attention(q: Array, k: Array, v: Array, layer: AttentionLayer, rows: Rows, *, return_lse: bool = False) -> Any:
    """`kernels.attention` by blocks of queries, each against the keys that its causal and window span can reach."""
    offset = rows.q_offset
    assert not isinstance(offset, int) or k.shape[1] >= offset + q.shape[1], "every query must have its key"
    out, lse = _blockwise(*prepared(q, k, v, layer, rows), layer, rows)
    return (out, lse) if return_lse else out


def prepared(q: Array, k: Array, v: Array, layer: AttentionLayer, rows: Rows) -> tuple[Array, Array, Array]:
    """q, k and v as the scores and the weighted sum read them: after the convolution, then RoPE."""
    documents = rows.documents
    starts = jnp.pad(documents[:, 1:] != documents[:, :-1], ((0, 0), (1, 0)))
    prev_k, prev_v = rows.prev_kv if rows.prev_kv is not None else (None, None)
    k = rotate(convolve(k, _previous(k, starts, prev_k), layer.conv_k), rows.positions, layer.inv_freq)
    v = convolve(v, _previous(v, starts, prev_v), layer.conv_v)
    q = rotate(q, rows.of_queries(rows.positions, q.shape[1]), layer.inv_freq)
    return q, k, v


def convolve(x_BTKD: Array, before_BTKD: Array, weight_K2: Array) -> Array:
    """`w[0] x_{t-1} + w[1] x_t` per KV head, where `before` holds x_{t-1}; in float32, returned in x's dtype."""
    weight = weight_K2.astype(jnp.float32)
    mixed = before_BTKD.astype(jnp.float32) * weight[:, :1] + x_BTKD.astype(jnp.float32) * weight[:, 1:]
    return mixed.astype(x_BTKD.dtype)


def _previous(x_BTKD: Array, starts_BT: Array, first_BKD: Array | None) -> Array:
    """x_{t-1}: 0 where a document starts, `first_BKD` (None for zeros) before the first key."""
    first = jnp.zeros_like(x_BTKD[:, :1]) if first_BKD is None else first_BKD[:, None].astype(x_BTKD.dtype)
    return jnp.where(starts_BT[:, :, None, None], 0, jnp.concatenate([first, x_BTKD[:, :-1]], axis=1))


def rotate(x_BSND: Array, positions_BS: Array, inv_freq: Array) -> Array:
    """RoPE of x at its positions, computed in float32, returned in x's dtype."""
    angle = positions_BS[:, :, None, None].astype(jnp.float32) * inv_freq
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    low, high = jnp.split(x_BSND.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1).astype(x_BSND.dtype)


def _blockwise(q_BSHD: Array, k_BTKD: Array, v_BTKD: Array, layer: AttentionLayer, rows: Rows) -> tuple[Array, Array]:
    segments_BT, q_offset, window = rows.documents, rows.q_offset, layer.window
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
    # heads of a KV head become one matrix with their queries, so K and V are never repeated.
    q_BKGSD = q_BSHD.reshape(B, S, K, H // K, D).transpose(0, 2, 3, 1, 4)
    k_BKTD, v_BKTD = k_BTKD.transpose(0, 2, 1, 3), v_BTKD.transpose(0, 2, 1, 3)
    mask = segments_BT, jnp.int32(q_offset), None if window is None else jnp.int32(window)
    out_BKGSD, lse_BKGS = _attended(tuple(spans), layer.scale, q_BKGSD, k_BKTD, v_BKTD, mask)
    real_BSH = (rows.of_queries(segments_BT, S) > 0)[:, :, None]
    out = jnp.where(real_BSH[..., None], out_BKGSD.transpose(0, 3, 1, 2, 4).reshape(B, S, H, D), 0)
    return out.astype(q_BSHD.dtype), jnp.where(real_BSH, lse_BKGS.transpose(0, 3, 1, 2).reshape(B, S, H), _MASKED)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attended(
    spans: tuple[_Span, ...], scale: float, q_BKGSD: Array, k_BKTD: Array, v_BKTD: Array, mask: _Mask
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
        scores_BKMT = jnp.where(_seen(span, q_BKGSD.shape[2], mask), scores_BKMT, _MASKED)
        top_BKM1 = scores_BKMT.max(axis=-1, keepdims=True)
        weights_BKMT = jnp.exp(scores_BKMT - top_BKM1)
        total_BKM1 = weights_BKMT.sum(axis=-1, keepdims=True)
        out_BKMD = _product("bkmt,bktd->bkmd", weights_BKMT.astype(v_BKTD.dtype), v_BKTD[:, :, first:last]) / total_BKM1
        lse_BKM = (top_BKM1 + jnp.log(total_BKM1))[..., 0]
        outs.append(out_BKMD.reshape(q_BKGSD[:, :, :, start:stop].shape))
        lses.append(lse_BKM.reshape(q_BKGSD[:, :, :, start:stop].shape[:-1]))
    return jnp.concatenate(outs, axis=3), jnp.concatenate(lses, axis=3)


def _attended_forward(
    spans: tuple[_Span, ...], scale: float, q_BKGSD: Array, k_BKTD: Array, v_BKTD: Array, mask: _Mask
) -> tuple[tuple[Array, Array], Any]:
    out, lse = _attended(spans, scale, q_BKGSD, k_BKTD, v_BKTD, mask)
    return (out, lse), (q_BKGSD, k_BKTD, v_BKTD, lse, mask)


def _attended_backward(spans: tuple[_Span, ...], scale: float, saved: Any, cotangents: Any) -> Any:
    q_BKGSD, k_BKTD, v_BKTD, lse_BKGS, mask = saved
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
        weights_BKMT = jnp.where(_seen(span, q_BKGSD.shape[2], mask), jnp.exp(scores_BKMT - lse), 0)
        d_weights_BKMT = _product("bkmd,bktd->bkmt", d_out, v)
        # The mean is a sum of the numbers from which it is subtracted: where a query sees few keys, they cancel.
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


def _seen(span: _Span, group: int, mask: _Mask) -> Array:
    """(B, 1, M, T) bool: which keys of a span each query of its block sees; a query of padding sees padding."""
    start, stop, first, last = span
    segments_BT, offset, window = mask
    behind_ST = offset + jnp.arange(start, stop)[:, None] - jnp.arange(first, last)
    seen_ST = behind_ST >= 0 if window is None else (behind_ST >= 0) & (behind_ST < window)
    q_segments_BS = jax.lax.dynamic_slice_in_dim(segments_BT, start + offset, stop - start, axis=1)
    seen_BST = seen_ST & (q_segments_BS[:, :, None] == segments_BT[:, None, first:last])
    return jnp.tile(seen_BST, (1, group, 1))[:, None]
