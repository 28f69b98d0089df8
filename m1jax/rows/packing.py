"""Packing documents into rows: best fit, decreasing, inside packing windows of shuffled documents.

    rows/<row length>/<source>.array_record   packed rows; <source>.d<n> for a bucket of difficulty
    documents/<source>.parquet                identifiers, tokens, bytes and difficulty by the number that rows use
    rejected.parquet                          what was set aside: origin, reason, text, source, record_id
    manifest.json                             counts, checksums, packing window → first row, the tokenizer's fingerprint

Every row length packs the same packing windows, so that a stage with another row length can continue at the border of
one. A document is its tokens and one EOS. bestfit.py says how its pieces repeat a token and which documents are cut.
Documents of a source with a column `whole` or `pair` are never cut, and those of a pair (a shard with an equal value)
are packed into one row.
"""

import concurrent.futures
import dataclasses
import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from m1jax import artefact
from m1jax.errors import UserError
from m1jax.rows.bestfit import Pieces, best_fit, pack_documents, pack_pairs, packing_borders, pieces_of, split
from m1jax.rows.columns import longer_pairs, pairs
from m1jax.rows.encoding import EncodedSource, Encoder, Progress, encode_source
from m1jax.rows.manifest import Manifest, RowFile, SourceRows, bucket_name, index_path, row_path
from m1jax.rows.ranges import write_index
from m1jax.rows.record import Row, token_dtype
from m1jax.rows.shuffle import permutation
from m1jax.rows.spans import Ints, Spans
from m1jax.rows.spool import Spool
from m1jax.rows.store import RowWriter
from m1jax.text.documents import PAIR, REJECTED_SCHEMA, WHOLE, Document, Rejected, Table
from m1jax.text.set_aside import screen, set_aside

__all__ = ["Encoder", "Progress", "best_fit", "pack", "split"]

Documents = Callable[[], Iterator[Document | Rejected]]


def pack(
    documents_by_source: Mapping[str, Documents],
    tokenizer: Encoder,
    folder: Path,
    row_lengths: Sequence[int],
    packing_window: int,
    seed: int,
    progress: Progress | None = None,
    *,
    difficulty_buckets: int = 1,
    workers: int = 1,
    spool: Path | None = None,
    chat_format: str = "",
) -> Manifest:
    """Packs sources into `folder` (layout above) and returns the manifest.

    A packing window is at most `packing_window` documents. With several `difficulty_buckets` a source whose documents
    have a difficulty is divided at the quantiles of these numbers, each bucket a store of its own. The same documents,
    tokenizer and arguments give the same bytes for any number of `workers` (threads). Encoded tokens are kept in
    `spool` meanwhile (default: inside `folder`, removed at the end): with the same `spool` and tokenizer, a packing
    that was killed reuses what was encoded. `chat_format` is noted in the manifest. Raises UserError for a source
    without text, of several domains or with a difficulty or a column on some of its documents only, and where the disk
    refuses.
    """
    report = progress or (lambda source, phase, size: None)
    if not documents_by_source:
        raise UserError("there is no source to pack: run `m1 corpus` on some text first.")
    if packing_window < 1 or not row_lengths or min(row_lengths) < 2:
        raise UserError(
            f"config keys data.row_lengths = {list(row_lengths)} and data.packing_window = {packing_window} must "
            f"hold at least one length of 2 or more, and 1 or more documents."
        )
    row_lengths = sorted(set(row_lengths))
    sources: dict[str, SourceRows] = {}
    scratch = spool or folder / "encoded"
    with Table(folder / "rejected.parquet", REJECTED_SCHEMA) as aside:
        for name in sorted(documents_by_source):
            kept = Spool(scratch, name, token_dtype(tokenizer.vocab_size))
            index = index_path(folder, name)
            encoded = encode_source(name, documents_by_source[name](), tokenizer, kept, index, aside, workers, report)
            if _kept_whole(encoded):
                encoded = _without_long(name, documents_by_source[name], encoded, row_lengths[0], aside)
            for store in _stores(name, encoded, difficulty_buckets):
                if store.name in sources or (store.of and store.name in documents_by_source):
                    raise UserError(f"two sources would both be stored as {store.name!r}: rename one of them.")
                sources[store.name] = _pack_store(
                    store, encoded, folder, row_lengths, packing_window, seed, workers, report
                )
    if difficulty_buckets > 1 and not any(source.of for source in sources.values()):
        raise UserError(
            f"config key data.difficulty_buckets = {difficulty_buckets}, but no document has a difficulty: give the "
            f"records a field `difficulty` before `m1 corpus`, or set the key to 1."
        )
    if spool is None:
        shutil.rmtree(scratch)
    manifest = Manifest(
        tokenizer=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        seed=seed,
        packing_window=packing_window,
        row_lengths=tuple(row_lengths),
        sources=sources,
        chat_format=chat_format,
    )
    manifest.save(folder)
    return manifest


