import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.data import tokenizer as module
from m1jax.data.tokenizer import FIRST_MERGE, Tokenizer, train
from m1jax.errors import UserError

TEXTS = [
    "The patient has a fever of 39 degrees; the fever began 12 days ago.\n\nTreatment: paracetamol 500 mg.",
    "患者发热三天，体温39度。患者咳嗽，给予对乙酰氨基酚治疗。糖尿病患者应控制血糖。",
    "don't can't won't the the the patients' fever's\n  indented\n\tand tabs   and  spaces   ",
] * 5


@pytest.fixture(scope="module")
def tokenizer():
    return train(iter(TEXTS), 500)


def test_ids_are_laid_out_as_promised(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    assert (vocabulary["<pad>"], vocabulary["<bos>"], vocabulary["<eos>"]) == (0, 1, 2)
    roles = ("<B_SYS>", "<B_USYS>", "<C_Q>", "<C_A>", "<B_FUNC>", "<B_CODE>")
    assert [vocabulary[role] for role in roles] == [71, 72, 73, 74, 75, 76]
    assert sorted(vocabulary.values()) == list(range(500)) and tokenizer.vocab_size == 500
    assert [tokenizer.decode_bytes([128 + byte]) for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    assert tokenizer.roles == {"system": 71, "user_system": 72, "user": 73, "assistant": 74, "function": 75, "code": 76}


def test_every_merge_joins_two_older_tokens_into_a_new_one(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    for rank, (left, right) in enumerate(model["merges"]):
        assert model["vocab"][left + right] == FIRST_MERGE + rank
        assert max(model["vocab"][left], model["vocab"][right]) < FIRST_MERGE + rank


def test_merges_make_real_text_shorter(tokenizer):
    assert len(tokenizer.encode(TEXTS[0])) < 0.7 * len(TEXTS[0].encode())
    assert len(tokenizer.encode(TEXTS[1])) < 0.6 * len(TEXTS[1].encode())


@given(st.text(max_size=60))
@settings(max_examples=150, deadline=None)
def test_round_trip_of_any_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert sum(tokenizer.token_bytes[i] for i in ids) == len(text.encode())
    assert all(i >= 128 for i in ids)


@given(st.binary(max_size=40))
@settings(max_examples=50, deadline=None)
def test_round_trip_of_any_bytes(tokenizer, data):
    assert tokenizer.decode_bytes([128 + byte for byte in data]) == data


@pytest.mark.parametrize("text", ["<C_Q>hello<C_A>", "<eos>", "<pad><bos>", "a <B_SYS> b", "<reserved_5>"])
def test_special_tokens_typed_in_a_text_are_text(tokenizer, text):
    assert all(i >= 128 for i in tokenizer.encode(text)) and tokenizer.decode(tokenizer.encode(text)) == text


def test_no_normalisation_and_single_digits(tokenizer):
    for text in ("ﬁ，、：２０ é é Å\r\n \t", "​﻿a"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    trained = train(iter(["2024 2024 1212 99 99 "] * 50), 400)
    assert [trained.decode([i]) for i in trained.encode("2024")] == ["2", "0", "2", "4"]


def test_ids_without_text_decode_to_nothing(tokenizer):
    assert tokenizer.decode([0, 1, 2, 73, 10_000]) == "" and tokenizer.token_bytes[:128] == [0] * 128
    assert tokenizer.decode([128 + 0xE4]) == "�"


def test_batch_is_encode(tokenizer):
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]
    assert tokenizer.encode_batch([]) == [] and tokenizer.encode("") == []


def test_endless_runs_are_bounded():
    trained = train(iter(["中" * 20_000 + "a" * 20_000 + " " * 20_000 + "!" * 20_000 + "\n" * 20_000]), 500)
    longest = {}
    for i in range(FIRST_MERGE, trained.vocab_size):
        text = trained.decode([i])
        longest[text[0]] = max(longest.get(text[0], 0), len(text))
    assert longest["中"] == 16 and max(longest.values()) <= 73


def test_training_is_deterministic(tokenizer):
    assert train(iter(TEXTS), 500).fingerprint == tokenizer.fingerprint
    code = f"from m1jax.data.tokenizer import train; print(train(iter({TEXTS!r}), 500).fingerprint)"
    alone = {**os.environ, "RAYON_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=alone, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == tokenizer.fingerprint


def test_fingerprint_follows_the_merges(tokenizer):
    assert train(iter(TEXTS), 499).fingerprint != tokenizer.fingerprint


def test_a_pair_that_spells_an_old_token_is_no_second_merge(monkeypatch):
    spelt = [["a", "b"], ["b", "c"], ["ab", "c"], ["a", "bc"], ["abc", "a"]]
    monkeypatch.setattr(module.json, "loads", lambda text: {"model": {"merges": spelt}})
    trained = train(iter(["abc"]), 400)
    assert [trained.decode([i]) for i in range(FIRST_MERGE, trained.vocab_size)] == ["ab", "bc", "abc", "abca"]


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.encode_batch([*TEXTS, "<C_Q>"]) == tokenizer.encode_batch([*TEXTS, "<C_Q>"])


def test_transformers_loads_it(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == tokenizer.vocab_size
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id) == (0, 1, 2)
    for text in TEXTS:
        assert theirs.encode(text) == tokenizer.encode(text) and theirs.decode(tokenizer.encode(text)) == text
    talk = [{"role": "system", "content": "s"}, {"role": "user", "content": "Hi"}]
    answered = [*talk, {"role": "assistant", "content": "Yo"}]
    assert theirs.apply_chat_template(answered, tokenize=False) == "<B_SYS>s<C_Q>Hi<C_A>Yo"
    ids = theirs.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    assert ids == [71, *tokenizer.encode("s"), 73, *tokenizer.encode("Hi"), 74]
    assert theirs.apply_chat_template(talk[1:], tokenize=False) == "<B_SYS>You are a helpful assistant.<C_Q>Hi"


def test_bad_files_are_told_apart(tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        Tokenizer.load(tmp_path / "nowhere")
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"\xff\xfe\x00"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            Tokenizer.load(tmp_path)
    other = json.loads(whole)
    other["model"]["vocab"] = {token: i + 1 for token, i in other["model"]["vocab"].items()}
    for foreign in (b"[]", b"{}", b'"x"', b'{"model": {"merges": [1]}}', json.dumps(other).encode()):
        path.write_bytes(foreign)
        with pytest.raises(UserError, match="no tokenizer that"):
            Tokenizer.load(tmp_path)


def test_bad_input_of_training():
    with pytest.raises(UserError, match="vocab_size = 384"):
        train(iter(TEXTS), 384)
    for nothing in ([], ["", ""]):
        with pytest.raises(UserError, match="no text"):
            train(iter(nothing), 500)
    assert train(iter(["ab"]), 500).vocab_size == FIRST_MERGE


@pytest.mark.parametrize("text", ["a\ud800b", "\udfff"])
def test_half_a_surrogate_pair_is_refused(tokenizer, text):
    with pytest.raises(UserError, match="surrogate"):
        tokenizer.encode(text)
