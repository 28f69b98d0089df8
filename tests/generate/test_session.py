import logging

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.errors import UserError
from m1jax.generate import LanguageModel
from m1jax.generate import session as sessions
from tests.generate import uncached
from tests.model import small

ATOL = 1e-4  # of logits of some tens, in float32


def texts(*lengths):
    return [np.asarray(small.tokens(9 + row, length)).tolist() for row, length in enumerate(lengths)]


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(sessions, "CHUNK", 16)


def assert_uncached(session, logits):
    for row, found in zip(session.tokens, np.asarray(logits), strict=True):
        if row:
            np.testing.assert_allclose(found, uncached.logits(row), atol=ATOL)


COUNTS = st.tuples(st.integers(0, 20), st.integers(0, 20))


@settings(max_examples=10, deadline=None)
@given(st.lists(COUNTS, min_size=1, max_size=4))
def test_turns_of_any_lengths_give_the_uncached_logits_past_the_window(turns):
    """Rows of different lengths, rows with nothing new, prompts of several chunks; the window is 5."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sessions, "CHUNK", 16)
        session = uncached.language_model().session(batch=2, capacity=96)
        rows = texts(80, 80)
        for counts in turns:
            new = [rows[b][len(session.tokens[b]) :][: counts[b]] for b in (0, 1)]
            assert_uncached(session, session.extend(new))
        assert [row[: len(held)] for row, held in zip(rows, session.tokens, strict=True)] == session.tokens


def test_room_grows_without_changing_a_logit(small_chunks):
    session = uncached.language_model().session()
    (row,) = texts(31)
    for begin, end in ((0, 3), (3, 16), (16, 30), (30, 31)):
        assert_uncached(session, session.extend(row[begin:end]))
    assert session.capacity == 32


def test_generation_and_given_turns_alternate_on_one_cache():
    session = uncached.language_model().session(batch=2, capacity=96)
    first, second = texts(9, 4), texts(3, 11)
    session.extend(first)
    new = session.generate(6)
    assert new == [uncached.greedy(row, 6) for row in first]
    session.extend(second)
    contexts = [a + b + c for a, b, c in zip(first, new, second, strict=True)]
    assert session.tokens == contexts
    assert session.generate(6) == [uncached.greedy(row, 6) for row in contexts]
    assert session.timing.prefill_tokens == 27
    assert session.timing.decode_tokens == 24


def test_a_token_that_ends_a_row_is_returned_but_not_kept():
    session = uncached.language_model().session(batch=2, capacity=96)
    rows = texts(9, 4)
    session.extend(rows)
    free = [uncached.greedy(row, 6) for row in rows]
    end = free[0][2]
    assert end not in free[0][:2] + free[1]
    assert session.generate(6, eos_id=[end, 429]) == [free[0][:3], free[1]]
    assert session.tokens == [rows[0] + free[0][:2], rows[1] + free[1]]
    assert_uncached(session, session.extend([[5, 6], []]))


def test_a_continuation_is_scored_as_without_a_cache_and_the_context_stays(small_chunks):
    """Past the window of 5, over the end of the cache's room, for one token and for several."""
    session = uncached.language_model().session(capacity=16)
    (row,) = texts(14)
    session.extend(row)
    for more in ([7], [7, 3, 9, 1, 200, 7], [8, 8, 8]):
        whole = [*row, *more]
        expected = sum(
            float(jax.nn.log_softmax(uncached.logits(whole[:i]))[whole[i]]) for i in range(len(row), len(whole))
        )
        assert session.log_likelihood(more) == pytest.approx(expected, abs=ATOL)
    assert session.tokens == [row]
    assert_uncached(session, session.extend([4]))
    for wrong, said in (([], "empty"), ([500], "vocabulary"), ([1] * 250, "positions")):
        with pytest.raises(UserError, match=said):
            session.log_likelihood(wrong)


