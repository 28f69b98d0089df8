"""The corpus: documents in Parquet by source, a held-out part, and all that was set aside with its reason.

    documents/<source>.parquet   what is trained on
    heldout/<source>.parquet     what is never trained on, chosen by the hash of each document's identifier
    rejected.parquet             what was set aside: origin, reason, text, source
    LICENCES.md, sources.json    where the text comes from and on what terms (written by `licences`)

The same documents in the same order give the same bytes.
"""

import collections
import contextlib
import dataclasses
import hashlib
import heapq
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from m1jax.data.documents import DOCUMENT_SCHEMA, REJECTED_SCHEMA, Document, Rejected, read_documents
from m1jax.data.folder import DOMAINS, LARGEST, read_folder
from m1jax.data.overlap import NgramIndex
from m1jax.data.sources import Source
from m1jax.errors import UserError

__all__ = [
    "Document", "Rejected", "Report", "SourceReport", "licences", "read_documents", "read_folder",
    "source_documents", "write_corpus",
]  # fmt: skip

_ROW_GROUP_BYTES = 2 << 20
_ROW_GROUP_ROWS = 8192
_BATCH_ROWS = 512
_BATCH_BYTES = 4 << 20
# Each source keeps two files open; a field named source that differs in every line is a mistake.
_MOST_SOURCES = 200
_BLANK = re.compile(r"[\s\0]*")
_SOURCE = re.compile(r"\w[\w.-]*")


@dataclasses.dataclass
class SourceReport:
    """Counts of one source; bytes are those of the text in UTF-8; languages and domains are those that occur."""

    languages: list[str] = dataclasses.field(default_factory=list)
    domains: list[str] = dataclasses.field(default_factory=list)
    documents: int = 0
    bytes: int = 0
    heldout_documents: int = 0
    heldout_bytes: int = 0
    rejected: int = 0


@dataclasses.dataclass
class Report:
    """What `write_corpus` did: counts by source, and how many were set aside for each reason."""

    sources: dict[str, SourceReport]
    rejected: dict[str, int]

    @property
    def documents(self) -> int:
        """All documents to train on."""
        return sum(source.documents for source in self.sources.values())

    @property
    def bytes(self) -> int:
        """Their text's size in UTF-8."""
        return sum(source.bytes for source in self.sources.values())


def source_documents(source: Source, archive: Path) -> Iterator[Document]:
    """The documents of a source out of its package's archive, identifiers prefixed by the source's name."""
    for identifier, text in source.extract(archive):
        yield Document(f"{source.name}/{identifier}", text, source.name, source.language, source.domain)


def write_corpus(
    folder: Path,
    documents: Iterable[Document | Rejected],
    *,
    heldout_share: float = 0.02,
    heldout_bytes: int = 1_000_000,
    evaluation: NgramIndex | None = None,
) -> Report:
    """Writes documents into the empty `folder` (layout above) and reports what became of each.

    Set aside, never dropped: whatever comes as Rejected, and documents that are empty (nothing but white space and
    NUL), no valid Unicode, over 32 MiB, of an unknown domain, of an identifier or a text that came before, or that
    share a run of words with an item of `evaluation` (reason "evaluation overlap").

    Of each source about `heldout_share` of the documents are held out, those with the smallest identifier hashes, up
    to about `heldout_bytes` of text, and at least one where there are two. Memory is bounded by the held-out text and
    two row groups a source, plus 16 bytes a document to know duplicates. Raises UserError where no document is left
    or there are over 200 sources.
    """
    rejected: collections.Counter[str] = collections.Counter()
    reports: dict[str, SourceReport] = {}
    with contextlib.ExitStack() as files:
        aside = files.enter_context(_Table(folder / "rejected.parquet", REJECTED_SCHEMA))
        splits: dict[str, _Split] = {}
        seen = _Seen()
        for batch in _batches(documents):
            for item in _judge(batch, seen, evaluation):
                report = reports.setdefault(item.source, SourceReport())
                if isinstance(item, Rejected):
                    aside.write(item, len(item.text))
                    rejected[item.reason] += 1
                    report.rejected += 1
                    continue
                if item.source not in splits:
                    splits[item.source] = files.enter_context(
                        _Split(folder, item.source, report, heldout_share, heldout_bytes)
                    )
                splits[item.source].add(item)
            if len(splits) > _MOST_SOURCES:
                raise UserError(
                    f"The text names over {_MOST_SOURCES} sources: a source is a body of text to be mixed and measured "
                    "as one; give the field `source` fewer values, or leave it out."
                )
    if not splits:
        why = ", ".join(f"{reason}: {count}" for reason, count in rejected.most_common()) or "none came in"
        raise UserError(f"The corpus is empty, every document was set aside ({why}): give a folder with usable text.")
    return Report(dict(sorted(reports.items())), dict(rejected.most_common()))


def licences(folder: Path, sources: Sequence[Source]) -> None:
    """Writes LICENCES.md and sources.json into `folder`: package, version, licences and citation of each source."""
    lines = ["# Where this text comes from, and on what terms", ""]
    records = []
    for source in sources:
        package = source.package
        lines += [
            f"## {source.name}",
            f"- text: {source.licence}",
            f"- package: {package.name} {package.version} ({package.registry}), {package.licence}",
            f"- citation: {source.citation}",
            "",
        ]
        described = {"name": source.name, "language": source.language, "domain": source.domain}
        terms = {"licence": source.licence, "citation": source.citation}
        records.append({**described, **terms, "package": dataclasses.asdict(package)})
    (folder / "LICENCES.md").write_text("\n".join(lines), encoding="utf-8")
    (folder / "sources.json").write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


