"""Attention of new tokens on a warm cache, in plain jax.numpy for any device.

Legend: B batch, S new tokens, T slots of the cache, H query heads, K KV heads, G = H / K, D head_dim, M = G x S.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from m1jax.kernels.arguments import AttentionLayer, NewTokens
from m1jax.kernels.matmul import matmul_precision
from m1jax.kernels.reference import convolve, rotate

Array = jax.Array

_MASKED = -1e30


class LayerCache(NamedTuple):
    """What one layer remembers of each row: keys and values of past tokens, and the last raw pair.

    The token at position p is in slot p mod T, so T slots hold the last T tokens: a ring for a window layer, and a
    plain array for a global layer whose T is never exceeded.
    """

    k: Array
    """(B, K, T, D), after convolution and RoPE."""
    v: Array
    """(B, K, T, D), after convolution."""
    last_k: Array
    """(B, K, D), the last token's K before convolution and RoPE; zeros before the first token."""
    last_v: Array
    """(B, K, D), the last token's V before convolution."""


class Prepared(NamedTuple):
    """New tokens after convolution and RoPE."""

    q: Array
    """(B, K, G, S, D)."""
    k: Array
    """(B, K, S, D)."""
    v: Array
    """(B, K, S, D)."""
    last_k: Array
    """(B, K, D), for the cache: the last real token's K before convolution and RoPE."""
    last_v: Array
    """(B, K, D), the same of V."""


def attention(
    q_BSHD: Array, k_BSKD: Array, v_BSKD: Array, cache: LayerCache, layer: AttentionLayer, new: NewTokens
) -> tuple[Array, LayerCache]:
    """`kernels.decode_attention`: new tokens are written first and then read with the others where that loses nothing.

    Nothing is lost where no slot is used twice, and for a single token: in a ring it takes the slot of the one token
    that its window has just left. Several tokens in a ring are read beside it, as it was; all scores share a softmax.
    """
    B, S, H, D = q_BSHD.shape
    K, T = cache.k.shape[1:3]
    positions_BS, real, window = new.positions, new.real, layer.window
    q, k, v, last_k, last_v = prepared(q_BSHD, k_BSKD, v_BSKD, cache, layer, new)
    written = LayerCache(_write(cache.k, k, positions_BS, real), _write(cache.v, v, positions_BS, real), last_k, last_v)
    plain = window is None or window > T  # no ring, or one that never turns
    together = S == 1 or plain
    slots = written if together else cache
    last_B1 = (new.lengths + new.counts if together else new.lengths)[:, None] - 1
    slot_positions_BT = last_B1 - (last_B1 - jnp.arange(T)) % T  # negative where the slot is empty
    pairs = [(slots.k, slots.v, _seen(positions_BS, slot_positions_BT, slot_positions_BT >= 0, window))]
    if not together:
        pairs.append((k, v, _seen(positions_BS, positions_BS, real, window)))
    precision = matmul_precision(q.dtype)
    q_BKMD = q.reshape(B, K, (H // K) * S, D)

    def scores(keys: Array, seen: Array) -> Array:
        raw = jnp.einsum("bkmd,bktd->bkmt", q_BKMD, keys, precision=precision, preferred_element_type=jnp.float32)
        return jnp.where(seen[:, None, None], raw.reshape(B, K, H // K, S, -1) * layer.scale, _MASKED)

    weights = jax.nn.softmax(jnp.concatenate([scores(keys, seen) for keys, _, seen in pairs], axis=-1), axis=-1)
    parts = jnp.split(weights.astype(v.dtype).reshape(B, K, (H // K) * S, -1), [T][: len(pairs) - 1], axis=-1)
    out = sum(
        jnp.matmul(part, values, precision=precision, preferred_element_type=jnp.float32)
        for part, (_, values, _) in zip(parts, pairs, strict=True)
    )
    out_BSHD = jnp.asarray(out).reshape(B, K, H // K, S, D).transpose(0, 3, 1, 2, 4).reshape(B, S, H, D).astype(q.dtype)
    return jnp.where(real[:, :, None, None], out_BSHD, 0), written


def prepared(
    q_BSHD: Array, k_BSKD: Array, v_BSKD: Array, cache: LayerCache, layer: AttentionLayer, new: NewTokens
) -> Prepared:
    """The new tokens as every implementation reads them for the scores; arguments: see `kernels.decode_attention`."""
    B, S, H, D = q_BSHD.shape
    K, positions_BS, real_BS = k_BSKD.shape[2], new.positions, new.real
    mixed_BSKD = convolve(k_BSKD, _previous(k_BSKD, cache.last_k, real_BS), layer.conv_k)
    k = rotate(mixed_BSKD, positions_BS, layer.inv_freq).transpose(0, 2, 1, 3)
    v = convolve(v_BSKD, _previous(v_BSKD, cache.last_v, real_BS), layer.conv_v).transpose(0, 2, 1, 3)
    q = rotate(q_BSHD, positions_BS, layer.inv_freq).reshape(B, S, K, H // K, D).transpose(0, 2, 3, 1, 4)
    return Prepared(q, k, v, _last(k_BSKD, cache.last_k, real_BS), _last(v_BSKD, cache.last_v, real_BS))


def _previous(x_BSKD: Array, last_BKD: Array, real_BS: Array) -> Array:
    """x_{t-1}, where a row's first real token follows the cache's last."""
    first_BS = real_BS & (jnp.cumsum(real_BS, axis=1) == 1)
    before = jnp.concatenate([last_BKD[:, None], x_BSKD[:, :-1]], axis=1)
    return jnp.where(first_BS[:, :, None, None], last_BKD[:, None], before)


def _seen(q_positions_BS: Array, positions_BT: Array, real_BT: Array, window: int | None) -> Array:
    behind = q_positions_BS[:, :, None] - positions_BT[:, None, :]
    seen = real_BT[:, None, :] & (behind >= 0)
    return seen if window is None else seen & (behind < window)


def _write(cache_BKTD: Array, new_BKSD: Array, positions_BS: Array, real_BS: Array) -> Array:
    """The cache with the real new tokens in their slots; of more than T new tokens only the last T are written."""
    B, _, T, _ = cache_BKTD.shape
    kept = real_BS & (positions_BS > positions_BS[:, -1:] - T)
    slots = jnp.where(kept, positions_BS % T, T)
    return cache_BKTD.at[jnp.arange(B)[:, None], :, slots].set(new_BKSD.transpose(0, 2, 1, 3), mode="drop")


def _last(x_BSKD: Array, last_BKD: Array, real_BS: Array) -> Array:
    """The row's last real token, or `last_BKD` where it has none."""
    S = x_BSKD.shape[1]
    index_B = jnp.max(jnp.where(real_BS, jnp.arange(S), -1), axis=1)
    chosen = jnp.take_along_axis(x_BSKD, jnp.maximum(index_B, 0)[:, None, None, None], axis=1)[:, 0]
    return jnp.where((index_B >= 0)[:, None, None], chosen, last_BKD)
