"""What is set aside on the way to documents, each with its place and reason: nothing is dropped in silence."""

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from m1jax.config.domains import is_name
from m1jax.text.documents import BATCH_ARRAYS, PAIR, SIDE, Document, Rejected
from m1jax.text.overlap import NgramIndex
from m1jax.text.records import BLANK, LARGEST

_BATCH_ROWS = 512
_BATCH_BYTES = 4 << 20
_SOURCE = re.compile(r"\w[\w.-]*")
_COLUMN_NAME = re.compile(r"\w{1,60}")
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
# Newcomers wait in a set of Python's until they are worth a sort.
_FEWEST_SORTED = 1 << 16
_MOST_NAMED = 20

Items = Iterable[Document | Rejected]


def screen(
    items: Items,
    evaluation: NgramIndex | None = None,
    texts: bool = True,
    domains: Collection[str] | None = None,
) -> Iterator[Document | Rejected]:
    """The items in order, each document as it is or as Rejected with a reason.

    Set aside are documents that are empty (nothing but white space and NUL), no valid Unicode, over 32 MiB, of another
    domain than `domains` (None: of any that can be a name), with parts or columns that cannot be packed, (with `texts`)
    of a text that came before, or that share a run of words with an item of `evaluation` (reason "evaluation
    overlap"). Only an equal text is a duplicate, in any source and with any id. Documents of parts
    repeat one another only where parts and columns are equal too. Memory: 8 bytes a document, to know what came before.
    """
    known = Known()
    unlisted = _Unlisted(domains)
    for batch in batches(items):
        documents = [item for item in batch if isinstance(item, Document)]
        reasons = [fault(document) or unlisted.fault(document.domain) for document in documents]
        if texts:
            repeated = known.seen([_content(document) for document in documents], reasons)
            reasons = [
                reason or ("duplicate text" if old else None) for reason, old in zip(reasons, repeated, strict=True)
            ]
        if evaluation is not None:
            left = [i for i, reason in enumerate(reasons) if reason is None]
            hits = evaluation.hits_batch([documents[i].text for i in left])
            for place in hits.nonzero()[0]:
                reasons[left[place]] = "evaluation overlap"
        told = iter(reasons)
        for item in batch:
            reason = next(told) if isinstance(item, Document) else None
            yield set_aside(item, reason) if isinstance(item, Document) and reason else item


def units(items: Items) -> Iterator[tuple[Document, ...] | Rejected]:
    """The items, the documents of a pair together where they come side by side.

    Of a pair with sides that has lost one, the other is set aside too: there is nothing to compare it with.
    """
    held: list[Document] = []
    for item in items:
        if isinstance(item, Rejected):
            yield item
            continue
        if held and _pair(held[0]) != _pair(item):
            yield from _unit(held)
            held = []
        held.append(item)
        if _pair(item) is None:
            yield from _unit(held)
            held = []
    yield from _unit(held)


def _pair(document: Document) -> tuple[str, str, int | float] | None:
    """What the documents of a pair share; None for a document by itself."""
    found = document.columns.get(PAIR)
    return None if found is None else (document.source, document.shard, found)


def _unit(documents: Sequence[Document]) -> Iterator[tuple[Document, ...] | Rejected]:
    alone = len(documents) == 1 and {PAIR, SIDE} <= documents[0].columns.keys()
    if alone:
        yield set_aside(documents[0], "the other side of its pair was set aside")
    elif documents:
        yield tuple(documents)


def batches(items: Items) -> Iterator[list[Document | Rejected]]:
    """Batches that are worth an array operation and yet small in memory."""
    batch: list[Document | Rejected] = []
    size = 0
    for item in items:
        batch.append(item)
        size += len(item.text)
        if len(batch) >= _BATCH_ROWS or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def fault(document: Document) -> str | None:
    """What is wrong with a document in itself."""
    origin = (document.id, document.shard, document.record_id, document.source)
    fields = (*origin, document.text, document.language, document.domain)
    try:
        size = sum(len(field.encode()) for field in fields)
    except UnicodeEncodeError:
        return "no valid Unicode"
    if BLANK.fullmatch(document.text) and not any(part.ids for part in document.parts):
        return "empty"
    if size > LARGEST:
        return f"larger than {LARGEST >> 20} MiB"
    if not is_name(document.domain):
        return "domain is not a name"
    if not _SOURCE.fullmatch(document.source):
        return "source is no file name"
    if document.difficulty is not None and not np.isfinite(document.difficulty):
        return "difficulty is no finite number"
    return _parts_fault(document) or _columns_fault(document)


