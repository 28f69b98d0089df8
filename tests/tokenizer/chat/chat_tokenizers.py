"""Small tokenizers with the special tokens of one chat format or of several, and conversations for them."""

import json

from hypothesis import strategies as st
from tokenizers import AddedToken, models

from m1jax import tokenizer as tokenizers
from m1jax.tokenizer import layout, train

TEXTS = [
    "The patient has a fever of 39 degrees.\n\n",
    "患者发热三天，体温39度。患者咳嗽。 user\nassistant\nsystem\n",
] * 10
BAICHUAN = ("<B_SYS>", "<B_USYS>", "<C_Q>", "<C_A>", "<B_FUNC>", "<B_CODE>")
CHATML = ("<|im_start|>", "<|im_end|>")
OURS = train(iter(TEXTS), 432)


def make(folder, marks, special=True, **config):
    """The tokenizer of a folder with a tokenizer.json of its own, in which `marks` are (special) added tokens."""
    merges = [pair for pair in OURS.merges if not {*pair} & {*layout.SPECIAL_TOKENS}]
    tokens = [*layout.BYTE_CHARACTERS, *(left + right for left, right in merges)]
    backend = layout.pipeline(models.BPE({token: i for i, token in enumerate(tokens)}, list(merges)))
    backend.add_special_tokens(["<s>", "</s>"])
    marks = [AddedToken(mark, special=special, normalized=False) for mark in marks]
    backend.add_special_tokens(marks) if special else backend.add_tokens(marks)
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**names, **config}), encoding="utf-8")
    return tokenizers.load(folder)


def talk(*turns):
    return [{"role": role, "content": text} for role, text in turns]


def contents(*marks):
    """Any text, pieces of special tokens among it, whole ones not."""
    parts = st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("<>|_CQ热\n "))
    return st.text(parts, max_size=20).filter(lambda text: not any(mark in text for mark in marks))


def talks(roles, text):
    turns = st.lists(st.tuples(st.sampled_from(roles), text), max_size=5)
    return turns.map(lambda found: talk(*found))
