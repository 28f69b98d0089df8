"""Ids to text one at a time. Decoding a whole text is the same thing pushed in a row, so that both always agree.

A tokenizer.json names the steps of its decoder. Most of them look at one token and at whether it is the first or the
last: the library itself is asked how each token is written there. Bytes that stand for themselves stay bytes, so that
a character may come in any number of tokens. A decoder with any other step is only read when all tokens are known.
"""

import abc
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import tokenizers

# Steps of a decoder that look at one token, and at whether it is the first or the last.
_LOCAL = ("Replace", "Metaspace", "WordPiece", "BPEDecoder", "Strip")
# A token that no step changes shows where another one's text begins and ends.
_ANCHORS = ("a", "x", "0")
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


class Decoder(abc.ABC):
    """Turns the ids of one text into bytes."""

    def begin(self, before: Iterable[int]) -> None:
        """Takes the ids that precede in the same text and whose bytes are not wanted."""
        for token in before:
            self.push(token)

    @abc.abstractmethod
    def push(self, token: int) -> bytes:
        """The bytes that are certain with this token; special tokens, and ids beyond the vocabulary, have none."""

    def finish(self) -> bytes:
        """The bytes that were held back until it was known that no token follows."""
        return b""


class TableDecoder(Decoder):
    """Every id always stands for the same bytes."""

    def __init__(self, table: Sequence[bytes]) -> None:
        self._table = table

    def push(self, token: int) -> bytes:
        """See Decoder."""
        return self._table[token] if token < len(self._table) else b""


class WholeDecoder(Decoder):
    """Holds everything until all tokens are known."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode, self._before, self._ids = decode, list[int](), list[int]()

    def begin(self, before: Iterable[int]) -> None:
        """See Decoder."""
        self._before = list(before)

    def push(self, token: int) -> bytes:
        """See Decoder."""
        self._ids.append(token)
        return b""

    def finish(self) -> bytes:
        """See Decoder."""
        known, whole = self._decode(self._before), self._decode([*self._before, *self._ids])
        return whole[_common(known, whole) :].encode()


class Written(NamedTuple):
    """How a token is written where another one follows, and where it is the last."""

    followed: str
    last: str


class Chain:
    """The decoder of a tokenizer.json, as far as it looks at one token at a time."""

    def __init__(
        self, tokens: Mapping[int, str], per_token: Any, bytes_stand: bool, strips: Sequence["_Strip"]
    ) -> None:
        """`tokens` are those that are written; `per_token` is a decoder's entry in tokenizer.json, or None."""
        self.tokens, self._bytes_stand, self.strips = tokens, bytes_stand, strips
        self._join = _library(per_token)
        self._anchor, self._tail = next(
            (anchor, both[len(anchor) :])
            for anchor in _ANCHORS
            if self._join([anchor]) == anchor and (both := self._join([anchor, anchor])).startswith(anchor)
        )
        self._known: dict[tuple[int, bool], Written] = {}

    def byte(self, token: int) -> int | None:
        """The byte that a token stands for; None for any other token."""
        return fallback_byte(self.tokens[token]) if self._bytes_stand else None

    def written(self, token: int, first: bool) -> Written:
        """How the text of a token is written."""
        found = self._known.get((token, first))
        if found is None:
            text, start = self.tokens[token], 0 if first else len(self._anchor)
            before = [] if first else [self._anchor]
            followed = self._join([*before, text, self._anchor])
            found = Written(followed[start : len(followed) - len(self._tail)], self._join([*before, text])[start:])
            self._known[token, first] = found
        return found


class ChainDecoder(Decoder):
    """The decoder of a tokenizer.json, one token at a time."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._strips = [strip.copy() for strip in chain.strips]
        self._held = Written("", "")
        self._first = True

    def push(self, token: int) -> bytes:
        """See Decoder."""
        if token not in self._chain.tokens:
            return b""
        out, byte = self._held.followed.encode(), self._chain.byte(token)
        if byte is None:
            followed, last = self._chain.written(token, self._first)
            certain = _common(followed, last)
            out += followed[:certain].encode()
            self._held = Written(followed[certain:], last[certain:])
        else:
            out, self._held = out + bytes([byte]), Written("", "")
        self._first = False
        for strip in self._strips:
            out = strip.push(out)
        return out

    def finish(self) -> bytes:
        """See Decoder."""
        out = self._held.last.encode()
        for strip in self._strips:
            out = strip.push(out)
        return out


class _Strip:
    """Takes away up to `start` and `stop` times a character at the ends of the text; its last ones are held back."""

    def __init__(self, content: bytes, start: int, stop: int) -> None:
        self._content, self._start, self._stop = content, start, stop
        self._held = b""

    def copy(self) -> "_Strip":
        """The same at a text's beginning."""
        return _Strip(self._content, self._start, self._stop)

    def push(self, data: bytes) -> bytes:
        """What remains of further bytes and is certain."""
        while self._start and data:
            if data.startswith(self._content):
                self._start, data = self._start - 1, data[1:]
            else:
                self._start = 0
        data = self._held + data
        keep = 0
        while keep < min(self._stop, len(data)) and data[len(data) - keep - 1 :][:1] == self._content:
            keep += 1
        self._held = data[len(data) - keep :]
        return data[: len(data) - keep]


def chain_of(saved: Any, tokens: Mapping[int, str]) -> Chain | None:
    """The chain of a tokenizer.json's entry "decoder"; None where it must see all tokens at once."""
    steps, per_token, strips = _flat(saved), [], list[_Strip]()
    fused = bytes_stand = False
    for step in steps:
        kind = step["type"]
        if kind == "Fuse":
            fused = True
        elif fused and kind == "Strip" and len(step["content"].encode()) == 1:
            strips.append(_Strip(step["content"].encode(), step["start"], step["stop"]))
        elif kind == "ByteFallback" and not fused and not bytes_stand:
            bytes_stand = True
        elif kind in _LOCAL and not fused and not bytes_stand:
            per_token.append(step)
        else:
            return None
    try:
        return Chain(tokens, saved and {"type": "Sequence", "decoders": per_token}, bytes_stand, strips)
    except StopIteration:  # there is no token that all steps leave as it is
        return None


def _flat(saved: Any) -> list[Any]:
    """The steps of a decoder in order."""
    if saved is None:
        return []
    if saved["type"] != "Sequence":
        return [saved]
    return [step for inner in saved["decoders"] for step in _flat(inner)]


def _library(entry: Any) -> Callable[[Sequence[str]], str]:
    """What `tokenizers` writes of tokens with a decoder; without one it puts spaces between them."""
    if entry is None:
        return " ".join
    if not entry["decoders"]:
        return "".join
    model = {"type": "WordLevel", "vocab": {}, "unk_token": ""}
    file = {"version": "1.0", "added_tokens": [], "decoder": entry, "model": model}
    decoder = tokenizers.Tokenizer.from_str(json.dumps(file)).decoder
    return lambda tokens: decoder.decode(list(tokens))


def _common(one: str, other: str) -> int:
    """Characters with which both begin."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (mine, theirs) in enumerate(pairs) if mine != theirs), min(len(one), len(other)))


def fallback_byte(token: str) -> int | None:
    """The byte that sentencepiece writes as <0xE4>."""
    found = _BYTE.fullmatch(token)
    return int(found[1], 16) if found else None
