"""From documents to tokens on disk, several batches at once, the same for any number of threads."""

import collections
import concurrent.futures
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from m1jax.errors import UserError
from m1jax.rows.columns import Columns
from m1jax.rows.record import Array, token_dtype
from m1jax.rows.spans import NO_SPANS, Ints, Spans, joined, runs, spans_of
from m1jax.rows.spool import EncodedBatch, Spool
from m1jax.text.documents import Document, Part, Rejected, Table
from m1jax.text.set_aside import Items, batches, screen, set_aside
from m1jax.tokenizer import joins

Progress = Callable[[str, str, int], None]
"""Called with a source, "encoded" or "packed", and bytes of its text since the last call."""

NO_TARGET = "gives no token that is learned"
INDEX_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("utf8_bytes", pa.int64(), nullable=False),
        pa.field("difficulty", pa.float64()),
        pa.field("inserted", pa.list_(pa.struct({"origin": pa.string(), "start": pa.int64(), "tokens": pa.int64()}))),
    ]
)
# A row knows a document by a number of 32 bits.
_MOST_DOCUMENTS = 1 << 32
_AHEAD = 4


class Encoder(Protocol):
    """What packing needs of a tokenizer."""

    eos_id: int

    @property
    def vocab_size(self) -> int: ...  # noqa: D102

    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    def encode_arrays(self, texts: Sequence[str]) -> Sequence[Array]: ...  # noqa: D102


@dataclasses.dataclass(frozen=True)
class Indexed:
    """A line of documents/<source>.parquet: the row's document number is its place in the file."""

    id: str
    record_id: str
    tokens: int
    utf8_bytes: int
    difficulty: float | None
    inserted: Sequence[Mapping[str, str | int]] | None
    """Tokens that are of other documents: `origin` (see documents.origin_of), `start` and `tokens`; None: there are
    none."""


@dataclasses.dataclass(frozen=True)
class EncodedSource:
    """A source's documents: document i is `tokens[starts[i] : starts[i + 1]]`, EOS last.

    `utf8_bytes` (int64), `difficulty` (float64, NaN where none was given) and each of `columns` (int32 or float32) are
    by document; the runs of `spans` are of `tokens`. `places` (int64) says which of the source's items, counted from 0
    as they are read, each document is. `packed` (int64) are the documents that rows are made of.
    """

    language: str
    domain: str
    tokens: Array
    starts: Ints
    utf8_bytes: Ints
    difficulty: npt.NDArray[np.float64]
    spans: Spans
    columns: Mapping[str, Array]
    places: Ints
    packed: Ints
    rejected: int
    inserted: Mapping[str, Ints]
    """Tokens by document that are of other documents, by the source of these."""


