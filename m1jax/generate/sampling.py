"""The choice of the next token from logits: pure functions of logits, settings and keys.

All settings are arrays, one value a row, so that one compiled program serves every setting and rows may differ. The
filters act in the order of transformers: repetition penalty, temperature, top-k, top-p, min-p. None of them sorts:
a sort of 133,120 logits takes some 40 ms on a CPU core, the search for an edge by bisection 1 ms.

Legend: B batch, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from m1jax.errors import UserError
from m1jax.model import seeds

Array = jax.Array
Floats = float | Sequence[float]
Integers = int | Sequence[int]


class Controls(NamedTuple):
    """`Sampling` as arrays (B,): float32, top_k int32; meanings and values for "off" are the same."""

    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array
    repetition_penalty: Array


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; every value is one number for all rows or a sequence with one for each.

    `temperature` 0 takes the likeliest token. `top_k` keeps that many of the likeliest, 0 all; `top_p` keeps the
    fewest whose probability, after temperature and top_k, sums to at least top_p (Holtzman et al., arXiv 1904.09751),
    1 all; `min_p` keeps those at least min_p times as likely as the likeliest (arXiv 2407.01082), 0 all. Of equally
    likely tokens at an edge all are kept. `repetition_penalty` divides the positive logits of tokens that the row
    holds already, prompt included, and multiplies the negative ones (CTRL, arXiv 1909.05858, with the multiplication
    that transformers added); 1 is none.
    """

    temperature: Floats = 0.0
    top_k: Integers = 0
    top_p: Floats = 1.0
    min_p: Floats = 0.0
    repetition_penalty: Floats = 1.0

    def check(self, batch: int) -> None:
        """Raises UserError for a value outside its range, or not one number or one for each of `batch` rows."""
        rules = {
            "temperature": (lambda x: 0 <= x < math.inf, "must be 0 or above"),
            "top_k": (lambda x: x >= 0 and x == int(x), "must be a whole number, at least 1, or 0 for all"),
            "top_p": (lambda x: 0 < x <= 1, "must be above 0 and at most 1"),
            "min_p": (lambda x: 0 <= x <= 1, "must be from 0 to 1"),
            "repetition_penalty": (lambda x: 0 < x < math.inf, "must be above 0"),
        }
        for name, (holds, sentence) in rules.items():
            given = np.asarray(getattr(self, name))
            if given.shape not in ((), (batch,)):
                raise UserError(f"{name} must be one number or one for each of the {batch} prompts.")
            for value in given.ravel().tolist():
                if not holds(value):
                    raise UserError(f"{name} {sentence}, got {value}.")

    @property
    def greedy(self) -> bool:
        """Whether every row takes its likeliest token, nothing held against it."""
        return not np.any(self.temperature) and bool(np.all(np.asarray(self.repetition_penalty) == 1))

    def controls(self, batch: int) -> Controls:
        """As arrays for `batch` rows; rows beyond those given, which only fill a batch up, are greedy."""

        def row_values(name: str) -> Array:
            off = {field.name: field.default for field in fields(Sampling)}[name]
            given = np.asarray(getattr(self, name))
            values = np.full(batch, off if given.ndim else given, np.int32 if name == "top_k" else np.float32)
            if given.ndim:
                values[: len(given)] = given
            return jnp.asarray(values)

        return Controls(*(row_values(name) for name in Controls._fields))


