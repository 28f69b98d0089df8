"""The decode program of `m1 generate`, lowered for devices that need not exist.

`m1 generate` reads a model from a folder whose config.json names no implementation of attention, so that it decodes
with the reference, as here; `model.attention` of a run's config chooses that of training.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from m1jax import model
from m1jax.config import ModelConfig
from m1jax.generate import programs
from m1jax.generate.sampling import Sampling, row_keys
from m1jax.generate.structure import Structure
from m1jax.model.cache import LAYER_AXES
from m1jax.parallel import rules


def abstract_parameters(config: ModelConfig, mesh: Mesh) -> tuple[Structure, Any]:
    """(structure, parameters) as `generate.programs.prepare` lays them out, shapes and shardings only."""
    abstract = programs.unrolled(dataclasses.replace(config, attention="reference"))
    shardings = rules.parameter_shardings(mesh, abstract.shapes, abstract.axes)
    tree = jax.eval_shape(functools.partial(programs.narrowed, config), model.abstract(config).shapes)
    return Structure(abstract.graphdef), jax.tree.map(_placed, tree, shardings)


def abstract_state(config: ModelConfig, mesh: Mesh, rows: int, capacity: int) -> programs.State:
    """The state of `rows` rows with room for `capacity` tokens each, shapes and shardings only."""
    state = jax.eval_shape(lambda: programs.start(config, None, rows, capacity))
    layers = tuple(
        type(layer)(
            **{
                name: _placed(leaf, rules.parameter_sharding(mesh, leaf.shape, LAYER_AXES[name], f"cache {name}"))
                for name, leaf in layer._asdict().items()
            }
        )
        for layer in state.cache.layers
    )
    whole = rules.replicated(mesh)
    return programs.State(model.Cache(layers, _placed(state.cache.lengths, whole)), _placed(state.logits, whole))


def arguments(
    config: ModelConfig,
    mesh: Mesh,
    rows: int,
    capacity: int,
    draws: programs.Draws | None = None,
    ends: tuple[int, ...] = (1,),
) -> tuple[Any, ...]:
    """Those of `generate.programs.decode` for `rows` rows with room for `capacity` tokens each.

    `draws` has the shapes of what is drawn with (None: greedy), `ends` is the shape of the end tokens.
    """
    structure, parameters = abstract_parameters(config, mesh)
    whole = rules.replicated(mesh)
    by_row = [_scalars(whole, dtype, rows) for dtype in (jnp.bool_, jnp.int32, jnp.int32)]
    counts = [_scalars(whole, jnp.int32), _scalars(whole, jnp.int32), _scalars(whole, jnp.int32, *ends)]
    base, state = _scalars(whole, jnp.float32), abstract_state(config, mesh, rows, capacity)
    return (
        structure,
        mesh,
        parameters,
        base,
        state,
        *by_row,
        *counts,
        jax.tree.map(lambda leaf: _placed(leaf, whole), draws),
    )


def sampled(config: ModelConfig, rows: int, sampling: Sampling) -> programs.Draws:
    """Shapes of what rows draw with."""
    made: programs.Draws = jax.eval_shape(
        lambda: programs.Draws(
            jnp.zeros((rows, config.vocab_size), jnp.bool_), row_keys(0, rows), sampling.controls(rows)
        )
    )
    return made


def reading(config: ModelConfig, mesh: Mesh, rows: int, capacity: int, tokens: int) -> tuple[Any, ...]:
    """Those of `generate.programs.prefill` for `tokens` new tokens of each row."""
    structure, parameters = abstract_parameters(config, mesh)
    whole = rules.replicated(mesh)
    given = [_scalars(whole, dtype, rows, tokens) for dtype in (jnp.int32, jnp.bool_)]
    return (
        structure,
        mesh,
        parameters,
        _scalars(whole, jnp.float32),
        abstract_state(config, mesh, rows, capacity),
        *given,
    )


def _placed(leaf: Any, sharding: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _scalars(sharding: Any, dtype: Any, *shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def cache_bytes(config: ModelConfig, rows: int, capacity: int) -> int:
    """Bytes of the whole cache."""
    state = jax.eval_shape(lambda: programs.start(config, None, rows, capacity))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.cache))
