"""Norms of gradients, updates and parameters by layer kind, computed inside the step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

KindOf = Callable[[tuple[Any, ...]], str]
"""Maps a parameter's path in its tree to its layer kind."""


def by_kind(name: str, tree: Any, kind_of: KindOf) -> dict[str, jax.Array]:
    """Euclidean norms, fp32 (), of a tree's arrays put together by layer kind, as "<name>/<kind>"."""
    squares: dict[str, jax.Array] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        key = f"{name}/{kind_of(path)}"
        squares[key] = squares.get(key, jnp.float32(0)) + jnp.sum(jnp.square(leaf.astype(jnp.float32)))
    return {key: jnp.sqrt(value) for key, value in squares.items()}
