"""The engine of `m1 serve`: requests come at any time, and what each becomes depends on itself alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.config import MeshConfig
from m1jax.errors import UserError
from m1jax.generate import LanguageModel, Sampling
from m1jax.generate.requests import Request
from m1jax.generate.room import Limits
from m1jax.parallel import mesh as meshes
from tests.generate import uncached
from tests.model import small

SAMPLED = Sampling(temperature=1.0)


def prompt_of(length, row=0):
    return np.asarray(small.tokens(20 + row, length)).tolist()


class Asked:
    """A request, and all that the engine told of it."""

    def __init__(self, engine, tokens, limit, **settings):
        self.tokens, self.log_p, self.alternatives, self.told = [], [], [], []
        self.ticket = engine.submit(Request(tokens, limit, **settings), self.listen)

    def listen(self, progress):
        assert not self.reason, "nothing follows the end"
        self.told.append(progress)
        self.tokens += progress.tokens
        self.log_p += progress.log_p
        self.alternatives += progress.alternatives

    @property
    def reason(self):
        return self.told[-1].finish_reason if self.told else None


def engine(**limits):
    return uncached.language_model().online(Limits(**{"max_batch": 4, "chunk": 8, **limits}))


def run(one):
    while one.step():
        pass
    assert one.running == one.waiting == 0


@settings(max_examples=4, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 9), st.integers(0, 4)), min_size=1, max_size=7),
    st.booleans(),
)
def test_requests_at_any_time_give_the_uncached_continuations(asked, invariant):
    """The window is 5 and a piece 8 tokens, so that rings turn while prompts are read; some prompts begin alike."""
    one = engine(batch_invariant=invariant, context=64)
    found = []
    for length, limit, pause in asked:
        found.append(Asked(one, prompt_of(length), limit))
        for _ in range(pause):
            one.step()
    run(one)
    for (length, limit, _), mine in zip(asked, found, strict=True):
        assert (mine.tokens, mine.reason) == (uncached.greedy(prompt_of(length), limit), "length")
    assert one.counts.new_tokens == sum(limit for _, limit, _ in asked)


def test_a_model_over_several_devices_says_the_same():
    mesh = meshes.make(MeshConfig(tensor=2), jax.devices()[:2])
    one = LanguageModel(uncached.CONFIG, small.BASE, uncached.parameters(), mesh).online(Limits(max_batch=4, chunk=8))
    asked = [(9, 6), (20, 9), (9, 4), (3, 7)]
    found = [Asked(one, prompt_of(length), limit) for length, limit in asked]
    run(one)
    later = Asked(one, [*prompt_of(20), *found[1].tokens, *prompt_of(2)], 3)
    run(one)
    assert [mine.tokens for mine in found] == [uncached.greedy(prompt_of(length), limit) for length, limit in asked]
    assert later.tokens == uncached.greedy(later.ticket.request.tokens, 3) and later.ticket.cached_tokens == 29


def test_samples_are_those_of_rollouts():
    prompt = prompt_of(9)
    (expected,) = uncached.language_model().batcher(4).run([prompt], 4, max_new_tokens=7, sampling=SAMPLED, seed=5)
    one = engine()
    found = [Asked(one, prompt, 7, sampling=SAMPLED, seed=5, sample=sample) for sample in range(4)]
    run(one)
    assert [mine.tokens for mine in found] == [other.tokens for other in expected]
    np.testing.assert_allclose([mine.log_p for mine in found], [other.log_p for other in expected], atol=1e-4)
    assert one.counts.timing.prefill_tokens == 9 and one.counts.cached_tokens == 27


@pytest.mark.parametrize("invariant", [False, True])
def test_neighbours_change_nothing(invariant):
    """Alone, and among others that come and go; in the invariant mode log p are the same bits."""
    tokens, settings_ = prompt_of(21), {"sampling": Sampling(0.9, 50, 0.95, 0.001, 1.1), "seed": 3, "alternatives": 2}
    alone = engine(batch_invariant=invariant, context=64)
    mine = Asked(alone, tokens, 12, **settings_)
    run(alone)
    crowd = engine(batch_invariant=invariant, context=64)
    others = [Asked(crowd, prompt_of(5 + 7 * row, row), 3 + row, sampling=SAMPLED, seed=row) for row in range(3)]
    crowd.step()
    again = Asked(crowd, tokens, 12, **settings_)
    for row in range(4):
        crowd.step()
        others.append(Asked(crowd, prompt_of(11, row), 6, sampling=SAMPLED, logit_bias={7: 5.0}, frequency_penalty=1))
    run(crowd)
    assert all(other.reason == "length" for other in others)
    assert again.tokens == mine.tokens
    if invariant:
        assert again.log_p == mine.log_p and again.alternatives == mine.alternatives
    np.testing.assert_allclose(again.log_p, mine.log_p, atol=1e-4)


def log_probabilities(tokens):
    """(S, V): of what follows each of the tokens, without a cache."""
    return np.asarray(jax.nn.log_softmax(np.stack([uncached.logits(tokens[: end + 1]) for end in range(len(tokens))])))


@pytest.mark.parametrize("alternatives", [0, 1, 5])
def test_log_p_of_prompt_and_answer_are_the_models_own(alternatives):
    one, prompt = engine(), prompt_of(21)
    settings_ = {"alternatives": alternatives, "score_prompt": True, "logit_bias": {9: 3.0}, "presence_penalty": 0.5}
    mine = Asked(one, prompt, 6, sampling=Sampling(0.7, top_p=0.8), **settings_)
    run(one)
    whole = [*prompt, *mine.tokens]
    expected = log_probabilities(whole)
    log_p = [*mine.ticket.prompt.log_p, *mine.log_p]
    np.testing.assert_allclose(log_p, expected[np.arange(len(whole) - 1), whole[1:]], atol=1e-4)
    beside = [*mine.ticket.prompt.alternatives, *mine.alternatives]
    assert [len(some) for some in beside] == [alternatives] * (len(whole) - 1)
    for some, row in zip(beside, expected, strict=False):
        assert [token for token, _ in some] == np.argsort(-row, kind="stable")[:alternatives].tolist()
        np.testing.assert_allclose([value for _, value in some], np.sort(row)[::-1][:alternatives], atol=1e-4)
    only = Asked(one, prompt, 0, alternatives=1, score_prompt=True)
    run(one)
    assert (only.tokens, only.reason) == ([], "length")
    # What evaluation tools compare: the likeliest token's log p is the same number in both places.
    for value, ((_, best),) in zip(only.ticket.prompt.log_p, only.ticket.prompt.alternatives, strict=True):
        assert value <= best
    greedy = [value == best for value, ((_, best),) in zip(*only.ticket.prompt, strict=True)]
    assert greedy == (expected[: len(prompt) - 1].argmax(axis=1) == prompt[1:]).tolist()


def test_penalties_and_biases_are_those_of_the_protocol():
    prompt, bias = prompt_of(6), {11: 4.0, 12: -100.0}
    one = engine()
    mine = Asked(one, prompt, 12, presence_penalty=1.5, frequency_penalty=0.5, logit_bias=bias)
    plain = Asked(one, prompt, 12)
    run(one)
    rows = list(prompt)
    for token in mine.tokens:
        logits = np.array(uncached.logits(rows))
        for known, value in bias.items():
            logits[known] += value
        for used in set(rows[len(prompt) :]):
            logits[used] -= 1.5 + 0.5 * rows[len(prompt) :].count(used)
        assert token == logits.argmax()
        rows.append(token)
    assert plain.tokens == uncached.greedy(prompt, 12) != mine.tokens


def test_a_conversation_and_a_shared_beginning_are_read_once():
    """The next turn continues the answer; the third prompt with a system message finds it read."""
    one, never = engine(), engine(reuse=False)
    system, first = prompt_of(40), prompt_of(6, row=1)
    read = []
    for tokens in ([*system, *first], [*system, *prompt_of(9, row=2)], [*system, *prompt_of(5, row=3)]):
        mine, other = Asked(one, tokens, 5), Asked(never, tokens, 5)
        run(one)
        run(never)
        assert mine.tokens == other.tokens == uncached.greedy(tokens, 5)
        read.append(mine.ticket.cached_tokens)
    assert read == [0, 0, 40]
    turn = [*system, *first, *uncached.greedy([*system, *first], 5), *prompt_of(3, row=4)]
    mine = Asked(one, turn, 5)
    run(one)
    assert mine.tokens == uncached.greedy(turn, 5)
    assert mine.ticket.cached_tokens == 40 + 6 + 5
    assert never.counts.cached_tokens == 0 and len(never.prefixes) == 0


def test_with_whole_chunks_reuse_changes_no_bit():
    system = prompt_of(20)
    one, fresh = engine(batch_invariant=True, context=64), engine(batch_invariant=True, context=64, reuse=False)
    for row in range(3):
        tokens = [*system, *prompt_of(7, row=row)]
        mine, other = Asked(one, tokens, 4, alternatives=1), Asked(fresh, tokens, 4, alternatives=1)
        run(one)
        run(fresh)
        assert (mine.tokens, mine.log_p, mine.alternatives) == (other.tokens, other.log_p, other.alternatives)
    assert mine.ticket.cached_tokens == 16


def test_room_grows_and_shrinks_around_rings_that_have_turned_and_that_have_not():
    """A window of 300: rings are as long as the room where that is 256, and shorter where it is 768."""
    config = dataclasses.replace(uncached.CONFIG, window=300, max_positions=1024)
    model = LanguageModel(config, small.BASE, uncached.parameters())
    one, rooms = model.online(Limits(max_batch=4, chunk=64)), []
    short, turned = Asked(one, prompt_of(20), 230), Asked(one, prompt_of(490, row=1), 40)
    while not short.reason:
        one.step()
        rooms += [one._slots.capacity] if one._slots.capacity not in rooms[-1:] else []
    assert rooms == [256, 768, 256]
    later = Asked(one, [*prompt_of(490, row=1), *turned.tokens, *prompt_of(3, row=2)], 20)
    run(one)
    found = (short, turned, later)
    expected = model.generate([mine.ticket.request.tokens for mine in found], 230)
    assert [mine.tokens for mine in found] == [
        tokens[: len(mine.tokens)] for mine, tokens in zip(found, expected, strict=True)
    ]
    assert later.ticket.cached_tokens == 530


def test_an_end_token_ends_a_request_and_the_next_turn_finds_what_was_before_it():
    prompt = prompt_of(9)
    free = uncached.greedy(prompt, 8)
    one = engine()
    mine = Asked(one, prompt, 8, end_ids=[free[2], 400])
    run(one)
    assert (mine.tokens, mine.reason) == (free[: free.index(free[2]) + 1], "eos")
    turn = [*prompt, *mine.tokens, *prompt_of(2)]
    again = Asked(one, turn, 3)
    run(one)
    assert again.tokens == uncached.greedy(turn, 3)
    assert again.ticket.cached_tokens == len(prompt) + len(mine.tokens) - 1


def test_a_long_prompt_does_not_stop_the_others():
    one = engine(context=128)
    mine = Asked(one, prompt_of(4), 60)
    one.step()
    long = Asked(one, prompt_of(60, row=1), 1)
    between = []
    while not long.told:
        before = len(mine.tokens)
        one.step()
        between.append(len(mine.tokens) - before)
    run(one)
    assert len(between) == 4 and all(between), "two pieces of at most 8 tokens, then tokens of the other"
    assert mine.tokens == uncached.greedy(prompt_of(4), 60)


def test_cancelled_requests_free_their_places():
    one = engine(max_batch=2)
    running, waiting, last = (Asked(one, prompt_of(5, row), 20) for row in range(3))
    reading = Asked(one, prompt_of(30, row=3), 5)
    one.step()
    told = len(running.tokens)
    for asked in (running, waiting, reading):
        one.cancel(asked.ticket)
    run(one)
    assert len(running.tokens) == told < 20 and running.reason is None
    assert last.tokens == uncached.greedy(prompt_of(5, row=2), 20)
    assert one.counts.cancelled == 3 and reading.told == []


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("ask"), st.integers(1, 20), st.integers(0, 6)), st.sampled_from(["step", "cancel"])
        ),
        max_size=25,
    ),
    st.integers(1, 3),
)
def test_the_bookkeeping_holds_whatever_happens(events, rows):
    """Bytes for one to three rows of 64 tokens: nobody is forgotten, the limit holds, the first comes first."""
    limit = 600_000
    one = engine(max_batch=rows, context=64, cache_bytes=limit, chunk=8)
    asked, begun = [], []
    for event in events:
        if event == "step":
            one.step()
        elif event == "cancel" and asked:
            one.cancel(asked[len(asked) // 2].ticket)
        elif isinstance(event, tuple):
            asked.append(Asked(one, prompt_of(event[1], row=len(asked) % 3), event[2]))
        assert one.slot_bytes + one.prefixes.bytes <= limit
        assert one.running <= rows
        begun += [mine.ticket.number for mine in asked if mine.told and mine.ticket.number not in begun]
    run(one)
    for mine in asked:
        wanted = mine.ticket.request.max_new_tokens
        assert mine.ticket.cancelled or (len(mine.tokens), mine.reason) == (wanted, "length")
    assert one.counts.requests + one.counts.cancelled >= len(asked)


def test_what_the_cache_cannot_hold_waits_or_is_refused():
    bytes_of_a_row = engine(context=128).room.row(128)
    one = engine(max_batch=8, context=128, cache_bytes=4 * bytes_of_a_row)
    found = [Asked(one, prompt_of(8, row), 6) for row in range(6)]
    most = 0
    while one.step():
        most = max(most, one.running)
    assert most == 3, "three rows, and the one that is being read"
    assert [mine.tokens for mine in found] == [uncached.greedy(prompt_of(8, row), 6) for row in range(6)]
    longer = LanguageModel(dataclasses.replace(uncached.CONFIG, max_positions=1024), small.BASE, uncached.parameters())
    assert longer.online(Limits()).room.context == 1024
    assert longer.online(Limits(cache_bytes=5 * bytes_of_a_row)).room.context == 256, "as much as one request can use"
    for limits, sentence in [
        ({"cache_bytes": 1000}, "holds no request"),
        ({"context": 257}, "context must be from 1 to the model's 256"),
        ({"max_batch": 0}, "must be at least 1"),
    ]:
        with pytest.raises(UserError, match=sentence):
            engine(**limits)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tokens": []}, "a prompt is empty"),
        ({"tokens": [432]}, "leave the vocabulary"),
        ({"max_new_tokens": -1}, "at least 0"),
        ({"max_new_tokens": 255}, "the context holds 256"),
        ({"sampling": Sampling(top_p=0.0)}, "top_p must be"),
        ({"seed": -1}, "seed"),
        ({"end_ids": range(17)}, "at most 16 end tokens"),
        ({"presence_penalty": 3.0}, "presence_penalty must be from -2 to 2"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty must be from -2 to 2"),
        ({"alternatives": 21}, "logprobs must be from 0 to 20"),
        ({"logit_bias": {432: 1.0}}, "logit_bias names the token 432"),
        ({"logit_bias": {1: 101.0}}, "logit_bias must be from -100 to 100"),
    ],
)
def test_what_cannot_be_answered_is_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        engine().submit(dataclasses.replace(Request([1, 2], 3), **changes), print)


def test_a_failure_reaches_everybody_and_the_next_request_is_answered():
    one = engine(max_batch=1)
    found = [Asked(one, prompt_of(5, row), 20) for row in range(3)]
    one.step()
    one.fail("the device is gone.")
    assert [(mine.reason, mine.told[-1].error) for mine in found] == [("error", "the device is gone.")] * 3
    again = Asked(one, prompt_of(5), 4)
    run(one)
    assert again.tokens == uncached.greedy(prompt_of(5), 4)


def test_a_warm_engine_compiles_nothing_for_usual_requests():
    one = engine(max_batch=4, chunk=32, context=64)
    one.warm()
    assert one.counts.requests == one.slot_bytes == len(one.prefixes) == 0
    found = [Asked(one, prompt_of(length), 5, sampling=SAMPLED) for length in (20, 33, 7, 15)]
    run(one)
    assert {mine.reason for mine in found} == {"length"}
    assert one.counts.timing.compile_seconds == 0
    for context in (1, 2):
        engine(context=context).warm()


def test_a_damaged_model_is_told():
    damaged = jax.tree.map(lambda leaf: leaf * jnp.nan, uncached.parameters())
    one = LanguageModel(uncached.CONFIG, small.BASE, damaged).online(Limits(max_batch=1))
    mine = Asked(one, [1, 2], 3)
    run(one)
    assert mine.reason == "error" and "no numbers" in mine.told[-1].error
