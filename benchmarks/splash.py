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
    """The kernels of the forward or of the backward pass of one row, without convolution and RoPE; and what they take.

    The backward kernels are called by themselves: the profiler aborts on an XLA op beside them.
    """
    kernel._next_nonzero = _next_nonzero
    mask = masks.MultiHeadMask([masks.CausalMask((S, S))] * H)
    splash = kernel.make_splash_mha(mask, block_sizes=_SIZES, head_shards=1, q_seq_shards=1)
    q, k, v, d_out = (jax.ShapeDtypeStruct((heads, S, D), jnp.bfloat16) for heads in (H, K, K, H))
    if which == "forward":
        return splash, [q, k, v]
    of_query = jax.ShapeDtypeStruct((H, S), jnp.float32)
    settings = {name: splash.kwargs[name] for name in ("is_mqa", "mask_value", "mask_function", "attn_logits_soft_cap")}
    settings |= {"bq": 1024, "bkv": 1024, "interpret": False}
    settings |= dict.fromkeys(("q_layout", "k_layout", "v_layout"), kernel.QKVLayout.HEAD_DIM_MINOR)

    def gradients(*x: Any) -> Any:
        given = *x[:3], None, None, *x[3:]
        dq = kernel._splash_attention_bwd_dq(*given, mask_info=splash.dq_mask_info, **settings)
        of_keys = settings | {"bkv_compute": 512, "use_fused_bwd_kernel": False}
        return dq, kernel._splash_attention_bwd_dkv(*given, mask_info=splash.dkv_mask_info, **of_keys)[1:]

    return gradients, [q, k, v, of_query, d_out, of_query]


def _next_nonzero(_head: Any, i: Any, j: Any, *_: Any, next_i: bool = False) -> tuple[Any, None, Any, bool]:
    """Splash's function of this name for square blocks of a causal mask: the block to fetch, and whether to compute.

    A row's visited blocks come first, then the next row's first one is fetched; of dkv (`next_i`) they come last.
    """
    runs = j <= i
    return (jnp.where(runs, i, j) if next_i else jnp.where(runs, j, 0)), None, runs, False
