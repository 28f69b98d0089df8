"""The likelihood of ends after a shared prompt is that of the whole texts, read one by one without a cache."""

import jax
import numpy as np
import pytest

from m1jax import model
from m1jax.errors import UserError
from m1jax.generate import LanguageModel, likelihood, session
from tests.generate.uncached import CONFIG, language_model, parameters
from tests.model import small


def alone(prompt, end):
    """Log p(end | prompt) by the plain decoder over one row padded to 48 tokens."""
    text = [*prompt, *end]
    row = np.zeros((1, 48), np.int32)
    row[0, : len(text)] = text
    logits = small.logits(model.abstract(CONFIG).graphdef, parameters(), row)[0]
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    return sum(log_p[place - 1, text[place]] for place in range(len(prompt), len(text)))


def ids(seed, length):
    return np.asarray(small.tokens(seed, length)).tolist()


# A prompt of one token has no context; the others are shorter and longer than the window of 5 and than a chunk.
ASKED = [
    (ids(1, 1), [ids(2, 1), ids(3, 9)]),
    (ids(4, 3), [ids(5, 2), ids(6, 2), ids(7, 6)]),
    (ids(8, 40), [ids(9, 5), ids(10, 1)]),
    (ids(11, 19), [ids(12, 4)]),
]


@pytest.mark.parametrize(
    "limits",
    [{}, {"_READ": 64, "_HELD": 128, "_WORTH_COMPILING": 1, "_SHORTEST_PROMPT": 8, "_SHORTEST_END": 2, "CHUNK": 16}],
    ids=["at once", "in many batches"],
)
def test_a_prompt_that_is_read_once_changes_no_likelihood(limits, monkeypatch):
    for name, value in limits.items():
        monkeypatch.setattr(likelihood, name, value)
    finished = []
    found = language_model().end_likelihoods(*zip(*ASKED, strict=True), finished.append).of_ends
    for (prompt, ends), scores in zip(ASKED, found, strict=True):
        np.testing.assert_allclose(scores, [alone(prompt, end) for end in ends], atol=2e-4)
    assert sum(finished) == len(ASKED)


def test_what_cannot_be_scored_is_one_sentence():
    with pytest.raises(UserError, match="the model has 256 positions"):
        language_model().end_likelihoods([ids(0, 250)], [[ids(1, 3), ids(1, 7)]])
    with pytest.raises(UserError, match="leave the vocabulary"):
        language_model().end_likelihoods([[1]], [[[432]]])
    broken = jax.tree.map(lambda leaf: leaf * np.nan, parameters())
    with pytest.raises(UserError, match="no numbers"):
        LanguageModel(CONFIG, small.BASE, broken).end_likelihoods([[1, 2]], [[[3]]])
    assert language_model().end_likelihoods([], []).of_ends == []


def test_few_lengths_share_a_program():
    sizes = likelihood._sizes([1, 40, 60, 60, 500], 32)
    assert sizes == {session.bucket(500): [0, 1, 2, 3, 4]}
    many = likelihood._sizes([60] * 600 + [500], 32)
    assert {size: len(members) for size, members in many.items()} == {64: 600, 512: 1}
