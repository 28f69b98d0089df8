import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.errors import UserError
from m1jax.evaluate.scoring import RowScorer, sequence_logprobs
from tests.evaluate.toy import Toy, alone

SEQUENCES = st.lists(st.lists(st.integers(0, 99), min_size=2, max_size=24), max_size=12)


@settings(max_examples=60, deadline=None)
@given(SEQUENCES, st.sampled_from([(24,), (8, 24), (5, 9, 40)]), st.integers(1, 100))
def test_packing_changes_no_number(sequences, row_lengths, batch_tokens):
    toy = Toy()
    scored = sequence_logprobs(sequences, toy, row_lengths, batch_tokens)
    assert [list(logprobs) for logprobs in scored] == [alone(tokens) for tokens in sequences]
    assert len(set(toy.shapes)) <= len(row_lengths)
    assert all(S in row_lengths and max(1, batch_tokens // S) == B for B, S in toy.shapes)


@settings(max_examples=40, deadline=None)
@given(SEQUENCES.filter(bool), st.data())
def test_a_sum_is_that_of_the_tokens_from_the_first_scored_one(sequences, data):
    rows = [(tokens, data.draw(st.integers(1, len(tokens) - 1))) for tokens in sequences]
    scorer = RowScorer(Toy(), (12, 24), 48)
    assert scorer.max_tokens == 24
    assert scorer(rows) == [sum(alone(tokens)[first - 1 :]) for tokens, first in rows]


def test_the_shortest_row_that_holds_a_sequence_is_taken():
    toy = Toy()
    sequence_logprobs([[1] * 5, [2] * 4, [3] * 9], toy, (9, 5), 10)
    assert sorted(toy.shapes) == [(1, 9), (2, 5)]


def test_numbers_that_are_none_are_refused():
    with pytest.raises(UserError, match="no numbers"):
        sequence_logprobs([[1, 2]], lambda batch: np.full(batch["tokens"].shape, np.nan), (4,), 4)


def test_nothing_to_score():
    assert sequence_logprobs([], Toy(), (4,), 4) == []
    assert RowScorer(Toy(), (4,), 4)([]) == []
