"""The corpus: documents in Parquet by source, a held-out part, and all that was set aside with its reason.

    documents/<source>.parquet   what is trained on
    heldout/<source>.parquet     what is never trained on, chosen by the hash of each document's identifier
    rejected.parquet             what was set aside: origin, reason, text, source, record_id
    LICENCES.md, sources.json    where the text comes from and on what terms (written by `licences`)

The same documents in the same order give the same bytes.
"""

import collections
import contextlib
import dataclasses
import heapq
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from m1jax.errors import UserError
from m1jax.text.documents import DOCUMENT_SCHEMA, REJECTED_SCHEMA, Document, Rejected, Table, read_documents
from m1jax.text.folder import read_folder
from m1jax.text.overlap import NgramIndex
from m1jax.text.records import source_name
from m1jax.text.set_aside import screen, text_hash, units
from m1jax.text.sources import Source
from m1jax.tokenizer import Tokenizer

__all__ = [
    "Document", "Rejected", "Report", "SourceReport", "licences", "read_documents", "read_folder",
    "source_documents", "write_corpus",
]  # fmt: skip

# Each source keeps two files open; a field named source that differs in every line is a mistake.
_MOST_SOURCES = 200
# Where the report counts what was set aside of further sources.
_OTHER_SOURCES = "other sources"


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


def source_documents(source: Source, archive: Path, most_bytes: int | None = None) -> Iterator[Document]:
    """The documents of a source out of its package's archive, known by the source's name and their place in it.

    With `most_bytes` no more than the first that make so many bytes of UTF-8 together.
    """
    spent = 0
    for identifier, text in source.extract(archive):
        yield Document(f"{source.name}/{identifier}", text, source.name, source.language, source.domain)
        spent += len(text.encode())
        if most_bytes is not None and spent >= most_bytes:
            return


