"""jax's splash attention, causal, such that libtpu's static profiler can follow it.

Splash reads from scalar memory which blocks it visits, and the profiler takes branches on data as not taken: it would
simulate an empty kernel. Here the same numbers are computed from the grid's indices; nothing else of splash changes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

_SIZES = kernel.BlockSizes(
    block_q=1024, block_kv=1024, block_kv_compute=512,
    block_q_dkv=1024, block_kv_dkv=1024, block_kv_dkv_compute=512,
    block_q_dq=1024, block_kv_dq=1024,
)  # fmt: skip


def program(H: int, K: int, D: int, S: int, which: str) -> tuple[Callable[..., Any], list[Any]]:
    """The forward pass, or both ("backward"), of one row without convolution and RoPE; and its arguments' shapes."""
    kernel._next_nonzero = _next_nonzero
    mask = masks.MultiHeadMask([masks.CausalMask((S, S))] * H)
    splash = kernel.make_splash_mha(mask, block_sizes=_SIZES, head_shards=1, q_seq_shards=1)
    q, k, v, d_out = (jax.ShapeDtypeStruct((heads, S, D), jnp.bfloat16) for heads in (H, K, K, H))
    if which == "forward":
        return splash, [q, k, v]
    return lambda q, k, v, d_out: jax.vjp(splash, q, k, v)[1](d_out), [q, k, v, d_out]


def _next_nonzero(_head: Any, i: Any, j: Any, *_: Any, next_i: bool = False) -> tuple[Any, None, Any, bool]:
    """Splash's function of this name for square blocks of a causal mask: the block to fetch, and whether to compute.

    A row's visited blocks come first, then the next row's first one is fetched; of dkv (`next_i`) they come last.
    """
    runs = j <= i
    return (jnp.where(runs, i, j) if next_i else jnp.where(runs, j, 0)), None, runs, False
