"""Which blocks of keys a block of queries visits, and how large blocks are on which chip.

Blocks are numbered by keys: block i holds keys i * height to (i + 1) * height, and the queries of the same tokens. A
token sees the contiguous keys from `first` to itself, as segments are contiguous runs.

Legend: B batch, T keys, N blocks of keys.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from m1jax.kernels.visible import PADDING

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Sizes of one kernel's tiles, in tokens."""

    height: int
    """Queries of a grid step, and keys of a block that is visited or skipped; a multiple of 128."""
    keys: int
    """Keys whose scores are computed at once, and side of the squares into which the diagonal is cut, above which
    nothing is computed; a multiple of 128 that divides `height`."""
    heads: int = 1
    """Most query heads of a KV head that a grid step of the forward kernel takes together; they divide G."""


@dataclasses.dataclass(frozen=True)
class Tiling:
    """The static shape of one attention call on one chip."""

    forward: Blocks
    backward: Blocks
    cores: int
    """Cores that share the queries of one row and KV head: 2 where there would be nothing else to share."""
    keys: int
    """T, padded to whole blocks."""
    chunks: int
    """Parts of the keys that the backward pass takes one after the other, so that their gradients stay in VMEM."""
    vmem_bytes: int

    @property
    def panel(self) -> int:
        """Tokens of a panel: one block for each core."""
        return self.forward.height * self.cores


def visits(first_BT: Array, height: int) -> tuple[Array, Array]:
    """For each block of queries, (B, N) int32 each: the first block of keys that any of its tokens sees, and the first
    that all of them see whole, up to the diagonal. A block of padding alone visits none: its first is N.
    """
    B, T = first_BT.shape
    blocks = first_BT.reshape(B, T // height, height)
    first = jnp.min(jnp.where(blocks == PADDING, T, blocks), axis=2) // height
    whole = (jnp.max(blocks, axis=2) + height - 1) // height
    return first, jnp.maximum(whole, first)


def unpacked_visits(i: Any, height: int, window: int | None) -> tuple[Any, Any]:
    """`visits` of block i of a row that is one document, as arithmetic that a profiler without data can follow."""
    if window is None:
        return jnp.int32(0), jnp.int32(0)
    # Multiples of `height` stay above zero, so that the division truncates as it should.
    first = i - (window - 1 + height - 1) // height
    whole = i + 1 - window // height
    return jnp.where(first > 0, first, 0), jnp.where(whole > 0, whole, 0)
