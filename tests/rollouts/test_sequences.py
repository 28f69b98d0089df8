"""Continuations as rows, and the way back."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.rollouts import prompts, sequences

IDS = st.lists(st.integers(1, 99), min_size=1, max_size=5)
OPTIONAL = st.lists(st.integers(1, 99), max_size=3)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(IDS, IDS, OPTIONAL, OPTIONAL), min_size=1, max_size=4), st.integers(1, 3))
def test_every_sampled_token_and_answer_is_found_again(parts, per_row):
    some = [sequences.Continuation(*part) for part in parts for _ in range(per_row)]
    made = sequences.rows(some, len(parts), 64)
    targets = made.columns["targets"]
    for one, sampled, answer in zip(some, made.of(targets), made.of(targets, answers=True), strict=True):
        assert sampled.tolist() == list(one.sampled) and answer.tolist() == list(one.answer)
    assert made.columns["weights"].sum() == sum(len(one.sampled) for one in some)
    assert made.columns["answers"].sum() == sum(len(one.answer) for one in some)
    values = np.random.default_rng(0).normal(size=targets.shape).astype(np.float32)
    np.testing.assert_array_equal(made.spread(made.of(values)), values * made.columns["weights"])
    for row, ids in enumerate(made.columns["segment_ids"]):
        for number in range(1, per_row + 1):
            inside = ids == number
            whole = some[row * per_row + number - 1].ids
            assert made.columns["tokens"][row][inside].tolist() == whole
            assert made.columns["positions"][row][inside].tolist() == list(range(len(whole)))
            assert made.columns["targets"][row][inside].tolist() == [*whole[1:], 0]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 7), st.integers(0, 9))
def test_every_prompt_is_asked_once_an_epoch_wherever_the_run_goes_on(count, number, seed):
    places = [i for first in range(0, 3 * count * number, number) for i in prompts.order(count, seed, first, number)]
    for epoch in range(3):
        assert sorted(places[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert places == list(prompts.order(count, seed, 0, len(places)))
