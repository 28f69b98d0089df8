"""From a record of the user's to a document: its text, its place, and what its other fields say."""

import dataclasses
import functools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from m1jax.config.records import FIELDS, OTHERS
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
class Reading:
    """How records are read: the config's `domains`, `fields` and `domain_names`; `language` is the default."""

    domains: tuple[str, ...]
    language: str = "en"
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    domain_names: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def texts(self) -> Sequence[str]:
        """Names of the fields that may hold the text: the first of them that is not blank does."""
        return (self.fields["text"],) if "text" in self.fields else TEXT_FIELDS

    @functools.cached_property
    def others(self) -> dict[str, str]:
        """Names of the other fields by what they hold; those that are to be ignored are left out."""
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


class Place:
    """What a file's path says about its documents; the file is a shard of their source."""

    def __init__(self, folder: Path, path: Path, reading: Reading) -> None:
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

    def document(
        self, texts: Iterable[Any], others: Mapping[str, Any], raw: bytes = b"", number: int | None = None
    ) -> Document | Rejected:
        """A document of a record: the first of `texts` that is not blank, and `others` by what they hold.

        Values of `others` that cannot be used are ignored. `raw` is shown where there is no text.
        """
        text, fault, raw = _chosen(texts, raw)
        if text is None:
            return self.rejected(fault or f"no field {' or '.join(self._reading.texts)}", raw, number, others.get("id"))
        domain = self._reading.domain(others.get("domain")) or self._domain
        own = _label(others.get("source"))
        return Document(
            id=identity(self.shard, number),
            text=text,
            source=source_key(source_name(own) if own else self._source, domain, self._reading.domains),
            language=_label(others.get("language")) or self._reading.language,
            domain=domain,
            difficulty=record_number(others.get("difficulty")),
            shard=self.shard,
            record_id=record_name(others.get("id")),
        )

    def rejected(self, reason: str, raw: bytes = b"", number: int | None = None, own: Any = None) -> Rejected:
        """Why a piece of the file is set aside, with its beginning; `own` is the record's own id."""
        shown = raw[:_SHOWN].decode(errors="backslashreplace")
        return Rejected(identity(self.shard, number), reason, shown, self.source, record_name(own))


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
