"""Checksums of arrays, the same for any layout over devices or files."""

from typing import Any

import jax
import jax.numpy as jnp

from m1jax.parallel import rules


def names(tree: Any) -> list[str]:
    """The name of every array of a tree, in the tree's order: its path with dots.

    Raises ValueError where two have one name, as "a.b" and b in a do: Orbax would silently keep only one of them.
    """
    found = [
        jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]
    if len(set(found)) < len(found):
        twice = next(name for name in found if found.count(name) > 1)
        raise ValueError(f"two arrays of the state are called {twice}: leave the dot out of one key")
    return found


def checksums(tree: Any) -> dict[str, int]:
    """A checksum in 32 bits of every array (of up to 32 bits an element) by name; computed on the arrays' devices.

    The sum of (2i + 1) · bits(x_i) modulo 2^32 over all elements i: addition of integers is exact in any order, so that
    any mesh gives the same, and an odd factor lets no change of a single element pass.
    """
    leaves = jax.tree.leaves(tree)
    # Replicated, so that every process can read it.
    replicated = rules.replicated(leaves[0].sharding.mesh)
    found = jax.jit(_all, out_shardings=replicated)(leaves)
    return dict(zip(names(tree), jax.device_get(found).tolist(), strict=True))


def _all(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([_one(leaf) for leaf in leaves])


def _one(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)
    index, stride = jnp.zeros(x.shape, jnp.uint32), 1
    for axis in reversed(range(x.ndim)):
        index += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    return jnp.sum(bits * (2 * index + 1), dtype=jnp.uint32)
