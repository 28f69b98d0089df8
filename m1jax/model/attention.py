"""The attention module of one layer: projections around `kernels.attention`.

Legend: B batch, S sequence, H query heads, K KV heads, D head_dim, E hidden.
"""

from dataclasses import dataclass

import jax
from flax import nnx

from m1jax.config import ModelConfig
from m1jax.kernels import AttentionFunction
from m1jax.model.layers import Initializer, project, rope_frequencies

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Place:
    """Where the tokens of a call stand: document and position of each, and the base of the rotary positions."""

    segment_ids: Array
    positions: Array
    rope_base: float | Array


class Attention(nnx.Module):
    """Grouped attention with short convolution on K and V (report, section 2; reference code)."""

    def __init__(self, config: ModelConfig, kind: str, residual_std: float, init: Initializer):
        heads, kv_heads, head_dim = config.heads(kind)
        hidden, std = config.hidden, config.init_std
        self.q_proj = init.normal("q_proj", (hidden, heads, head_dim), ("embed", "heads", "head_dim"), std)
        self.k_proj = init.normal("k_proj", (hidden, kv_heads, head_dim), ("embed", "kv_heads", "head_dim"), std)
        self.v_proj = init.normal("v_proj", (hidden, kv_heads, head_dim), ("embed", "kv_heads", "head_dim"), std)
        self.o_proj = init.normal("o_proj", (heads, head_dim, hidden), ("heads", "head_dim", "embed"), residual_std)
        self.conv_k = init.convolution("conv_k", kv_heads)
        self.conv_v = init.convolution("conv_v", kv_heads)
        self.window = config.window if kind == "window" else None
        self.head_dim = head_dim
        self.impl = config.attention

    def __call__(self, x_BSE: Array, place: Place, attention: AttentionFunction) -> Array:
        """(B, S, E) in x's dtype."""
        q_BSHD = project("bse,ehd->bshd", x_BSE, self.q_proj)
        k_BSKD = project("bse,ekd->bskd", x_BSE, self.k_proj)
        v_BSKD = project("bse,ekd->bskd", x_BSE, self.v_proj)
        out_BSHD = attention(
            q_BSHD,
            k_BSKD,
            v_BSKD,
            conv_k=self.conv_k[...],
            conv_v=self.conv_v[...],
            inv_freq=rope_frequencies(self.head_dim, place.rope_base),
            positions=place.positions,
            segment_ids=place.segment_ids,
            window=self.window,
            scale=self.head_dim**-0.5,
            impl=self.impl,
        )
        return project("bshd,hde->bse", out_BSHD, self.o_proj)
