"""From a record of the user's to a document: its text, its place, and what its other fields say."""

import abc
import dataclasses
import functools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa

from m1jax.config.records import FIELDS, OTHERS
from m1jax.errors import UserError
from m1jax.text import cells
from m1jax.text.documents import Document, Rejected, identity, record_name, record_number
from m1jax.text.encodings import undecodable

LARGEST = 32 << 20
"""The largest document, in bytes: a library of books in one file is no reading unit, and one line must fit in memory.
"""
BLANK = re.compile(r"[\s\0]*")
"""Matches a text that holds nothing but white space and NUL."""
TEXT_FIELDS = ("text", "content")
"""Where a record's text is looked for, in this order, unless data.fields names its field."""
_SHOWN = 1000


@dataclasses.dataclass(frozen=True)
class Record:
    """A line of a file as an object, or a row: its values by the names of its fields.

    Two columns of Parquet may have one name, hence a list of values for each. `number` is the record's place in its
    file, None for a whole file; `raw` are bytes to show where nothing can be read. Strings of a line that is `torn`
    hold bytes that are no UTF-8 as surrogates.
    """

    values: Mapping[str, Sequence[Any]]
    raw: bytes = b""
    number: int | None = None
    torn: bool = False

    def get(self, name: str) -> Any:
        """The first value of this name; None where there is none."""
        return next(iter(self.values.get(name, ())), None)


@dataclasses.dataclass(frozen=True)
class Reading[Item](abc.ABC):
    """How records are read: the config's `domains`, `fields` and `domain_names`; `language` is the default."""

    domains: tuple[str, ...]
    language: str = "en"
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    domain_names: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    @abc.abstractmethod
    def names(self) -> Iterable[str]:
        """Names of all fields that `item` looks at."""

    @abc.abstractmethod
    def check_columns(self, schema: pa.Schema, path: Path) -> None:
        """Raises UserError for a Parquet file of which no row can be used."""

    @abc.abstractmethod
    def item(self, place: "Place", record: Record) -> Item | Rejected:
        """What a record becomes, or why it is set aside."""

    @property
    def whole(self) -> str | None:
        """The field that stands for the text of a .txt file; None where such files are not read."""
        return None

    @functools.cached_property
    def others(self) -> dict[str, str]:
        """Names of the fields beside the text, by what they hold; those that are to be ignored are left out."""
        names = {what: self.fields.get(what, what) for what in FIELDS if what != "text"}
        return {what: name for what, name in names.items() if name}

    def domain(self, value: Any) -> str | None:
        """The domain that a record's field means; None where it says nothing."""
        name = _label(value)
        if name is None:
            return None
        # A domain's own name means it, unless it is listed itself.
        other = name if name in self.domains else self.domain_names.get(OTHERS, name)
        return self.domain_names.get(name, other) or None

    def folder_domain(self, name: str) -> str | None:
        """The domain that a folder's name means; None where it means none."""
        return name if name in self.domains else self.domain_names.get(name) or None


class DocumentReading(Reading[Document]):
    """Records as documents: the first text that is not blank, in `text` or `content`, or in the field that is named."""

    @functools.cached_property
    def texts(self) -> Sequence[str]:
        """Names of the fields that may hold the text."""
        return (self.fields["text"],) if "text" in self.fields else TEXT_FIELDS

    @property
    def whole(self) -> str:
        """See Reading."""
        return self.texts[0]

    @property
    def names(self) -> Iterable[str]:
        """See Reading."""
        return (*self.texts, *self.others.values())

    def check_columns(self, schema: pa.Schema, path: Path) -> None:
        """See Reading."""
        if not any(cells.all_of(schema, name, text=True) for name in self.texts):
            raise UserError(
                f"{path} has no column of text named {' or '.join(self.texts)} (its columns: "
                f"{', '.join(schema.names) or 'none'}): name it with config key data.fields.text."
            )

    def item(self, place: "Place", record: Record) -> Document | Rejected:
        """See Reading. Bytes that are no UTF-8 cost no other field than their own."""
        texts = [value for name in self.texts for value in record.values.get(name, ())]
        text, fault, raw = _chosen(map(_torn, texts) if record.torn else texts, record.raw)
        if text is None:
            return place.rejected(fault or f"no field {' or '.join(self.texts)}", record, raw)
        return Document(text=text, **place.origin(record))