def encode_source(
    name: str,
    documents: Items,
    tokenizer: Encoder,
    spool: Spool,
    index: Path,
    aside: Table,
    workers: int,
    report: Progress,
) -> EncodedSource:
    """Encodes a source's documents into `spool` and lists them in the Parquet file `index`.

    What cannot be packed goes to `aside` with its reason. `workers` threads encode; the tokenizer's library lets them
    run in parallel. Raises UserError where no document has text, their domains differ, or some of them lack a column.
    """
    languages: set[str] = set()
    domains: set[str] = set()
    lengths: list[Array] = []
    sizes: list[Array] = []
    difficulties: list[Array] = []
    spans: list[Spans] = []
    places: list[Ints] = []
    columns = Columns()
    inserted: dict[str, collections.Counter[int]] = {}
    rejected = count = tokens = number = 0
    with Table(index, INDEX_SCHEMA) as table, concurrent.futures.ThreadPoolExecutor(max(1, workers)) as pool:
        for batch in _encoded(screen(documents, texts=False), tokenizer, spool, pool, workers):
            kept = batch.lengths > 0
            missing = [set_aside(d, NO_TARGET) for d, keep in zip(batch.documents, kept, strict=True) if not keep]
            for item in (*batch.rejected, *missing):
                aside.write(dataclasses.replace(item, source=item.source or name), len(item.text))
                rejected += 1
            chosen = list(itertools.compress(batch.documents, kept))
            for document, length, size in zip(
                chosen, batch.lengths[kept].tolist(), batch.sizes[kept].tolist(), strict=True
            ):
                others = _inserted(document)
                line = Indexed(document.id, document.record_id, length, size, document.difficulty, others or None)
                table.write(line, len(line.id) + len(line.record_id) + 24 + 64 * len(others))
                for other in others:
                    name_of_other = str(other["origin"]).partition("/")[0]
                    inserted.setdefault(name_of_other, collections.Counter())[number] += int(other["tokens"])
                number += 1
            columns.add(chosen)
            languages.update(document.language for document in batch.documents)
            domains.update(document.domain for document in batch.documents)
            numbers = [np.nan if document.difficulty is None else document.difficulty for document in chosen]
            lengths.append(batch.lengths[kept])
            sizes.append(batch.sizes[kept])
            places.append(batch.places[kept])
            difficulties.append(np.array(numbers, np.float64))
            spans.append(batch.spans.shifted(tokens))
            count += len(chosen)
            tokens += int(batch.lengths.sum())
            report(name, "encoded", int(batch.sizes.sum()))
    if not count:
        why = f" ({rejected} were set aside)" if rejected else ""
        raise UserError(f"source {name!r} holds no document with text{why}: remove it, or add text to it.")
    if count >= _MOST_DOCUMENTS:
        raise UserError(f"source {name!r} holds {count} documents, more than a row can number: divide it.")
    if len(domains) > 1:
        raise UserError(
            f"source {name!r} holds documents of domains {' and '.join(sorted(domains))}: give each its own source."
        )
    starts = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    return EncodedSource(
        language="+".join(sorted(languages)),
        domain=domains.pop(),
        tokens=spool.tokens(),
        starts=starts,
        utf8_bytes=np.concatenate(sizes),
        difficulty=np.concatenate(difficulties),
        spans=joined(spans),
        columns=columns.arrays(name),
        places=np.concatenate(places),
        packed=np.arange(count),
        rejected=rejected,
        inserted={of: np.array([tokens[i] for i in range(count)], np.int64) for of, tokens in inserted.items()},
    )


def _inserted(document: Document) -> list[dict[str, str | int]]:
    """Which tokens of a document are of others: see Indexed; the parts of such a document all have their ids."""
    found: list[dict[str, str | int]] = []
    start = 0
    for part in document.parts:
        if part.origin:
            found.append({"origin": part.origin, "start": start, "tokens": len(part.ids)})
        start += len(part.ids)
    return found


@dataclasses.dataclass(frozen=True)
class _Batch:
    documents: list[Document]
    rejected: list[Rejected]
    sizes: Ints
    places: Ints
    lengths: Ints = dataclasses.field(default_factory=lambda: np.empty(0, np.int64))
    spans: Spans = NO_SPANS


def _encoded(
    items: Items, tokenizer: Encoder, spool: Spool, pool: concurrent.futures.Executor, workers: int
) -> Iterator[_Batch]:
    """Batches in order, encoded by the pool a few ahead, or found in the spool."""
    dtype = token_dtype(tokenizer.vocab_size)
    waiting: collections.deque[tuple[_Batch, concurrent.futures.Future[EncodedBatch] | None]] = collections.deque()

    def finish() -> _Batch:
        batch, future = waiting.popleft()
        if future is None:
            return batch
        encoded = future.result()
        spool.append(encoded)
        return dataclasses.replace(batch, lengths=encoded.lengths, spans=encoded.spans)

    first = 0
    for some in batches(items):
        batch, of = _measured(some, first, tokenizer.vocab_size)
        first += len(some)
        if (known := spool.found(of)) is None:
            waiting.append((batch, pool.submit(encode, batch.documents, tokenizer, dtype, of)))
        else:
            lengths, spans = known
            waiting.append((dataclasses.replace(batch, lengths=lengths, spans=spans), None))
        while len(waiting) > _AHEAD * workers:
            yield finish()
    while waiting:
        yield finish()


