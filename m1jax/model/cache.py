"""The state of generation: a pytree that holds everything, so that it can be copied, reordered and donated.

Legend: B batch, T slots, K KV heads, D head_dim, L layers.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from m1jax.config import ModelConfig
from m1jax.kernels import LayerCache

Array = jax.Array

_FULL, _LAST = (None, "kv_heads", None, "head_dim"), (None, "kv_heads", "head_dim")
LAYER_AXES: dict[str, tuple[str | None, ...]] = {"k": _FULL, "v": _FULL, "last_k": _LAST, "last_v": _LAST}
"""Logical axes of each array of a layer's cache, for `m1jax.parallel.rules`."""


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
        full, last = (batch, kv_heads, _slots(config, kind, capacity), head_dim), (batch, kv_heads, head_dim)
        return LayerCache(
            jnp.zeros(full, dtype), jnp.zeros(full, dtype), jnp.zeros(last, dtype), jnp.zeros(last, dtype)
        )

    return Cache(tuple(layer(kind) for kind in config.layer_kinds), jnp.zeros(batch, jnp.int32))


def grown(config: ModelConfig, cache: Cache, capacity: int) -> Cache:
    """The same tokens with room for `capacity`, which must not be less than the cache has.

    A token keeps its slot: rings that are smaller than the window have never turned, because the capacity was theirs.
    """

    def wider(kind: str, slots_BKTD: Array) -> Array:
        more = _slots(config, kind, capacity) - slots_BKTD.shape[2]
        assert more >= 0, "a cache never shrinks"
        return jnp.pad(slots_BKTD, ((0, 0), (0, 0), (0, more), (0, 0)))

    layers = (
        layer._replace(k=wider(kind, layer.k), v=wider(kind, layer.v))
        for kind, layer in zip(config.layer_kinds, cache.layers, strict=True)
    )
    return Cache(tuple(layers), cache.lengths)


def narrowed(config: ModelConfig, cache: Cache, capacity: int) -> Cache:
    """The same tokens with room for only `capacity`; no row whose tokens are wanted may hold more.

    A token keeps its slot: of rows this short no ring that is narrowed has turned.
    """

    def narrower(kind: str, slots_BKTD: Array) -> Array:
        return slots_BKTD[:, :, : _slots(config, kind, capacity)]

    layers = (
        layer._replace(k=narrower(kind, layer.k), v=narrower(kind, layer.v))
        for kind, layer in zip(config.layer_kinds, cache.layers, strict=True)
    )
    return Cache(tuple(layers), cache.lengths)


@functools.cache
def row_bytes(config: ModelConfig, capacity: int) -> int:
    """Bytes of one row of a cache with room for `capacity` tokens."""
    leaves = jax.tree.leaves(jax.eval_shape(lambda: empty_cache(config, 1, capacity)))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def take(cache: Cache, rows: Array) -> Cache:
    """The cache of the named rows, in that order, each as often as it is named: beams are reordered and repeated so.

    `rows` (B',) int32; nothing is shared with the cache given, which stays as it was.
    """
    return jax.tree.map(lambda leaf: leaf[rows], cache)


def _slots(config: ModelConfig, kind: str, capacity: int) -> int:
    return min(config.window, capacity) if kind == "window" else capacity
