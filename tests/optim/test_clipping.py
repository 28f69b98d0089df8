import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.config import SkipConfig
from m1jax.optim.clipping import skip_spikes


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
    clip = skip_spikes(optax.trace(0.9), config)
    params = {"w": jnp.zeros(3)}
    state = clip.init(params)
    skipped, moments = [], []
    for n in norms:
        grads = {"w": jnp.array([n, 0.0, 0.0], jnp.float32)}
        updates, state = clip.update(grads, state, params, active=active)
        skipped.append(bool(state.last_skipped))
        moments.append(np.asarray(state.inner.trace["w"]))
        if skipped[-1]:
            assert not np.any(np.asarray(updates["w"]))
    return skipped, moments, state


norm = st.sampled_from([0.25, 0.5, 1.0, 1.25, 4.0, 64.0, float("nan"), float("inf")])


@settings(deadline=None, max_examples=40)
@given(st.lists(norm, min_size=1, max_size=30), st.integers(1, 5), st.integers(0, 2))
def test_skips_as_the_report_says(norms, history, max_skips):
    config = SkipConfig(history=history, max_skips=max_skips)
    skipped, moments, state = run(norms, config)
    assert skipped == algorithm_1(norms, config)
    assert int(state.skipped) == sum(skipped)
    for before, after, skip in zip(moments, moments[1:], skipped[1:], strict=False):
        assert not skip or np.array_equal(before, after)
    assert all(np.isfinite(m).all() for m in moments)


def test_a_spike_passes_where_the_stage_does_not_judge_but_never_a_nan():
    norms = [1.0] * 4 + [100.0, float("nan")]
    skipped, _, _ = run(norms, SkipConfig(history=3), active=False)
    assert skipped == [False] * 5 + [True]


def test_the_second_spike_in_a_row_is_forced():
    skipped, _, _ = run([1.0] * 3 + [9.0, 9.0, 9.0], SkipConfig(history=3))
    # After the forced update the history holds 9, and the next 9 is below 1.2 * mean(1, 1, 9) + 0.1 no more.
    assert skipped == [False, False, False, True, False, True]
