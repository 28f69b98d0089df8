"""What a model reads of a question, as a text that goes on and as a chat."""

import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers

from m1jax.evaluate import forms
from m1jax.evaluate.items import Item
from m1jax.tokenizer import SpecialIds, chat, train
from m1jax.tokenizer.json_file import JsonTokenizer
from tests.evaluate.test_choice import Bytes

PIECES = [
    "▁Where",
    "▁is",
    "▁it",
    ":",
    "▁the",
    "▁heart",
    "▁lung",
    "▁",
    "the",
    ":▁the",
    "：肺",
    "：",
    "肺",
    "炎",
    "在",
    "哪",
]


def dummy_prefix():
    """A tokenizer that puts a space before every text, and one token that spans the join of prompt and choice."""
    special = ["<s>", "</s>", "<pad>", "<unk>"]
    scores = [(token, 0.0) for token in special] + [(piece, -float(len(PIECES) - n)) for n, piece in enumerate(PIECES)]
    scores = [(piece, -1.0 if piece in (":▁the", "：肺") else score) for piece, score in scores]
    backend = tokenizers.Tokenizer(models.Unigram(scores, unk_id=3, byte_fallback=False))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.add_special_tokens(special)
    return JsonTokenizer(backend, SpecialIds(0, 1, 2))


def names(tokenizer, ids):
    return [tokenizer._tokens[i] for i in ids]


def test_the_tokens_of_a_choice_are_those_of_the_whole_text():
    tokenizer = dummy_prefix()
    options = ("heart", "lung lung")
    (asked,) = forms.continued(["Where is it"], [options], tokenizer)
    for end, option in zip(asked.ends, options, strict=True):
        assert [*asked.prompt, *end] == tokenizer.encode(f"Where is it {option}")
    assert [names(tokenizer, end) for end in asked.ends] == [["▁heart"], ["▁lung", "▁lung"]]
    assert asked.longest == len(asked.prompt) + 2


def test_where_a_token_spans_the_join_all_choices_are_cut_before_it():
    tokenizer = dummy_prefix()
    (asked,) = forms.continued(["Where is it:"], [("the heart", "heart")], tokenizer)
    assert [[*asked.prompt, *end] for end in asked.ends] == [
        tokenizer.encode("Where is it: the heart"),
        tokenizer.encode("Where is it: heart"),
    ]
    # What is scored begins at the same place of the text for every choice, else one would be scored for less text.
    assert [names(tokenizer, end) for end in asked.ends] == [[":▁the", "▁heart"], [":", "▁heart"]]
    # One token holds the whole prompt and a part of the choice: nothing would be left to condition on.
    (asked,) = forms.continued([":"], [("the", "heart")], Joined())
    assert asked == forms.Asked((1,), ((3,), (4,)))


class Joined:
    """Knows five texts."""

    def encode_batch(self, texts):
        return [{":": [1], ": the": [2], ": heart": [1, 4], " the": [3], " heart": [4]}[text] for text in texts]


@settings(deadline=None)
@given(
    st.text("ab :", min_size=1, max_size=8), st.lists(st.text("ab :", min_size=1, max_size=4), min_size=1, max_size=3)
)
def test_bytes_are_cut_at_the_prompt(prompt, choices):
    (asked,) = forms.continued([prompt], [choices], Bytes())
    assert bytes(asked.prompt).decode() == prompt
    assert [bytes(end).decode() for end in asked.ends] == [f" {choice}" for choice in choices]


def test_a_chat_has_the_ids_of_a_conversation_and_scores_the_text_of_the_answer():
    tokenizer = train(iter(["Which organ pumps blood? - the heart - the liver"] * 20), 420)
    talk = chat.of(tokenizer)
    item = Item("a", "Which organ?", ("the heart", "the liver"), 0, context="It pumps blood.")
    (asked,) = forms.as_chat([item], talk)
    question = "It pumps blood.\n\nWhich organ?\n- the heart\n- the liver"
    for end, option in zip(asked.ends, item.choices, strict=True):
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": option}]
        # Of Baichuan-M1's format only the token that ends the answer is missing.
        assert [*asked.prompt, *end, tokenizer.eos_id] == talk.encode(turns)
        assert tokenizer.decode(end) == option
    assert list(asked.prompt) == talk.encode(turns[:1], add_generation_prompt=True)
    (bare,) = forms.as_chat([Item("a", "Which organ?", ("the heart", "the liver"), 0)], talk)
    assert tokenizer.decode(bare.prompt).endswith("Which organ?\n- the heart\n- the liver")
    (cloze,) = forms.as_chat([item], talk, "chat-cloze")
    turns = [{"role": "user", "content": "It pumps blood.\n\nWhich organ?"}, turns[1]]
    assert [*cloze.prompt, *cloze.ends[1], tokenizer.eos_id] == talk.encode(turns)


def test_a_text_reads_the_context_first():
    assert forms.text_before(Item("a", "Is it?", ("yes", "no"), 0, context="It is.")) == (
        "Context: It is.\nQuestion: Is it?\nAnswer:"
    )
