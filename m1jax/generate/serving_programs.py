"""The compiled programs that requests at any time need beside those of `programs`.

Legend: B batch, S sequence, N alternatives.
"""

import functools
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from m1jax.config import ModelConfig
from m1jax.generate.programs import Draws, State, laid_out
from m1jax.generate.steering import Alternatives, likeliest
from m1jax.generate.structure import Structure
from m1jax.model.cache import grown, narrowed, take

Array = jax.Array

_SCORED = 64
"""Tokens whose logits exist at once in `prefill_scored`."""


@functools.partial(jax.jit, static_argnums=(0, 1, 4))
def fitted(config: ModelConfig, mesh: Mesh | None, state: State, rows: Array, capacity: int) -> State:
    """The named rows (B',), a copy, with room for `capacity` tokens, more or less than before.

    No named row whose tokens are wanted may hold more than `capacity`.
    """
    cache = grown(config, narrowed(config, take(state.cache, rows), capacity), capacity)
    return laid_out(mesh, State(cache, state.logits[rows]))


@functools.partial(jax.jit, static_argnums=(0, 1))
def choose_draws(config: ModelConfig, mesh: Mesh | None, draws: Draws, rows: Array) -> Draws:
    """What the named rows (B',) draw with, a copy."""
    del config, mesh
    return jax.tree.map(lambda leaf: leaf[rows], draws)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def place_draws(config: ModelConfig, mesh: Mesh | None, draws: Draws, one: Draws, slot: Array) -> Draws:
    """The draws with those of another's only row in a slot, a scalar."""
    del config, mesh
    return jax.tree.map(lambda leaf, other: leaf.at[slot].set(other[0]), draws, one)


class Scored(NamedTuple):
    """What `prefill_scored` returns: the state after the tokens, and what was likely in the place of each target."""

    state: State
    log_p: Array
    """(S,) float32, nats: of each target."""
    alternatives: Alternatives
    """(S, N) each."""


@functools.partial(jax.jit, static_argnums=(0, 1, 8), donate_argnums=4)
def prefill_scored(
    structure: Structure,
    mesh: Mesh | None,
    parameters: Any,
    rope_base: Array,
    state: State,
    tokens: Array,
    real: Array,
    targets: Array,
    most: int,
) -> Scored:
    """`prefill` of the only row (1, S), and log p of what follows each of its tokens, beside the `most` likeliest."""
    decoder = structure.decoder(parameters)
    hidden, cache = decoder.extend(tokens, state.cache, rope_base=rope_base, real=real)

    def scored(position: tuple[Array, Array]) -> tuple[Array, Alternatives]:
        hidden_E, target = position
        logits_1V = decoder.logits(hidden_E[None, None])[0]
        total = jax.nn.logsumexp(logits_1V, axis=1, keepdims=True)
        (ids,), (log_p,) = likeliest(logits_1V, total, most)
        return logits_1V[0, target] - total[0, 0], Alternatives(ids, log_p)

    log_p, alternatives = jax.lax.map(scored, (hidden[0], targets[0]), batch_size=_SCORED)
    return Scored(laid_out(mesh, State(cache, decoder.logits(hidden[:, -1:])[:, 0])), log_p, alternatives)
