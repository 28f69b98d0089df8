"""Medical terms out of documents that the sources of this room made: names of diseases, drugs, ICD-10 entries."""

import re
from collections.abc import Callable, Iterable, Iterator

from m1jax.text.documents import Document

_ICD10CM = re.compile(r"^\s*[A-Z]\d[0-9A-Z](?:\.[0-9A-Z]{1,4})? (.+)$", re.M)
_ICD10_CHINESE = re.compile(r"^[A-Z]\d\d\S* (.+?)（.*）$", re.M)
# A substance's line: its name, and what it does.
_SUBSTANCE = re.compile(r"^(.{1,60}?): ", re.M)


def _first_line(text: str) -> list[str]:
    return text.splitlines()[:1]


# Title of the list → the source that it is in, and how its documents are read (the formats: ontologies.py, icd.py,
# chinese.py).
_LISTS: dict[str, tuple[str, Callable[[str], list[str]]]] = {
    "diseases (MONDO)": ("mondo", _first_line),
    "drugs and substances (CHEBI)": ("chebi", _SUBSTANCE.findall),
    "ICD-10-CM titles": ("icd10cm", _ICD10CM.findall),
    "ICD-10 titles, Chinese": ("icd10-zh", _ICD10_CHINESE.findall),
    "medical words, Chinese (THUOCL)": ("thuocl-medical", lambda text: text.split("、")),
}


def term_lists(documents: Iterable[Document]) -> dict[str, list[str]]:
    """Distinct terms by list, in the order in which they come; lists of which no source is there are left out."""
    by_source = {source: (title, read) for title, (source, read) in _LISTS.items()}
    found: dict[str, dict[str, None]] = {title: {} for title in _LISTS}
    for document in documents:
        if document.source in by_source:
            title, read = by_source[document.source]
            found[title].update(dict.fromkeys(_clean(read(document.text))))
    return {title: list(terms) for title, terms in found.items() if terms}


def _clean(terms: Iterable[str]) -> Iterator[str]:
    return (term.strip() for term in terms if term.strip())
