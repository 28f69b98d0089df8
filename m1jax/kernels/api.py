"""The attention function that every part of m1jax calls, and the choice of its implementation.

Legend: B batch, S queries, T keys, H query heads, K KV heads, D head_dim.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax

from m1jax.errors import UserError
from m1jax.kernels import decode, reference
from m1jax.kernels.arguments import AttentionLayer, NewTokens, Rows
from m1jax.kernels.decode import LayerCache

Array = jax.Array


class AttentionFunction(Protocol):
    """`attention` below, or a wrapper that partitions it over a mesh."""

    def __call__(
        self, q: Array, k: Array, v: Array, layer: AttentionLayer, rows: Rows, *, return_lse: bool = False
    ) -> Any:
        """Arguments and results: see `attention`."""


def _pallas_tpu(*arguments: Any, **settings: Any) -> Any:
    from m1jax.kernels.tpu.attention import attention  # Pallas takes a second to import

    return attention(*arguments, **settings)


def _gpu(*arguments: Any, **settings: Any) -> Any:
    from m1jax.kernels.gpu.attention import attention

    return attention(*arguments, **settings)


def _decode_pallas_tpu(*arguments: Any) -> Any:
    from m1jax.kernels.tpu.decode import attention

    return attention(*arguments)


_IMPLEMENTATIONS = {"reference": reference.attention, "pallas_tpu": _pallas_tpu, "gpu": _gpu}
# On a GPU XLA writes the cache in place and its products read it where it is, as a kernel would.
_DECODERS = {"reference": decode.attention, "pallas_tpu": _decode_pallas_tpu, "gpu": decode.attention}
PLATFORMS = {"pallas_tpu": "tpu", "gpu": "gpu"}
"""The JAX backend that an implementation needs, where it needs one."""


def attention(q: Array, k: Array, v: Array, layer: AttentionLayer, rows: Rows, *, return_lse: bool = False) -> Any:
    """Causal grouped attention over packed rows, with short convolution on K and V and RoPE on Q and K.

    `layer.impl` is "reference" on any device; "pallas_tpu", kernels for v5e, v5p, v6e and tpu7x; or "gpu", cuDNN or
    kernels for NVIDIA GPUs (kernels/gpu/attention.py says when which). For the last two every set of equal segment_ids
    must be one contiguous run.

    Args:
        q: (B, S, H, D) as projected, float32 or bfloat16; H is a multiple of K.
        k: (B, T, K, D) as projected, before convolution and RoPE; T >= rows.q_offset + S.
        v: (B, T, K, D).
        layer: convolution, frequencies, window, scale and implementation. The formulas: see `kernels/arguments.py`.
        rows: positions and documents of the T keys, and where the queries are among them.
        return_lse: also return the log of the softmax's denominator, (B, S, H) float32 (-1e30 at padding).

    Returns:
        (B, S, H, D) in q's dtype; softmax and its sums are float32. With return_lse a pair.

    Raises:
        UserError: no implementation has this name, or it does not support this shape, dtype or device.
    """
    return _choose(_IMPLEMENTATIONS, layer.impl)(q, k, v, layer, rows, return_lse=return_lse)


def decode_attention(
    q: Array, k: Array, v: Array, cache: LayerCache, layer: AttentionLayer, new: NewTokens
) -> tuple[Array, LayerCache]:
    """Attention of one or several new tokens on a layer's cache, and the cache with them in it.

    `layer.impl` is "reference" on any device; "pallas_tpu", kernels for TPUs, which write into a donated cache in
    place; "gpu" is the reference's program.

    Args:
        q: (B, S, H, D) as projected.
        k: (B, S, K, D) as projected, before convolution and RoPE.
        v: (B, S, K, D).
        cache: the layer's cache; a global layer's slots must hold every token so far and the new ones, a window
            layer's the last `layer.window`.
        layer: convolution, frequencies, window, scale and implementation. The formulas: see `kernels/arguments.py`.
        new: which of the S tokens are real, and how many tokens the cache has.

    Returns:
        (B, S, H, D) in q's dtype, and the new cache; each row has `new.counts` tokens more.

    Raises:
        UserError: no implementation has this name, or it does not support this shape.
    """
    return _choose(_DECODERS, layer.impl)(q, k, v, cache, layer, new)


def _choose(known: dict[str, Callable[..., Any]], impl: str) -> Callable[..., Any]:
    if impl not in known:
        raise UserError(f"attention {impl!r} is unknown: set model.attention to one of {', '.join(known)}.")
    return known[impl]
