"""Faults of a tokenizer.json: two tokens of one id are refused, what is dropped in silence is said."""

import json
import re

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from m1jax import tokenizer as m1_tokenizers
from m1jax.convert import tokenizer_files
from m1jax.errors import UserError
from m1jax.tokenizer import SpecialIds

SPECIAL = SpecialIds(0, 1, 2)
ENDS = ["<s>", "</s>", "<pad>"]


def byte_level(size, alphabet=True):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet() if alphabet else []
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=ENDS, initial_alphabet=letters, show_progress=False)
    backend.train_from_iterator(["aspirin and fever"] * 5, trainer)
    return backend


def save(backend, folder):
    backend.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def test_two_tokens_of_one_id_are_refused(tmp_path):
    """A vocabulary that was trained again beside an added token; the library itself is told nothing."""
    backend = byte_level(265)
    backend.add_tokens(["nausea"])
    path = save(backend, tmp_path)
    assert m1_tokenizers.load(path, SPECIAL).decode([backend.token_to_id("nausea")]) == "nausea"
    content, larger = json.loads(path.read_text()), json.loads(byte_level(280).to_str())
    path.write_text(json.dumps({**content, "model": larger["model"]}))
    with pytest.raises(UserError, match=r"tokenizer\.json gives two tokens, .* and 'nausea', the id 26\d:"):
        m1_tokenizers.load(path, SPECIAL)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="two tokens"):
        tokenizer_files.write(tmp_path, tmp_path / "out", {})
    content["model"]["vocab"]["fev"] = content["model"]["vocab"]["as"] = 256
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="the id 256:"):
        m1_tokenizers.load(path, SPECIAL)


def letters(**settings):
    """A BPE of whole letters."""
    return Tokenizer(models.BPE({token: i for i, token in enumerate([*ENDS, "<unk>", "a", "b"])}, [], **settings))


def spelled(count):
    """A BPE that spells what it does not know in bytes, of which it has `count`."""
    tokens = [*ENDS, "a", *(f"<0x{byte:02X}>" for byte in range(count))]
    return Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, [], byte_fallback=True))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (letters, "drops every character that its vocabulary lacks"),
        (lambda: letters(unk_token="<unk>"), None),
        (lambda: spelled(256), None),
        (lambda: spelled(200), r"drops characters with one of 56 bytes \(the first is 0xC8\)"),
        (lambda: byte_level(280), None),
        (lambda: byte_level(40, alphabet=False), "drops 24. of the 256 bytes"),
    ],
)
def test_a_bpe_that_drops_what_it_does_not_know_says_so(make, said, tmp_path, caplog):
    tokenizer = m1_tokenizers.load(save(make(), tmp_path), SPECIAL)
    lost = tokenizer.encode("a在a") == tokenizer.encode("aa")
    assert lost == (said is not None)
    if said is None:
        assert not caplog.messages
    else:
        (message,) = caplog.messages
        assert re.search(said, message), message


@pytest.mark.parametrize(
    "model",
    [
        models.Unigram([(token, 0.0) for token in [*ENDS, "a"]]),
        models.WordLevel({"a": 3} | {end: i for i, end in enumerate(ENDS)}),
    ],
)
def test_a_vocabulary_without_the_token_for_the_unknown_gets_a_sentence(model, tmp_path):
    tokenizer = m1_tokenizers.load(save(Tokenizer(model), tmp_path), SPECIAL)
    assert tokenizer.encode("a") == [3]
    with pytest.raises(UserError, match=r"cannot encode a text \(.*(unk|UNK)"):
        tokenizer.encode("在")


def test_tokens_that_only_transformers_would_add_are_said_and_other_ids_are_refused(tmp_path, caplog):
    backend = letters(unk_token="<unk>")
    backend.add_special_tokens(["<turn>"])
    save(backend, tmp_path)
    entry = {"special": True, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}

    def configure(**tokens):
        listed = {number: {**entry, "content": content} for number, content in tokens.items()}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": listed}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))

    configure(**{"6": "<turn>"})
    m1_tokenizers.load(tmp_path, SPECIAL)
    assert not caplog.messages
    configure(**{"6": "<turn>", "7": "<tool>"})
    assert AutoTokenizer.from_pretrained(tmp_path).convert_tokens_to_ids("<tool>") == 7
    m1_tokenizers.load(tmp_path, SPECIAL)
    (message,) = caplog.messages
    assert "adds tokens that tokenizer.json lacks" in message and "'<tool>'" in message
    configure(**{"9": "<turn>"})
    with pytest.raises(UserError, match=r"'<turn>' has the id 9, tokenizer\.json beside it says 6"):
        m1_tokenizers.load(tmp_path, SPECIAL)
