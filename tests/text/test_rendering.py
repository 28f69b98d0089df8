"""Conversations as documents: which ids are targets, what a typed mark is, and where a long one is cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.rows.encoding import encode_source
from m1jax.rows.manifest import index_path
from m1jax.rows.record import token_dtype
from m1jax.rows.spool import Spool
from m1jax.text.conversations import Conversation, UnusableError, checked
from m1jax.text.documents import REJECTED_SCHEMA, Document, Rejected, Table
from m1jax.text.overlap import NgramIndex
from m1jax.text.records import BLANK
from m1jax.text.rendering import UNANSWERED, Renderer
from m1jax.text.set_aside import screen
from m1jax.tokenizer import chat
from tests.tokenizer.chat import chat_tokenizers as made
from tests.tokenizer.chat.chat_tokenizers import OURS, talk

SYS, USER, ASSISTANT, FUNCTION = 71, 73, 74, 75
HUGE = 10_000


@pytest.fixture(scope="module")
def chatml(tmp_path_factory):
    return made.make(tmp_path_factory.mktemp("chatml"), made.CHATML)


def conversation(*turns, learn="all", weights=(), number=1):
    given = [{"role": role, "content": text} for role, text in turns]
    for message, weight in zip((m for m in given if m["role"] == "assistant"), weights, strict=False):
        message["weight"] = weight
    return Conversation(f"a#{number}", *checked(given, learn), "a", "en", "general", shard="a")


def render(tokenizer, *conversations, row_length=HUGE):
    return list(Renderer(chat.of(tokenizer), tokenizer, row_length).documents(conversations))


def encoded(tokenizer, documents, folder):
    """[(id, weight)] of each document as packing has it, EOS last."""
    with Table(folder / "rejected.parquet", REJECTED_SCHEMA) as aside:
        spool = Spool(folder, "a", token_dtype(tokenizer.vocab_size))
        source = encode_source(
            "a", iter(documents), tokenizer, spool, index_path(folder, "a"), aside, 1, lambda *_: None
        )
    weights = [1.0] * len(source.tokens)
    for place, weight in zip(
        source.spans.places().tolist(), source.spans.weights.repeat(source.spans.lengths), strict=True
    ):
        weights[place] = float(weight)
    tokens = source.tokens.tolist()
    return [
        list(zip(tokens[a:b], weights[a:b], strict=True))
        for a, b in zip(source.starts, source.starts[1:], strict=False)
    ]


TALK = (("user", "Is fever a symptom?"), ("assistant", "是。"), ("user", "Why? "), ("assistant", "It is."))


def test_the_token_behind_each_learned_answer_is_a_target_and_what_opens_it_is_none(tmp_path):
    """By hand: the next role token and EOS are learned, `<C_A>` never is."""
    (document,) = render(OURS, conversation(("system", "发热"), *TALK))
    (found,) = encoded(OURS, [document], tmp_path)
    e = OURS.encode
    expected = [(i, 0.0) for i in (SYS, *e("发热"), USER, *e("Is fever a symptom?"), ASSISTANT)]
    expected += [(i, 1.0) for i in (*e("是。"), USER)]
    expected += [(i, 0.0) for i in (*e("Why? "), ASSISTANT)]
    expected += [(i, 1.0) for i in (*e("It is."), OURS.eos_id)]
    assert found == expected
    assert document.text == "<B_SYS>发热<C_Q>Is fever a symptom?<C_A>是。<C_Q>Why? <C_A>It is."
    assert list(screen([document])) == [document]


def test_weights_are_those_of_answers_and_of_what_ends_them(tmp_path):
    some = conversation(*TALK, ("function", "42"), ("assistant", "OK"), weights=(0.5, 0, 2))
    (found,) = encoded(OURS, render(OURS, some), tmp_path)
    e = OURS.encode
    learned = [(i, w) for i, w in found if w]
    assert learned == [(i, 0.5) for i in (*e("是。"), USER)] + [(i, 2.0) for i in (*e("OK"), OURS.eos_id)]
    assert (FUNCTION, 0.0) in found  # it ends an answer of weight 0


def test_an_end_mark_of_the_turn_itself(tmp_path, chatml):
    """ChatML: `<|im_end|>` is learned; the line end, and EOS behind another mark, are not."""
    (found,) = encoded(chatml, render(chatml, conversation(*TALK)), tmp_path)
    end, e = chatml.token_id("<|im_end|>"), chatml.encode
    assert [i for i, weight in found if weight] == [*e("是。"), end, *e("It is."), end]
    assert found[-2:] == [(end, 1.0), (chatml.eos_id, 0.0)]


def test_an_end_mark_that_is_eos_comes_once(tmp_path):
    """As in SmolLM2, where <|im_end|> is EOS."""
    tokenizer = made.make(tmp_path / "t", made.CHATML, eos_token="<|im_end|>")
    assert tokenizer.eos_id == tokenizer.token_id("<|im_end|>")
    (found,) = encoded(tokenizer, render(tokenizer, conversation(*TALK)), tmp_path)
    assert found[-1] == (tokenizer.eos_id, 1.0) and found[-2][0] != tokenizer.eos_id


def test_marks_typed_in_a_message_are_text(tmp_path):
    typed = "say <C_A> and <C_Q> and <eos>"
    (found,) = encoded(OURS, render(OURS, conversation(("user", typed), ("assistant", typed))), tmp_path)
    ids = [i for i, _ in found]
    assert (ids.count(ASSISTANT), ids.count(USER), ids.count(OURS.eos_id)) == (1, 1, 1)
    assert OURS.decode([i for i, weight in found if weight]) == typed


@given(
    turns=st.lists(
        st.tuples(made.contents(), made.contents(), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=4
    ),
    learn=st.sampled_from(["all", "last"]),
    row_length=st.integers(30, 120),
)
@settings(max_examples=100, deadline=None)
def test_ids_are_those_of_the_chat_and_cuts_are_at_turns(tmp_path_factory, turns, learn, row_length):
    """Independent of how parts are made: the ids that `encode` gives for a prefix of messages, EOS last."""
    spoken = [turn for turn in turns if not BLANK.fullmatch(turn[0]) and not BLANK.fullmatch(turn[1])]
    try:
        some = conversation(
            *[turn for q, a, _ in spoken for turn in (("user", q), ("assistant", a))], weights=[w for *_, w in spoken]
        )
    except UnusableError:  # no answer is learned
        return
    chats = chat.of(OURS)
    prefixes = [chats.encode(some.messages[:size]) for size in range(2, len(some.messages) + 1, 2)]
    fitting = [ids for ids in prefixes if len(ids) <= row_length]
    items = render(OURS, some, row_length=row_length)
    first = next(i for i, weight in enumerate(some.weights) if weight) // 2
    if len(fitting) <= first:
        (aside,) = items
        assert aside.reason == f"the first answer that is learned ends beyond a row of {row_length} tokens"
        return
    document, *rest = items
    (found,) = encoded(OURS, [document], tmp_path_factory.mktemp("e"))
    assert [i for i, _ in found] == fitting[-1] and fitting[-1][-1] == OURS.eos_id
    assert [item.reason for item in rest] == (
        [f"the end of a conversation, cut at a turn to fit a row of {row_length} tokens"]
        if len(fitting) < len(prefixes)
        else []
    )


def test_what_is_cut_off_is_set_aside_with_its_text():
    some = conversation(*TALK, number=7)
    whole = len(chat.of(OURS).encode(some.messages))
    (document,) = render(OURS, some, row_length=whole)
    document, end = render(OURS, some, row_length=whole - 1)
    assert document.text.endswith("是。")
    reason = f"the end of a conversation, cut at a turn to fit a row of {whole - 1} tokens"
    assert end == Rejected("a#7", reason, "user: Why? \nassistant: It is.", "a")
    shortest = len(chat.of(OURS).encode(some.messages[:2]))
    (aside,) = render(OURS, some, row_length=shortest - 1)
    assert aside.reason == f"the first answer that is learned ends beyond a row of {shortest - 1} tokens"
    last = conversation(*TALK, learn="last")
    (aside,) = render(OURS, last, row_length=whole - 1)
    assert isinstance(aside, Rejected) and aside.text.startswith("user: Is fever")


def test_a_long_conversation_is_not_encoded_once_for_each_answer():
    some = conversation(*TALK * 300)
    talks = chat.of(OURS)
    calls = []

    def counted(messages, *, parts=talks.parts):
        calls.append(len(messages))
        return parts(messages)

    talks.parts = counted
    assert len(list(Renderer(talks, OURS, 200).documents([some]))) == 2
    assert len(calls) <= 3 and calls[0] == 1200 and sum(calls[1:]) < 60
    encode = chat.of(OURS).encode
    assert len(encode(some.messages[: calls[-1]])) <= 200 < len(encode(some.messages[: calls[-1] + 2]))


def test_a_question_that_nobody_answers_is_no_part_of_the_document():
    document, end = render(OURS, conversation(*TALK[:3]))
    assert isinstance(document, Document) and document.text.endswith("是。")
    assert (end.reason, end.text) == (UNANSWERED, "user: Why? ")


def test_roles_that_a_format_does_not_have(chatml):
    turns = talk(*TALK, ("function", "42"), ("assistant", "OK"))
    some = Conversation("a#1", *checked(turns), "a", "en", "general")
    (aside,) = render(chatml, some)
    assert aside.reason == "the chat format ChatML has no role function"


def test_a_conversation_that_came_before_is_a_duplicate():
    documents = render(OURS, conversation(*TALK), conversation(*TALK, number=2), conversation(*TALK, weights=(0,)))
    found = list(screen(documents))
    assert [isinstance(item, Document) for item in found] == [True, False, True]
    assert found[1].reason == "duplicate text"


def test_an_evaluation_item_in_a_message_is_an_overlap():
    item = "Which of the following drugs is best for a man of forty with a cough and a fever?"
    documents = render(OURS, conversation(("user", item), ("assistant", "x")), conversation(*TALK, number=2))
    found = list(screen(documents, NgramIndex([item])))
    assert [getattr(one, "reason", "") for one in found] == ["evaluation overlap", ""]