def _kept_whole(source: EncodedSource) -> bool:
    """Whether the source's documents are never cut."""
    return not source.columns.keys().isdisjoint((PAIR, WHOLE))


def _without_long(
    name: str, documents: Documents, source: EncodedSource, row_length: int, aside: Table
) -> EncodedSource:
    """The source without pairs, or whole documents, that are longer than the shortest rows.

    Their documents, read again, go to `aside`.
    """
    lengths = np.diff(source.starts)
    what = "pair" if PAIR in source.columns else "document"
    longer = longer_pairs(pairs(source.columns[PAIR]), lengths, row_length) if what == "pair" else lengths > row_length
    if longer.all():
        raise UserError(
            f"source {name!r}: every {what} is longer than a row of {row_length} tokens: raise the shortest length of "
            f"config key data.row_lengths."
        )
    if not longer.any():
        return source
    places = set(source.places[longer].tolist())
    reason = f"{what} longer than a row of {row_length} tokens"
    for place, item in enumerate(screen(documents(), texts=False)):
        if isinstance(item, Document) and place in places:
            aside.write(dataclasses.replace(set_aside(item, reason), source=item.source or name), len(item.text))
    count = int(longer.sum())
    return dataclasses.replace(source, packed=np.flatnonzero(~longer), rejected=source.rejected + count)


@dataclasses.dataclass(frozen=True)
class _Store:
    """The documents of a source that are packed together: all of them, or one bucket."""

    name: str
    documents: Ints
    of: str = ""
    bucket: int = 0
    buckets: int = 1


def _stores(name: str, source: EncodedSource, buckets: int) -> list[_Store]:
    """The source as one store, or divided at quantiles of difficulty; equal numbers and pairs stay together."""
    difficulty = source.difficulty[source.packed]
    unknown = np.isnan(difficulty)
    if buckets == 1 or unknown.all():
        return [_Store(name, source.packed)]
    if unknown.any():
        raise UserError(
            f"source {name!r}: {unknown.sum()} of {len(unknown)} documents have no difficulty: give every document of "
            f"the source one, or none."
        )
    if PAIR in source.columns:
        # A pair is as difficult as the harder of its documents.
        pair = pairs(source.columns[PAIR][source.packed])
        hardest = np.full(len(difficulty), -np.inf)
        np.maximum.at(hardest, pair, difficulty)
        difficulty = hardest[pair]
    edges = np.quantile(difficulty, np.arange(1, buckets) / buckets, method="higher")
    bucket_of = np.searchsorted(edges, difficulty, side="right")
    parts = [source.packed[bucket_of == bucket] for bucket in range(buckets)]
    if not all(map(len, parts)):
        raise UserError(
            f"source {name!r}: its documents' difficulty takes too few values for {buckets} buckets: lower config key "
            f"data.difficulty_buckets."
        )
    return [_Store(bucket_name(name, i), part, name, i, buckets) for i, part in enumerate(parts)]


