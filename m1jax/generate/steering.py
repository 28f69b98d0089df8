"""What requests of a server ask for beyond `Sampling`: data of the compiled program, like everything a row may choose.

Legend: B batch, V vocabulary, R room of a call, N alternatives.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

ALTERNATIVES = 20
"""Likeliest tokens that can be asked for beside a token: OpenAI's own limit."""
ANY = np.uint32(0xFFFFFFFF)
"""32 tokens that may all come next."""


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
    allowed: Array
    """(B, ceil(V / 32)) uint32: token v may come next where bit v % 32 of number v // 32 is set; see `Constraint`."""


class Constraint(Protocol):
    """What an answer may be, token by token; one for each answer, since it keeps how far that is."""

    def allowed(self) -> np.ndarray:
        """Tokens that may come next, as in `Steering.allowed`, without the batch; raises UserError where none may."""

    def take(self, token: int) -> None:
        """The next token of the answer, an allowed one; never raises, since it is called amid everybody's answers."""

    @property
    def complete(self) -> bool:
        """Whether the answer is whole, and nothing but an end can follow."""


def words(vocab_size: int) -> int:
    """Numbers of 32 bits that have one bit for each token."""
    return -(-vocab_size // 32)


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
    """Logits plus bias, minus presence and frequency penalties (OpenAI's API reference, "Frequency and presence").

    Tokens that are not allowed get -inf.
    """
    constrained = jnp.any(steering.allowed != ANY)
    asked = jnp.any(steering.presence != 0) | jnp.any(steering.frequency != 0) | jnp.any(steering.bias != 0)

    def changed() -> Array:
        used = steering.used.astype(jnp.float32)
        penalty = steering.presence[:, None] * (used > 0) + steering.frequency[:, None] * used
        return logits_BV + steering.bias - penalty

    def kept() -> Array:
        token_V = jnp.arange(logits_BV.shape[1])
        bits_BV = steering.allowed[:, token_V // 32] >> (token_V % 32).astype(jnp.uint32)
        return jnp.where(bits_BV & 1, steered_BV, -jnp.inf)

    steered_BV = jax.lax.cond(asked, changed, lambda: logits_BV)
    return jax.lax.cond(constrained, kept, lambda: steered_BV)


def likeliest(logits_BV: Array, total_B1: Array, most: int) -> Alternatives:
    """The `most` likeliest tokens (B, N), where `total_B1` is the log of the sum of exp(logits)."""
    values, ids = jax.lax.top_k(logits_BV, min(most, logits_BV.shape[1]))
    return Alternatives(ids.astype(jnp.int32), values - total_B1)
