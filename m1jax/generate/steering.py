"""What requests of a server ask for beyond `Sampling`: data of the compiled program, like everything a row may choose.

Legend: B batch, V vocabulary, R room of a call, N alternatives.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

ALTERNATIVES = 20
"""Likeliest tokens that can be asked for beside a token: OpenAI's own limit."""


class Steering(NamedTuple):
    """Additions to the logits, and how many alternatives are wanted; one value or row for each row of the batch."""

    bias: Array
    """(B, V) float32, added to the logits."""
    used: Array
    """(B, V) int32: how often each token has been generated; the prompt does not count."""
    presence: Array
    """(B,) float32, subtracted from the logit of every token that was generated."""
    frequency: Array
    """(B,) float32, subtracted as often as the token was generated."""
    alternatives: Array
    """(B,) int32: how many of the likeliest tokens to report beside each new one, at most ALTERNATIVES."""


class Alternatives(NamedTuple):
    """The likeliest tokens, likeliest first."""

    ids: Array
    """int32."""
    log_p: Array
    """float32, nats."""

    @classmethod
    def empty(cls, batch: int, room: int, vocab_size: int) -> "Alternatives":
        """Zeros (B, R, N)."""
        shape = batch, room, min(ALTERNATIVES, vocab_size)
        return cls(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))


def steered(logits_BV: Array, steering: Steering) -> Array:
    """Logits plus bias, minus presence and frequency penalties (OpenAI's API reference, "Frequency and presence")."""
    asked = jnp.any(steering.presence != 0) | jnp.any(steering.frequency != 0) | jnp.any(steering.bias != 0)

    def changed() -> Array:
        used = steering.used.astype(jnp.float32)
        penalty = steering.presence[:, None] * (used > 0) + steering.frequency[:, None] * used
        return logits_BV + steering.bias - penalty

    return jax.lax.cond(asked, changed, lambda: logits_BV)


def likeliest(logits_BV: Array, total_B1: Array, most: int) -> Alternatives:
    """The `most` likeliest tokens (B, N), where `total_B1` is the log of the sum of exp(logits)."""
    values, ids = jax.lax.top_k(logits_BV, min(most, logits_BV.shape[1]))
    return Alternatives(ids.astype(jnp.int32), values - total_B1)
