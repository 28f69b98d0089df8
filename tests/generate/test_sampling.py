import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.errors import UserError
from m1jax.generate import Sampling
from m1jax.generate.sampling import (
    filtered,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    likeliest_token,
    penalised,
    row_keys,
    sample,
)

V = 40
# Values of a few thousandths apart, so that ties occur, and both signs.
ROWS = st.lists(st.lists(st.integers(-6000, 6000), min_size=V, max_size=V), min_size=3, max_size=3)
SETTINGS = st.fixed_dictionaries(
    {
        "temperature": st.floats(0.1, 3.0),
        "top_k": st.integers(0, V + 3),
        "top_p": st.one_of(st.just(1.0), st.floats(0.01, 0.999)),
        "min_p": st.one_of(st.just(0.0), st.floats(0.001, 1.0)),
        "repetition_penalty": st.one_of(st.just(1.0), st.floats(0.5, 2.0)),
    }
)


@functools.partial(jax.jit)
def ours(logits, seen, controls):
    return filtered(penalised(logits, seen, controls.repetition_penalty), controls)


def theirs(logits, seen, temperature, top_k, top_p, min_p, repetition_penalty):
    """One row through the processors of transformers, in its own order."""
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process as processors

    chain = [
        processors.RepetitionPenaltyLogitsProcessor(repetition_penalty),
        processors.TemperatureLogitsWarper(temperature),
        *([processors.TopKLogitsWarper(top_k)] if top_k else []),
        *([processors.TopPLogitsWarper(top_p)] if top_p < 1 else []),
        *([processors.MinPLogitsWarper(min_p)] if min_p else []),
    ]
    ids, scores = torch.tensor([seen]), torch.tensor(logits[None])
    for processor in chain:
        scores = processor(ids, scores)
    return scores[0].numpy()


def near_an_edge(logits, top_k, top_p, min_p, **_):
    """Whether rounding decides which tokens are kept: then neither answer is wrong."""
    kept = np.where(logits < np.sort(logits)[-min(top_k, V)], -np.inf, logits) if top_k else logits
    p = np.sort(np.exp(kept.astype(np.float64) - kept.max()))[::-1]
    by_mass = np.abs(np.cumsum(p / p.sum()) - top_p).min() if top_p < 1 else 1.0
    return min(by_mass, np.abs(p - min_p).min() if min_p not in (0, 1) else 1.0) < 1e-5


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(SETTINGS, min_size=3, max_size=3),
    st.lists(st.integers(0, V - 1), min_size=1, max_size=9),
)
def test_filters_are_those_of_transformers_row_by_row(seed, settings_of_rows, seen):
    logits = np.random.default_rng(seed).normal(0, 2, (3, V)).astype(np.float32)
    held = np.zeros((3, V), bool)
    held[:, seen] = True
    sampling = Sampling(**{name: [s[name] for s in settings_of_rows] for name in settings_of_rows[0]})
    got = np.asarray(ours(logits, held, sampling.controls(3)))
    for row, mine, setting in zip(logits, got, settings_of_rows, strict=True):
        want = theirs(row, seen, **setting)
        if not near_an_edge(theirs(row, seen, **(setting | {"top_k": 0, "top_p": 1.0, "min_p": 0.0})), **setting):
            np.testing.assert_array_equal(np.isfinite(mine), np.isfinite(want))
            np.testing.assert_allclose(mine[np.isfinite(want)], want[np.isfinite(want)], rtol=1e-5, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(ROWS, st.integers(1, V + 5), st.floats(0.01, 0.999), st.floats(0.001, 1))
def test_each_filter_keeps_what_its_definition_says_with_ties(rows, k, p, min_p):
    """Of equals at an edge all stay; apart from them the fewest that suffice."""
    logits = np.array(rows, np.float32) // 100 / 10
    for row, by_k, by_p, by_min in zip(
        logits,
        *(
            np.isfinite(keep(jnp.asarray(logits), jnp.full(3, value, jnp.float32)))
            for keep, value in ((keep_top_k, k), (keep_top_p, p), (keep_min_p, min_p))
        ),
        strict=True,
    ):
        assert np.array_equal(by_k, row >= np.sort(row)[-min(k, V)])
        share = np.exp(row.astype(np.float64) - row.max())
        assert np.array_equal(by_min[abs(share - min_p) > 1e-5], (share >= min_p)[abs(share - min_p) > 1e-5])
        share /= share.sum()
        edge = row[by_p].min()
        assert by_p.any() and (by_p.all() or row[~by_p].max() < edge)
        assert share[by_p].sum() >= p - 1e-5 and share[row > edge].sum() < p + 1e-5


def draws(count, settings, seed=1):
    logits = jnp.tile(jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05])), (count, 1))
    seen = jnp.zeros(logits.shape, bool)
    return np.asarray(
        jax.jit(sample)(logits, seen, row_keys(seed, count), np.zeros(count, int), Sampling(**settings).controls(count))
    )


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({"temperature": 1.0}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 0.5}, np.array([25, 9, 2.25, 0.25]) / 36.5),
        ({"temperature": 1.0, "top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.9}, np.array([10, 6, 3, 0]) / 19),
        ({"temperature": 1.0, "min_p": 0.4}, [0.625, 0.375, 0, 0]),
        ({"temperature": 0.0}, [1, 0, 0, 0]),
    ],
)
def test_draws_follow_the_filtered_distribution(settings, shares):
    np.testing.assert_allclose(np.bincount(draws(4000, settings), minlength=4) / 4000, shares, atol=0.03)