def _parts_fault(document: Document) -> str | None:
    """What is wrong with the parts of a document."""
    if not document.parts:
        return None
    for number, part in enumerate(document.parts, 1):
        if not all(isinstance(i, int) and i >= 0 for i in part.ids):
            return f"part {number} has a token id that is not a whole number of 0 or more"
        if not 0 <= part.weight <= _LARGEST_FLOAT32:
            return f"the weight of part {number} is not a finite number of 0 or more"
    if any(part.origin for part in document.parts) and any(part.text and not part.ids for part in document.parts):
        return "a part is of another document, and not every part has its token ids"
    if not any(part.weight for part in document.parts):
        return "no part has a weight above 0"
    if "".join(part.text for part in document.parts) != document.text:
        return "the text is not that of the parts"
    return None


def _columns_fault(document: Document) -> str | None:
    """What is wrong with the columns of a document."""
    for name, value in document.columns.items():
        whole = isinstance(value, int)
        if name in BATCH_ARRAYS or not _COLUMN_NAME.fullmatch(name):
            return f"column {name!r} needs another name"
        if isinstance(value, bool) or (not whole and (not isinstance(value, float) or name == PAIR)):
            return f"column {name!r} is not a {'whole ' if name == PAIR else ''}number"
        if not (-(1 << 31) <= value < 1 << 31 if whole else abs(value) <= _LARGEST_FLOAT32):
            return f"column {name!r} is not a finite number of 32 bits"
    return None


def _content(document: Document) -> str:
    """What two documents share where one repeats the other."""
    if not document.parts and not document.columns:
        return document.text
    return repr((document.text, document.parts, sorted(document.columns.items())))


def set_aside(document: Document, reason: str) -> Rejected:
    """A document as a Rejected, whatever its text holds."""
    values = (document.id, document.text, document.source, document.record_id)
    origin, text, source, record_id = (value.encode(errors="backslashreplace").decode() for value in values)
    return Rejected(origin, reason, text, source, record_id)


def text_hash(text: str) -> int:
    """64 bits of a text's BLAKE2b hash."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


class _Unlisted:
    """Names the domains that a corpus does not have, up to twenty: a field may hold another value in every record."""

    def __init__(self, domains: Collection[str] | None) -> None:
        self._domains = domains
        self._named: set[str] = set()

    def fault(self, domain: str) -> str | None:
        """What is wrong with a document of this domain."""
        if self._domains is None or domain in self._domains:
            return None
        if len(self._named) < _MOST_NAMED:
            self._named.add(domain)
        return f"domain {domain!r} is not in data.domains" if domain in self._named else "domain is not in data.domains"


class Known:
    """64-bit hashes of what came before: a sorted array of 8 bytes each, and a set of the latest."""

    def __init__(self) -> None:
        self._sorted: npt.NDArray[np.uint64] = np.empty(0, np.uint64)
        self._latest: set[int] = set()

    def seen(self, texts: Sequence[str], faults: Sequence[str | None]) -> list[bool]:
        """Whether each text came before, and remembers it; one with a fault is neither looked up nor remembered."""
        hashes = [0 if fault else text_hash(text) for text, fault in zip(texts, faults, strict=True)]
        wanted = np.array(hashes, np.uint64)
        if len(self._sorted):
            places = np.minimum(np.searchsorted(self._sorted, wanted), len(self._sorted) - 1)
            old = (self._sorted[places] == wanted).tolist()
        else:
            old = [False] * len(hashes)
        for i, (value, reason) in enumerate(zip(hashes, faults, strict=True)):
            if reason:
                old[i] = False
            elif value in self._latest:
                old[i] = True
            elif not old[i]:
                self._latest.add(value)
        if len(self._latest) >= max(_FEWEST_SORTED, len(self._sorted) // 8):
            latest = np.fromiter(self._latest, np.uint64, len(self._latest))
            self._sorted = np.sort(np.concatenate([self._sorted, latest]))
            self._latest = set()
        return old
