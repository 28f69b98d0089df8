"""What a token sees: the contiguous keys from a first one to itself, as segments are contiguous runs.

Legend: B batch, T keys.
"""

import jax
import jax.numpy as jnp

Array = jax.Array

PADDING = -1
"""`first` of a token of padding: below every key, so that its scores stay finite; its output is zeroed instead."""


def first_keys(segments_BT: Array, window: int | None) -> Array:
    """(B, T) int32, the first key that each token sees, PADDING where it is none."""
    T = segments_BT.shape[1]
    index = jnp.arange(T, dtype=jnp.int32)
    starts = jax.lax.cummax(jnp.where(same_as_previous(segments_BT), 0, index), axis=1)
    if window is not None:
        starts = jnp.maximum(starts, index - (window - 1))
    return jnp.where(segments_BT > 0, starts, PADDING)


def same_as_previous(segments_BT: Array) -> Array:
    """(B, T) bool, False where a document starts inside the row; key 0 follows what `prev_kv` says."""
    return jnp.pad(segments_BT[:, 1:] == segments_BT[:, :-1], ((0, 0), (1, 0)), constant_values=True)