def check_ids(folder: Path, made: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    """Raises UserError where the ids in a corpus of conversations, whose stamp is `made`, are not the tokenizer's."""
    if made.get("tokenizer", tokenizer.fingerprint) != tokenizer.fingerprint:
        raise UserError(
            f"the conversations in {folder} were written with tokenizer {made['tokenizer']}, but the run's is "
            f"{tokenizer.fingerprint}: run `m1 corpus --conversations DIR` again, or give the right tokenizer."
        )


def write_corpus(
    folder: Path,
    documents: Iterable[Document | Rejected],
    *,
    heldout_share: float = 0.02,
    heldout_bytes: int = 1_000_000,
    evaluation: NgramIndex | None = None,
    domains: Collection[str] | None = None,
) -> Report:
    """Writes documents into the empty `folder` (layout above) and reports what became of each.

    Set aside, never dropped: whatever comes as Rejected, and what `screen` finds wrong: documents that are empty, no
    valid Unicode, over 32 MiB, of a domain that is not in `domains` (None: any), repeated, or that share a run of words
    with an item of `evaluation`. A source has one domain: of the documents that name the same source, those of another
    domain than the first make up the source NAME-DOMAIN.

    Of each source about `heldout_share` of the documents are held out, those with the smallest identifier hashes, up
    to about `heldout_bytes` of text, and at least one where there are two. Memory is bounded by the held-out text and
    two row groups a source, plus 8 bytes a document to know duplicates. Raises UserError where no document is left
    or there are over 200 sources.
    """
    rejected: collections.Counter[str] = collections.Counter()
    reports: dict[str, SourceReport] = {}
    with contextlib.ExitStack() as files:
        aside = files.enter_context(Table(folder / "rejected.parquet", REJECTED_SCHEMA))
        splits: dict[str, _Split] = {}
        domain_of: dict[str, str] = {}
        for unit in units(screen(documents, evaluation, domains=domains)):
            if isinstance(unit, Rejected):
                known = unit.source in reports or len(reports) < _MOST_SOURCES
                report = reports.setdefault(unit.source if known else _OTHER_SOURCES, SourceReport())
                aside.write(unit, len(unit.text))
                rejected[unit.reason] += 1
                report.rejected += 1
                continue
            unit = tuple(_of_one_domain(document, domain_of) for document in unit)
            source = unit[0].source
            report = reports.setdefault(source, SourceReport())
            if source not in splits:
                splits[source] = files.enter_context(_Split(folder, source, report, heldout_share, heldout_bytes))
            splits[source].add(unit)
            if len(splits) > _MOST_SOURCES:
                some = ", ".join(repr(name) for name in list(splits)[:3])
                raise UserError(
                    f"The text has over {_MOST_SOURCES} sources (such as {some}), but a source is a body of text to be "
                    f"mixed and measured as one: if a field of the records names them, ignore it with config key "
                    f"data.fields.source = ''; if they are folders, put these into one folder."
                )
    if not splits:
        why = ", ".join(f"{reason}: {count}" for reason, count in rejected.most_common()) or "none came in"
        raise UserError(
            f"The corpus is empty, every document was set aside ({why}): give a folder with usable text, or say with "
            f"config keys data.fields and data.domain_names what the fields of its records mean."
        )
    return Report(dict(sorted(reports.items())), dict(rejected.most_common()))


def _of_one_domain(document: Document, domain_of: dict[str, str]) -> Document:
    """The document under a source's name that no other domain has; `domain_of` remembers the domain of each source."""
    name = document.source
    while domain_of.setdefault(name, document.domain) != document.domain:
        name = f"{name}-{source_name(document.domain)}"
    return document if name == document.source else dataclasses.replace(document, source=name)


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


class _Split(contextlib.AbstractContextManager["_Split"]):
    """One source's documents, parted into those to train on and those held out, in one pass.

    A heap holds the documents of the smallest identifier hashes; whatever it cannot keep goes to training at once. The
    documents of a pair stay together, by the identifier of the first.
    """

    def __init__(self, folder: Path, source: str, report: SourceReport, share: float, most_bytes: int) -> None:
        self._folder, self._name, self._report = folder, f"{source}.parquet", report
        self._threshold = int(share * 2**64)
        self._most_bytes = most_bytes if share > 0 else 0
        self._training = Table(folder / "documents" / self._name, DOCUMENT_SCHEMA)
        self._heap: list[tuple[int, int, tuple[Document, ...]]] = []
        self._arrived = 0

    def add(self, unit: tuple[Document, ...]) -> None:
        report = self._report
        for document in unit:
            for values, value in ((report.languages, document.language), (report.domains, document.domain)):
                if value not in values:
                    values.append(value)
        heapq.heappush(self._heap, (-text_hash(unit[0].id), self._arrived, unit))
        report.heldout_documents += len(unit)
        report.heldout_bytes += _size(unit)
        self._arrived += 1
        fewest = 1 if self._threshold > 0 else 0
        while len(self._heap) > fewest and (
            -self._heap[0][0] >= self._threshold or report.heldout_bytes > self._most_bytes
        ):
            self._release()

    def _release(self) -> None:
        """Moves the documents of the largest hash to training."""
        unit = heapq.heappop(self._heap)[2]
        self._report.heldout_documents -= len(unit)
        self._report.heldout_bytes -= _size(unit)
        self._report.documents += len(unit)
        self._report.bytes += _size(unit)
        for document in unit:
            self._training.write(document, _size([document]))

    def __exit__(self, failure: type[BaseException] | None, *details: object) -> None:
        if failure is None and self._heap and self._report.documents == 0:
            self._release()
        self._training.__exit__(failure, *details)
        if failure is None and self._heap:
            with Table(self._folder / "heldout" / self._name, DOCUMENT_SCHEMA) as heldout:
                for _, _, unit in sorted(self._heap, key=lambda entry: entry[1]):
                    for document in unit:
                        heldout.write(document, len(document.text))


def _size(documents: Iterable[Document]) -> int:
    """Bytes of UTF-8."""
    return sum(len(document.text.encode()) for document in documents)