def row_keys(seed: int, batch: int) -> Array:
    """A key for each row, (B,), from the seed (m1jax.model.seeds) and the row's number alone."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(seeds.key(seed), jnp.arange(batch))


def sample(logits_BV: Array, seen_BV: Array, keys_B: Array, step_B: Array, controls: Controls) -> Array:
    """The next token of each row, (B,) int32: token number `step_B` (int32) of a generation under the row's key.

    `seen_BV` bool marks the tokens that each row holds. A row's draw depends on its logits, key and settings alone.
    """
    logits = penalised(logits_BV.astype(jnp.float32), seen_BV, controls.repetition_penalty)
    likeliest = likeliest_token(logits)

    def draw() -> Array:
        keys = jax.vmap(jax.random.fold_in)(keys_B, step_B)
        noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
        return likeliest_token(filtered(logits, controls) + noise_BV)  # jax.random.categorical, bit by bit

    drawn = jax.lax.cond(jnp.any(controls.temperature > 0), draw, lambda: likeliest)
    return jnp.where(controls.temperature > 0, drawn, likeliest)


def likeliest_token(logits_BV: Array) -> Array:
    """The first of each row's highest logits, (B,) int32; the last token where a row has one that is no number.

    The same as jnp.argmax, in two passes that the CPU backend vectorises as it does not its one.
    """
    V = logits_BV.shape[1]
    highest_B1 = jnp.max(logits_BV, axis=1, keepdims=True)
    # In float32, whose minimum is the fastest; it holds every number below 2^24.
    at = jnp.where(logits_BV == highest_B1, jnp.arange(V, dtype=jnp.float32), V - 1.0)
    return jnp.min(at, axis=1).astype(jnp.int32)


def penalised(logits_BV: Array, seen_BV: Array, penalty_B: Array) -> Array:
    """Logits with those of seen tokens divided by the penalty where positive, multiplied by it where negative."""
    penalty = penalty_B[:, None]
    return jnp.where(seen_BV, jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty), logits_BV)


def filtered(logits_BV: Array, controls: Controls) -> Array:
    """Logits over temperature, with all at -inf that top-k, top-p and min-p drop; rows of temperature 0 as for 1."""
    logits = logits_BV / jnp.where(controls.temperature > 0, controls.temperature, 1.0)[:, None]
    for used, keep, values in (
        (controls.top_k > 0, keep_top_k, controls.top_k),
        (controls.top_p < 1, keep_top_p, controls.top_p),
        (controls.min_p > 0, keep_min_p, controls.min_p),
    ):
        kept = jax.lax.cond(jnp.any(used), keep, lambda logits, _: logits, logits, values)
        logits = jnp.where(used[:, None], kept, logits)
    return logits


def keep_top_k(logits_BV: Array, k_B: Array) -> Array:
    """Logits with all but the k highest of each row at -inf; of equal ones at the edge all are kept."""
    return _kept(logits_BV, _edge(logits_BV, jnp.ones_like(logits_BV), k_B.astype(jnp.float32)))


def keep_top_p(logits_BV: Array, p_B: Array) -> Array:
    """Logits with all at -inf but the fewest likeliest tokens whose probabilities sum to at least p (equals stay)."""
    return _kept(logits_BV, _edge(logits_BV, jax.nn.softmax(logits_BV, axis=-1), p_B))


def keep_min_p(logits_BV: Array, p_B: Array) -> Array:
    """Logits with all at -inf that are less likely than p times the likeliest."""
    edge_B1 = jnp.max(logits_BV, axis=-1, keepdims=True) + jnp.log(p_B)[:, None]
    return jnp.where(logits_BV < edge_B1, -jnp.inf, logits_BV)


def _ordered(x: Array) -> Array:
    """float32 as int32 in the same order (IEEE 754: the bits of negative numbers run backwards)."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _kept(logits_BV: Array, edge_B: Array) -> Array:
    return jnp.where(_ordered(logits_BV) < edge_B[:, None], -jnp.inf, logits_BV)


def _edge(logits_BV: Array, weights_BV: Array, target_B: Array) -> Array:
    """The highest edge (as `_ordered`) above or on which each row's weights sum to the target; the lowest if none.

    Bisection over the 2^32 values of a float32, so exact after 32 passes over the row.
    """
    values = _ordered(logits_BV)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)  # the mean, without overflow
        enough = jnp.sum(jnp.where(values >= middle[:, None], weights_BV, 0), axis=-1) >= target_B
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    bounds = jnp.min(values, axis=-1), jnp.max(values, axis=-1) + 1
    return jax.lax.fori_loop(0, 32, halve, bounds)[0]
