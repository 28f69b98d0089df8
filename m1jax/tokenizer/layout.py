"""What every tokenizer that m1jax trains has in common: its ids, how text is cut into words, its files.

Ids 0-127 are special tokens, 128-383 the 256 bytes in order, and from 384 on the merges in rank order, each token
made by exactly one merge. Text is never normalised, so that decoding gives back exactly what was encoded.
"""

from collections.abc import Sequence

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

NUM_SPECIAL = 128
FIRST_MERGE = NUM_SPECIAL + 256
PAD, BOS, EOS = 0, 1, 2
# The tokens of the chat format keep the ids of the released tokenizer.
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

# How many letters or signs in a row are one word for the trainer: it merges in time quadratic in a word's length, and
# one line of 50 MB may be one word. Encoding takes n log n, needs no such bound and is twice as fast without.
LONGEST_TRAINED = 64


def words(longest: int | None = None) -> str:
    """The pattern of one word, whose ends no merge crosses; `longest` bounds its runs of letters, signs and breaks.

    Oniguruma (in `tokenizers`) and fancy-regex (in tiktoken) read it alike. Chinese writes no spaces, so that an
    unbounded run would be a clause. White space is bounded, as the lookahead behind it would else take memory in
    proportion to its length.
    """
    some, any_number = ("+", "*") if longest is None else (f"{{1,{longest}}}", f"{{0,{longest}}}")
    return "|".join(
        (
            r"'(?:[sdmt]|ll|ve|re)(?!\p{L})",
            r"[^\r\n\p{L}\p{M}\p{N}]?[[\p{L}\p{M}]&&[^\p{Han}]]" + some,
            r"\p{Han}{1,16}",
            r"\p{N}",
            r" ?[^\s\p{L}\p{M}\p{N}]" + some + r"[\r\n]" + any_number,
            r"\s{0,64}[\r\n]" + some,
            r"\s{1,64}(?!\S)",
            r"\s",
        )
    )


WORDS = words()
TRAINED_WORDS = words(LONGEST_TRAINED)

CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "pad_token": SPECIAL_TOKENS[PAD],
    "bos_token": SPECIAL_TOKENS[BOS],
    "eos_token": SPECIAL_TOKENS[EOS],
    "clean_up_tokenization_spaces": False,
}


def _byte_characters() -> tuple[str, ...]:
    """The printable character by which byte-level BPE writes each byte (Radford et al. 2019, GPT-2's encoder.py)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte) if byte in printable else chr(next(others)) for byte in range(256))


BYTE_CHARACTERS = _byte_characters()
BYTE_OF = {character: byte for byte, character in enumerate(BYTE_CHARACTERS)}

Merges = Sequence[tuple[str, str]]
"""Pairs of tokens in rank order, written in byte characters."""


def as_bytes(token: str) -> bytes:
    """The bytes of a token that is written in byte characters."""
    return bytes(BYTE_OF[character] for character in token)


def vocabulary(merges: Merges) -> dict[str, int]:
    """Token text (byte characters) to id."""
    tokens = (*SPECIAL_TOKENS, *BYTE_CHARACTERS, *(left + right for left, right in merges))
    return {token: i for i, token in enumerate(tokens)}


def pipeline(model: models.BPE, pattern: str = WORDS) -> tokenizers.Tokenizer:
    """A tokenizer around `model`: words by `pattern`, bytes as characters, no normaliser."""
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def backend(merges: Merges) -> tokenizers.Tokenizer:
    """The tokenizer of these merges, as its tokenizer.json describes it."""
    made = pipeline(models.BPE(vocabulary(merges), list(merges)))
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return made
