"""Which ids of a batch are targets: a rule on ids alone, for every role of both chat formats."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.rows.expand import expand
from m1jax.rows.manifest import open_stores
from m1jax.rows.packing import pack
from m1jax.text.conversations import Conversation, checked
from m1jax.text.rendering import Renderer
from m1jax.tokenizer import chat
from tests.tokenizer.chat import chat_tokenizers as made
from tests.tokenizer.chat.chat_tokenizers import OURS

S = 512
SYS, USYS, USER, ASSISTANT, FUNCTION, CODE = range(71, 77)
TEXT = st.sampled_from(["fever", "是。", "39 degrees?", "<C_A> no", "a\nb", " <|im_end|>"])
FIRST = st.sampled_from([(), ("system",), ("user_system",), ("system", "user_system")])
# What follows a question: answers, each but the first to what a tool gave.
ANSWERED = st.lists(st.lists(st.sampled_from(["function", "code"]), min_size=1, max_size=2), max_size=2)
ROUND = st.tuples(ANSWERED, st.sampled_from([None, 0, 0.5, 2]))


@pytest.fixture(scope="module")
def chatml(tmp_path_factory):
    return made.make(tmp_path_factory.mktemp("chatml"), made.CHATML)


@st.composite
def conversations(draw, tools=True):
    """Messages in an order that is allowed; some answers have a weight of their own."""
    roles = [(role, None) for role in draw(FIRST if tools else st.sampled_from([(), ("system",)]))]
    for answered, weight in draw(st.lists(ROUND, min_size=1, max_size=3)):
        roles += [("user", None), ("assistant", weight)]
        for given_by in answered if tools else ():
            roles += [*((role, None) for role in given_by), ("assistant", draw(st.sampled_from([None, 0])))]
    messages = [{"role": role, "content": draw(TEXT)} for role, _ in roles]
    for message, (_, weight) in zip(messages, roles, strict=True):
        if weight is not None:
            message["weight"] = weight
    if not any(weight != 0 for role, weight in roles if role == "assistant"):
        messages[-1]["weight"] = 1
    return messages


def batch_of(folder, tokenizer, talks):
    found = [Conversation(f"a#{i}", *checked(talk), "a", "en", "text", shard="a") for i, talk in enumerate(talks)]
    documents = list(Renderer(chat.of(tokenizer), tokenizer, S).documents(found))
    manifest = pack({"a": lambda: iter(documents)}, tokenizer, folder, [S], 64, 0)
    (store,) = open_stores(folder, manifest, [(S, "a")]).values()
    rows = [store[i] for i in range(len(store))]
    return expand(rows), [row.documents.tolist() for row in rows]


def weights_of(talk):
    return [message.get("weight", 1) for message in talk if message["role"] == "assistant"]


def by_ids(ids, weights, opened, ends):
    """The weight of each id as a target: those of an answer, from behind what opens it up to the id that ends it.

    `opened(ids, i)` says whether an answer begins behind place i; `ends` are the ids that end one.
    """
    found, weight, left = [], 0.0, iter(weights)
    for i, token in enumerate(ids):
        found.append(weight)
        weight = 0.0 if token in ends else weight
        if opened(ids, i):
            weight = next(left)
    assert next(left, None) is None
    return found


def check(batch, documents, talks, opened, ends):
    for row, numbers in enumerate(documents):
        for segment, number in enumerate(numbers, 1):
            mine = batch["segment_ids"][row] == segment
            ids = batch["tokens"][row][mine].tolist()
            expected = by_ids(ids, weights_of(talks[number]), opened, ends)
            assert batch["targets"][row][mine][:-1].tolist() == ids[1:]
            assert batch["weights"][row][mine].tolist() == [*expected[1:], 0.0]
        assert not batch["weights"][row][batch["segment_ids"][row] == 0].any()
        assert batch["weights"][row].any()


@given(talks=st.lists(conversations(), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_of_baichuan_the_next_role_or_eos_is_learned_and_what_opens_an_answer_never_is(tmp_path_factory, talks):
    batch, documents = batch_of(tmp_path_factory.mktemp("b"), OURS, talks)
    roles = {SYS, USYS, USER, ASSISTANT, FUNCTION, CODE, OURS.eos_id}
    check(batch, documents, talks, lambda ids, i: ids[i] == ASSISTANT, roles)
    assert not batch["weights"][batch["targets"] == ASSISTANT].any()
    assert not batch["weights"][np.isin(batch["targets"], [SYS, USYS])].any()


@given(talks=st.lists(conversations(tools=False), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_of_chatml_the_answers_own_end_is_learned_and_nothing_behind_it(tmp_path_factory, chatml, talks):
    start, end = (chatml.token_id(mark) for mark in made.CHATML)
    header = [start, *chatml.encode("assistant\n")]

    def opened(ids, i):
        return ids[max(i + 1 - len(header), 0) : i + 1] == header

    batch, documents = batch_of(tmp_path_factory.mktemp("c"), chatml, talks)
    check(batch, documents, talks, opened, {end})
    assert not batch["weights"][np.isin(batch["targets"], [start, chatml.eos_id])].any()


def test_by_hand_with_every_role(tmp_path):
    """System, a question, an answer, a tool, an answer that is not learned, code, and the last answer."""
    turns = ("system", "s"), ("user", "u"), ("assistant", "a"), ("function", "f"), ("assistant", "b"), ("code", "c")
    talk = [{"role": role, "content": text} for role, text in (*turns, ("assistant", "d"))]
    talk[4]["weight"] = 0
    batch, _ = batch_of(tmp_path, OURS, [talk])
    e = [OURS.encode(text)[0] for text in "suafbcd"]
    eos = OURS.eos_id
    expected = [
        (e[0], 0), (USER, 0), (e[1], 0), (ASSISTANT, 0), (e[2], 1), (FUNCTION, 1), (e[3], 0), (ASSISTANT, 0),
        (e[4], 0), (CODE, 0), (e[5], 0), (ASSISTANT, 0), (e[6], 1), (eos, 1),
    ]  # fmt: skip
    assert batch["tokens"][0, 0] == SYS
    assert list(zip(batch["targets"][0, :14].tolist(), batch["weights"][0, :14].tolist(), strict=True)) == expected
    assert not batch["weights"][0, 14:].any()
