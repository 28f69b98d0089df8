"""Beam search on the device against one on the host, over uncached logits."""

import functools

import numpy as np
import pytest

from m1jax.errors import UserError
from tests.generate import uncached

PROMPTS = [[1, 2, 3], [40, 41, 42, 43, 44, 45, 46]]


@functools.cache
def log_probabilities(*row):
    logits = uncached.logits(row).astype(np.float64)
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def brute_force(prompt, count, num_beams, penalty, ends=()):
    """Every extension of every open beam, sorted; ended ones are kept aside, never cut early."""
    opened, finished = [(0.0, [])], []
    for _ in range(count):
        candidates = []
        for score, tokens in opened:
            scores = score + log_probabilities(*prompt, *tokens)
            finished += [(scores[end], [*tokens, end]) for end in ends]
            candidates += [(scores[t], [*tokens, t]) for t in np.argsort(-scores) if t not in ends]
        opened = sorted(candidates, key=lambda pair: -pair[0])[:num_beams]
    return max(finished + opened, key=lambda pair: pair[0] / len(pair[1]) ** penalty)[1]


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.5, -1.0])
def test_the_best_hypothesis_is_that_of_a_search_without_cache(penalty):
    ends = uncached.greedy(PROMPTS[0], 3)[2], 7
    found = uncached.language_model().beam_search(PROMPTS, 6, num_beams=3, length_penalty=penalty, eos_id=ends)
    assert found == [brute_force(prompt, 6, 3, penalty, ends) for prompt in PROMPTS]


def test_beams_past_the_window_without_end():
    found = uncached.language_model().beam_search(PROMPTS, 9, num_beams=3)
    assert found == [brute_force(prompt, 9, 3, 1.0) for prompt in PROMPTS]


def test_bad_requests_are_refused():
    search = uncached.language_model().beam_search
    for settings, message in [
        ({"num_beams": 0}, "num_beams must be from 1 to the vocabulary's 432"),
        ({"length_penalty": float("nan")}, "length_penalty"),
        ({"max_new_tokens": 254}, "need 257 positions"),
    ]:
        with pytest.raises(UserError, match=message):
            search(PROMPTS[0], **({"max_new_tokens": 4} | settings))
