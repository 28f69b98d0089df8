"""From documents to tokens on disk, several batches at once, the same for any number of threads."""

import collections
import concurrent.futures
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from m1jax.errors import UserError
from m1jax.rows.record import Array, token_dtype
from m1jax.rows.spool import EncodedBatch, Ints, Spool
from m1jax.text.documents import Document, Rejected, Table
from m1jax.text.set_aside import Items, batches, screen, set_aside

Progress = Callable[[str, str, int], None]
"""Called with a source, "encoded" or "packed", and bytes of its text since the last call."""

NO_TOKEN = "gives no token"
INDEX_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("utf8_bytes", pa.int64(), nullable=False),
        pa.field("difficulty", pa.float64()),
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
    tokens: int
    utf8_bytes: int
    difficulty: float | None


@dataclasses.dataclass(frozen=True)
class EncodedSource:
    """A source's documents: document i is `tokens[starts[i] : starts[i + 1]]`, EOS last.

    `utf8_bytes` (int64) and `difficulty` (float64, NaN where none was given) are by document.
    """

    language: str
    domain: str
    tokens: Array
    starts: Ints
    utf8_bytes: Ints
    difficulty: npt.NDArray[np.float64]
    rejected: int


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
    """Tokens of a source's documents, kept in `spool`, with its documents listed in the Parquet file `index`.

    Whatever cannot be packed goes to `aside` with its reason. `workers` threads encode; the tokenizer's library lets
    them run at once. Raises UserError where no document has text or their domains differ.
    """
    languages: set[str] = set()
    domains: set[str] = set()
    lengths: list[Array] = []
    sizes: list[Array] = []
    difficulties: list[Array] = []
    rejected = count = 0
    with Table(index, INDEX_SCHEMA) as table, concurrent.futures.ThreadPoolExecutor(max(1, workers)) as pool:
        for batch in _encoded(screen(documents, texts=False), tokenizer, spool, pool, workers):
            kept = batch.lengths > 0
            missing = [set_aside(d, NO_TOKEN) for d, keep in zip(batch.documents, kept, strict=True) if not keep]
            for item in (*batch.rejected, *missing):
                aside.write(dataclasses.replace(item, source=item.source or name), len(item.text))
                rejected += 1
            for document, length, size in zip(
                batch.documents, batch.lengths.tolist(), batch.sizes.tolist(), strict=True
            ):
                if length:
                    table.write(Indexed(document.id, length, size, document.difficulty), len(document.id) + 24)
            languages.update(document.language for document in batch.documents)
            domains.update(document.domain for document in batch.documents)
            numbers = [np.nan if d.difficulty is None else d.difficulty for d in batch.documents]
            lengths.append(batch.lengths[kept])
            sizes.append(batch.sizes[kept])
            difficulties.append(np.array(numbers, np.float64)[kept])
            count += len(lengths[-1])
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
        rejected=rejected,
    )


@dataclasses.dataclass(frozen=True)
class _Batch:
    documents: list[Document]
    rejected: list[Rejected]
    lengths: Ints
    sizes: Ints


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
        return dataclasses.replace(batch, lengths=encoded.lengths)

    for some in batches(items):
        batch, of = _measured(some)
        lengths = spool.found(of)
        texts = [document.text for document in batch.documents]
        future = pool.submit(_encode, texts, of, tokenizer, dtype) if lengths is None else None
        waiting.append((batch if lengths is None else dataclasses.replace(batch, lengths=lengths), future))
        while len(waiting) > _AHEAD * workers:
            yield finish()
    while waiting:
        yield finish()


def _measured(items: Iterable[Document | Rejected]) -> tuple[_Batch, str]:
    """A batch without its tokens' lengths, and the hash of its documents."""
    documents = [item for item in items if isinstance(item, Document)]
    rejected = [item for item in items if isinstance(item, Rejected)]
    digest = hashlib.blake2b(digest_size=16)
    sizes = []
    for document in documents:
        text = document.text.encode()
        sizes.append(len(text))
        digest.update(len(text).to_bytes(8, "little"))
        digest.update(text)
    return _Batch(documents, rejected, np.empty(0, np.int64), np.array(sizes, np.int64)), digest.hexdigest()


def _encode(texts: Sequence[str], of: str, tokenizer: Encoder, dtype: type[np.unsignedinteger]) -> EncodedBatch:
    """The tokens of a batch, each document's EOS after them; nothing at all of a document without tokens."""
    ids = tokenizer.encode_arrays(texts)
    lengths = np.array([len(some) + 1 if len(some) else 0 for some in ids], np.int64)
    tokens = np.full(int(lengths.sum()), tokenizer.eos_id, dtype)
    starts = np.cumsum(lengths) - lengths
    for start, some in zip(starts.tolist(), ids, strict=True):
        tokens[start : start + len(some)] = some
    return EncodedBatch(of, tokens, lengths)
