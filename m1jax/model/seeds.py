"""Random keys from seeds."""

import jax
import numpy as np

from m1jax.config import seeds


def key(seed: int) -> jax.Array:
    """The key of a seed, all 63 bits of which count; raises UserError where it is out of range.

    `jax.random.key` alone reads 32 bits, unless 64-bit types are switched on: 0 and 2^32 would be one seed.
    """
    number = seeds.checked(seed)
    low = jax.random.key(np.uint32(number & 0xFFFFFFFF))
    return jax.random.fold_in(low, np.uint32(number >> 32)) if number >> 32 else low
