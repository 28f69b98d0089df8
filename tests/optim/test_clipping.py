import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.config import CLIP_POLICIES, ClipConfig
from m1jax.optim.clipping import decide, guard, no_history, scaling


def algorithm_1(norms, config):
    """Which steps are skipped: the report's pseudocode, line by line, with non-finite norms skipped first."""
    stored, counter, skipped = [], 0, []
    for n in norms:
        if not np.isfinite(n):
            counter += 1
            skipped.append(True)
            continue
        if len(stored) >= config.history:
            mean = np.float32(np.mean(np.array(stored[-config.history :], np.float32)))
            if n > config.factor * mean + config.margin and counter < config.max_skips:
                counter += 1
                skipped.append(True)
                continue
        counter = 0
        stored.append(n)
        skipped.append(False)
    return skipped


def run(norms, config, active=True):
    clip = guard(optax.trace(0.9), config)
    params = {"w": jnp.zeros(3)}
    state = clip.init(params)
    skipped, moments = [], []
    for n in norms:
        grads = {"w": jnp.array([n, 0.0, 0.0], jnp.float32)}
        updates, state = clip.update(grads, state, params, active=active)
        skipped.append(bool(state.history.last_skipped))
        moments.append(np.asarray(state.inner.trace["w"]))
        if skipped[-1]:
            assert not np.any(np.asarray(updates["w"]))
    return skipped, moments, state


norm = st.sampled_from([0.25, 0.5, 1.0, 1.25, 4.0, 64.0, float("nan"), float("inf")])


@settings(deadline=None, max_examples=40)
@given(st.lists(norm, min_size=1, max_size=30), st.integers(1, 5), st.integers(0, 2))
def test_skips_as_the_report_says(norms, history, max_skips):
    config = ClipConfig(history=history, max_skips=max_skips)
    skipped, moments, state = run(norms, config)
    assert skipped == algorithm_1(norms, config)
    assert int(state.history.skipped) == sum(skipped)
    for before, after, skip in zip(moments, moments[1:], skipped[1:], strict=False):
        assert not skip or np.array_equal(before, after)
    assert all(np.isfinite(m).all() for m in moments)


def test_a_spike_passes_where_the_policy_is_off_but_never_a_nan():
    norms = [1.0] * 4 + [100.0, float("nan")]
    skipped, _, _ = run(norms, ClipConfig(history=3), active=False)
    assert skipped == [False] * 5 + [True]


def test_the_second_spike_in_a_row_is_forced():
    skipped, _, _ = run([1.0] * 3 + [9.0, 9.0, 9.0], ClipConfig(history=3))
    # After the forced update the history holds 9, and the next 9 is below 1.2 * mean(1, 1, 9) + 0.1 no more.
    assert skipped == [False, False, False, True, False, True]


def sigma_rule(norms, config):
    """Which steps are skipped above mean + k standard deviations of the accepted norms, step by step."""
    stored, in_row, skipped = [], 0, []
    for n in norms:
        window = stored[-config.history :]
        spike = len(window) == config.history and n > np.mean(window) + config.sigmas * np.std(window)
        skip = not np.isfinite(n) or (spike and in_row < config.max_skips)
        in_row = in_row + 1 if skip else 0
        skipped.append(bool(skip))
        if not skip:
            stored.append(n)
    return skipped


@settings(deadline=None, max_examples=40)
@given(st.lists(norm, min_size=1, max_size=30), st.integers(2, 6), st.integers(0, 2), st.sampled_from([0.7, 2.3]))
def test_skips_by_standard_deviations(norms, history, max_skips, sigmas):
    config = ClipConfig(policy="skip_sigmas", history=history, max_skips=max_skips, sigmas=sigmas)
    skipped, _, _ = run(norms, config)
    assert skipped == sigma_rule(norms, config)


