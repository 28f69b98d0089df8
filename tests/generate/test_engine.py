import functools

import numpy as np
import pytest

from m1jax import model
from m1jax.errors import UserError
from m1jax.generate import LanguageModel, engine
from tests.model import small

PROMPTS = [[1, 2, 3], list(range(40, 61)), [9]]


@functools.cache
def language_model():
    config = small.config()
    return LanguageModel(config, small.BASE, model.create(config, 0)[1])


def greedy(prompt, count):
    """The likeliest continuation by whole forward passes, at one padded length."""
    row = list(prompt)
    for _ in range(count):
        padded = np.array([row + [0] * (64 - len(row))])
        segments = (np.arange(64) < len(row)).astype(np.int32)[None]
        row.append(int(np.argmax(language_model()(padded, segments)[0, len(row) - 1])))
    return row[len(prompt) :]


def test_logits_are_those_of_the_decoder_for_one_row_and_for_several():
    config = small.config()
    graphdef, params = model.create(config, 0)
    rows = np.asarray(small.tokens(0, 2, 9))
    want = small.logits(graphdef, params, rows)
    np.testing.assert_allclose(language_model()(rows), want, atol=5e-5)
    np.testing.assert_allclose(language_model()(rows[1].tolist()), want[1], atol=5e-5)


@pytest.mark.parametrize("chunk", [512, 16])
def test_greedy_tokens_equal_the_uncached_ones_past_the_window(chunk, monkeypatch):
    """A batch of prompts of different lengths, prefilled at once and in chunks, 20 tokens with a window of 5."""
    monkeypatch.setattr(engine, "_CHUNK", chunk)
    together = language_model().generate(PROMPTS, 20)
    assert together == [greedy(prompt, 20) for prompt in PROMPTS]
    assert language_model().generate(PROMPTS[1], 20) == together[1]


def test_a_row_ends_with_the_end_token_and_the_others_go_on():
    free = language_model().generate(PROMPTS, 12)
    end = free[0][4]
    stopped = language_model().generate(PROMPTS, 12, eos_id=end)
    assert stopped == [row[: row.index(end) + 1] if end in row else row for row in free]
    assert len(stopped[0]) < 12


def test_a_seed_reproduces_its_tokens_and_another_does_not():
    draw = functools.partial(language_model().generate, PROMPTS, 16, temperature=1.5, top_k=100, top_p=0.95)
    assert draw(seed=1) == draw(seed=1) != draw(seed=2)
    assert all(len(row) == 16 for row in draw(seed=1))


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ([], {}, "a prompt is empty"),
        ([[1], []], {}, "a prompt is empty"),
        ([1, 260], {}, "leave the vocabulary of 260"),
        ([-1], {}, "leave the vocabulary of 260"),
        ([1.5], {}, "must be integers"),
        ([1], {"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ([1] * 250, {"max_new_tokens": 7}, "need 257 positions, the model has 256"),
        ([1], {"temperature": -1.0}, "temperature"),
    ],
)
def test_bad_requests_are_refused_before_anything_compiles(prompt, settings, message):
    with pytest.raises(UserError, match=message):
        language_model().generate(prompt, **({"max_new_tokens": 4} | settings))


def test_tokens_outside_the_vocabulary_are_refused():
    with pytest.raises(UserError, match="vocabulary"):
        language_model()([[1, 999]])


def test_lengths_fall_into_few_buckets():
    assert [engine._bucket(n) for n in (1, 16, 17, 512, 513, 1024, 1025)] == [16, 16, 32, 512, 1024, 1024, 1536]
    assert len({engine._bucket(n) for n in range(1, 4097)}) == 13
