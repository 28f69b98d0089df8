"""Byte-level BPE with the role tokens of the chat format; no JAX here.

Ids 0-127 are special tokens, 128-383 the 256 bytes in order, and from 384 on the merges in rank order, each token
made by exactly one merge. Text is never normalised, so that decoding gives back exactly what was encoded.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from m1jax.errors import UserError

NUM_SPECIAL = 128
FIRST_MERGE = NUM_SPECIAL + 256
PAD, BOS, EOS = 0, 1, 2
# The roles keep the ids of the released tokenizer.
ROLES = {"system": 71, "user_system": 72, "user": 73, "assistant": 74, "function": 75, "code": 76}
_NAMED = {
    PAD: "<pad>",
    BOS: "<bos>",
    EOS: "<eos>",
    71: "<B_SYS>",
    72: "<B_USYS>",
    73: "<C_Q>",
    74: "<C_A>",
    75: "<B_FUNC>",
    76: "<B_CODE>",
}
SPECIAL_TOKENS = tuple(_NAMED.get(i, f"<reserved_{i}>") for i in range(NUM_SPECIAL))
DEFAULT_SYSTEM = "You are a helpful assistant."

# One word for the trainer is one match. Every run is bounded: Chinese writes no spaces, so that an unbounded run would
# be a clause, and one line of 50 MB would be one word, whose merging takes time quadratic in its length.
_WORDS = "|".join(
    (
        r"\p{Han}{1,16}",
        r"'(?:[sdmt]|ll|ve|re)(?!\p{L})",
        r"[^\r\n\p{L}\p{M}\p{N}]?[[\p{L}\p{M}]&&[^\p{Han}]]{1,64}",
        r"\p{N}",
        r" ?[^\s\p{L}\p{M}\p{N}]{1,64}[\r\n]{0,8}",
        r"\s{0,64}[\r\n]{1,8}",
        r"\s{1,64}(?!\S)",
        r"\s{1,64}",
    )
)

_CHAT_TEMPLATE = (
    "{%- set roles = {" + ", ".join(f"'{role}': '{SPECIAL_TOKENS[i]}'" for role, i in ROLES.items()) + "} -%}"
    "{%- if messages and messages[0]['role'] != 'system' -%}"
    "{{- roles['system'] + '" + DEFAULT_SYSTEM + "' -}}{%- endif -%}"
    "{%- for message in messages -%}{{- roles[message['role']] + message['content'] -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- roles['assistant'] -}}{%- endif -%}"
)

_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "pad_token": SPECIAL_TOKENS[PAD],
    "bos_token": SPECIAL_TOKENS[BOS],
    "eos_token": SPECIAL_TOKENS[EOS],
    "clean_up_tokenization_spaces": False,
    "chat_template": _CHAT_TEMPLATE,
}


def _byte_characters() -> tuple[str, ...]:
    """The printable character by which byte-level BPE writes each byte (Radford et al. 2019, GPT-2's encoder.py)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte) if byte in printable else chr(next(others)) for byte in range(256))


_BYTE_CHARACTERS = _byte_characters()
_SURROGATE = re.compile("[\ud800-\udfff]")
_BYTE_OF = {character: byte for byte, character in enumerate(_BYTE_CHARACTERS)}

Merges = Sequence[tuple[str, str]]


def _pipeline(model: models.BPE) -> tokenizers.Tokenizer:
    """A tokenizer around `model`: words by _WORDS, bytes as characters, no normaliser."""
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _vocabulary(merges: Merges) -> dict[str, int]:
    """Token text (byte characters) to id."""
    tokens = (*SPECIAL_TOKENS, *_BYTE_CHARACTERS, *(left + right for left, right in merges))
    return {token: i for i, token in enumerate(tokens)}


class Tokenizer:
    """A trained tokenizer; ids are laid out as the module says."""

    pad_id, bos_id, eos_id = PAD, BOS, EOS

    def __init__(self, merges: Merges) -> None:
        """`merges` in rank order, written in byte characters, each giving a token that no other merge gives."""
        self._merges = [(left, right) for left, right in merges]
        vocabulary = _vocabulary(self._merges)
        assert len(vocabulary) == FIRST_MERGE + len(self._merges), "two merges give the same token"
        self._backend = _pipeline(models.BPE(vocabulary, self._merges))
        self._backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
        # A role token typed inside a text must never act as one.
        self._backend.encode_special_tokens = True

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return FIRST_MERGE + len(self._merges)

    @property
    def roles(self) -> dict[str, int]:
        """Id of the token that opens each role's turn in a chat."""
        return dict(ROLES)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change whenever any text may be encoded to other ids."""
        parts = json.dumps([SPECIAL_TOKENS, _WORDS, self._merges], separators=(",", ":"))
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    @cached_property
    def _bytes(self) -> list[bytes]:
        """The bytes that each id stands for; none for a special token."""
        texts = (*_BYTE_CHARACTERS, *(left + right for left, right in self._merges))
        return [b""] * NUM_SPECIAL + [bytes(_BYTE_OF[character] for character in text) for text in texts]

    @cached_property
    def token_bytes(self) -> list[int]:
        """Number of UTF-8 bytes that each id stands for: 0 for special tokens."""
        return [len(token) for token in self._bytes]

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, nothing added. Raises UserError where `text` holds half of a surrogate pair."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, nothing added, on all cores. Raises UserError as `encode` does."""
        try:
            return [e.ids for e in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        except TypeError as error:  # what `tokenizers` says of a text that has no UTF-8 form
            for text in texts:
                if half := _SURROGATE.search(text):
                    raise UserError(
                        f"a text holds {half[0]!r} at character {half.start()}, half of a surrogate pair without UTF-8 "
                        f"form: repair or drop it."
                    ) from error
            raise

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that ids stand for; special tokens, and ids beyond the vocabulary, stand for none."""
        table = self._bytes
        return b"".join(table[i] for i in ids if i < len(table))

    def decode(self, ids: Iterable[int]) -> str:
        """The text that ids stand for, exact for what `encode` made; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json, which `tokenizers` and `transformers` load."""
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(folder / "tokenizer.json"))
        text = json.dumps(_CONFIG, indent=1, ensure_ascii=False) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """The tokenizer saved in `folder`; raises UserError where its file is missing, damaged or of another kind."""
        path = folder / "tokenizer.json"
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(f"{path} is missing: run `m1 tokenizer` first, or give the right folder.") from error
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}): run `m1 tokenizer` again.") from error
        merges = _saved_merges(saved)
        if merges is None:
            raise UserError(f"{path} is no tokenizer that `m1 tokenizer` made: train one, or give another folder.")
        return cls(merges)


def _saved_merges(saved: Any) -> list[tuple[str, str]] | None:
    """The merges of a parsed tokenizer.json; None where the file does not describe a Tokenizer."""
    try:
        merges = [(str(left), str(right)) for left, right in saved["model"]["merges"]]
        vocabulary, words = saved["model"]["vocab"], saved["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return merges if vocabulary == _vocabulary(merges) and words == _WORDS else None


def train(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909) on `texts`: the same texts, the same tokenizer.

    The vocabulary is smaller than `vocab_size` where the texts hold too few pairs that occur twice. Raises UserError
    where `vocab_size` leaves no room for a merge or there is no text.
    """
    if vocab_size <= FIRST_MERGE:
        raise UserError(
            f"config key data.vocab_size = {vocab_size} leaves no room beside {NUM_SPECIAL} special tokens and 256 "
            f"bytes: choose more than {FIRST_MERGE}."
        )
    seen = 0

    def counted() -> Iterator[str]:
        nonlocal seen
        for text in texts:
            seen += len(text)
            yield text

    backend = _pipeline(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=list(_BYTE_CHARACTERS),
        show_progress=False,
    )
    backend.train_from_iterator(counted(), trainer)
    if not seen:
        raise UserError("there is no text to train a tokenizer on: check that the corpus holds documents.")
    trained = json.loads(backend.to_str())["model"]["merges"]
    # Two pairs may spell the same token; the first to do so is its one merge.
    merges: dict[str, tuple[str, str]] = {}
    for left, right in trained:
        merges.setdefault(left + right, (left, right))
    return Tokenizer(list(merges.values()))