class Place:
    """What a file's path says about its documents; the file is a shard of their source."""

    def __init__(self, folder: Path, path: Path, reading: Reading[Any]) -> None:
        inside = path.relative_to(folder)
        self._reading = reading
        # A name that is no UTF-8 is shown by its bytes: Parquet holds valid text only.
        self.shard = os.fsencode(inside.as_posix()).decode(errors="backslashreplace")
        above = [(part, reading.folder_domain(part)) for part in inside.parts[:-1]]
        whole = folder_name(folder)
        domain_of_all = reading.folder_domain(whole)
        self._domain = next((domain for _, domain in above if domain), domain_of_all or reading.domains[0])
        holder = (above[-1][1] if above else domain_of_all) or whole
        self._source = source_name(next((part for part, domain in above if not domain), holder))

    @property
    def source(self) -> str:
        """The source of the file's documents that name neither another source nor another domain."""
        return source_key(self._source, self._domain, self._reading.domains)

    def origin(self, record: Record) -> dict[str, Any]:
        """What tells the item of a record from others and says where it comes from, by the attributes of Document.

        Values that cannot be used are ignored.
        """
        others = {what: record.get(name) for what, name in self._reading.others.items()}
        domain = self._reading.domain(others.get("domain")) or self._domain
        own = _label(others.get("source"))
        return {
            "id": identity(self.shard, record.number),
            "source": source_key(source_name(own) if own else self._source, domain, self._reading.domains),
            "language": _label(others.get("language")) or self._reading.language,
            "domain": domain,
            "difficulty": record_number(others.get("difficulty")),
            "shard": self.shard,
            "record_id": record_name(others.get("id")),
        }

    def rejected(self, reason: str, record: Record | None = None, raw: bytes | None = None) -> Rejected:
        """Why a record, or the file where there is none, is set aside; shows the beginning of `raw` or record.raw."""
        record = record or Record({})
        shown = (record.raw if raw is None else raw)[:_SHOWN].decode(errors="backslashreplace")
        own = record.get(self._reading.others.get("id", ""))
        return Rejected(identity(self.shard, record.number), reason, shown, self.source, record_name(own))


def folder_name(folder: Path) -> str:
    """A folder's own name: a link's, not that of its target, which a hub's cache calls by a hash."""
    return Path(os.path.normpath(folder.absolute())).name


@functools.lru_cache(maxsize=1024)
def source_name(name: str) -> str:
    """A name that can be a file's: other characters than letters, digits, _, . and - become -."""
    encodable = name.encode(errors="replace").decode()
    return re.sub(r"[^\w.-]+", "-", encodable).strip(".-")[:60] or "text"


@functools.lru_cache(maxsize=1024)
def source_key(name: str, domain: str, domains: tuple[str, ...]) -> str:
    """The source of text that is called `name` and of this domain: NAME for the first domain, else NAME-DOMAIN.

    A source has one domain. The key does not depend on what else there is, so that it means the same text tomorrow. A
    folder called like its domain gives that name alone, and a domain that the config does not list none.
    """
    suffix = source_name(domain)
    return name if domain == domains[0] or domain not in domains or name == suffix else f"{name}-{suffix}"


def _chosen(texts: Iterable[Any], raw: bytes) -> tuple[str | None, str | None, bytes]:
    """The first text that is not blank, else a blank one; what is wrong where there is none; bytes to show."""
    blank, fault = None, None
    for value in texts:
        if isinstance(value, bytes):
            try:
                value = value.decode()
            except UnicodeDecodeError:
                raw, fault = value, undecodable(value)
                continue
        if isinstance(value, str):
            if not BLANK.fullmatch(value):
                return value, None, raw
            blank = value if blank is None else blank
    return (None if fault else blank), fault, raw


def _torn(value: Any) -> Any:
    """A string of a line with bytes that are no UTF-8, as the bytes that it was."""
    try:
        return value.encode(errors="surrogateescape") if isinstance(value, str) else value
    except UnicodeEncodeError:
        return value


def _label(value: Any) -> str | None:
    """A field's value as a name; None for a value that is missing, undecodable, a list or a mapping."""
    if value is None:
        return None
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return None
    if not isinstance(value, str | int | float | UUID):
        return None
    name = str(value).strip()
    try:
        name.encode()
    except UnicodeEncodeError:
        return None
    return name or None
