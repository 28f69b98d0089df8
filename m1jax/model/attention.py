"""The attention module of one layer: projections around `kernels.attention`.

Legend: B batch, S sequence, H query heads, K KV heads, D head_dim, E hidden.
"""

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from m1jax.config import LoraConfig, ModelConfig
from m1jax.kernels import AttentionFunction, AttentionLayer, LayerCache, NewTokens, Rows, decode_attention
from m1jax.kernels.names import ATTENTION
from m1jax.model.layers import Initializer, low_rank, project, rope_frequencies

Array = jax.Array


class Attention(nnx.Module):
    """Grouped attention with short convolution on K and V (report, section 2; reference code)."""

    def __init__(
        self, config: ModelConfig, kind: str, residual_std: float, init: Initializer, lora: LoraConfig | None = None
    ):
        heads, kv_heads, head_dim = config.heads(kind)
        hidden, std = config.hidden, config.init_std
        self.q_proj = init.normal("q_proj", (hidden, heads, head_dim), ("embed", "heads", "head_dim"), std)
        self.k_proj = init.normal("k_proj", (hidden, kv_heads, head_dim), ("embed", "kv_heads", "head_dim"), std)
        self.v_proj = init.normal("v_proj", (hidden, kv_heads, head_dim), ("embed", "kv_heads", "head_dim"), std)
        self.o_proj = init.normal("o_proj", (heads, head_dim, hidden), ("heads", "head_dim", "embed"), residual_std)
        self.lora = low_rank(self, {"q_proj": 1, "k_proj": 1, "v_proj": 1, "o_proj": 2}, lora, init)
        self.conv_k = init.convolution("conv_k", kv_heads)
        self.conv_v = init.convolution("conv_v", kv_heads)
        self.window = config.window if kind == "window" else None
        self.head_dim = head_dim
        self.impl = config.attention

    def __call__(self, x_BSE: Array, rows: Rows, rope_base: float | Array, attention: AttentionFunction) -> Array:
        """(B, S, E) in x's dtype."""
        out_BSHD = attention(*self._projected(x_BSE), self._layer(rope_base), rows)
        return self._joined(checkpoint_name(out_BSHD, ATTENTION))

    def extend(
        self, x_BSE: Array, cache: LayerCache, new: NewTokens, rope_base: float | Array
    ) -> tuple[Array, LayerCache]:
        """(B, S, E) for new tokens on a cache, and the cache with them; see `kernels.decode_attention`."""
        out_BSHD, cache = decode_attention(*self._projected(x_BSE), cache, self._layer(rope_base), new)
        return self._joined(out_BSHD), cache

    def _projected(self, x_BSE: Array) -> tuple[Array, Array, Array]:
        q_BSHD = project("bse,ehd->bshd", x_BSE, self.q_proj, self.lora.get("q_proj"))
        k_BSKD = project("bse,ekd->bskd", x_BSE, self.k_proj, self.lora.get("k_proj"))
        return q_BSHD, k_BSKD, project("bse,ekd->bskd", x_BSE, self.v_proj, self.lora.get("v_proj"))

    def _joined(self, out_BSHD: Array) -> Array:
        return project("bshd,hde->bse", out_BSHD, self.o_proj, self.lora.get("o_proj"))

    def _layer(self, rope_base: float | Array) -> AttentionLayer:
        return AttentionLayer(
            conv_k=self.conv_k[...],
            conv_v=self.conv_v[...],
            inv_freq=rope_frequencies(self.head_dim, rope_base),
            window=self.window,
            scale=self.head_dim**-0.5,
            impl=self.impl,
        )
