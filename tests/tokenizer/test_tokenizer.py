import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax import tokenizer as tokenizers
from m1jax.errors import UserError
from m1jax.tokenizer import FIRST_MERGE, extend, train
from tests.tokenizer.tokenizer_texts import GENERAL, MEDICAL


@pytest.fixture(scope="module")
def tokenizer():
    return extend(train(GENERAL, 480), MEDICAL, 560)


def test_ids_are_laid_out_as_promised(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    assert (vocabulary["<pad>"], vocabulary["<bos>"], vocabulary["<eos>"]) == (0, 1, 2)
    roles = ("<B_SYS>", "<B_USYS>", "<C_Q>", "<C_A>", "<B_FUNC>", "<B_CODE>")
    assert [vocabulary[role] for role in roles] == [71, 72, 73, 74, 75, 76]
    assert sorted(vocabulary.values()) == list(range(560)) and tokenizer.vocab_size == 560
    assert [tokenizer.decode_bytes([128 + byte]) for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    assert [tokenizer.token_id(role) for role in roles] == [71, 72, 73, 74, 75, 76]
    assert tokenizer.token_id("<C_B>") is None and tokenizer.special_tokens["<eos>"] == 2


def test_every_merge_joins_two_older_tokens_into_a_new_one(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    for rank, (left, right) in enumerate(model["merges"]):
        assert model["vocab"][left + right] == FIRST_MERGE + rank
        assert max(model["vocab"][left], model["vocab"][right]) < FIRST_MERGE + rank


def test_merges_make_real_text_shorter(tokenizer):
    assert len(tokenizer.encode(GENERAL[0])) < 0.7 * len(GENERAL[0].encode())
    assert len(tokenizer.encode(MEDICAL[0])) < 0.6 * len(MEDICAL[0].encode())


@given(st.text(max_size=60))
@settings(max_examples=150, deadline=None)
def test_round_trip_of_any_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert sum(tokenizer.token_bytes[i] for i in ids) == len(text.encode())
    assert all(i >= 128 for i in ids)


@given(st.lists(st.one_of(st.binary(max_size=6), st.text(max_size=6).map(str.encode)), max_size=6).map(b"".join))
@settings(max_examples=150, deadline=None)
def test_round_trip_of_any_bytes(tokenizer, data):
    ids = tokenizer.encode_bytes(data)
    assert tokenizer.decode_bytes(ids) == data
    assert tokenizer.decode_bytes([128 + byte for byte in data]) == data
    if data == data.decode(errors="replace").encode():
        assert ids == tokenizer.encode(data.decode())


@pytest.mark.parametrize("text", ["<C_Q>hello<C_A>", "<eos>", "<pad><bos>", "a <B_SYS> b", "<reserved_5>"])
def test_special_tokens_typed_in_a_text_are_text(tokenizer, text):
    assert all(i >= 128 for i in tokenizer.encode(text)) and tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode_by_tokenizers([text])[0].tolist() == tokenizer.encode(text)


def test_no_normalisation_and_single_digits(tokenizer):
    for text in ("ﬁ，、：２０ é é Å\r\n \t", "​﻿a"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    trained = train(["2024 2024 1212 99 99 "] * 50, 400)
    assert [trained.decode([i]) for i in trained.encode("2024")] == ["2", "0", "2", "4"]


def test_ids_without_text_decode_to_nothing(tokenizer):
    assert tokenizer.decode([0, 1, 2, 73, 10_000]) == "" and tokenizer.token_bytes[:128] == [0] * 128
    assert tokenizer.decode([128 + 0xE4]) == "�"


def test_batches_are_encode(tokenizer):
    texts = [*GENERAL, *MEDICAL, "", "x" * 150_000, "y z " * 40_000, ""]  # enough for several threads
    expected = [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch(texts) == expected
    arrays = tokenizer.encode_arrays(texts)
    assert [array.tolist() for array in arrays] == expected and {array.dtype for array in arrays} == {np.dtype("u4")}
    assert tokenizer.encode_batch([]) == [] and tokenizer.encode("") == [] and tokenizer.encode_arrays([]) == []


def test_fingerprint_follows_the_merges(tokenizer):
    general = train(GENERAL, 480)
    assert len({tokenizer.fingerprint, general.fingerprint, train(GENERAL, 479).fingerprint}) == 3
    assert extend(general, MEDICAL, 560).fingerprint == tokenizer.fingerprint


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    texts = [*GENERAL, *MEDICAL, "<C_Q>"]
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = tokenizers.load(place)
        assert loaded.fingerprint == tokenizer.fingerprint and type(loaded) is type(tokenizer)
        assert loaded.encode_batch(texts) == tokenizer.encode_batch(texts)


def test_transformers_loads_it(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == tokenizer.vocab_size
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id) == (0, 1, 2)
    for text in [*GENERAL, *MEDICAL]:
        assert theirs.encode(text) == tokenizer.encode(text) and theirs.decode(tokenizer.encode(text)) == text


def test_bad_files_are_told_apart(tokenizer, tmp_path):
    for nowhere in (tmp_path / "nowhere", tmp_path / "tokenizer.json", tmp_path):
        with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
            tokenizers.load(nowhere)
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"\xff\xfe\x00"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            tokenizers.load(tmp_path)
    for foreign in (b"[]", b"{}", b'"x"', b'{"model": {"merges": [1]}}'):
        path.write_bytes(foreign)
        with pytest.raises(UserError, match="no file that `tokenizers` reads"):
            tokenizers.load(tmp_path)


@pytest.mark.parametrize("text", ["a\ud800b", "\udfff"])
def test_half_a_surrogate_pair_is_refused(tokenizer, text):
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_arrays(["ok", text])):
        with pytest.raises(UserError, match="surrogate"):
            encode(text)
