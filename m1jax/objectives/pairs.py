"""Pairs of answers in packed rows: which pair a token is of, and sums over the tokens of a pair.

Legend: B rows of a batch, S tokens of a row, P = S + 1 places for the pairs of a row.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from m1jax.text.documents import PAIR, SIDE
from m1jax.train.objective import TOKEN_COLUMNS, Column

Array = jax.Array

PAIR_COLUMNS: Mapping[str, Column] = {**TOKEN_COLUMNS, PAIR: Column(jnp.int32), SIDE: Column(jnp.int32)}
"""The columns of rows of pairs."""


def places(pair_BS: Array, segment_ids_BS: Array) -> Array:
    """The place (B, S) int32 of each token's pair in its row, from 1; the documents of a pair are side by side.

    Padding has that of the last pair: its weight is 0.
    """
    before_ids, before_pair = (jnp.pad(x[:, :-1], ((0, 0), (1, 0))) for x in (segment_ids_BS, pair_BS))
    starts = (segment_ids_BS > 0) & ((before_ids == 0) | (pair_BS != before_pair))
    return jnp.cumsum(starts, axis=1, dtype=jnp.int32)


def of_pairs(values_BS: Array, place_BS: Array) -> Array:
    """Sums over the tokens of each pair, (B, P)."""
    return jax.vmap(lambda values, place: jax.ops.segment_sum(values, place, values.shape[0] + 1))(values_BS, place_BS)
