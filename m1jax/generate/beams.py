"""Beam search on the device: the beams are rows of one cache, reordered at every step.

At each step every beam's ending by an end token is a finished hypothesis, and the best continuations of all beams of a
prompt go on; at the limit the open beams are finished too. The best finished hypothesis is the one with the highest
log-likelihood over length^length_penalty (Wu et al., arXiv 1609.08144, without their offset of 5; as in transformers).

Legend: B prompts, N beams of each, E end tokens, V vocabulary, R room for new tokens.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from m1jax.errors import UserError
from m1jax.generate import programs
from m1jax.generate.session import Session, bucket, eos_slots
from m1jax.generate.structure import Structure
from m1jax.model.cache import take

Array = jax.Array


class Beams(NamedTuple):
    """The open beams, and the best finished hypothesis of each prompt."""

    state: programs.State
    """Of B x N rows, those of a prompt side by side."""
    scores: Array
    """(B, N) float32, log-likelihood in nats."""
    tokens: Array
    """(B, N, R) int32."""
    best_score: Array
    """(B,) float32, over length^length_penalty."""
    best_tokens: Array
    """(B, R) int32."""
    best_length: Array
    """(B,) int32."""


def beam_search(
    session: Session, max_new_tokens: int, num_beams: int, length_penalty: float, eos_id: int | Sequence[int] | None
) -> list[list[int]]:
    """The best hypothesis of each row of a session, which is left as it was.

    Raises UserError for fewer than one beam or more than the vocabulary has tokens, and for a penalty that is no
    number.
    """
    if not 1 <= num_beams <= session.prepared.config.vocab_size:
        raise UserError(f"num_beams must be from 1 to the vocabulary's {session.prepared.config.vocab_size} tokens.")
    if not np.isfinite(length_penalty):
        raise UserError(f"length_penalty must be a finite number, got {length_penalty}.")
    beams = session.take([row for row in range(len(session.tokens)) for _ in range(num_beams)])
    beams.make_room(max(map(len, session.tokens)) + max_new_tokens)
    tokens, lengths = beams.timed(
        session.prepared.run,
        _search,
        beams.state,
        np.int32(max_new_tokens),
        eos_slots(eos_id),
        np.float32(length_penalty),
        num_beams,
        bucket(max_new_tokens),
    )
    tokens, lengths = jax.device_get((tokens, lengths))
    return [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]


@functools.partial(jax.jit, static_argnums=(0, 1, 8, 9))
def _search(
    structure: Structure,
    mesh: Mesh | None,
    parameters: Any,
    rope_base: Array,
    state: programs.State,
    limit: Array,
    eos_ids: Array,
    penalty: Array,
    num_beams: int,
    room: int,
) -> tuple[Array, Array]:
    """Tokens (B, R) and length of the best hypothesis of each prompt."""
    decoder = structure.decoder(parameters)
    rows = state.logits.shape[0]
    B = rows // num_beams

    def going(carry: tuple[Array, Beams]) -> Array:
        step, beams = carry
        # A log-likelihood only falls, and its quotient is monotone in the length: no open beam gets above this.
        hope = jnp.maximum(_rank(beams.scores, step + 1, penalty), _rank(beams.scores, limit, penalty))
        return (step < limit) & jnp.any(beams.best_score < hope.max(axis=1))

    def one(carry: tuple[Array, Beams]) -> tuple[Array, Beams]:
        step, beams = carry
        beams, parents, token = _chosen(beams, step, limit, eos_ids, penalty)
        cache = take(beams.state.cache, parents)
        hidden, cache = decoder.extend(token, cache, rope_base=rope_base)
        state = programs.laid_out(mesh, programs.State(cache, decoder.logits(hidden)[:, 0]))
        return step + 1, beams._replace(state=state)

    begun = Beams(
        state,
        # All beams are the same at first: one is enough, or they would all go on alike.
        jnp.where(jnp.arange(num_beams) == 0, jnp.zeros((B, 1)), -jnp.inf),
        jnp.zeros((B, num_beams, room), jnp.int32),
        jnp.full(B, -jnp.inf),
        jnp.zeros((B, room), jnp.int32),
        jnp.zeros(B, jnp.int32),
    )
    _, beams = jax.lax.while_loop(going, one, (jnp.int32(0), begun))
    return beams.best_tokens, beams.best_length


def _rank(scores: Array, length: Array, penalty: Array) -> Array:
    return scores / length.astype(jnp.float32) ** penalty


def _chosen(beams: Beams, step: Array, limit: Array, eos_ids: Array, penalty: Array) -> tuple[Beams, Array, Array]:
    """The beams with one token more, the row that each comes from (B x N), and that token (B x N, 1)."""
    B, N, _ = beams.tokens.shape
    V = beams.state.logits.shape[-1]
    totals_BNV = beams.scores[:, :, None] + jax.nn.log_softmax(beams.state.logits).reshape(B, N, V)
    ends_BNE = jnp.where(eos_ids >= 0, totals_BNV[:, :, jnp.maximum(eos_ids, 0)], -jnp.inf)
    E = eos_ids.shape[0]
    best = jnp.argmax(ends_BNE.reshape(B, -1), axis=1)
    ended = jnp.max(ends_BNE.reshape(B, -1), axis=1)
    beams = _finish(beams, best // E, eos_ids[best % E], ended, step, penalty)

    is_end_V = jnp.zeros(V, bool).at[jnp.where(eos_ids >= 0, eos_ids, V)].set(True, mode="drop")
    scores, index = jax.lax.top_k(jnp.where(is_end_V, -jnp.inf, totals_BNV).reshape(B, -1), N)
    parent, token = index // V, (index % V).astype(jnp.int32)
    tokens = jnp.take_along_axis(beams.tokens, parent[:, :, None], axis=1)
    # At the limit the best open beam is finished as it is.
    last = jnp.where(step + 1 == limit, scores[:, 0], -jnp.inf)
    beams = _finish(beams, parent[:, 0], token[:, 0], last, step, penalty)
    tokens = jax.lax.dynamic_update_slice(tokens, token[:, :, None], (0, 0, step))
    rows = (jnp.arange(B)[:, None] * N + parent).ravel()
    return beams._replace(scores=scores, tokens=tokens), rows, token.reshape(B * N, 1)


def _finish(beams: Beams, parent_B: Array, token_B: Array, score_B: Array, step: Array, penalty: Array) -> Beams:
    """The beams with the hypothesis "this parent, then this token" as the best finished one, where it is better."""
    rank = _rank(score_B, step + 1, penalty)
    tokens = jnp.take_along_axis(beams.tokens, parent_B[:, None, None], axis=1)[:, 0]
    tokens = jax.lax.dynamic_update_slice(tokens, token_B[:, None].astype(jnp.int32), (0, step))
    better = rank > beams.best_score
    return beams._replace(
        best_score=jnp.where(better, rank, beams.best_score),
        best_tokens=jnp.where(better[:, None], tokens, beams.best_tokens),
        best_length=jnp.where(better, step + 1, beams.best_length),
    )
