"""The state of generation: a pytree that holds everything, so that it can be copied, reordered and donated.

Legend: B batch, T slots, K KV heads, D head_dim, L layers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from m1jax.config import ModelConfig
from m1jax.kernels import LayerCache

Array = jax.Array


class Cache(NamedTuple):
    """Every layer's cache, first to last, and the number of tokens each row has seen."""

    layers: tuple[LayerCache, ...]
    lengths: Array
    """(B,) int32."""


def empty_cache(config: ModelConfig, batch: int, capacity: int) -> Cache:
    """A cache for `batch` rows of at most `capacity` tokens, in the compute dtype.

    Global layers get `capacity` slots, window layers a ring of min(window, capacity).
    """
    dtype = jnp.dtype(config.compute_dtype)

    def layer(kind: str) -> LayerCache:
        _, kv_heads, head_dim = config.heads(kind)
        slots = min(config.window, capacity) if kind == "window" else capacity
        full, last = (batch, kv_heads, slots, head_dim), (batch, kv_heads, head_dim)
        return LayerCache(
            jnp.zeros(full, dtype), jnp.zeros(full, dtype), jnp.zeros(last, dtype), jnp.zeros(last, dtype)
        )

    return Cache(tuple(layer(kind) for kind in config.layer_kinds), jnp.zeros(batch, jnp.int32))
