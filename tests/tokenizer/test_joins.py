"""Parts of one text, with tokenizers that put a space before a text: no part but the first gets it."""

import json

import numpy as np
import pytest
import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from m1jax import tokenizer as m1_tokenizers
from m1jax.rows.packed import open_stores
from m1jax.rows.packing import pack
from m1jax.text.documents import Document, Part
from m1jax.tokenizer import SpecialIds, chat, joins, train
from m1jax.tokenizer.chat import CHATML, jinja
from tests.tokenizer.tokenizer_texts import GENERAL, MEDICAL

MARKS = ("<|im_start|>", "<|im_end|>")
STRANGE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
)
TALK = [
    {"role": "user", "content": "发热 b 1?"},
    {"role": "assistant", "content": "ab 在"},
    {"role": "user", "content": " b"},
]


def prefixed(folder, scheme, template):
    """A tokenizer.json that writes a space as ▁ and puts one before a text, by a normaliser (old Llamas) or not."""
    tokens = [
        "<s>",
        "</s>",
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁b",
        *"abcdefghijklmnopqrstuvwxyz",
    ]
    model = models.BPE(
        {token: i for i, token in enumerate(tokens)}, [("▁", "b")], byte_fallback=True, unk_token="<unk>"
    )
    backend = Tokenizer(model)
    if scheme == "normalizer":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in ("<s>", "</s>", *MARKS)])
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<s>", "unk_token": "<unk>"}
    settings = {**names, "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return m1_tokenizers.load(folder)


@pytest.mark.parametrize("scheme", ["normalizer", "always", "first", "never"])
@pytest.mark.parametrize("kind", ["format", "strange"])
def test_a_conversation_has_the_ids_of_transformers(kind, scheme, tmp_path):
    template = STRANGE if kind == "strange" else jinja.template(CHATML, MARKS)
    tokenizer = prefixed(tmp_path / "own", scheme, template)
    ours, theirs = chat.of(tokenizer), AutoTokenizer.from_pretrained(tokenizer.folder)
    assert ("ChatML" in ours.origin) == (kind == "format")
    for prompt in (True, False):
        wanted = theirs.apply_chat_template(TALK, add_generation_prompt=prompt, return_dict=False)
        assert ours.encode(TALK, add_generation_prompt=prompt) == wanted


def pieces(folder):
    prefix = folder / "pieces"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*GENERAL, *MEDICAL]), model_prefix=str(prefix), vocab_size=400, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return m1_tokenizers.load(prefix.with_suffix(".model"), SpecialIds(pad=0))


MAKE = {
    "ours": lambda folder: train(iter([*GENERAL, *MEDICAL]), 430),
    "first": lambda folder: prefixed(folder / "own", "first", STRANGE),
    "normalizer": lambda folder: prefixed(folder / "own", "normalizer", STRANGE),
    "sentencepiece": pieces,
}


def ids_of(tokenizer, parts):
    return joins.continued(tokenizer, parts, joins.lead_of(tokenizer))


@pytest.mark.parametrize("name", MAKE)
def test_parts_of_a_text_decode_to_it(name, tmp_path):
    tokenizer = MAKE[name](tmp_path)
    assert (joins.lead_of(tokenizer) is None) == (name == "ours")
    parts = ["the fever", "began", " 12 days ago", "，患者", "发热\n", "b"]
    document = Document.of_parts("a#1", [Part(part) for part in parts], source="a", language="en", domain="text")
    manifest = pack({"a": lambda: iter([document])}, tokenizer, tmp_path / "rows", [128], 1, 0)
    row = open_stores(str(tmp_path / "rows"), manifest, [(128, "a")])[128, "a"][0]
    assert tokenizer.decode(row.tokens.tolist()) == "".join(parts)
    assert tokenizer.encode(parts[1], continues=True) == np.asarray(ids_of(tokenizer, parts[1:2])[0]).tolist()
    # Parts whose borders are those of tokens have the ids of the whole text.
    ids = [tokenizer.encode(parts[0]), *ids_of(tokenizer, parts[1:])]
    assert [i for some in ids for i in np.asarray(some).tolist()] == row.tokens.tolist()[: sum(map(len, ids))]
    whole = tokenizer.encode("a。b")
    assert tokenizer.encode("a。") + tokenizer.encode("b", continues=True) == whole
