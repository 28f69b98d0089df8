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
    K = k_BTKD.shape[2]
    # These layouts make both products plain batched matrix products, which XLA's CPU backend runs fastest; the
    # query group is folded into the rows of one matrix, so K and V are never repeated.
    q_BKGSD = q_BSHD.reshape(B, S, K, H // K, D).transpose(0, 2, 3, 1, 4)
    k_BKDT = k_BTKD.transpose(0, 2, 3, 1)
    v_BKTD = v_BTKD.transpose(0, 2, 1, 3)
    outs, lses = [], []
    for start in range(0, S, _BLOCK):
        stop = min(S, start + _BLOCK)
        if isinstance(q_offset, int):
            first = max(0, start + q_offset - window + 1) if window is not None else 0
            last = stop + q_offset
        else:  # known on the device only: all keys, masked
            first, last = 0, k_BTKD.shape[1]
        block = functools.partial(_block, distance=start + q_offset - first, window=window, scale=scale)
        # Recomputing the scores in the backward pass keeps one block of them alive instead of all.
        out, lse = jax.checkpoint(block)(
            q_BKGSD[:, :, :, start:stop],
            k_BKDT[..., first:last],
            v_BKTD[:, :, first:last],
            jax.lax.dynamic_slice_in_dim(segments_BT, start + q_offset, stop - start, axis=1),
            segments_BT[:, first:last],
        )
        outs.append(out)
        lses.append(lse)
    out_BKGSD, lse_BKGS = jnp.concatenate(outs, axis=3), jnp.concatenate(lses, axis=3)
    return out_BKGSD.transpose(0, 3, 1, 2, 4).reshape(B, S, H, D), lse_BKGS.transpose(0, 3, 1, 2).reshape(B, S, H)


def _block(
    q_BKGSD: Array,
    k_BKDT: Array,
    v_BKTD: Array,
    q_segments_BS: Array,
    segments_BT: Array,
    *,
    distance: int | Array,
    window: int | None,
    scale: float,
) -> tuple[Array, Array]:
    """Output and log-sum of one block of queries, of which the first stands at key index `distance`."""
    B, K, G, S, D = q_BKGSD.shape
    T = k_BKDT.shape[3]
    behind_ST = distance + jnp.arange(S)[:, None] - jnp.arange(T)
    seen_ST = behind_ST >= 0 if window is None else (behind_ST >= 0) & (behind_ST < window)
    real_BS = q_segments_BS > 0
    seen_BST = seen_ST & (q_segments_BS[:, :, None] == segments_BT[:, None, :])
    precision = matmul_precision(q_BKGSD.dtype)
    scores_BKMT = jnp.matmul(
        q_BKGSD.reshape(B, K, G * S, D), k_BKDT, precision=precision, preferred_element_type=jnp.float32
    )
    scores = jnp.where(seen_BST[:, None, None], scores_BKMT.reshape(B, K, G, S, T) * scale, _MASKED)
    # The shift cancels in the output, so its own gradient is left out.
    top = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    # A product in bfloat16 rounds the gradient of the weights. Where the weights were divided before it, the gradient
    # of their sum is made of the same rounded numbers and cancels against it; otherwise queries that see few keys get
    # noise. Float32 can divide the product, which is smaller.
    narrow = v_BKTD.dtype != jnp.float32
    weights_BKMT = (weights / total if narrow else weights).astype(v_BKTD.dtype).reshape(B, K, G * S, T)
    out_BKMD = jnp.matmul(weights_BKMT, v_BKTD, precision=precision, preferred_element_type=jnp.float32)
    out = out_BKMD.reshape(B, K, G, S, D) / (1.0 if narrow else total)
    real = real_BS[:, None, None, :, None]
    out = jnp.where(real, out, 0.0).astype(q_BKGSD.dtype)
    lse = jnp.where(real, top + jnp.log(total), _MASKED)[..., 0]
    return out, lse
