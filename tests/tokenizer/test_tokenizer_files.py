"""Tokenizers of other origin: the ids of the library that made them, and what is asked of their special tokens."""

import json

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from m1jax import tokenizer as m1_tokenizers
from m1jax.errors import UserError
from m1jax.tokenizer import SpecialIds, TrainedTokenizer, train
from tests.tokenizer.tokenizer_texts import GENERAL, MEDICAL

TEXTS = [*GENERAL, *MEDICAL, "🙂 unseen ɸ 鹹", "<s>typed</s>", "", " two  spaces ", "▁"]
NAMES = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "pad_token": "<pad>"}
GIVEN = SpecialIds(0, 1, 2)


def byte_level():
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS[:12], trainer)
    ends = [("<s>", 0), ("</s>", 1)]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return backend


def unigram_with_fallback():
    scores = [("<s>", 0.0), ("</s>", 0.0), ("<pad>", 0.0), ("<unk>", 0.0)]
    scores += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    scores += [
        (piece, -float(rank)) for rank, piece in enumerate(("▁the", "▁", "the", "e", "患者", "发热", "▁fever"), 1)
    ]
    backend = tokenizers.Tokenizer(models.Unigram(scores, unk_id=3, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    backend.add_special_tokens(["<s>", "</s>", "<pad>", "<unk>"])
    return backend


def word_pieces():
    pieces = ["<s>", "</s>", "<pad>", "[UNK]", "the", "fe", "##ver", "patient", "患", "者"]
    model = models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]")
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(["<s>", "</s>", "<pad>"])
    return backend


@pytest.mark.parametrize("make", [byte_level, unigram_with_fallback, word_pieces])
def test_any_tokenizer_json_gives_its_own_ids(make, tmp_path):
    theirs = make()
    theirs.enable_truncation(3)
    theirs.enable_padding(length=9)
    theirs.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(NAMES))
    tokenizer = m1_tokenizers.load(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 2)
    assert tokenizer.vocab_size == theirs.get_vocab_size() and tokenizer.encoder_name == "tokenizers"
    theirs.no_truncation()
    theirs.no_padding()
    theirs.encode_special_tokens = True
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode([0, *ids, 1, 2, 10**6]) == theirs.decode(ids)
    tokenizer.save(tmp_path / "again")
    again = m1_tokenizers.load(tmp_path / "again")
    assert again.fingerprint == tokenizer.fingerprint and again.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)
    assert (again.bos_id, again.eos_id, again.pad_id) == (0, 1, 2)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    path = tmp_path_factory.mktemp("other") / "tokenizer.json"
    byte_level().save(str(path))
    return path


@given(st.one_of(st.binary(max_size=30), st.text(max_size=30).map(str.encode)))
@settings(max_examples=100, deadline=None)
def test_byte_level_files_are_exact_on_any_bytes(other, data):
    tokenizer = m1_tokenizers.load(other, GIVEN)
    ids = tokenizer.encode_bytes(data)
    assert tokenizer.decode_bytes(ids) == data and sum(tokenizer.token_bytes[i] for i in ids) == len(data)


def test_special_ids_are_given_found_or_asked_for(other, tmp_path):
    with pytest.raises(UserError, match=r"bos or eos or pad: set the config keys data\.special_ids\.bos, .*eos, .*pad"):
        m1_tokenizers.load(other)
    with pytest.raises(UserError, match=r"says which token is pad: set the config keys data\.special_ids\.pad,"):
        m1_tokenizers.load(other, SpecialIds(bos=0, eos=1))
    with pytest.raises(UserError, match=r"no id 999 for eos: correct data\.special_ids\.eos"):
        m1_tokenizers.load(other, SpecialIds(0, 999, 2))
    (tmp_path / "tokenizer.json").write_bytes(other.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 2, "eos_token_id": [1, 5], "pad_token_id": None}))
    tokenizer = m1_tokenizers.load(tmp_path, SpecialIds(pad=7))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (2, 1, 7)
    assert tokenizer.fingerprint != m1_tokenizers.load(other, GIVEN).fingerprint
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        m1_tokenizers.load(tmp_path)


def test_a_file_of_m1_tokenizerswith_a_changed_setting_is_read_as_what_it_is(tmp_path):
    trained = train(GENERAL, 480)
    trained.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    saved = json.loads(path.read_text())
    assert isinstance(m1_tokenizers.load(tmp_path), TrainedTokenizer)
    path.write_text(json.dumps({**saved, "normalizer": {"type": "Lowercase"}}))
    changed = m1_tokenizers.load(tmp_path)
    assert changed.fingerprint != trained.fingerprint and changed.special_tokens == trained.special_tokens
    assert changed.encode("The Town") == trained.encode("the town") != trained.encode("The Town")
    assert (changed.bos_id, changed.eos_id, changed.pad_id) == (1, 2, 0)


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def pieces(request, tmp_path_factory):
    """A SentencePiece model as the reference's is made: identity, bytes for what is rare, digits one by one."""
    prefix = tmp_path_factory.mktemp("pieces") / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS[:12] * 5), model_prefix=str(prefix), model_type=request.param, vocab_size=400,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        hard_vocab_limit=False, character_coverage=0.98, minloglevel=2,
    )  # fmt: skip
    return prefix.with_suffix(".model")


@given(text=st.one_of(st.text(max_size=40), st.sampled_from(TEXTS)))
@settings(max_examples=80, deadline=None)
def test_sentencepiece_gives_its_own_ids(pieces, text):
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
    ours = m1_tokenizers.load(pieces, SpecialIds(pad=0))
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode([ours.bos_id, *ours.encode(text), ours.eos_id]) == theirs.decode(theirs.encode(text))
    if not set(text) & {"▁", "\0"}:  # the sign that stands for a space, and the end of a C string
        assert ours.decode(ours.encode(text)) == text


def test_sentencepiece_as_a_tokenizer(pieces, tmp_path):
    with pytest.raises(UserError, match=r"names no token for pad: set the config key data\.special_ids\.pad"):
        m1_tokenizers.load(pieces)
    with pytest.raises(UserError, match="no id 5000 for pad"):
        m1_tokenizers.load(pieces, SpecialIds(pad=5000))
    tokenizer = m1_tokenizers.load(pieces, SpecialIds(pad=0))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 0)
    assert tokenizer.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert tokenizer.token_id("</s>") == 2 and tokenizer.token_id("<C_Q>") is None
    assert max(max(ids) for ids in tokenizer.encode_batch(TEXTS) if ids) < tokenizer.vocab_size
    text = "患者发热 🙂 fever"
    ids = tokenizer.encode(text)
    assert sum(tokenizer.token_bytes[i] for i in ids) == len(text.encode()) + 1  # the space put before a text
    assert tokenizer.encode_bytes(text.encode()) == ids
    with pytest.raises(UserError, match="no id for the byte 0xff"):  # a part after it would get a space of its own
        tokenizer.encode_bytes(b"\xff")
    tokenizer.save(tmp_path)
    again = m1_tokenizers.load(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint and again.encode(text) == ids and again.pad_id == 0


@pytest.mark.parametrize("content", [b"", b"no model", None], ids=["empty", "other", "half"])
def test_damaged_sentencepiece_models(pieces, tmp_path, content):
    path = tmp_path / "tokenizer.model"
    whole = pieces.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(UserError, match="no readable SentencePiece model"):
        m1_tokenizers.load(tmp_path, SpecialIds(pad=0))
