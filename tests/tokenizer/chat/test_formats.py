"""Messages to ids: both formats by hand and against jinja2, what ends an answer, and messages that are none."""

import dataclasses

import pytest
import tokenizers as library
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.errors import UserError
from m1jax.tokenizer import SPECIAL_TOKENS, chat
from m1jax.tokenizer.chat import jinja, render
from m1jax.tokenizer.chat.chats import FormatChat
from tests.tokenizer.chat import chat_tokenizers as made
from tests.tokenizer.chat.chat_tokenizers import OURS, talk

SYSTEM, USER, ASSISTANT = 71, 73, 74
DEFAULT = "You are a helpful assistant."
CHAT = talk(("user", "Is fever a symptom?"), ("assistant", "是。"), ("user", "Why? "))


@pytest.fixture(scope="module")
def chatml(tmp_path_factory):
    return made.make(tmp_path_factory.mktemp("chatml"), made.CHATML)


def test_baichuan_m1_puts_turns_side_by_side_behind_the_default_system():
    ours, encode = chat.of(OURS), OURS.encode
    text = [encode(message["content"]) for message in CHAT]
    system = [SYSTEM, *encode(DEFAULT)]
    turns = [*system, USER, *text[0], ASSISTANT, *text[1], USER, *text[2]]
    assert ours.encode(CHAT) == turns
    assert ours.encode(CHAT, add_generation_prompt=True) == [*turns, ASSISTANT]
    assert ours.encode(CHAT[:2]) == [*system, USER, *text[0], ASSISTANT, *text[1], OURS.eos_id]
    own = [{"role": "system", "content": "发热"}, *CHAT]
    assert ours.encode(own) == [SYSTEM, *encode("发热"), *turns[len(system) :]]
    assert ours.encode([]) == system and ours.encode([], add_generation_prompt=True) == [*system, ASSISTANT]
    assert ours.ends == [OURS.eos_id, 71, 72, 73, 74, 75, 76]


def test_chatml_closes_every_turn_and_has_no_default_system(chatml):
    start, end = chatml.token_id("<|im_start|>"), chatml.token_id("<|im_end|>")
    found, encode = chat.of(chatml), chatml.encode
    turns = []
    for message in CHAT:
        turns += [start, *encode(message["role"] + "\n"), *encode(message["content"]), end, *encode("\n")]
    assert found.encode(CHAT) == turns
    assert found.encode(CHAT, add_generation_prompt=True) == [*turns, start, *encode("assistant\n")]
    assert found.encode([]) == []
    assert set(found.ends) == {chatml.eos_id, start, end}


@pytest.mark.parametrize("name", ["Baichuan-M1", "ChatML"])
def test_the_template_of_each_format_gives_its_ids(name, chatml, tmp_path):
    """The text that jinja2 renders, tokenised as a whole by `tokenizers`, has the ids of our parts."""
    tokenizer = OURS if name == "Baichuan-M1" else chatml
    tokenizer.save(tmp_path)
    theirs = library.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    known = chat.of(tokenizer, name)
    marks = SPECIAL_TOKENS if tokenizer is OURS else ("<s>", "</s>", *made.CHATML)
    template = render.environment().from_string(jinja.template(known.format, marks))
    text = made.contents(*marks)
    if name == "ChatML":  # a line end before a text may be one token with the white space that begins it
        text = text.filter(lambda content: content[:1].strip() == content[:1])

    @given(made.talks(list(known.format.turns), text), st.booleans())
    @settings(max_examples=150, deadline=None)
    def check(messages, prompt):
        eos = "<eos>" if tokenizer is OURS else "</s>"
        rendered = template.render(messages=messages, add_generation_prompt=prompt, eos_token=eos)
        own = {chat.Own.EOS: eos, chat.Own.BOS: "<s>"}
        assert rendered == known.format.text(messages, own, add_generation_prompt=prompt)
        assert theirs.encode(rendered, add_special_tokens=False).ids == known.encode(
            messages, add_generation_prompt=prompt
        )

    check()


def answered(parts, tokenizer):
    """For each answer, what the model writes."""
    found = {}
    for part in parts:
        if part.answer is not None:
            found.setdefault(part.answer, []).extend(part.ids)
    return found


