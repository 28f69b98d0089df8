import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.model import head


def plain(hidden, weight, targets, weights):
    """The loss with all logits at once, in the arrays' own precision."""
    logits = hidden @ (weight / jnp.linalg.norm(weight, axis=-1, keepdims=True)).T
    log_p = jax.nn.log_softmax(logits, axis=-1)
    chosen = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    return -jnp.sum(chosen * weights), jnp.sum((jnp.argmax(logits, -1) == targets) * weights), chosen


def drawn(seed, B, S, E=8, V=19):
    rng = np.random.default_rng(seed)
    hidden, weight = rng.normal(size=(B, S, E)) * 3, rng.normal(size=(V, E)) * rng.uniform(0.1, 4, (V, 1))
    return jnp.float32(hidden), jnp.float32(weight), rng.integers(0, V, (B, S)), np.float32(rng.random((B, S)) < 0.7)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 99), B=st.integers(1, 3), S=st.integers(1, 13), chunk=st.sampled_from([1, 4, 6, 100]))
def test_chunked_loss_and_gradient_equal_plain_ones(seed, B, S, chunk):
    hidden, weight, targets, weights = drawn(seed, B, S)
    factors = jnp.asarray(np.random.default_rng(seed).normal(size=(B, S)), jnp.float32)

    @jax.jit
    def ours(hidden, weight):
        def loss(hidden, weight):
            sums = head.cross_entropy(hidden, weight, targets, weights, chunk=chunk)
            return 0.5 * sums.loss, sums

        def tokens(weight):
            log_p = head.log_likelihood(hidden, weight, targets, chunk=chunk)
            return jnp.sum(factors * log_p), log_p

        (_, sums), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(hidden, weight)
        (_, log_p), token_gradient = jax.value_and_grad(tokens, has_aux=True)(weight)
        return sums, loss(hidden, weight)[1], log_p, (*gradients, token_gradient)

    @jax.jit
    def expected(hidden, weight):
        gradients = jax.grad(lambda h, w: 0.5 * plain(h, w, targets, weights)[0], argnums=(0, 1))(hidden, weight)
        token_gradient = jax.grad(lambda w: jnp.sum(factors * plain(hidden, w, targets, weights)[2]))(weight)
        return plain(hidden, weight, targets, weights), (*gradients, token_gradient)

    sums, undifferentiated, log_p, gradients = ours(hidden, weight)
    (loss, correct, chosen), want = expected(hidden, weight)
    unit = np.float64(weight) / np.linalg.norm(np.float64(weight), axis=-1, keepdims=True)
    log_z = np.sum(np.log(np.exp(np.float64(hidden) @ unit.T).sum(-1)) * weights)
    np.testing.assert_allclose(sums, (loss, weights.sum(), correct, log_z), rtol=1e-5)
    np.testing.assert_allclose(undifferentiated, sums, rtol=1e-6)
    np.testing.assert_allclose(log_p, chosen, atol=2e-5)
    for got, true in zip(gradients, want, strict=True):
        np.testing.assert_allclose(got, true, atol=5e-5)


def test_logits_ignore_the_length_of_a_row_of_the_head():
    hidden, weight, _, _ = drawn(0, 2, 3)
    stretched = weight * jnp.float32(np.linspace(0.1, 9, 19)[:, None])
    np.testing.assert_allclose(head.logits(hidden, stretched), head.logits(hidden, weight), atol=1e-5)
    assert float(jnp.abs(head.logits(hidden, stretched, normalize=False) - head.logits(hidden, weight)).max()) > 1


def test_a_row_of_zeros_gives_finite_loss_and_gradient():
    hidden, weight, targets, weights = drawn(0, 2, 3)
    value, gradient = jax.value_and_grad(
        lambda w: head.cross_entropy(hidden, w, targets, weights, chunk=2).loss
    )(weight.at[4].set(0))  # fmt: skip
    assert np.isfinite(value) and np.all(np.isfinite(gradient))


@pytest.mark.parametrize("differentiate", [False, True])
def test_the_logits_of_all_tokens_never_exist(differentiate):
    B, S, V, chunk = 2, 64, 997, 16
    hidden, weight = jnp.ones((B, S, 8)), jnp.ones((V, 8))
    targets, weights = jnp.zeros((B, S), jnp.int32), jnp.ones((B, S))

    def loss(hidden, weight):
        return head.cross_entropy(hidden, weight, targets, weights, chunk=chunk).loss

    program = jax.jit(jax.grad(loss, argnums=(0, 1)) if differentiate else loss)
    memory = program.lower(hidden, weight).compile().memory_analysis()
    assert memory.temp_size_in_bytes < B * S * V * 4 / 2


def test_bfloat16_hidden_sums_in_float32():
    hidden, weight, targets, weights = drawn(1, 2, 12)
    narrow = head.cross_entropy(hidden.astype(jnp.bfloat16), weight, targets, weights, chunk=5)
    assert narrow.loss.dtype == jnp.float32
    np.testing.assert_allclose(narrow.loss, plain(hidden, weight, targets, weights)[0], rtol=0.01)
    gradient = jax.grad(lambda w: head.cross_entropy(hidden.astype(jnp.bfloat16), w, targets, weights, chunk=5).loss)
    assert gradient(weight).dtype == jnp.float32


def test_rows_of_zeros_have_no_gradient_and_disturb_no_other():
    """Padding of an imported vocabulary: its gradient would be 1e12 times too large, in any norm of all gradients."""
    hidden, weight, targets, weights = drawn(3, 2, 5)
    padded = jnp.concatenate([weight, jnp.zeros((2, 8)), jnp.full((1, 8), 1e-20)])

    def loss(weight):
        return head.cross_entropy(hidden, weight, targets, weights, chunk=4).loss

    value, gradient = jax.value_and_grad(loss)(padded)
    np.testing.assert_array_equal(gradient[-3:], 0)
    tokens = jax.grad(lambda weight: head.log_likelihood(hidden, weight, targets, chunk=4).sum())(padded)
    np.testing.assert_array_equal(tokens[-3:], 0)

    # Against logits of zero beside those of the other rows.
    def plainly(weight):
        logits = hidden @ (weight / jnp.linalg.norm(weight, axis=-1, keepdims=True)).T
        log_p = jax.nn.log_softmax(jnp.concatenate([logits, jnp.zeros((*logits.shape[:2], 3))], -1))
        return -jnp.sum(jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0] * weights)

    expected, others = jax.value_and_grad(plainly)(weight)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient[:-3], others, atol=1e-5)
