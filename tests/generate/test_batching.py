"""Continuous batching: what a continuation becomes does not depend on slots, neighbours or order."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.errors import UserError
from m1jax.generate import Sampling
from tests.generate import uncached
from tests.model import small

GREEDY = Sampling()


def prompts_of(*lengths):
    return [np.asarray(small.tokens(20 + row, length)).tolist() for row, length in enumerate(lengths)]


def batcher(slots):
    return uncached.language_model().batcher(slots)


@settings(max_examples=5, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 9)), min_size=1, max_size=6), st.sampled_from([1, 2, 4]))
def test_limits_and_slots_of_any_number_give_the_uncached_continuations(asked, slots):
    """More continuations than slots, which stop at different times; the window is 5."""
    prompts, limits = prompts_of(*(length for length, _ in asked)), [limit for _, limit in asked]
    found = batcher(slots).run(prompts, max_new_tokens=limits, sampling=GREEDY)
    assert [one.tokens for (one,) in found] == [
        uncached.greedy(prompt, limit) for prompt, limit in zip(prompts, limits, strict=True)
    ]
    assert {one.finish_reason for (one,) in found} == {"length"}


def test_samples_of_a_prompt_share_its_reading_and_differ():
    prompts = prompts_of(7, 4, 9)
    many, few = batcher(8), batcher(2)
    found = many.run(prompts, 4, max_new_tokens=6, seed=3)
    assert many.timing.prefill_tokens == 20
    assert len({tuple(one.tokens) for one in found[0]}) > 1
    again = few.run(prompts, 4, max_new_tokens=6, seed=3)
    assert [[one.tokens for one in some] for some in again] == [[one.tokens for one in some] for some in found]
    other = few.run(prompts, 4, max_new_tokens=6, seed=4)
    assert [[one.tokens for one in some] for some in other] != [[one.tokens for one in some] for some in found]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_p_is_that_of_the_whole_distribution_at_the_temperature(temperature):
    prompts = prompts_of(6, 3)
    found = batcher(2).run(prompts, 2, max_new_tokens=5, sampling=Sampling(temperature=temperature, top_p=0.9), seed=1)
    for prompt, some in zip(prompts, found, strict=True):
        for one in some:
            rows = [*prompt, *one.tokens]
            logits = np.stack([uncached.logits(rows[:end]) for end in range(len(prompt), len(rows))]) / temperature
            expected = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(one.tokens)), one.tokens]
            np.testing.assert_allclose(one.log_p, expected, atol=1e-3)


def test_an_end_token_ends_one_continuation_and_frees_its_slot():
    prompts = prompts_of(9, 4, 5, 6)
    free = [uncached.greedy(prompt, 8) for prompt in prompts]
    end = free[0][2]
    found = batcher(2).run(prompts, max_new_tokens=8, sampling=GREEDY, eos_id=[end])
    for (one,), tokens in zip(found, free, strict=True):
        wanted = tokens[: tokens.index(end) + 1] if end in tokens else tokens
        assert (one.tokens, one.finish_reason) == (wanted, "eos" if end in tokens else "length")


def test_what_cannot_be_continued_is_refused():
    run = batcher(2).run
    for prompts, settings_, sentence in [
        ([[]], {"max_new_tokens": 2}, "a prompt is empty"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ([[1]], {"max_new_tokens": 2, "samples": 0}, "samples must be at least 1"),
        ([[10**6]], {"max_new_tokens": 2}, "leave the vocabulary"),
        ([[1, 2]], {"max_new_tokens": 10**6}, "positions"),
        ([[1]], {"max_new_tokens": 2, "sampling": Sampling(top_p=2.0)}, "top_p must be"),
    ]:
        with pytest.raises(UserError, match=sentence):
            run(prompts, **settings_)
    with pytest.raises(UserError, match="slots"):
        batcher(0)
