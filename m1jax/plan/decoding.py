"""The decode program of `m1 generate`, lowered for devices that need not exist.

`m1 generate` reads a model from a folder whose config.json names no implementation of attention, so that it decodes
with the reference, as here; `model.attention` of a run's config chooses that of training.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from m1jax import kernels, model
from m1jax.config import ModelConfig
from m1jax.generate import programs
from m1jax.model.cache import LAYER_AXES
from m1jax.parallel import rules


def abstract_parameters(config: ModelConfig, mesh: Mesh) -> tuple[Any, Any]:
    """(graphdef, parameters) as `generate.programs.prepare` lays them out, shapes and shardings only."""
    config = dataclasses.replace(config, normalize_head=False, tie_embeddings=False, attention="reference")
    abstract = model.abstract(config, cut=model.Layout(config.layer_kinds, (), 0, ()))
    shardings = rules.parameter_shardings(mesh, abstract.shapes, abstract.axes)
    narrow = jnp.dtype(config.compute_dtype)

    def one(axes: tuple[str | None, ...], leaf: Any, sharding: Any) -> Any:
        matrix = len(axes) > 1 and "conv" not in axes
        dtype = narrow if matrix and narrow.itemsize < leaf.dtype.itemsize else leaf.dtype
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)

    tree = jax.tree.map(one, abstract.axes, abstract.shapes, shardings, is_leaf=lambda axes: isinstance(axes, tuple))
    tree["embed"] = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, jax.eval_shape(kernels.to_bits, leaf).dtype, sharding=leaf.sharding
        ),
        tree["embed"],
    )
    return abstract.graphdef, tree


def arguments(config: ModelConfig, mesh: Mesh, rows: int, capacity: int) -> tuple[Any, ...]:
    """Those of `generate.programs.decode`, greedy, for `rows` rows with room for `capacity` tokens each."""
    graphdef, parameters = abstract_parameters(config, mesh)
    whole = rules.replicated(mesh)
    state = jax.eval_shape(lambda: programs.start(config, None, rows, capacity))

    def place(leaf: Any, sharding: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    layers = tuple(
        type(layer)(
            **{
                name: place(leaf, rules.parameter_sharding(mesh, leaf.shape, LAYER_AXES[name], f"cache {name}"))
                for name, leaf in layer._asdict().items()
            }
        )
        for layer in state.cache.layers
    )
    state = programs.State(model.Cache(layers, place(state.cache.lengths, whole)), place(state.logits, whole))

    def scalars(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

    return (
        graphdef,
        mesh,
        parameters,
        scalars((), jnp.float32),
        state,
        scalars((rows,), jnp.bool_),
        scalars((rows,), jnp.int32),
        scalars((rows,), jnp.int32),
        scalars((), jnp.int32),
        scalars((), jnp.int32),
        scalars((1,), jnp.int32),
        None,
    )


def cache_bytes(config: ModelConfig, rows: int, capacity: int) -> int:
    """Bytes of the whole cache."""
    state = jax.eval_shape(lambda: programs.start(config, None, rows, capacity))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.cache))
