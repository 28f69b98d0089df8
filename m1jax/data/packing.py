"""Packing documents into rows: best fit, decreasing, inside windows of shuffled documents.

Every row length packs the same windows, so that a change of row length can go on at a window's border. A document is
its tokens and one EOS. One longer than a row is split, and each further piece starts by repeating the last token of
the piece before it: a piece's first token is no target, so that every target counts exactly once. (Best-fit packing
for pre-training: Ding et al. 2024, arXiv 2404.10830.)
"""

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from m1jax import artefact
from m1jax.data.documents import Document
from m1jax.data.manifest import Manifest, RowFile, SourceRows, row_path
from m1jax.data.rows import Array, Row, RowWriter, token_dtype
from m1jax.data.shuffle import permutation
from m1jax.errors import UserError

Progress = Callable[[str, int, int], None]
Pieces = Sequence[tuple[int, int, int]]
"""(document, offset in the document, length) of each piece of a row."""

_ENCODE_DOCUMENTS = 512


class Encoder(Protocol):
    """What packing needs of a tokenizer."""

    eos_id: int

    @property
    def vocab_size(self) -> int: ...  # noqa: D102

    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...  # noqa: D102


@dataclasses.dataclass(frozen=True)
class EncodedSource:
    """A source in memory: document i is `tokens[starts[i] : starts[i + 1]]`, EOS last."""

    language: str
    domain: str
    tokens: Array
    starts: Array
    utf8_bytes: int


def split(length: int, row_length: int) -> list[tuple[int, int]]:
    """(offset, length) of the pieces of a document of `length` >= 2 tokens: all full but the last, each 2 or more."""
    step = row_length - 1
    return [(offset, min(row_length, length - offset)) for offset in range(0, length - 1, step)]


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of items, by index: longest item first, each into the fullest bin that still has room for it."""
    bins: list[list[int]] = []
    # Bins by the room they have left, oldest first, and a bit for every amount of room that some bin has.
    by_room: list[deque[int]] = [deque() for _ in range(capacity + 1)]
    rooms = 0
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[item]
        if fitting := rooms >> length:
            room = length + (fitting & -fitting).bit_length() - 1
            place = by_room[room].popleft()
            if not by_room[room]:
                rooms &= ~(1 << room)
            bins[place].append(item)
        else:
            room, place = capacity, len(bins)
            bins.append([item])
        by_room[room - length].append(place)
        rooms |= 1 << (room - length)
    return bins


def pack_window(documents: Sequence[int], lengths: Sequence[int], row_length: int) -> list[list[tuple[int, int, int]]]:
    """Rows of one window as pieces; document `documents[i]` has `lengths[i]` tokens."""
    pieces = [
        (document, offset, size)
        for document, length in zip(documents, lengths, strict=True)
        for offset, size in split(length, row_length)
    ]
    return [[pieces[i] for i in chosen] for chosen in best_fit([size for _, _, size in pieces], row_length)]


def pack(
    documents_by_source: Mapping[str, Callable[[], Iterator[Document]]],
    tokenizer: Encoder,
    folder: Path,
    row_lengths: Sequence[int],
    window_documents: int,
    seed: int,
    progress: Progress | None = None,
) -> Manifest:
    """Packs sources into `folder` (rows/<row length>/<source>.array_record and manifest.json) and returns the manifest.

    A window is at most `window_documents` documents. The same documents, tokenizer and arguments give the same bytes.
    One source's tokens are in memory at once.
    `progress(source, done, total)` counts encoded documents with total 0, then packed windows. Raises UserError for a
    source without text or of several domains, and where the disk refuses.
    """
    report = progress or (lambda source, done, total: None)
    if not documents_by_source:
        raise UserError("there is no source to pack: run `m1 corpus` on some text first.")
    if window_documents < 1 or not row_lengths or min(row_lengths) < 2:
        raise UserError(
            f"config keys data.row_lengths = {list(row_lengths)} and data.window_documents = {window_documents} must "
            f"hold at least one length of 2 or more, and 1 or more documents."
        )
    row_lengths = sorted(set(row_lengths))
    sources = {}
    for name in sorted(documents_by_source):
        encoded = encode_source(name, documents_by_source[name](), tokenizer, report)
        sources[name] = _pack_source(name, encoded, folder, row_lengths, window_documents, seed, report)
    manifest = Manifest(
        tokenizer=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        seed=seed,
        window_documents=window_documents,
        row_lengths=tuple(row_lengths),
        sources=sources,
    )
    manifest.save(folder)
    return manifest


def encode_source(name: str, documents: Iterator[Document], tokenizer: Encoder, report: Progress) -> EncodedSource:
    """Tokens of a source's documents; raises UserError where none has text or their domains differ."""
    dtype = token_dtype(tokenizer.vocab_size)
    parts: list[Array] = []
    lengths: list[int] = []
    languages: set[str] = set()
    domains: set[str] = set()
    utf8_bytes = 0
    while batch := list(itertools.islice(documents, _ENCODE_DOCUMENTS)):
        encoded = [[*ids, tokenizer.eos_id] for ids in tokenizer.encode_batch([document.text for document in batch])]
        parts.append(np.fromiter(itertools.chain.from_iterable(encoded), dtype))
        lengths += map(len, encoded)
        utf8_bytes += sum(len(document.text.encode()) for document in batch)
        languages.update(document.language for document in batch)
        domains.update(document.domain for document in batch)
        report(name, len(lengths), 0)
    if max(lengths, default=0) < 2:
        raise UserError(f"source {name!r} holds no document with text: remove it, or add text to it.")
    if len(domains) > 1:
        raise UserError(
            f"source {name!r} holds documents of domains {' and '.join(sorted(domains))}: give each its own source."
        )
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return EncodedSource("+".join(sorted(languages)), domains.pop(), np.concatenate(parts), starts, utf8_bytes)


