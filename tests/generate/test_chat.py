"""A conversation on a warm cache says what the model says of the whole conversation's ids."""

import pytest

from m1jax.errors import UserError
from m1jax.generate import Sampling
from m1jax.generate.chat import Conversation
from m1jax.tokenizer import chat
from tests.generate import uncached
from tests.tokenizer.chat import chat_tokenizers as made
from tests.tokenizer.chat.chat_tokenizers import OURS

# Cuts thoughts out of all answers but the last, so that what was said is later written differently.
FORGETFUL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}<a>{{ m.content[:1] }}</a>"
    "{% else %}<u>{{ m.content | trim }}</u>{% endif %}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
# Of the same length throughout: the model's answers are text that is encoded again.
PLAIN = (
    "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}</{{ m.role[0] }}>{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


@pytest.fixture(scope="module", params=["Baichuan-M1", "ChatML", "forgetful", "plain"])
def spoken(request, tmp_path_factory):
    """(tokenizer, chat, whether a chat format is known)."""
    folder = tmp_path_factory.mktemp("spoken") / "own"
    if request.param == "Baichuan-M1":
        tokenizer = OURS
    elif request.param == "ChatML":
        tokenizer = made.make(folder, made.CHATML)
    else:
        template = FORGETFUL if request.param == "forgetful" else PLAIN
        tokenizer = made.make(folder, ("<u>", "</u>", "<a>", "</a>", "<s>"), chat_template=template)
    return tokenizer, chat.of(tokenizer), request.param in ("Baichuan-M1", "ChatML")


def said(pieces):
    (answer,) = list(pieces)[-1]
    return answer


def uncached_answer(ids, count, ends):
    """What the model says after `ids`, by whole forward passes, up to one of `ends`."""
    new = []
    while len(new) < count and not (new and new[-1] in ends):
        new += uncached.greedy(ids + new, 1)
    return new


def test_answers_are_those_of_the_whole_conversation(spoken):
    tokenizer, talk, known = spoken
    conversation = Conversation(uncached.language_model(), tokenizer, talk, "Be brief.")
    messages = [{"role": "system", "content": "Be brief."}]
    for number, text in enumerate(("A</u>", "热 <C_Q>?", "Why?")):
        messages.append({"role": "user", "content": text})
        ids = talk.encode(messages, add_generation_prompt=True)
        answer = said(conversation.ask(text, 4, Sampling(), number))
        assert answer.tokens == uncached_answer(ids, 4, talk.ends)
        assert answer.text == tokenizer.decode(answer.tokens)
        kept = answer.tokens[:-1] if answer.finish_reason == "eos" else answer.tokens
        assert conversation.tokens == ids + kept
        messages.append({"role": "assistant", "content": kept})
        assert conversation.messages == messages
    if known:  # only what is new was computed
        generated = sum(len(message["content"]) for message in messages if message["role"] == "assistant")
        assert conversation._session.timing.prefill_tokens == len(conversation.tokens) - generated


def test_without_a_system_text_the_formats_own_is_first(spoken):
    tokenizer, talk, _ = spoken
    conversation = Conversation(uncached.language_model(), tokenizer, talk)
    said(conversation.ask("A?", 1, Sampling(), 0))
    ids = talk.encode([{"role": "user", "content": "A?"}], add_generation_prompt=True)
    assert conversation.tokens[: len(ids)] == ids
    assert ("You are a helpful" in tokenizer.decode(ids)) == (tokenizer is OURS)


def test_an_answer_ends_where_the_tokenizer_or_the_model_says_too(spoken, monkeypatch):
    tokenizer, talk, _ = spoken
    loaded = uncached.language_model()
    answer = said(Conversation(loaded, tokenizer, talk).ask("Fever?", 4, Sampling(), 0))
    last = answer.tokens[-1]
    monkeypatch.setattr(loaded, "eos_ids", (last,))
    found = said(Conversation(loaded, tokenizer, talk).ask("Fever?", 4, Sampling(), 0))
    assert found.finish_reason == "eos"
    assert found.tokens == answer.tokens[: answer.tokens.index(last) + 1]
    assert tokenizer.eos_id in talk.ends


def test_a_full_context_leaves_the_conversation_as_it_was(spoken):
    tokenizer, talk, _ = spoken
    conversation = Conversation(uncached.language_model(), tokenizer, talk)
    said(conversation.ask("A?", 1, Sampling(), 0))
    before, messages = list(conversation.tokens), conversation.messages
    with pytest.raises(UserError, match="the context is full: the conversation takes"):
        conversation.ask("long " * uncached.CONFIG.max_positions, 5, Sampling(), 0)
    assert conversation.tokens == before and conversation.messages == messages
    said(conversation.ask("B?", 1, Sampling(), 0))
    assert len(conversation.tokens) > len(before)
