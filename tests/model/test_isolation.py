"""Documents of a packed row, and padding, know nothing of each other."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax import kernels, model
from m1jax.kernels import reference
from m1jax.model import decoder
from tests.model import small

BLOCK = 8
# (window, length): windows below, at and above a block of queries, and rows that end inside one.
SHAPES = [(5, 27), (8, 24), (11, 29)]


# Machine code without LLVM's optimisation compiles in half the time; XLA's own passes all run.
@functools.partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
def embedding_gradient(graphdef, params, embeddings, segments, weights):
    """Gradient of the weighted loss with respect to each token's input embedding."""

    def loss(embeddings):
        merged = nnx.merge(graphdef, params)
        rows = kernels.Rows(positions=decoder.document_positions(segments), segment_ids=segments)
        targets = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
        return merged.cross_entropy(merged.run(embeddings, rows, small.BASE), targets, weights, chunk=1024).loss

    return jax.grad(loss)(embeddings)


def check_no_gradient_crosses(segments, window):
    """Of document 2's loss to any other token's embedding, and of document 1's; exactly zero, not small."""
    config = small.config(window=window, num_layers=2)
    graphdef, params = model.create(config, 0)
    embeddings = jax.random.normal(jax.random.key(0), (*segments.shape, config.hidden))
    for mine in (2, 1):
        own = segments == mine
        gradient = np.asarray(embedding_gradient(graphdef, params, embeddings, segments, own.astype(np.float32)))
        assert np.all(gradient[~own] == 0.0)
        assert np.all(np.abs(gradient).max(-1)[own] > 1e-6), "each token's embedding moves its own document's loss"


@pytest.mark.parametrize(("window", "S"), SHAPES)
def test_no_gradient_crosses_a_boundary_at_any_offset(window, S, monkeypatch):
    """Each boundary is one row of one batch: every offset around every block of queries and window edge."""
    monkeypatch.setattr(reference, "_BLOCK", BLOCK)
    two = [[1] * boundary + [2] * (S - boundary) for boundary in range(1, S)]
    # With padding around and between, and a third document.
    more = [
        [0] * a + [1] * 6 + [0] * b + [2] * (10 - a) + [3] * (S - 16 - b) for a in (0, 1, 5) for b in (0, 1, S - 16)
    ]
    check_no_gradient_crosses(np.array(two + more, np.int32), window)


def test_no_gradient_crosses_a_boundary_beside_a_whole_block():
    """The real block of 128 queries, with a window that reaches over it."""
    S = reference._BLOCK + 12
    boundaries = np.array([1, 4, 5, 6, *range(S - 24, S)])
    check_no_gradient_crosses(np.where(np.arange(S) < boundaries[:, None], 1, 2).astype(np.int32), 130)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=12, max_size=12))
def test_positions_restart_in_each_document(row):
    """RoPE is relative, so no logit would tell; float32 angles stay exact only while positions are small."""
    want = [0]
    for before, now in itertools.pairwise(row):
        want.append(want[-1] + 1 if now == before else 0)
    assert decoder.document_positions(jnp.array([row]))[0].tolist() == want


def test_packed_documents_have_the_logits_of_separate_ones(monkeypatch):
    """Float32: 1e-6 of the largest logit. Other products are summed in other orders, so not every bit is the same."""
    monkeypatch.setattr(reference, "_BLOCK", BLOCK)
    config = small.config(pattern=("global", "window", "window"), num_layers=3)
    graphdef, params = model.create(config, 0)
    rng = np.random.default_rng(0)
    S, documents = 41, [rng.integers(0, 260, n) for n in (7, 1, 9, 3, 13, 2)]
    # Each document alone is a row of one batch, padded; the packed row stands in the same batch's program.
    alone = np.zeros((len(documents), S), int)
    lengths = np.array([len(document) for document in documents])
    for row, document in zip(alone, documents, strict=True):
        row[: len(document)] = document
    own = np.asarray(small.logits(graphdef, params, alone, (np.arange(S) < lengths[:, None]).astype(np.int32)))
    for order in (range(6), (5, 2, 0, 1, 4, 3)):
        padding = S - lengths.sum()
        row = np.concatenate([*(documents[i] for i in order), rng.integers(0, 260, padding)])
        segments = np.repeat([*range(1, 7), 0], [*lengths[list(order)], padding])
        packed = np.tile(row, (6, 1)), np.tile(segments, (6, 1)).astype(np.int32)
        got = np.asarray(small.logits(graphdef, params, *packed))[0]
        want = np.concatenate([own[i, : lengths[i]] for i in order])
        assert np.abs(got[: len(want)] - want).max() < 1e-6 * np.abs(want).max()


def test_padding_is_neutral_left_and_right(monkeypatch):
    """Nine tokens at every place of a row: 1e-6 of the largest logit, whatever stands in the padding."""
    monkeypatch.setattr(reference, "_BLOCK", BLOCK)
    graphdef, params = model.create(small.config(num_layers=2), 0)
    S, row = 30, np.asarray(small.tokens(0, 9))
    starts = np.arange(S - 8)
    tokens = np.random.default_rng(0).integers(0, 260, (len(starts), S))
    segments = np.zeros(tokens.shape, np.int32)
    for start in starts:
        tokens[start, start : start + 9], segments[start, start : start + 9] = row, 1
    logits = np.asarray(small.logits(graphdef, params, tokens, segments))
    want = np.asarray(small.logits(graphdef, params, row[None]))[0]
    for start in starts:
        assert np.abs(logits[start, start : start + 9] - want).max() < 1e-6 * np.abs(want).max()
    assert np.all(np.isfinite(logits))


def test_padding_is_neutral_on_a_cache():
    """The same for new tokens on a cold and on a warm cache, past the window (5): `real` alone decides."""
    config = small.config(num_layers=2)
    graphdef, params = model.unrolled(config, model.create(config, 0)[1])
    width, first, second = 14, np.asarray(small.tokens(0, 7)), np.asarray(small.tokens(1, 6))
    lefts = np.arange(width - 6)

    def placed(tokens, left, filler):
        rows = np.random.default_rng(filler).integers(0, 260, (len(left), width))
        real = (np.arange(width) >= left[:, None]) & (np.arange(width) < left[:, None] + len(tokens))
        rows[real] = np.tile(tokens, len(left))
        return rows, real

    @jax.jit
    def extend(params, tokens, cache, real):
        decoder = nnx.merge(graphdef, params)
        hidden, cache = decoder.extend(tokens, cache, rope_base=small.BASE, real=real)
        return decoder.logits(hidden), cache

    cache = model.empty_cache(config, len(lefts), 16)
    got = []
    for tokens, left in ((first, lefts), (second, lefts[::-1])):
        rows, real = placed(tokens, left, len(got))
        logits, cache = extend(params, rows, cache, real)
        got.append(np.asarray(logits)[real].reshape(len(lefts), len(tokens), -1))
    got = np.concatenate(got, axis=1)
    want = np.asarray(small.logits(graphdef, params, np.concatenate([first, second])[None]))[0]
    assert np.abs(got - got[0]).max() < 1e-6 * np.abs(want).max()
    # The cached path multiplies other shapes than the uncached one.
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()
