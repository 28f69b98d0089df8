"""Bytes of text: compressed files opened, and a guess at what bytes are that are no UTF-8."""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path

import zstandard

UNDECODABLE = "undecodable bytes (not UTF-8)"
BROKEN = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, zstandard.ZstdError)
"""What reading a damaged compressed file raises, beside OSError."""
_SAMPLE = 1 << 12
# What a frame may ask for at most: files of `zstd --long=31` need so much.
_MOST_WINDOW = 1 << 31
# Zstandard may turn a few bytes into very many.
_READ = 1 << 13


class _Zstandard(io.RawIOBase):
    """The text of a .zst file of any number of frames; ends with EOFError where the last one is cut short."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._rest = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._ready:
            data = self._rest or self._file.read(_READ)
            if not data:
                if self._frame is not None:
                    raise EOFError("it ends inside of a frame")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(max_window_size=_MOST_WINDOW).decompressobj()
            self._ready = memoryview(self._frame.decompress(data))
            self._rest = b""
            if self._frame.eof:
                self._rest, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


Readable = io.BufferedReader | gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile
_OPENERS: dict[str, Callable[[Path], Readable]] = {
    ".gz": gzip.GzipFile,
    ".zst": lambda path: io.BufferedReader(_Zstandard(path.open("rb")), 1 << 16),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}
COMPRESSED = tuple(_OPENERS)
"""Endings of compressed files."""


def kind_of(path: Path) -> tuple[str, str]:
    """A file's ending and how it is compressed ("" where it is not), both in lower case: (".jsonl", ".gz")."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packing = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSED else ""
    return (suffixes[-1] if suffixes else ""), packing


def open_text(path: Path) -> Readable:
    """A file's bytes, decompressed; reading them may raise OSError and what BROKEN lists."""
    opener = _OPENERS.get(kind_of(path)[1])
    return opener(path) if opener else open(path, "rb")


def undecodable(raw: bytes) -> str:
    """Why bytes that are no UTF-8 are set aside, with the encoding that they look like."""
    if is_utf16(raw):
        return f"{UNDECODABLE[:-1]}, they look like UTF-16)"
    if _is_gbk(raw[:_SAMPLE]):
        return f"{UNDECODABLE[:-1]}, they look like GBK)"
    return UNDECODABLE


def is_utf16(raw: bytes) -> bool:
    """Whether bytes look like UTF-16: they begin with its mark, or every other one is NUL, as in Latin letters."""
    if len(raw) < _SAMPLE and len(raw) % 2:
        return False
    sample = raw[: min(len(raw), _SAMPLE) // 2 * 2]
    if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return len(sample) > 2
    halves = sample[::2], sample[1::2]
    zeros, others = sorted((half.count(0) for half in halves), reverse=True)
    return len(sample) >= 8 and zeros > 0.7 * len(halves[0]) and others < 0.1 * len(halves[0])


def _is_gbk(raw: bytes) -> bool:
    """Whether bytes decode as GB 18030, and nearly all of it but ASCII is punctuation or common Chinese characters."""
    try:
        text = codecs.getincrementaldecoder("gb18030")().decode(raw)
    except UnicodeDecodeError:
        return False
    encoded = [character.encode("gb18030") for character in text if not character.isascii()]
    # Rows 1-3 of GB 2312 are punctuation and full-width letters, rows 16-55 its 3,755 most common characters.
    common = sum(
        len(code) == 2 and code[1] >= 0xA1 and (0xA1 <= code[0] <= 0xA3 or 0xB0 <= code[0] <= 0xD7) for code in encoded
    )
    return common >= 2 and common >= 0.8 * len(encoded)