def _measured(items: Iterable[Document | Rejected], first: int, vocab_size: int) -> tuple[_Batch, str]:
    """A batch without its tokens' lengths, and the hash of what is encoded of its documents; `first` is its place."""
    documents, rejected, sizes, places = [], [], [], []
    digest = hashlib.blake2b(digest_size=16)
    for place, item in enumerate(items, first):
        if isinstance(item, Rejected):
            rejected.append(item)
        elif beyond := [i for part in item.parts for i in part.ids if i >= vocab_size]:
            rejected.append(set_aside(item, f"token id {beyond[0]} is not one of the tokenizer's {vocab_size}"))
        else:
            text = item.text.encode()
            documents.append(item)
            sizes.append(len(text))
            places.append(place)
            digest.update(len(text).to_bytes(8, "little"))
            digest.update(text)
            if item.parts:
                digest.update(repr(item.parts).encode())
    return _Batch(documents, rejected, np.array(sizes, np.int64), np.array(places, np.int64)), digest.hexdigest()


def encode(
    documents: Sequence[Document], tokenizer: Encoder, dtype: type[np.unsignedinteger], of: str = ""
) -> EncodedBatch:
    """The tokens of documents, each followed by EOS; a document without a target gives nothing, not even EOS.

    No token goes over the border of two parts, but text behind text is encoded as its continuation. EOS has the weight
    of the document's last part.
    """
    parts = [document.parts or (Part(document.text),) for document in documents]
    encoded = iter(tokenizer.encode_arrays([part.text for some in parts for part in some if not part.ids]))
    ids: list[list[Sequence[int] | Array]] = [[part.ids or next(encoded) for part in some] for some in parts]
    _continue(parts, ids, tokenizer)
    totals = [
        0 if document.parts and not _has_target(document.parts, some) else sum(map(len, some))
        for document, some in zip(documents, ids, strict=True)
    ]
    lengths = np.array([total + 1 if total else 0 for total in totals], np.int64)
    tokens = np.full(int(lengths.sum()), tokenizer.eos_id, dtype)
    found: list[tuple[int, int, float]] = []
    at = 0
    for document, some, total in zip(documents, ids, totals, strict=True):
        if not total:
            continue
        if document.parts:
            weights = [part.weight for part in document.parts]
            found += runs([*map(len, some), 1], [*weights, weights[-1]], at)
        for part in some:
            tokens[at : at + len(part)] = part
            at += len(part)
        at += 1
    return EncodedBatch(of, tokens, lengths, spans_of(found))


def _has_target(parts: Sequence[Part], ids: Sequence[Sequence[int] | Array]) -> bool:
    """Whether a token behind the first one, EOS included, has a weight above 0 as rows keep it."""
    weights = [weight for part, some in zip(parts, ids, strict=True) for weight in [part.weight] * min(len(some), 2)]
    return bool(weights) and any(np.float32(weight) > 0 for weight in [*weights[1:], parts[-1].weight])


def _continue(parts: Sequence[Sequence[Part]], ids: Sequence[list[Sequence[int] | Array]], tokenizer: Encoder) -> None:
    """Replaces the ids of text that follows text: many a tokenizer puts a space before a text that begins."""
    places = [
        (i, j)
        for i, some in enumerate(parts)
        for j in range(1, len(some))
        if some[j].text and not some[j].ids and some[j - 1].text and not some[j - 1].ids
    ]
    if not places or (lead := joins.lead_of(tokenizer)) is None:
        return
    texts = [parts[i][j].text for i, j in places]
    for (i, j), found in zip(places, joins.continued(tokenizer, texts, lead), strict=True):
        ids[i][j] = found
