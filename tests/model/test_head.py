import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax import model


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


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 99), B=st.integers(1, 3), S=st.integers(1, 13), chunk=st.sampled_from([1, 4, 6, 100]))
def test_chunked_loss_and_gradient_equal_plain_ones(seed, B, S, chunk):
    hidden, weight, targets, weights = drawn(seed, B, S)

    @jax.jit
    def ours(hidden, weight):
        sums = model.cross_entropy(hidden, weight, targets, weights, chunk=chunk)
        return 0.5 * sums.loss, sums

    (_, sums), gradients = jax.value_and_grad(ours, argnums=(0, 1), has_aux=True)(hidden, weight)
    loss, correct, chosen = plain(hidden, weight, targets, weights)
    np.testing.assert_allclose(sums.loss, loss, rtol=1e-5)
    np.testing.assert_allclose(sums, (loss, weights.sum(), correct), rtol=1e-5)
    np.testing.assert_allclose(ours(hidden, weight)[1], sums, rtol=1e-6)
    want = jax.grad(lambda h, w: 0.5 * plain(h, w, targets, weights)[0], argnums=(0, 1))(hidden, weight)
    for got, expected in zip(gradients, want, strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5)

    log_p = model.log_likelihood(hidden, weight, targets, chunk=chunk)
    np.testing.assert_allclose(log_p, chosen, atol=2e-5)
    tokens = jnp.asarray(np.random.default_rng(seed).normal(size=(B, S)), jnp.float32)
    got = jax.grad(lambda w: jnp.sum(tokens * model.log_likelihood(hidden, w, targets, chunk=chunk)))(weight)
    want_weight = jax.grad(lambda w: jnp.sum(tokens * plain(hidden, w, targets, weights)[2]))(weight)
    np.testing.assert_allclose(got, want_weight, atol=5e-5)


def test_logits_ignore_the_length_of_a_row_of_the_head():
    hidden, weight, _, _ = drawn(0, 2, 3)
    stretched = weight * jnp.float32(np.linspace(0.1, 9, 19)[:, None])
    np.testing.assert_allclose(model.norm_head(hidden, stretched), model.norm_head(hidden, weight), atol=1e-5)
    gradient = jax.grad(lambda w: jnp.sum(model.norm_head(hidden, w) ** 2))(weight)
    np.testing.assert_allclose(jnp.sum(gradient * weight, axis=-1), 0, atol=2e-4)
    assert float(jnp.abs(gradient).max()) > 1


def test_a_row_of_zeros_gives_finite_loss_and_gradient():
    hidden, weight, targets, weights = drawn(0, 2, 3)
    value, gradient = jax.value_and_grad(
        lambda w: model.cross_entropy(hidden, w, targets, weights, chunk=2).loss
    )(weight.at[4].set(0))  # fmt: skip
    assert np.isfinite(value) and np.all(np.isfinite(gradient))


@pytest.mark.parametrize("differentiate", [False, True])
def test_the_logits_of_all_tokens_never_exist(differentiate):
    B, S, V, chunk = 2, 64, 997, 16
    hidden, weight = jnp.ones((B, S, 8)), jnp.ones((V, 8))
    targets, weights = jnp.zeros((B, S), jnp.int32), jnp.ones((B, S))

    def loss(hidden, weight):
        return model.cross_entropy(hidden, weight, targets, weights, chunk=chunk).loss

    program = jax.jit(jax.grad(loss, argnums=(0, 1)) if differentiate else loss)
    memory = program.lower(hidden, weight).compile().memory_analysis()
    assert memory.temp_size_in_bytes < B * S * V * 4 / 2


def test_bfloat16_hidden_sums_in_float32():
    hidden, weight, targets, weights = drawn(1, 2, 12)
    narrow = model.cross_entropy(hidden.astype(jnp.bfloat16), weight, targets, weights, chunk=5)
    assert narrow.loss.dtype == jnp.float32
    np.testing.assert_allclose(narrow.loss, plain(hidden, weight, targets, weights)[0], rtol=0.01)
    gradient = jax.grad(lambda w: model.cross_entropy(hidden.astype(jnp.bfloat16), w, targets, weights, chunk=5).loss)
    assert gradient(weight).dtype == jnp.float32
