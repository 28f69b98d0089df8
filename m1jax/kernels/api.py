"""The attention function that every part of m1jax calls, and the choice of its implementation.

Legend: B batch, S queries, T keys, H query heads, K KV heads, D head_dim.
"""

from collections.abc import Callable
from typing import Any

import jax

from m1jax.errors import UserError
from m1jax.kernels import reference

Array = jax.Array


AttentionFunction = Callable[..., Any]
# Arguments and results of `attention` below, or of a wrapper that partitions it over a mesh.

_IMPLEMENTATIONS = {"reference": reference.attention}


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
    q_offset: int = 0,
    return_lse: bool = False,
    impl: str = "reference",
) -> Any:
    """Causal grouped attention over packed rows, with short convolution on K and V and RoPE on Q and K.

    Order (reference code; KV Shifting Attention, arXiv 2411.19574): convolution, then RoPE on K, then scores.

    Args:
        q: (B, S, H, D) as projected; query i stands at key index `q_offset + i`.
        k: (B, T, K, D) as projected, before convolution and RoPE; H is a multiple of K. T >= q_offset + S.
        v: (B, T, K, D).
        conv_k: (K, 2) weights of K's convolution; index 0 weighs the previous token.
        conv_v: (K, 2), the same for V.
        inv_freq: (D / 2,) float32, radians per position; RoPE rotates (x_i, x_{i + D/2}) pairs in float32.
        positions: (B, T) int32, of the keys.
        segment_ids: (B, T) int32, of the keys: tokens see and convolve with their own document only; 0 is padding,
            whose output is 0.
        window: keys that a token sees, itself included; None for all before it.
        scale: factor of the scores, 1/sqrt(D) in Baichuan-M1.
        prev_kv: raw K and V, (B, K, D) each, of the token before key 0 where that token belongs to key 0's document
            and zeros in rows where it does not; None means zeros.
        q_offset: key index of the first query.
        return_lse: also return the log of the softmax's denominator, (B, S, H) float32 (-1e30 at padding).
        impl: name of the implementation.

    Returns:
        (B, S, H, D) in q's dtype; softmax and its sums are float32. With return_lse a pair.

    Raises:
        UserError: no implementation has this name.
    """
    if impl not in _IMPLEMENTATIONS:
        raise UserError(f"attention {impl!r} is unknown: set model.attention to one of {', '.join(_IMPLEMENTATIONS)}.")
    return _IMPLEMENTATIONS[impl](
        q,
        k,
        v,
        conv_k=conv_k,
        conv_v=conv_v,
        inv_freq=inv_freq,
        positions=positions,
        segment_ids=segment_ids,
        window=window,
        scale=scale,
        prev_kv=prev_kv,
        q_offset=q_offset,
        return_lse=return_lse,
    )
