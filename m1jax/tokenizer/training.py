"""Training a byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909), and continuing it on other text.

Continued BPE keeps every token and id of the first part: the new text is cut into the tokens that it has there, and
further merges of those are learnt. `tokenizers` learns merges of characters, so each token is written as one character,
and the merges are read back. Every merge stays reachable, which a list of two separately trained BPEs does not give.
A continued tokenizer can be continued again, so that any number of texts shape the ids in turn.
"""

import itertools
import json
from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import Encoding, Tokenizer, models, pre_tokenizers, trainers

from m1jax.errors import UserError
from m1jax.tokenizer.layout import (
    BYTE_CHARACTERS,
    FIRST_MERGE,
    NUM_SPECIAL,
    SPECIAL_TOKENS,
    TRAINED_WORDS,
    Merges,
    pipeline,
    vocabulary,
)
from m1jax.tokenizer.trained import TrainedTokenizer

# Token i is written as the character of this code + i: past the surrogates there are 1,056,768 codes in a row.
_FIRST_CODE = 0xE000
_GAP = " "
_BATCH = 512


def train(texts: Iterable[str], vocab_size: int) -> TrainedTokenizer:
    """A tokenizer of `vocab_size` ids learnt from `texts`: the same texts, the same tokenizer.

    The vocabulary is smaller where the texts hold too few pairs that occur twice. Raises UserError where `vocab_size`
    leaves no room for a merge or there is no text.
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

    backend = pipeline(models.BPE(), TRAINED_WORDS)
    special = list(SPECIAL_TOKENS)
    backend.train_from_iterator(counted(), _trainer(vocab_size, list(BYTE_CHARACTERS), special_tokens=special))
    if not seen:
        raise UserError("there is no text to train a tokenizer on: check that the corpus holds documents.")
    return TrainedTokenizer(_merges(backend))


def extend(tokenizer: TrainedTokenizer, texts: Iterable[str], vocab_size: int) -> TrainedTokenizer:
    """A tokenizer with the ids of `tokenizer` and further ones, up to `vocab_size`, learnt from `texts`.

    The vocabulary is smaller where the texts hold too few pairs that occur twice. Raises UserError where `vocab_size`
    leaves no room for a further merge or there is no text.
    """
    if vocab_size <= tokenizer.vocab_size:
        raise UserError(
            f"config key data.vocab_size = {vocab_size} leaves no room beside the {tokenizer.vocab_size} ids of the "
            f"parts before: choose more, or give those fewer ids in data.vocab_parts."
        )
    seen = 0

    def written() -> Iterator[str]:
        nonlocal seen
        for line in _as_characters(tokenizer.merges, iter(texts)):
            seen += len(line)
            yield line

    alphabet = [_character(i) for i in range(NUM_SPECIAL, tokenizer.vocab_size)]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Split(_GAP, "removed")
    backend.train_from_iterator(written(), _trainer(vocab_size - NUM_SPECIAL, alphabet))
    if not seen:
        raise UserError("there is no text for a further part of the tokenizer: check that the corpus holds documents.")

    def spelt(characters: str) -> str:
        return "".join(tokenizer.token_texts[ord(character) - _FIRST_CODE] for character in characters)

    further = [(spelt(left), spelt(right)) for left, right in _merges(backend)]
    return TrainedTokenizer([*tokenizer.merges, *further])


def _trainer(vocab_size: int, alphabet: list[str], special_tokens: list[str] | None = None) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=special_tokens or [],
        initial_alphabet=alphabet,
        show_progress=False,
    )


def _merges(backend: Tokenizer) -> list[tuple[str, str]]:
    return [(left, right) for left, right in json.loads(backend.to_str())["model"]["merges"]]


def _character(token: int) -> str:
    return chr(_FIRST_CODE + token)


def _as_characters(merges: Merges, texts: Iterator[str]) -> Iterator[str]:
    """Each text with its tokens as characters and a gap between words."""
    encoder = pipeline(models.BPE(vocabulary(merges), list(merges)), TRAINED_WORDS)
    while batch := list(itertools.islice(texts, _BATCH)):
        for encoded in encoder.encode_batch(batch, add_special_tokens=False):
            yield _line(encoded)


def _line(encoded: Encoding) -> str:
    tokens = np.array(encoded.ids, np.uint32) + _FIRST_CODE
    words = np.array(encoded.word_ids, np.int64)
    gaps = np.flatnonzero(np.diff(words)) + 1
    return np.insert(tokens, gaps, ord(_GAP)).astype("<u4").tobytes().decode("utf-32-le")
