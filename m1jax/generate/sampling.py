"""The choice of the next token from logits: pure functions of logits and a key.

Legend: B batch, V vocabulary.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from m1jax.errors import UserError

Array = jax.Array


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; hashable, so that a program is compiled for each setting.

    `temperature` 0 takes the likeliest token. `top_k` keeps that many of the likeliest, 0 all; `top_p` keeps
    the fewest whose probability, after temperature and top_k, sums to at least top_p (Holtzman et al., arXiv
    1904.09751), 1 all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def check(self) -> None:
        """Raises UserError for a value outside its range."""
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature must be 0 or above, got {self.temperature}.")
        if self.top_k < 0:
            raise UserError(f"top_k must be at least 1, or 0 for all, got {self.top_k}.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, got {self.top_p}.")


def sample(logits_BV: Array, key: Array, sampling: Sampling) -> Array:
    """The next token of each row, (B,) int32; a row's draw depends on the key and the row's number alone."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits = logits_BV.astype(jnp.float32) / sampling.temperature
    if sampling.top_k:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(logits.shape[0]))
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def keep_top_k(logits_BV: Array, k: int) -> Array:
    """Logits with all but the k highest of each row at -inf; of equal ones at the edge all are kept."""
    lowest = jax.lax.top_k(logits_BV, min(k, logits_BV.shape[-1]))[0][:, -1:]
    return jnp.where(logits_BV < lowest, -jnp.inf, logits_BV)


def keep_top_p(logits_BV: Array, p: float) -> Array:
    """Logits with all at -inf but the fewest likeliest tokens whose probabilities sum to at least p."""
    order = jnp.argsort(-logits_BV, axis=-1)
    sorted_probabilities = jnp.take_along_axis(jax.nn.softmax(logits_BV, axis=-1), order, axis=-1)
    before = jnp.cumsum(sorted_probabilities, axis=-1) - sorted_probabilities
    kept_sorted = before < p
    kept = jnp.take_along_axis(kept_sorted, jnp.argsort(order, axis=-1), axis=-1)
    return jnp.where(kept, logits_BV, -jnp.inf)