def test_rows_have_settings_and_draws_of_their_own():
    mixed = draws(4000, {"temperature": [0.0, 1.0, 1.0, 1.0] * 1000, "top_k": [0, 1, 0, 0] * 1000})
    assert set(mixed[0::4]) == set(mixed[1::4]) == {0}
    assert len(set(mixed[2::4])) > 1
    free = draws(4000, {"temperature": 1.0})
    assert np.array_equal(mixed[2::4], free[2::4])
    assert not np.array_equal(draws(4000, {"temperature": 1.0}, seed=2), free)


def test_a_penalty_acts_without_temperature_too():
    logits = jnp.array([[2.0, 1.5, -1.0], [-0.1, -0.15, -0.2]])
    seen = jnp.array([[True, False, False], [True, False, False]])
    found = sample(logits, seen, row_keys(0, 2), np.zeros(2, int), Sampling(repetition_penalty=2.0).controls(2))
    assert found.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature must be 0 or above, got -1.0"),
        ({"temperature": float("nan")}, "temperature must be 0"),
        ({"top_k": -2}, "top_k must be a whole number, at least 1"),
        ({"top_k": 1.5}, "top_k must be a whole number"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 1.5}, "top_p must be above 0"),
        ({"min_p": 1.5}, "min_p must be from 0 to 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
        ({"temperature": [1.0, 2.0, 3.0]}, "temperature must be one number or one for each of the 2 prompts"),
        ({"top_p": [0.5, 2.0]}, "top_p must be above 0 and at most 1, got 2.0"),
    ],
)
def test_settings_outside_their_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Sampling(**settings).check(2)


def test_bfloat16_logits_are_drawn_from_in_float32():
    """jax.random draws rare tokens too seldom from bfloat16 logits: their Gumbel noise has eight bits."""
    logits = jnp.zeros((2, 50), jnp.bfloat16)
    seen = jnp.zeros(logits.shape, bool)
    controls = Sampling(temperature=1.0, top_k=9, top_p=0.9, min_p=0.1).controls(2)
    program = jax.make_jaxpr(sample)(logits, seen, row_keys(0, 2), np.zeros(2, int), controls)
    narrow = [line for line in str(program).splitlines() if "bf16" in line and " = " in line]
    assert len(narrow) <= 1 and all("convert_element_type[new_dtype=float32" in line for line in narrow), narrow


@given(ROWS, st.integers(0, V))
@settings(max_examples=30, deadline=None)
def test_the_likeliest_token_is_argmax_with_ties_and_with_tokens_that_are_excluded(rows, excluded):
    logits = np.asarray(rows, np.float32) / 1000
    logits[:, :excluded] = -np.inf
    assert likeliest_token(jnp.asarray(logits)).tolist() == logits.argmax(axis=1).tolist()


def test_a_row_that_is_no_number_still_gives_a_token_of_the_vocabulary():
    logits = jnp.stack([jnp.full(V, jnp.nan), jnp.arange(V, dtype=jnp.float32).at[3].set(jnp.nan)])
    assert likeliest_token(logits).tolist() == [V - 1, V - 1]


@given(st.integers(0, 2**31 - 1), st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_draws_are_those_of_jax_random_categorical(seed, step):
    logits = jax.random.normal(jax.random.key(seed % 7), (4, 1000))
    keys, steps = row_keys(seed, 4), jnp.full(4, step)
    settings_of_rows = Sampling(temperature=1.0).controls(4)
    drawn = jax.jit(sample)(logits, jnp.zeros(logits.shape, bool), keys, steps, settings_of_rows)
    own = jax.vmap(jax.random.fold_in)(keys, steps)
    assert drawn.tolist() == jax.vmap(jax.random.categorical)(own, logits).tolist()
