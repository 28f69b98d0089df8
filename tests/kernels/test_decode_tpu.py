"""The decoding kernels for TPU, interpreted on CPU, against the reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from m1jax import kernels
from m1jax.errors import UserError
from m1jax.kernels import decode as reference
from m1jax.kernels.tpu import cache_write
from m1jax.kernels.tpu import decode as tpu


def drawn(seed, B, S, H, K, T, D, dtype="float32"):
    """New tokens and a cache in which every slot holds something, so that a slot read by mistake shows."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    cache = kernels.LayerCache(normal(B, K, T, D), normal(B, K, T, D), normal(B, K, D), normal(B, K, D))
    weights = {"conv_k": normal(K, 2), "conv_v": normal(K, 2), "inv_freq": jnp.asarray(rng.random(D // 2), "float32")}
    return (normal(B, S, H, D), normal(B, S, K, D), normal(B, S, K, D), cache), weights


def token_rows(S, counts, lefts):
    """Which of S tokens are real: `counts[b]` of row b, behind `lefts[b]` of padding where there is room."""
    starts = [min(left, S - count) for count, left in zip(counts, lefts, strict=True)]
    return np.array([[s <= i < s + n for i in range(S)] for n, s in zip(counts, starts, strict=True)])


def described(weights, lengths, real, window, impl="reference"):
    layer = kernels.AttentionLayer(**weights, window=window, scale=0.3, impl=impl)
    return layer, kernels.NewTokens(lengths=lengths, real=real)


@functools.partial(jax.jit, static_argnames=("window", "interpret"))
def ours(new, weights, lengths, real, window, interpret=True):
    return tpu.attention(*new, *described(weights, lengths, real, window), interpret=interpret)


@functools.partial(jax.jit, static_argnames="window")
def theirs(new, weights, lengths, real, window):
    return reference.attention(*new, *described(weights, lengths, real, window))


def check(new, weights, lengths, real, window, atol=2e-5):
    lengths = jnp.asarray(lengths, jnp.int32)
    got, want = (f(new, weights, lengths, jnp.asarray(real), window) for f in (ours, theirs))
    np.testing.assert_allclose(np.float32(got[0]), np.float32(want[0]), atol=atol)
    for one, other in zip(got[1], want[1], strict=True):
        np.testing.assert_allclose(np.float32(one), np.float32(other), atol=1e-6)


@pytest.fixture
def small_blocks(monkeypatch):
    """16 slots a block and two blocks a step, so that short caches have many."""
    monkeypatch.setattr(tpu, "_BLOCK_BYTES", 16 * 64 * 4)
    monkeypatch.setattr(tpu, "_BLOCKS", 2)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.sampled_from([(1, 2, 1, 40), (3, 1, 2, 64), (8, 10, 1, 57)]),  # S, group, KV heads, slots
    ring=st.booleans(),
    lengths=st.tuples(st.integers(0, 200), st.integers(0, 200)),
    counts=st.tuples(st.integers(0, 8), st.integers(0, 8)),
    lefts=st.tuples(st.integers(0, 8), st.integers(0, 8)),
    seed=st.integers(0, 99),
)
def test_equals_the_reference(shape, ring, lengths, counts, lefts, seed):
    """Empty and turned rings, full caches, rows with nothing new, padding on both sides, ends of blocks and tiles."""
    S, group, K, T = shape
    counts = [min(count, S) for count in counts]
    # A full cache has room for what arrives; a ring turns.
    lengths = [length if ring else min(length, T - count) for length, count in zip(lengths, counts, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tpu, "_BLOCK_BYTES", 16 * 64 * 4)
        patch.setattr(tpu, "_BLOCKS", 2)
        new, weights = drawn(seed, 2, S, K * group, K, T, 64)
        check(new, weights, lengths, token_rows(S, counts, lefts), T if ring else None)


@pytest.mark.parametrize("head_dim", tpu.HEAD_DIMS)
def test_bfloat16_in_the_blocks_that_chips_use(head_dim):
    new, weights = drawn(1, 1, 4, 20, 2, 3000, head_dim, "bfloat16")
    check(new, weights, [2950], token_rows(4, [4], [0]), None, atol=0.03)


def test_a_window_smaller_than_the_cache(small_blocks):
    new, weights = drawn(2, 2, 3, 4, 2, 48, 64)
    check(new, weights, [45, 20], token_rows(3, [3, 2], [0, 1]), 9)


def test_a_prompt_is_taken_in_turns(monkeypatch, small_blocks):
    monkeypatch.setattr(tpu, "_MAX_QUERIES", 16)  # four tokens a turn
    new, weights = drawn(3, 2, 18, 4, 1, 64, 64)
    check(new, weights, [7, 0], token_rows(18, [18, 11], [0, 5]), None)


def test_unwritten_memory_is_never_read_and_nothing_races(small_blocks):
    """Pallas's own interpreter: unwritten memory is NaN, reads out of bounds and races raise."""
    interpret = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    new, weights = drawn(4, 1, 2, 4, 2, 48, 64)
    real, lengths = jnp.asarray(token_rows(2, [2], [0])), jnp.array([37])
    got = ours(new, weights, lengths, real, None, interpret)
    want = theirs(new, weights, lengths, real, None)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-5), got, want)


def test_slots_behind_a_row_are_neither_seen_nor_changed(small_blocks):
    """NaN in every slot that holds no token yet: one of them read into a sum would spoil it."""
    (q, k, v, cache), weights = drawn(5, 2, 2, 4, 2, 64, 64)
    lengths, real = np.array([17, 3]), token_rows(2, [2, 2], [0, 0])
    behind = (np.arange(64) >= -(-lengths[:, None] // 16) * 16)[:, None, :, None]  # whole blocks
    spoilt = cache._replace(k=jnp.where(behind, jnp.nan, cache.k), v=jnp.where(behind, jnp.nan, cache.v))
    out, after = ours((q, k, v, spoilt), weights, jnp.asarray(lengths), jnp.asarray(real), None)
    want, _ = theirs((q, k, v, cache), weights, jnp.asarray(lengths), jnp.asarray(real), None)
    np.testing.assert_allclose(out, want, atol=2e-5)
    assert np.array_equal(np.isnan(after.k[..., 0]), np.broadcast_to(behind[..., 0], after.k.shape[:3]))


def blocks_read(lengths, K, T, D, itemsize):
    """Slots that the pipeline copies: a block whenever its index differs from the step's before."""
    read = 0
    block, total, parts = tpu.cut(T, D, itemsize)
    for part in range(parts):
        before = None
        for b, length in enumerate(lengths):
            for h in range(K):
                for t in range(-(-total // parts)):
                    index = b, h, int(tpu.block_index(t, part, parts, tpu.last_block(length, T, block)))
                    read += block * (index != before)
                    before = index
    return read


@pytest.mark.parametrize(
    ("lengths", "K", "T", "D"),
    [([32768] * 2, 2, 32768, 256), ([5121, 9000, 30000], 2, 32768, 256), ([8192, 50000], 8, 8192, 128)],
)
def test_bytes_read_are_within_a_tenth_of_what_the_rows_hold(lengths, K, T, D):
    held = K * sum(min(length, T) for length in lengths)
    assert held <= blocks_read(lengths, K, T, D, 2) <= 1.1 * held


written = jax.jit(functools.partial(cache_write.write, interpret=True), static_argnames="tokens")


@settings(max_examples=30, deadline=None)
@given(
    T=st.sampled_from([1, 15, 16, 33, 64]),
    tokens=st.sampled_from([1, 2, 17, 40]),
    lengths=st.tuples(st.integers(0, 200), st.integers(0, 200)),
)
def test_new_tokens_land_in_their_slots_and_nothing_else_changes(T, tokens, lengths):
    rng = np.random.default_rng(T)
    slots, new = rng.normal(size=(2, 2, 1, T, 64)), rng.normal(size=(2, 2, 1, 48, 64))
    slots, new = slots.astype(np.float32), new.astype(np.float32)
    at = np.where(np.arange(48) < tokens, np.array(lengths)[:, None] + np.arange(48), -1).astype(np.int32)
    got = written(*slots, *new, at, np.array(lengths, np.int32), tokens=tokens)
    for b in range(2):
        for i in range(max(0, tokens - T), tokens):
            slots[:, b, :, at[b, i] % T] = new[:, b, :, i]
    np.testing.assert_array_equal(got, slots)


def test_a_head_dim_that_no_kernel_is_for_is_refused():
    new, weights = drawn(0, 1, 1, 4, 2, 16, 32)
    given_ = described(weights, jnp.array([3]), jnp.ones((1, 1), bool), None, "pallas_tpu")
    with pytest.raises(UserError, match=r"head_dim 64, 128, 256 .* not head_dim 32 with 4 query and 2 KV heads"):
        kernels.decode_attention(*new, *given_)