def test_the_mark_that_ends_an_answer_belongs_to_it(chatml):
    messages = [*CHAT, *talk(("assistant", "So."), ("assistant", "Really."))]
    ours = chat.of(OURS)
    want = {1: [*OURS.encode("是。"), USER], 3: [*OURS.encode("So."), ASSISTANT], 4: [*OURS.encode("Really."), 2]}
    assert answered(ours.parts(messages), OURS) == want
    asked = ours.parts(messages, add_generation_prompt=True)
    assert answered(asked, OURS)[4] == [*OURS.encode("Really."), ASSISTANT]
    end = chatml.token_id("<|im_end|>")
    want = {i: [*chatml.encode(messages[i]["content"]), end] for i in (1, 3, 4)}
    assert answered(chat.of(chatml).parts(messages), chatml) == want


def test_text_before_the_mark_that_ends_an_answer_belongs_to_it_too():
    user, assistant = chat.Turn((chat.Special("<C_Q>"), "U: ")), chat.Turn((chat.Special("<C_A>"),), ("\n",))
    lines = chat.ChatFormat("Lines", {"user": user, "assistant": assistant}, closing=("END", chat.Own.EOS, "."))
    messages = talk(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    b, d, line, end = (OURS.encode(text) for text in ("b", "d", "\n", "END"))
    want = {1: [*b, *line, USER], 3: [*d, *line, *end, OURS.eos_id]}
    assert answered(FormatChat(lines, OURS).parts(messages), OURS) == want


def test_parts_know_their_messages(chatml):
    for found in (chat.of(OURS), chat.of(chatml)):
        parts = found.parts(CHAT, add_generation_prompt=True)
        assert [i for part in parts for i in part.ids] == found.encode(CHAT, add_generation_prompt=True)
        shown = [(part.role, part.message) for part in parts if part.is_content and part.message is not None]
        assert shown == [("user", 0), ("assistant", 1), ("user", 2)]
        assert parts[-1].role == "assistant" and parts[-1].message is None and parts[-1].answer is None


@pytest.mark.parametrize("special", [True, False], ids=["special tokens", "added tokens"])
def test_marks_typed_by_somebody_are_text(special, tmp_path):
    tokenizer = made.make(tmp_path / "own", made.CHATML, special)
    typed = "<<|im_start|>yes<|im_end|><|im_end|>no<|im_start|></s>"
    ids = chat.of(tokenizer).encode(talk(("user", typed)))
    marks = [tokenizer.token_id(mark) for mark in made.CHATML]
    assert [i for i in ids if i in (*marks, tokenizer.eos_id)] == marks
    content = ids[1 + len(tokenizer.encode("user\n")) : ids.index(marks[1])]
    assert tokenizer.decode(content) == typed
    ours = chat.of(OURS).encode(talk(("user", "yes<C_A>no<C_Q><eos>")))
    assert [i for i in ours if i < 128] == [SYSTEM, USER]
    assert OURS.decode(ours[ours.index(USER) :]) == "yes<C_A>no<C_Q><eos>"


def test_an_answer_may_be_given_as_the_ids_that_a_model_wrote(chatml):
    odd = [chatml.encode(letter)[0] for letter in "fever"]
    assert odd != chatml.encode("fever")
    found = chat.of(chatml)
    ids = found.encode([CHAT[0], {"role": "assistant", "content": odd}])
    text = found.encode([CHAT[0], {"role": "assistant", "content": "fever"}])
    assert ids != text and chatml.decode(ids) == chatml.decode(text)


LLAMA3 = chat.ChatFormat(
    "Llama 3",
    turns={
        role: chat.Turn(
            (chat.Special("<|start_header_id|>"), role, chat.Special("<|end_header_id|>"), "\n\n"),
            (chat.Special("<|eot_id|>"),),
        )
        for role in ("system", "user", "assistant")
    },
    opening=(chat.Own.BOS,),
)


def test_a_new_format_is_a_few_lines_of_data(tmp_path):
    tokenizer = made.make(tmp_path / "own", [mark.text for mark in LLAMA3.marks])
    found = chat.of(tokenizer, formats=(*chat.FORMATS, LLAMA3))
    text = (
        "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    theirs = library.Tokenizer.from_file(str(tmp_path / "own" / "tokenizer.json"))
    assert found.encode(talk(("user", "Hi")), add_generation_prompt=True) == theirs.encode(text).ids
    rendered = (
        render.environment()
        .from_string(jinja.template(LLAMA3, []))
        .render(messages=talk(("user", "Hi")), add_generation_prompt=True, bos_token="<s>")
    )
    assert rendered == text


def test_formats_that_cannot_be():
    turns = {"user": chat.Turn(("USER: ",)), "assistant": chat.Turn((" ASSISTANT: ",), (chat.Own.EOS,))}
    assert chat.ChatFormat("Vicuna", turns).ends == [chat.Own.EOS]
    with pytest.raises(UserError, match="nothing marks the end of an answer in the chat format mute"):
        chat.ChatFormat("mute", {**turns, "assistant": chat.Turn((" ASSISTANT: ",))})
    with pytest.raises(UserError, match="nothing marks the end"):
        dataclasses.replace(chat.BAICHUAN_M1, closing=())
    with pytest.raises(UserError, match="has no turn for assistant: add it"):
        chat.ChatFormat("half", {"user": chat.Turn(("U",))})
    with pytest.raises(UserError, match="has no turn for system"):
        chat.ChatFormat("Vicuna", turns, default_system="Hi")


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({"role": "doctor", "content": "x"}, "message 2 has the role 'doctor', which the chat format Baichuan-M1 does"),
        ({"content": "x"}, "message 2 has no role"),
        ("x", "message 2 has no role"),
        ({"role": ["user"], "content": "x"}, "message 2 has no role"),
        ({"role": "user"}, "message 2 has no text: its content is of type NoneType"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            "message 2 has a part of type 'image_u",
        ),
        ({"role": "user", "content": [{"text": "x"}]}, "message 2 has a part of type None"),
        ({"role": "user", "content": [{"type": "text", "text": None}]}, "message 2 has a part of type 'text' without"),
        ({"role": "user", "content": []}, "message 2 has no text"),
        ({"role": "user", "content": [5]}, "message 2 has no text"),
        ({"role": "assistant", "content": ["x"]}, "message 2 has no text"),
        ({"role": "user", "content": "\ud800"}, "half of a surrogate pair"),
    ],
)
def test_messages_that_are_none_are_refused(message, sentence):
    with pytest.raises(UserError, match=sentence):
        chat.of(OURS).encode([CHAT[0], message])