@pytest.mark.parametrize("policy", CLIP_POLICIES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_what_is_not_finite_moves_nothing_under_any_policy(policy, bad):
    """1e30 is finite, its square is not: the norm is what counts."""
    config = ClipConfig(policy=policy, history=2, max_skips=1)
    clip = guard(optax.chain(scaling(config), optax.trace(0.9)), config)
    params = {"w": jnp.ones(3)}
    state = clip.init(params)
    for _ in range(3):
        _, state = clip.update({"w": jnp.ones(3)}, state, params)
    for times in range(1, 5):
        updates, after = clip.update({"w": jnp.array([1.0, bad, 0.0])}, state, params)
        assert not np.any(updates["w"])
        assert after.history.nonfinite_in_row == after.history.skips_in_row == times
        for name in ("norms", "accepted"):
            np.testing.assert_array_equal(getattr(after.history, name), getattr(state.history, name))
        assert jax.tree.all(jax.tree.map(np.array_equal, after.inner, state.inner))
        state = after
    _, state = clip.update({"w": jnp.ones(3)}, state, params)
    assert (int(state.history.nonfinite_in_row), int(state.history.skipped)) == (0, 4)


def test_the_mean_is_that_of_the_norms_before():
    config = ClipConfig(history=3, factor=10.0)
    history, means = no_history(config), []
    for n in [1.0, 2.0, float("nan"), 3.0, 4.0, 5.0]:
        history = decide(config, history, jnp.float32(n))
        means.append(float(history.last_mean))
    assert means == [0.0, 1.0, 1.5, 1.5, 2.0, 3.0]


def test_only_the_skipping_policies_skip_a_spike():
    norms = [1.0, 1.1] * 5 + [50.0]
    ends = {policy: run(norms, ClipConfig(policy=policy, history=8))[0][-1] for policy in CLIP_POLICIES}
    assert ends == {"skip_spikes": True, "skip_sigmas": True, "global_norm": False, "adaptive": False}


def test_adaptive_clips_each_unit_of_each_layer_by_itself():
    rng = np.random.default_rng(0)
    params = {"periods": {"0": {"proj": rng.normal(size=(3, 4, 5))}}, "head": rng.normal(size=(4, 5))}
    grads = jax.tree.map(lambda p: rng.normal(size=p.shape) * 0.2, params)
    config = ClipConfig(policy="adaptive", max_ratio=0.05)
    found, _ = scaling(config).update(jax.tree.map(jnp.asarray, grads), scaling(config).init(params), params)

    def by_column(g, p):
        """Brock et al.: a unit is an output of a linear layer, a column of (in, out)."""
        out = g.copy()
        for j in range(g.shape[1]):
            largest = 0.05 * max(np.linalg.norm(p[:, j]), 1e-3)
            if np.linalg.norm(g[:, j]) > largest:
                out[:, j] *= largest / np.linalg.norm(g[:, j])
        return out

    stacked_g, stacked_p = grads["periods"]["0"]["proj"], params["periods"]["0"]["proj"]
    expected = np.stack([by_column(g, p) for g, p in zip(stacked_g, stacked_p, strict=True)])
    np.testing.assert_allclose(found["periods"]["0"]["proj"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["head"], by_column(grads["head"], params["head"]), rtol=1e-5)
    assert not np.allclose(expected, stacked_g)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_norms_are_float32_whatever_the_gradients_are(dtype):
    """A thousand leaves of norm 1: in bfloat16 the sum of their squares stands still at 256."""
    grads = {str(i): jnp.ones(1, dtype) for i in range(1000)}
    config = ClipConfig(policy="global_norm", max_norm=1.0)
    clip = guard(scaling(config), config)
    updates, state = jax.jit(clip.update)(grads, clip.init(grads), grads)
    assert float(state.history.last_norm) == pytest.approx(1000**0.5, rel=1e-6)
    assert all(update.dtype == dtype for update in updates.values())
    assert np.sqrt(sum(float(update[0]) ** 2 for update in updates.values())) == pytest.approx(1, rel=4e-3)


def test_adaptive_clips_bfloat16_by_float32_norms():
    rng = np.random.default_rng(1)
    param, grad = (jnp.asarray(rng.normal(size=(4096, 3)) * scale, jnp.bfloat16) for scale in (1.0, 0.2))
    clip = scaling(ClipConfig(policy="adaptive", max_ratio=0.05))
    found, _ = clip.update({"head": grad}, clip.init(None), {"head": param})
    ratio = np.linalg.norm(np.asarray(found["head"], np.float64), axis=0)
    ratio /= np.linalg.norm(np.asarray(param, np.float64), axis=0)
    assert found["head"].dtype == jnp.bfloat16
    np.testing.assert_allclose(ratio, 0.05, rtol=3e-3)


def test_the_global_norm_is_scaled_to_its_bound():
    grads = {"w": jnp.full((4,), 2.0)}
    for config, norm in ((ClipConfig(max_norm=1.0), 1.0), (ClipConfig(max_norm=0.0), 4.0)):
        clip = scaling(dataclasses.replace(config, policy="global_norm"))
        assert float(optax.global_norm(clip.update(grads, clip.init(grads), grads)[0])) == pytest.approx(norm)
