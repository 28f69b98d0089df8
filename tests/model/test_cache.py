import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax import model
from tests.model import small

CONFIG = small.config(num_layers=3, pattern=("global", "window", "window"))
CAPACITY = 32


@functools.cache
def unrolled():
    return model.unrolled(CONFIG, model.create(CONFIG, 0)[1])


@functools.partial(jax.jit, static_argnums=0)
def extend(graphdef, params, tokens, cache, real):
    return nnx.merge(graphdef, params).extend(tokens, cache, rope_base=small.BASE, real=real)


def uncached(row):
    """Hidden states of one document, padded to a fixed length so that one program serves every length."""
    row = np.asarray(row)
    padded, segments = np.zeros((1, CAPACITY), int), np.zeros((1, CAPACITY), np.int32)
    padded[0, : len(row)], segments[0, : len(row)] = row, 1
    return np.asarray(small.hidden(*unrolled(), padded, segments))[0, : len(row)]


def chunked(rows, sizes, cache=None):
    """Hidden states of each row, fed in chunks: `sizes[i][b]` new tokens of row b, padded left and right at random."""
    rng = np.random.default_rng(0)
    cache = cache or model.empty_cache(CONFIG, len(rows), CAPACITY)
    out, done = [[] for _ in rows], [0] * len(rows)
    for chunk in sizes:
        width = 8 if max(chunk) > 1 else 1
        tokens, real = np.full((len(rows), width), 7), np.zeros((len(rows), width), bool)
        for b, count in enumerate(chunk):
            left = rng.integers(0, width - count + 1)
            tokens[b, left : left + count] = rows[b][done[b] : done[b] + count]
            real[b, left : left + count] = True
            done[b] += count
        states, cache = extend(*unrolled(), tokens, cache, real)
        for b in range(len(rows)):
            out[b].append(np.asarray(states)[b][real[b]])
    return [np.concatenate(parts) for parts in out], cache


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=4), st.booleans())
def test_chunks_of_any_size_and_padding_give_the_uncached_states(sizes, one_by_one):
    """Chunks larger than the window (5) and single tokens, rows of different lengths, rows with nothing new."""
    sizes = [*sizes, (1, 1), (1, 0), (1, 1)] if one_by_one else [*sizes, (3, 5)]
    lengths = [sum(chunk[b] for chunk in sizes) for b in (0, 1)]
    rows = [np.asarray(small.tokens(b, n)) for b, n in enumerate(lengths)]
    got, cache = chunked(rows, [list(chunk) for chunk in sizes])
    assert cache.lengths.tolist() == lengths
    for row, states in zip(rows, got, strict=True):
        np.testing.assert_allclose(states, uncached(row), atol=5e-5)


def test_a_full_cache_ends_at_its_capacity():
    row = np.asarray(small.tokens(3, CAPACITY))
    got, _ = chunked([row], [[8]] * 4)
    np.testing.assert_allclose(got[0], uncached(row), atol=5e-5)


def test_a_cache_can_be_copied_and_reordered_as_in_beam_search():
    rows = [np.asarray(small.tokens(b, 20)) for b in (0, 1)]
    _, cache = chunked([row[:9] for row in rows], [[8, 8], [1, 1]])
    chosen = jnp.array([1, 1])
    beams = jax.tree.map(lambda leaf: leaf[chosen], cache)
    ends = [np.concatenate([rows[1][:9], rows[b][9:]]) for b in (0, 1)]
    got, _ = chunked([end[9:] for end in ends], [[8, 8], [1, 1], [1, 1]], beams)
    for end, states in zip(ends, got, strict=True):
        np.testing.assert_allclose(states, uncached(end)[9:19], atol=5e-5)
    again, _ = chunked([row[9:] for row in rows], [[8, 8], [1, 1], [1, 1]], cache)
    np.testing.assert_allclose(again[0], uncached(rows[0])[9:19], atol=5e-5)


def test_a_scanned_model_is_not_extended():
    graphdef, params = model.create(small.config(), 0)
    with pytest.raises(AssertionError, match="unrolled"):
        extend(graphdef, params, np.zeros((1, 1), int), model.empty_cache(small.config(), 1, 4), np.ones((1, 1), bool))
