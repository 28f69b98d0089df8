"""Rotary positions and the short convolution on blocks that are in VMEM.

Legend: T keys, R tokens of a block, D head_dim (128 or 256 here), half-split pairs.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

Array = jax.Array

LANES = 128


def table(positions_BT: Array, inv_freq: Array) -> Array:
    """(B, T, 256) float32, cosines beside sines, each 128 lanes for `turned`; inv_freq has 64 or 128 entries."""
    angle = positions_BT[:, :, None].astype(jnp.float32) * inv_freq
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    halves = [cos, sin] if inv_freq.shape[0] == LANES else [cos, cos, -sin, sin]
    return jnp.concatenate(halves, axis=-1)


def turned(x_RD: Array, table_R: Array, *, back: bool = False) -> Array:
    """RoPE of float32 vectors by the entries of `table` at their tokens, or its inverse, which is its transpose."""
    cos, sin = table_R[:, :LANES], table_R[:, LANES:]
    if back:
        sin = -sin
    if x_RD.shape[1] == LANES:
        return x_RD * cos + pltpu.roll(x_RD, LANES // 2, 1) * sin
    low, high = x_RD[:, :LANES], x_RD[:, LANES:]
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=1)


def shifted_down(x_RD: Array, before_1D: Array) -> Array:
    """At token t x_{t-1}, at token 0 `before`; float32."""
    return jnp.concatenate([before_1D, x_RD[:-1]])


def shifted_up(x_RD: Array, after_1D: Array) -> Array:
    """At token t x_{t+1}, at the last one `after`; float32."""
    R = x_RD.shape[0]
    row = jax.lax.broadcasted_iota(jnp.int32, x_RD.shape, 0)
    return jnp.where(row == R - 1, after_1D, pltpu.roll(x_RD, R - 1, 0))


def columns(row_1R: Array) -> Array:
    """(R, 128) of a (1, R) row, all columns equal."""
    return jnp.transpose(jnp.broadcast_to(row_1R, (LANES, row_1R.shape[1])))
