"""What the other rooms know of a tokenizer, whatever its origin."""

import abc
import codecs
import concurrent.futures
import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m1jax.errors import UserError
from m1jax.tokenizer import joins
from m1jax.tokenizer.decoding import Decoder

_SURROGATE = re.compile("[\ud800-\udfff]")
# What `bytes.decode(errors="surrogateescape")` makes of a byte that is no UTF-8.
_LONE_BYTE = re.compile("([\udc80-\udcff])")
# A task for a thread is worth starting from about this much text.
_CHUNK_CHARACTERS = 100_000


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """Ids of three special tokens, None where unknown."""

    bos: int | None = None
    eos: int | None = None
    pad: int | None = None

    def or_else(self, other: "SpecialIds") -> "SpecialIds":
        """These ids, and those of `other` where one is unknown."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return SpecialIds(**{name: theirs[name] if value is None else value for name, value in mine.items()})


class Tokenizer(abc.ABC):
    """Text to ids and back. Special tokens typed inside a text are text: they never act."""

    pad_id: int
    bos_id: int
    eos_id: int
    special_tokens: Mapping[str, int]
    """Id of each special token by its text; bos, eos and pad are among them."""
    folder: Path | None = None
    """The folder that it was loaded from, where a chat template may be (`m1jax.tokenizer.chat`)."""

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """Number of ids."""

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change whenever any text may be encoded to other ids."""

    @property
    @abc.abstractmethod
    def token_bytes(self) -> list[int]:
        """Number of UTF-8 bytes that each id stands for: 0 for special tokens."""

    @property
    @abc.abstractmethod
    def byte_ids(self) -> Sequence[int] | None:
        """The id of each of the 256 bytes; None where a byte alone has no id."""

    @abc.abstractmethod
    def token_id(self, token: str) -> int | None:
        """Id of a token by its text as the vocabulary writes it; None where there is no such token."""

    @property
    def special_begins(self) -> bool:
        """Whether text behind a special token is encoded like the beginning of a text: with the space, if any."""
        return True

    @property
    def encoder_name(self) -> str:
        """The library that encodes."""
        return "tokenizers"

    @abc.abstractmethod
    def _encode_arrays(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """`encode_arrays`; may raise TypeError or UnicodeError for a text without UTF-8 form."""

    @abc.abstractmethod
    def decoder(self) -> Decoder:
        """What turns the ids of one text into bytes, as they come (`decode_stream` gives text)."""

    @abc.abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the files that `load` and `transformers` read, the ids of bos, eos and pad among them."""

    def encode_arrays(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Ids of each text, nothing added, as read-only uint32 arrays: the fastest way, for packing.

        It encodes in the calling thread and lets other threads run meanwhile, so that a caller who wants more cores
        calls it from several threads or processes. Raises UserError where a text holds half of a surrogate pair.
        """
        try:
            return self._encode_arrays(texts)
        except (TypeError, UnicodeError) as error:  # what the encoders say of a text that has no UTF-8 form
            for text in texts:
                if half := _SURROGATE.search(text):
                    raise UserError(
                        f"a text holds {half[0]!r} at character {half.start()}, half of a surrogate pair without UTF-8 "
                        f"form: repair or drop it."
                    ) from error
            raise

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Ids of `text`, nothing added; where it `continues` another text, without the space that begins a text.

        Raises UserError where `text` holds half of a surrogate pair.
        """
        if not continues or not text:
            return self.encode_arrays([text])[0].tolist()
        return joins.continued(self, [text], self._lead)[0].tolist()

    @cached_property
    def _lead(self) -> joins.Lead | None:
        return joins.lead_of(self)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, nothing added, on all cores. Raises UserError as `encode` does."""
        chunks = list(_chunks(texts))
        if len(chunks) < 2:
            return [ids.tolist() for ids in self.encode_arrays(texts)]
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            return [ids.tolist() for arrays in pool.map(self.encode_arrays, chunks) for ids in arrays]

    def encode_bytes(self, data: bytes) -> list[int]:
        """Ids of any bytes: what is UTF-8 as text, every other byte as its own id, so that `decode_bytes` is exact.

        Raises UserError where a byte that is no UTF-8 has no id in this vocabulary.
        """
        ids: list[int] = []
        for index, part in enumerate(_LONE_BYTE.split(data.decode(errors="surrogateescape"))):
            if index % 2 == 0:
                ids += self.encode(part) if part else []
            elif self.byte_ids is None:
                raise UserError(
                    f"the tokenizer has no id for the byte 0x{ord(part) - 0xDC00:02x}, which is no UTF-8: repair the "
                    f"text, or take a byte-level tokenizer."
                )
            else:
                ids.append(self.byte_ids[ord(part) - 0xDC00])
        return ids

    def decode_bytes(self, ids: Iterable[int], before: Iterable[int] = ()) -> bytes:
        """The bytes that ids stand for; special tokens, and ids beyond the vocabulary, stand for none.

        `before` are the ids that precede them in the same text: many a tokenizer writes the first token of a text
        without its space.
        """
        decoder = self.decoder()
        decoder.begin(before)
        return b"".join([*map(decoder.push, ids), decoder.finish()])

    def decode(self, ids: Iterable[int], before: Iterable[int] = ()) -> str:
        """The text that ids stand for; bytes that are no UTF-8 become U+FFFD. `before`: see `decode_bytes`."""
        return self.decode_bytes(ids, before).decode("utf-8", errors="replace")

    def decode_stream(self, ids: Iterable[int], before: Iterable[int] = ()) -> Iterator[str]:
        """The text of `decode` in pieces, each as soon as its last token is there; never a part of a character."""
        decoder, characters = self.decoder(), codecs.getincrementaldecoder("utf-8")("replace")
        decoder.begin(before)
        for token in ids:
            if text := characters.decode(decoder.push(token)):
                yield text
        if text := characters.decode(decoder.finish(), final=True):
            yield text


def _chunks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Consecutive texts, about as much of them as is worth a thread's task."""
    start = size = 0
    for index, text in enumerate(texts):
        size += len(text)
        if size >= _CHUNK_CHARACTERS:
            yield texts[start : index + 1]
            start, size = index + 1, 0
    if start < len(texts):
        yield texts[start:]
