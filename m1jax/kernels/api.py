"""The attention function that every part of m1jax calls, and the choice of its implementation.

Legend: B batch, S queries, T keys, H query heads, K KV heads, D head_dim.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from m1jax.errors import UserError
from m1jax.kernels import decode, reference
from m1jax.kernels.decode import LayerCache

Array = jax.Array


AttentionFunction = Callable[..., Any]
# Arguments and results of `attention` below, or of a wrapper that partitions it over a mesh.


def _pallas_tpu(*args: Any, **settings: Any) -> Any:
    from m1jax.kernels.tpu.attention import attention  # Pallas takes a second to import

    return attention(*args, **settings)


def _gpu(*args: Any, **settings: Any) -> Any:
    from m1jax.kernels.gpu.attention import attention

    return attention(*args, **settings)


_IMPLEMENTATIONS = {"reference": reference.attention, "pallas_tpu": _pallas_tpu, "gpu": _gpu}
PLATFORMS = {"pallas_tpu": "tpu", "gpu": "gpu"}
"""The JAX backend that an implementation needs, where it needs one."""


def _decode_pallas_tpu(*args: Any, **settings: Any) -> Any:
    from m1jax.kernels.tpu.decode import attention

    return attention(*args, **settings)


# On a GPU XLA writes the cache in place and its products read it where it lies, as a kernel would.
_DECODERS = {"reference": decode.attention, "pallas_tpu": _decode_pallas_tpu, "gpu": decode.attention}


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    conv_k: Array,
    conv_v: Array,
    inv_freq: Array,
    positions: Array,
    segment_ids: Array | None,
    window: int | None,
    scale: float,
    prev_kv: tuple[Array, Array] | None = None,
    q_offset: int | Array = 0,
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
            whose output is 0. None: every row is one document without padding.
        window: keys that a token sees, itself included; None for all before it.
        scale: factor of the scores, 1/sqrt(D) in Baichuan-M1.
        prev_kv: raw K and V, (B, K, D) each, of the token before key 0 where that token belongs to key 0's document
            and zeros in rows where it does not; None means zeros.
        q_offset: key index of the first query, an int or a traced int32 scalar.
        return_lse: also return the log of the softmax's denominator, (B, S, H) float32 (-1e30 at padding).
        impl: "reference" on any device; "pallas_tpu", kernels for v5e, v5p, v6e and tpu7x, and "gpu", cuDNN or kernels
            for NVIDIA GPUs (kernels/gpu/attention.py says when which), for both of which every set of equal
            segment_ids must be one contiguous run.

    Returns:
        (B, S, H, D) in q's dtype; softmax and its sums are float32. With return_lse a pair.

    Raises:
        UserError: no implementation has this name, or it does not support this shape, dtype or device.
    """
    if segment_ids is None and impl != "gpu":
        segment_ids = jnp.ones(k.shape[:2], jnp.int32)
    return _choose(_IMPLEMENTATIONS, impl)(
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


def decode_attention(
    q: Array,
    k: Array,
    v: Array,
    cache: LayerCache,
    *,
    conv_k: Array,
    conv_v: Array,
    inv_freq: Array,
    lengths: Array,
    real: Array,
    window: int | None,
    scale: float,
    impl: str = "reference",
) -> tuple[Array, LayerCache]:
    """Attention of one or several new tokens on a layer's cache, and the cache with them in it.

    Args:
        q: (B, S, H, D) as projected.
        k: (B, S, K, D) as projected, before convolution and RoPE.
        v: (B, S, K, D).
        cache: the layer's cache; a global layer's slots must hold every token so far and the new ones, a window
            layer's the last `window`.
        conv_k: (K, 2), as in `attention`.
        conv_v: (K, 2), as in `attention`.
        inv_freq: (D / 2,) float32.
        lengths: (B,) int32, tokens already in the cache: the position of each row's first new token.
        real: (B, S) bool, which tokens are real; padding to the left, to the right or both changes nothing, and the
            real tokens of a row lie side by side. Output at padding is 0.
        window: keys that a token sees, itself included; None for all.
        scale: factor of the scores.
        impl: "reference" on any device; "pallas_tpu", kernels for TPUs, which write into a donated cache in place;
            "gpu" is the reference's program.

    Returns:
        (B, S, H, D) in q's dtype, and the new cache; `lengths` grow by each row's real tokens.

    Raises:
        UserError: no implementation has this name, or it does not support this shape.
    """
    return _choose(_DECODERS, impl)(
        q,
        k,
        v,
        cache,
        conv_k=conv_k,
        conv_v=conv_v,
        inv_freq=inv_freq,
        lengths=lengths,
        real=real,
        window=window,
        scale=scale,
    )


def _choose(known: dict[str, Callable[..., Any]], impl: str) -> Callable[..., Any]:
    if impl not in known:
        raise UserError(f"attention {impl!r} is unknown: set model.attention to one of {', '.join(known)}.")
    return known[impl]