class _Seen:
    """Identifiers and texts that came before, as 64-bit hashes."""

    def __init__(self) -> None:
        self._ids: set[int] = set()
        self._texts: set[int] = set()

    def repeats(self, document: Document) -> str | None:
        """The reason to set a document aside as a repetition, else None (and it is remembered)."""
        identifier, text = _hash(document.id), _hash(document.text)
        if identifier in self._ids:
            return "duplicate id"
        if text in self._texts:
            return "duplicate text"
        self._ids.add(identifier)
        self._texts.add(text)
        return None


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _batches(documents: Iterable[Document | Rejected]) -> Iterator[list[Document | Rejected]]:
    """Batches that are worth an array operation and yet small in memory."""
    batch: list[Document | Rejected] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if len(batch) >= _BATCH_ROWS or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _judge(
    batch: list[Document | Rejected], seen: _Seen, evaluation: NgramIndex | None
) -> Iterator[Document | Rejected]:
    """The batch in order, each document as it is or as Rejected."""
    judged: list[Document | Rejected] = []
    for item in batch:
        reason = (_fault(item) or seen.repeats(item)) if isinstance(item, Document) else None
        judged.append(_set_aside(item, reason) if isinstance(item, Document) and reason else item)
    kept = [index for index, item in enumerate(judged) if isinstance(item, Document)]
    if evaluation is not None:
        hits = evaluation.hits_batch([judged[index].text for index in kept])
        for index in (kept[place] for place in hits.nonzero()[0]):
            item = judged[index]
            assert isinstance(item, Document)
            judged[index] = _set_aside(item, "evaluation overlap")
    yield from judged


def _fault(document: Document) -> str | None:
    """What is wrong with a document in itself."""
    try:
        size = len("\0".join(dataclasses.astuple(document)).encode())
    except UnicodeEncodeError:
        return "no valid Unicode"
    if _BLANK.fullmatch(document.text):
        return "empty"
    if size > LARGEST:
        return f"larger than {LARGEST >> 20} MiB"
    if document.domain not in DOMAINS:
        return f"domain is neither {' nor '.join(DOMAINS)}"
    if not _SOURCE.fullmatch(document.source):
        return "source is no file name"
    return None


def _set_aside(document: Document, reason: str) -> Rejected:
    values = (document.id, document.text, document.source)
    origin, text, source = (value.encode(errors="backslashreplace").decode() for value in values)
    return Rejected(origin, reason, text, source)


class _Table(contextlib.AbstractContextManager["_Table"]):
    """A Parquet file of string columns, written in row groups as rows come; whole only after its context ends well."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        repeated = [name for name in schema.names if name in ("source", "language", "domain", "reason")]
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=repeated)
        self._schema = schema
        self._rows: list[tuple[str, ...]] = []
        self._size = 0

    def write(self, row: Document | Rejected, size: int) -> None:
        self._rows.append(tuple(getattr(row, name) for name in self._schema.names))
        self._size += size
        if self._size >= _ROW_GROUP_BYTES or len(self._rows) >= _ROW_GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            columns = [pa.array(values, pa.string()) for values in zip(*self._rows, strict=True)]
            self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self._rows, self._size = [], 0

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        try:
            if failure is None:
                self._flush()
        finally:
            self._writer.close()


class _Split(contextlib.AbstractContextManager["_Split"]):
    """One source's documents, parted into those to train on and those held out, in one pass.

    A heap holds the documents of the smallest identifier hashes; whatever it cannot keep goes to training at once.
    """

    def __init__(self, folder: Path, source: str, report: SourceReport, share: float, most_bytes: int) -> None:
        self._folder, self._name, self._report = folder, f"{source}.parquet", report
        self._threshold = int(share * 2**64)
        self._most_bytes = most_bytes if share > 0 else 0
        self._training = _Table(folder / "documents" / self._name, DOCUMENT_SCHEMA)
        self._heap: list[tuple[int, int, Document]] = []
        self._arrived = 0

    def add(self, document: Document) -> None:
        size = len(document.text.encode())
        report = self._report
        for values, value in ((report.languages, document.language), (report.domains, document.domain)):
            if value not in values:
                values.append(value)
        heapq.heappush(self._heap, (-_hash(document.id), self._arrived, document))
        report.heldout_documents += 1
        report.heldout_bytes += size
        self._arrived += 1
        fewest = 1 if self._threshold > 0 else 0
        while len(self._heap) > fewest and (
            -self._heap[0][0] >= self._threshold or report.heldout_bytes > self._most_bytes
        ):
            self._release()

    def _release(self) -> None:
        """Moves the document of the largest hash to training."""
        document = heapq.heappop(self._heap)[2]
        size = len(document.text.encode())
        self._report.heldout_documents -= 1
        self._report.heldout_bytes -= size
        self._report.documents += 1
        self._report.bytes += size
        self._training.write(document, size)

    def __exit__(self, failure: type[BaseException] | None, *details: object) -> None:
        if failure is None and self._heap and self._report.documents == 0:
            self._release()
        self._training.__exit__(failure, *details)
        if failure is None and self._heap:
            with _Table(self._folder / "heldout" / self._name, DOCUMENT_SCHEMA) as heldout:
                for _, _, document in sorted(self._heap, key=lambda entry: entry[1]):
                    heldout.write(document, len(document.text))