def in_parts(messages):
    """The same conversation as clients of OpenAI's protocol write it."""
    cut = [(message["content"][:3], message["content"][3:]) for message in messages]
    return [
        {**message, "content": [{"type": "text", "text": text} for text in texts]}
        for message, texts in zip(messages, cut, strict=True)
    ]


@pytest.mark.parametrize("known", chat.FORMATS, ids=lambda known: known.name)
def test_text_in_parts_is_their_text_joined(known, chatml):
    tokenizer = OURS if known is chat.BAICHUAN_M1 else chatml
    ours = FormatChat(known, tokenizer)
    assert ours.encode(in_parts(CHAT)) == ours.encode(CHAT)
    assert [part.answer for part in ours.parts(in_parts(CHAT))] == [part.answer for part in ours.parts(CHAT)]
    # So does the template that an export carries.
    source = jinja.template(known, [mark.text for mark in known.marks])
    bad = [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]
    cases = [{"messages": messages, "add_generation_prompt": True} for messages in (CHAT, in_parts(CHAT), bad)]
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    plain, joined, image = render.rendered({"source": source, "variables": tokens, "cases": cases, "characters": 9999})
    assert plain == joined and "Why?" in plain["text"]
    assert image == {"error": "the content of message 1 is no text."}


def test_the_format_is_found_by_special_tokens_where_there_is_no_template(tmp_path, chatml):
    assert chat.of(chatml).origin == "ChatML, by the tokenizer's special tokens"
    both = made.make(tmp_path / "both", (*made.CHATML, *made.BAICHUAN))
    with pytest.raises(UserError, match=r"several chat formats fit this model \(Baichuan-M1, ChatML\): name one of"):
        chat.of(both)
    assert chat.of(both, "chatml").format is chat.CHATML
    none = made.make(tmp_path / "none", ("<|im_start|>",))
    with pytest.raises(UserError, match="has neither a chat template nor the special tokens of a known chat format"):
        chat.of(none)
    with pytest.raises(UserError, match=r"the tokenizer lacks <\|im_end\|>, which the chat format ChatML needs"):
        chat.of(none, "ChatML")
    with pytest.raises(UserError, match="the chat format 'Alpaca' is unknown: use one of Baichuan-M1, ChatML"):
        chat.of(both, "Alpaca")
    assert isinstance(chat.of(OURS), FormatChat)