def _pack_store(
    store: _Store,
    source: EncodedSource,
    folder: Path,
    row_lengths: Sequence[int],
    packing_window: int,
    seed: int,
    workers: int,
    report: Progress,
) -> SourceRows:
    """Shuffles a store's documents into packing windows and packs each of them once for every row length."""
    order, firsts = _shuffled(store, source, seed)
    lengths = np.diff(source.starts)[order]
    # A packing window has whole pairs only, and still at most `packing_window` documents.
    most = max(1, packing_window // int(np.diff(firsts).max()))
    units = packing_borders(np.add.reduceat(lengths, firsts[:-1]), row_lengths, most)
    trained, weight = source.spans.by_document(source.starts)
    utf8_bytes = int(source.utf8_bytes[order].sum())

    def write(row_length: int) -> RowFile:
        path = row_path(folder, row_length, store.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return _write_rows(path, source, order, firsts, units, row_length, (seed, store.name))

    files = {}
    with concurrent.futures.ThreadPoolExecutor(max(1, workers)) as pool:
        for row_length, file in zip(row_lengths, pool.map(write, row_lengths), strict=True):
            files[row_length] = file
            report(store.of or store.name, "packed", utf8_bytes)
    numbers = source.difficulty[order]
    return SourceRows(
        language=source.language,
        domain=source.domain,
        documents=len(order),
        rejected=0 if store.bucket else source.rejected,
        tokens=int(lengths.sum()),
        trained_tokens=int(trained[order].sum()),
        target_weight=float(weight[order].sum()),
        utf8_bytes=utf8_bytes,
        files=files,
        columns={name: values.dtype.name for name, values in source.columns.items()},
        of=store.of,
        bucket=store.bucket,
        buckets=store.buckets,
        difficulty=(float(numbers.min()), float(numbers.max())) if store.of else None,
        inserted={name: int(tokens[order].sum()) for name, tokens in sorted(source.inserted.items())},
        surrounded=int(np.any([tokens[order] for tokens in source.inserted.values()], axis=0).sum()),
    )


def _shuffled(store: _Store, source: EncodedSource, seed: int) -> tuple[Ints, Ints]:
    """The documents of a store in their shuffled order, and where each unit begins, with their number at the end.

    A unit is a document, or the documents of a pair in the order in which they came.
    """
    key = "documents", seed, store.name
    if PAIR not in source.columns:
        return store.documents[permutation(len(store.documents), *key)], np.arange(len(store.documents) + 1)
    pair = pairs(source.columns[PAIR][store.documents])
    place = np.argsort(permutation(int(pair.max()) + 1, *key))[pair]
    firsts = np.concatenate([[0], np.cumsum(np.bincount(place))])
    return store.documents[np.argsort(place, kind="stable")], firsts


def _write_rows(
    path: Path,
    source: EncodedSource,
    order: Ints,
    firsts: Ints,
    units: Sequence[int],
    row_length: int,
    key: tuple[int, str],
) -> RowFile:
    """Packs and writes the packing windows of a store for one row length; the rows of each are shuffled.

    `firsts` is as `_shuffled` returns it; `units` has the first unit of each packing window, and their number.
    """
    lengths = np.diff(source.starts)[order]
    first_rows = [0]
    tokens = cut = 0
    with RowWriter(path) as writer:
        for index, (first, last) in enumerate(itertools.pairwise(units)):
            start, end = firsts[first], firsts[last]
            documents = order[start:end], lengths[start:end]
            if _kept_whole(source):
                pieces = pack_pairs(*documents, firsts[first:last] - start, row_length)
            else:
                pieces = pack_documents(*documents, row_length)
            rows = permutation(pieces.count, "rows", *key, index, row_length)
            for row in _rows(source, pieces, rows.tolist(), row_length):
                writer.write(row)
            first_rows.append(first_rows[-1] + pieces.count)
            tokens += int(pieces.lengths.sum())
            cut += int((np.unique(pieces.documents, return_counts=True)[1] > 1).sum())
    write_index(path)
    return RowFile(
        rows=first_rows[-1],
        fill=tokens / (first_rows[-1] * row_length),
        first_rows=tuple(first_rows),
        sha256=artefact.checksum(path),
        bytes=path.stat().st_size,
        cut=cut,
        long=int((pieces_of(lengths, row_length) > 1).sum()),
    )


def _rows(source: EncodedSource, pieces: Pieces, order: Sequence[int], row_length: int) -> Iterator[Row]:
    """The rows of a packing window in the given order."""
    starts = source.starts[pieces.documents] + pieces.offsets
    ends = starts + pieces.lengths
    tokens = np.concatenate([source.tokens[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)])
    lengths, documents, offsets = (
        part.astype(np.uint32) for part in (pieces.lengths, pieces.documents, pieces.offsets)
    )
    columns = {name: values[pieces.documents] for name, values in source.columns.items()}
    borders = np.searchsorted(pieces.rows, np.arange(pieces.count + 1))
    begins = np.concatenate([[0], np.cumsum(pieces.lengths)])
    places = begins[borders]
    piece, spans = source.spans.cut(starts, ends)
    in_row = (spans.starts + begins[piece] - places[pieces.rows[piece]]).astype(np.uint32)
    sizes = spans.lengths.astype(np.uint32)
    runs = np.searchsorted(piece, borders)
    for row in order:
        mine, some = slice(borders[row], borders[row + 1]), slice(runs[row], runs[row + 1])
        yield Row(
            row_length,
            tokens[places[row] : places[row + 1]],
            lengths[mine],
            documents[mine],
            offsets[mine],
            Spans(in_row[some], sizes[some], spans.weights[some]),
            {name: values[mine] for name, values in columns.items()},
        )