def _pack_source(
    name: str,
    source: EncodedSource,
    folder: Path,
    row_lengths: Sequence[int],
    window_documents: int,
    seed: int,
    report: Progress,
) -> SourceRows:
    """Shuffles a source's documents into windows and packs each window once for every row length."""
    lengths = np.diff(source.starts)
    order = permutation(len(lengths), "documents", seed, name)
    order = order[lengths[order] > 1]
    # Windows of nearly equal size: a last one of few documents would pack badly.
    windows = np.array_split(order, -(-len(order) // window_documents))
    files = {}
    for number, row_length in enumerate(row_lengths):
        path = row_path(folder, row_length, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        first_rows = [0]
        with RowWriter(path) as writer:
            for index, rows in enumerate(_pack_windows(source, windows, row_length, (seed, name))):
                first_rows.append(first_rows[-1] + len(rows))
                for row in rows:
                    writer.write(row)
                report(name, number * len(windows) + index + 1, len(row_lengths) * len(windows))
        # A piece repeats one token of the piece before it.
        tokens = int(sum(size + (size - 2) // (row_length - 1) for size in lengths[order].tolist()))
        files[row_length] = RowFile(
            rows=first_rows[-1],
            fill=tokens / (first_rows[-1] * row_length),
            first_rows=tuple(first_rows),
            sha256=artefact.checksum(path),
        )
    return SourceRows(
        language=source.language,
        domain=source.domain,
        documents=len(lengths),
        empty=len(lengths) - len(order),
        tokens=int(lengths[order].sum()),
        utf8_bytes=source.utf8_bytes,
        files=files,
    )


def _pack_windows(
    source: EncodedSource, windows: Sequence[Array], row_length: int, key: tuple[int, str]
) -> Iterator[list[Row]]:
    """The rows of each window, in a shuffled order."""
    lengths = np.diff(source.starts)
    for index, window in enumerate(windows):
        packed = pack_window(window.tolist(), lengths[window].tolist(), row_length)
        yield [_row(source, packed[i], row_length) for i in permutation(len(packed), "rows", *key, index, row_length)]


def _row(source: EncodedSource, pieces: Pieces, row_length: int) -> Row:
    """The row of the given pieces."""
    documents, offsets, lengths = np.array(pieces, np.uint32).T
    starts = source.starts[documents] + offsets
    parts = [source.tokens[start : start + size] for start, size in zip(starts, lengths, strict=True)]
    return Row(row_length, np.concatenate(parts), lengths, documents, offsets)
