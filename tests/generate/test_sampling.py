import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from m1jax.errors import UserError
from m1jax.generate import Sampling, sample
from m1jax.generate.sampling import keep_top_k, keep_top_p

ROWS = st_numpy.arrays(np.float32, (2, 9), elements=st.floats(-6, 6, width=32))


def test_temperature_0_takes_the_likeliest():
    logits = jnp.array([[0.0, 3.0, 1.0], [5.0, 3.0, 5.5]])
    assert sample(logits, jax.random.key(0), Sampling()).tolist() == [1, 2]


@settings(max_examples=25, deadline=None)
@given(ROWS, st.integers(1, 12))
def test_top_k_keeps_the_k_highest_and_ties(logits, k):
    kept = np.isfinite(keep_top_k(jnp.asarray(logits), k))
    for row, mask in zip(logits, kept, strict=True):
        edge = np.sort(row)[-min(k, 9)]
        assert np.array_equal(mask, row >= edge)


@settings(max_examples=25, deadline=None)
@given(ROWS, st.floats(0.01, 0.999))
def test_top_p_keeps_the_fewest_that_reach_p(logits, p):
    kept = np.isfinite(keep_top_p(jnp.asarray(logits), p))
    for row, mask in zip(logits.astype(np.float64), kept, strict=True):
        probabilities = np.exp(row) / np.exp(row).sum()
        held = np.sort(probabilities[mask])
        assert mask.any() and (mask.all() or probabilities[mask].min() >= probabilities[~mask].max() - 1e-12)
        assert held.sum() >= p - 1e-5 and held[1:].sum() < p + 1e-5


def test_draws_follow_the_filtered_distribution():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    rows = jnp.tile(logits, (4000, 1))

    def shares(**settings):
        drawn = sample(rows, jax.random.key(1), Sampling(**settings))
        return np.bincount(drawn, minlength=4) / 4000

    np.testing.assert_allclose(shares(temperature=1.0), [0.5, 0.3, 0.15, 0.05], atol=0.03)
    np.testing.assert_allclose(shares(temperature=1.0, top_k=2), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(shares(temperature=1.0, top_p=0.9), np.array([10, 6, 3, 0]) / 19, atol=0.03)
    cold = np.array([0.5, 0.3, 0.15, 0.05]) ** 2
    np.testing.assert_allclose(shares(temperature=0.5), cold / cold.sum(), atol=0.03)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature must be 0 or above, got -1.0"),
        ({"temperature": float("nan")}, "temperature must be 0"),
        ({"top_k": -2}, "top_k must be at least 1"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 1.5}, "top_p must be above 0"),
    ],
)
def test_settings_outside_their_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Sampling(**settings).check()
