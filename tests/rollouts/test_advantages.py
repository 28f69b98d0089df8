"""Advantages against their definitions, and what may not pass through them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.rollouts import advantages

LISTS = st.lists(st.floats(-3, 3), min_size=1, max_size=7)


@settings(max_examples=50, deadline=None)
@given(LISTS, st.floats(0, 1), st.floats(0, 1), st.integers(0, 10**6))
def test_gae_is_the_sum_of_its_definition(rewards, gamma, lam, seed):
    """A_t = Σ_l (γλ)^l δ_{t+l}, written out."""
    values = np.random.default_rng(seed).normal(size=len(rewards))
    after = np.append(values[1:], 0)
    delta = np.asarray(rewards) + gamma * after - values
    wanted = [sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, len(rewards))) for t in range(len(rewards))]
    found = advantages.gae([np.asarray(rewards)], [values], gamma, lam)
    np.testing.assert_allclose(found.advantages[0], wanted, atol=1e-9)
    np.testing.assert_allclose(found.returns[0], np.asarray(wanted) + values, atol=1e-9)


def test_with_lambda_one_it_is_the_return_less_the_value():
    rewards, values = np.array([0.0, 0.0, 2.0]), np.array([0.5, 1.0, 1.5])
    found = advantages.gae([rewards], [values], 1.0, 1.0)
    np.testing.assert_allclose(found.advantages[0], 2 - values)
    np.testing.assert_allclose(found.returns[0], [2, 2, 2])


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 5), st.integers(1, 4), st.integers(0, 10**6))
def test_groups_are_those_of_a_prompt(samples, prompts, seed):
    rewards = np.random.default_rng(seed).normal(size=prompts * samples)
    left_out, grouped = (of(rewards, samples) for of in (advantages.leave_one_out, advantages.within_group))
    for first in range(0, prompts * samples, samples):
        group = rewards[first : first + samples]
        others = [np.delete(group, i).mean() for i in range(samples)]
        np.testing.assert_allclose(left_out[first : first + samples], group - others, atol=1e-9)
        scaled = (group - group.mean()) / (group.std() + 1e-6)
        np.testing.assert_allclose(grouped[first : first + samples], scaled, atol=1e-9)


def test_equal_rewards_teach_nothing():
    assert not advantages.within_group(np.ones(4), 4).any() and not advantages.leave_one_out(np.ones(4), 2).any()


def test_whitening_has_mean_zero_and_deviation_one_over_all_tokens():
    found = np.concatenate(advantages.whitened([np.array([1.0, 2, 3]), np.array([10.0])]))
    assert found.mean() == pytest.approx(0, abs=1e-9) and found.std() == pytest.approx(1)