def test_copies_and_reordered_rows_go_on_by_themselves():
    session = uncached.language_model().session(batch=2, capacity=96)
    rows = texts(12, 7)
    session.extend(rows)
    beams, copy = session.take([1, 0]), session.copy()
    more = [[1, 2, 3], [4]]
    assert_uncached(beams, beams.extend(more))
    assert beams.tokens == [rows[1] + more[0], rows[0] + more[1]]
    beams.generate(4)
    assert_uncached(session, session.extend([[8], [9]]))
    assert copy.tokens == rows
    assert copy.generate(3) == [uncached.greedy(row, 3) for row in rows]
    twice = session.take([1, 1])
    assert_uncached(twice, twice.extend([[1], []]))


@pytest.mark.parametrize("capacity", [16, 96])
def test_bytes_are_those_of_the_formula(capacity):
    """A global layer (1 KV head of 8), a window layer (2 of 4, window 5), float32: K and V, and the last raw pair."""
    session = uncached.language_model().session(batch=3, capacity=capacity)
    per_token, per_window_token, last = 2 * 1 * 8 * 4, 2 * 2 * 4 * 4, 2 * (1 * 8 + 2 * 4) * 4
    assert session.cache_bytes == 3 * (per_token * capacity + per_window_token * 5 + last)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(session.state.cache.layers))
    assert session.cache_bytes == held


def test_what_is_refused_changes_nothing():
    session = uncached.language_model().session(capacity=16)
    session.extend([1, 2, 3])
    for tokens, message in [
        ([1] * 254, "need 257 positions"),
        ([432], "vocabulary"),
        ([[1], [2]], "was extended by 2"),
    ]:
        with pytest.raises(UserError, match=message):
            session.extend(tokens)
    with pytest.raises(UserError, match="need 257 positions"):
        session.generate(254)
    with pytest.raises(UserError, match="rows"):
        session.take([1])
    assert session.tokens == [[1, 2, 3]]
    assert session.generate(3) == [uncached.greedy([1, 2, 3], 3)]
    with pytest.raises(UserError, match="empty"):
        uncached.language_model().session().generate(3)
    with pytest.raises(UserError, match="at least 1"):
        uncached.language_model().session(batch=0)


def test_the_last_position_can_be_filled():
    session = uncached.language_model().session(capacity=256)
    session.extend(texts(250)[0])
    assert len(session.generate(6)[0]) == 6
    with pytest.raises(UserError, match="need 257"):
        session.generate(1)


def test_programs_are_compiled_once_per_bucket():
    model = uncached.language_model()

    def compiled(prompt, count, **settings):
        before = sessions.programs.decode._cache_size(), sessions.programs.prefill._cache_size()
        model.generate(prompt, count, **settings)
        after = sessions.programs.decode._cache_size(), sessions.programs.prefill._cache_size()
        return after[0] - before[0], after[1] - before[1]

    compiled([1] * 3, 12), compiled([1] * 3, 12, temperature=1.0)
    assert compiled([1] * 9, 6, eos_id=[3, 4]) == (0, 0)
    others = {"temperature": 0.3, "top_k": 4, "top_p": 0.4, "min_p": 0.1, "repetition_penalty": 1.5, "seed": 4}
    assert compiled([1] * 2, 13, **others) == (0, 0)


def test_a_model_that_answers_with_no_numbers_is_refused():
    """The likeliest of NaNs is the first token, for ever."""
    spoilt = jax.tree.map(lambda leaf: leaf * np.nan, uncached.parameters())
    model = LanguageModel(uncached.CONFIG, small.BASE, spoilt)
    for ask in (lambda: model.generate([1, 2], 3), lambda: model.beam_search([1, 2], 3)):
        with pytest.raises(UserError, match="logits that are no numbers: take an earlier checkpoint"):
            ask()


def test_a_second_turn_of_the_same_lengths_compiles_nothing(caplog):
    jax.clear_caches()  # other tests have compiled these programs
    again = uncached.language_model().session(capacity=64)
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax._src.dispatch"):
        for turn in ([1, 2, 3], [4, 5, 6]):
            again.extend(turn)
            again.generate(4)
    compiled = [record.getMessage() for record in caplog.records if "Finished XLA compilation" in record.getMessage()]
    for program in ("jit(prefill)", "jit(decode)"):
        assert sum(program in message for message in compiled) == 1, compiled
