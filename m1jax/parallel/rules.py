"""The one table from logical axis names to mesh axes, and the shardings that follow from it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from m1jax.errors import UserError
from m1jax.parallel.mesh import BATCH_AXES

PARAMETERS: dict[str, str | None] = {
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "ffn": "tensor",
    "layers": None,
    "conv": None,
    "rank": None,
}
# Baichuan-M1's global layers have two KV heads: where `tensor` does not divide them, they are held by every device.
REPLICATED_IF_INDIVISIBLE = ("kv_heads",)

ACTIVATIONS: dict[str, str | tuple[str, ...]] = {"batch": BATCH_AXES, "sequence": "context", "vocab": "tensor"}


def parameter_sharding(mesh: Mesh, shape: tuple[int, ...], axes: tuple[str | None, ...], name: str) -> NamedSharding:
    """The sharding of one parameter from its logical axes; `name` is for the error.

    Raises UserError where a dimension does not divide over its mesh axis.
    """
    assert len(shape) == len(axes), f"{name}: {len(axes)} logical axes for shape {shape}"
    spec: list[str | None] = []
    for size, axis in zip(shape, axes, strict=True):
        target = PARAMETERS[axis] if axis else None
        if target and size % mesh.shape[target]:
            if axis not in REPLICATED_IF_INDIVISIBLE:
                raise UserError(
                    f"parameter {name} has {size} along {axis!r}, which mesh.{target} = {mesh.shape[target]} does not "
                    f"divide: choose a divisor for mesh.{target}."
                )
            target = None
        spec.append(target)
    return NamedSharding(mesh, PartitionSpec(*spec))


def parameter_shardings(mesh: Mesh, shapes: Any, axes: Any) -> Any:
    """Shardings for a whole tree; `axes` has a tuple of logical names where `shapes` has an array."""

    def one(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct, names: tuple[str | None, ...]) -> NamedSharding:
        return parameter_sharding(mesh, leaf.shape, names, jax.tree_util.keystr(path, simple=True, separator="/"))

    return jax.tree_util.tree_map_with_path(one, shapes, axes, is_leaf=lambda x: isinstance(x, jax.ShapeDtypeStruct))


def shardings_of(tree: Any) -> Any:
    """The shardings of a tree of arrays or ShapeDtypeStructs."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def batch_sharding(mesh: Mesh, axes: tuple[str, ...] = ("batch", "sequence")) -> NamedSharding:
    """Layout of a column of a batch: rows over replica, data and fsdp; the sequence over context."""
    return NamedSharding(mesh, PartitionSpec(*(ACTIVATIONS[axis] for axis in axes)))


def activation_constraint(mesh: Mesh) -> Callable[[jax.Array, tuple[str | None, ...]], jax.Array]:
    """What the model calls as `constrain(x, axes)`: x, laid out over `mesh` by the names of its axes."""

    def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        spec = PartitionSpec(*(ACTIVATIONS[axis] if axis else None for axis in axes))
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    return constrain


def micro_batches(mesh: Mesh, batch: Any, parts: int) -> Any:
    """Columns (rows, …) of a batch as (parts, rows / parts, …), without a row leaving its device.

    Part i has every `parts`-th row from row i on: consecutive rows are on one device, so that each device keeps an
    equal share of every part.
    """

    def split(x: jax.Array) -> jax.Array:
        cut = jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)
        spec = PartitionSpec(None, *batch_sharding(mesh, ("batch", "sequence")[: x.ndim]).spec)
        return jax.lax.with_sharding_constraint(cut, NamedSharding(mesh, spec))

    return jax.tree.map(split, batch)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())
