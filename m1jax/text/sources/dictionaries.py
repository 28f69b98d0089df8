"""English dictionaries: the Collaborative International Dictionary (GCIDE) and WordNet."""

import gzip
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from m1jax.text.sources.archives import deb_members
from m1jax.text.sources.source import gather

_BASE64 = {c: i for i, c in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")}

# Which edition a sense comes from, e.g. [1913 Webster], [WordNet 1.5 +PJC].
_EDITION = re.compile(r"\s*\[[^\[\]]{0,60}\b(?:Webster|WordNet|PJC|RDH|RHUD|JDB)\b[^\[\]]{0,60}\]")
# \Heart\ (h[aum]rt): the headword again with accents, and its sound; a field such as (Med.) is no sound.
_SOUND = re.compile(r"\s*\\[^\\]{1,80}\\(?:\s*\((?![A-Z][A-Za-z. &]*\.\))[^()]*\))?")
# The first mark of the field that an entry belongs to, e.g. (Anat.), (Eccl. Hist.), (Bot. & Zool.).
_FIELD = re.compile(r"\(([A-Z][A-Za-z]*\.(?:\s+(?:&\s+)?[A-Z][A-Za-z]*\.)*)\)")
_MEDICAL_FIELDS = frozenset({
    "Med.", "Anat.", "Physiol.", "Surg.", "Pharm.", "Pathol.", "Path.", "Biochem.", "Bacteriol.", "Immunol.", "Dent.",
    "Obstet.", "Psychol.", "Neurol.", "Embryol.", "Histol.", "Pharmacol.", "Microbiol.", "Virol.", "Hygiene.",
    "Physiol. Chem.", "Med. & Physiol.", "Anat. & Physiol.", "Anat. & Zool.", "Bot. & Med.", "Anat. & Med.",
})  # fmt: skip
_NAMED = {
    "aum": "ä", "imac": "ī", "root": "√", "ae": "æ", "AE": "Æ", "oe": "œ", "eth": "ð", "thorn": "þ", "yogh": "ȝ",
    "deg": "°", "sect": "§", "pounds": "£", "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "Delta": "Δ",
    "phi": "φ", "pi": "π", "mu": "μ", "frac12": "½", "frac14": "¼", "frac34": "¾", "times": "×",
}  # fmt: skip
_MARKS = {"'": "\u0301", "`": "\u0300", '"': "\u0308", "=": "\u0304", "-": "\u0304", "~": "\u0303", ",": "\u0327"}
_MARKS |= {".": "\u0307", "^": "\u0302"}
_SPELT = re.compile(r"\[(?:([A-Za-z]{2,6}\d{0,2})|(['`\"=\-~,.^])([A-Za-z]{1,2})|([A-Za-z]{1,2})\^)\]")
_NEW_LINE = re.compile(r"\n\s*(?=(?:\d{1,3}\.|\([a-z]\)) )")
# {Vis`i*goth"ic}: a derived word with its syllables and accents; other braces mark references.
_DERIVED = re.compile(r"\{([^{}]*\*[^{}]*)\}")
_ACCENTS = str.maketrans("", "", '*`"')
# A lone word in the last line is the next headword: prose ends in a full stop.
_NEXT_HEADWORD = re.compile(r"\n[ \t]+[A-Z][\w-]+\s*\Z")
_ENTRIES_SIZE = 500


def gcide(path: Path) -> Iterator[tuple[str, str]]:
    """Entries of the dictionary that belong to no medical field, short neighbours together.

    Neighbours in the alphabet share a root (Platonic, Platonically, Platonism), so that each explains the next.
    """
    entries = ((name, text) for name, text, medical in _gcide_entries(path) if not medical)
    return gather(entries, _ENTRIES_SIZE, "\n\n")


def gcide_medical(path: Path) -> Iterator[tuple[str, str]]:
    """Entries whose first field is medical: (Med.), (Anat.), (Physiol.), (Surg.), … ."""
    return gather(gcide_medical_entries(path), _ENTRIES_SIZE, "\n\n")


def gcide_medical_entries(path: Path) -> Iterator[tuple[str, str]]:
    """The same, each entry for itself."""
    return ((name, text) for name, text, medical in _gcide_entries(path) if medical)


def _gcide_entries(path: Path) -> Iterator[tuple[str, str, bool]]:
    """(byte offset, text, whether medical) of each entry, in the order of the book.

    The index holds headword, offset and length in base 64 (dictd(8)); several headwords may point at one entry.
    """
    folder = "usr/share/dictd"
    members = deb_members(path, {f"{folder}/gcide.dict.dz", f"{folder}/gcide.index"})
    book = gzip.decompress(members[f"{folder}/gcide.dict.dz"])
    spans = set()
    for line in members[f"{folder}/gcide.index"].decode().splitlines():
        headword, offset, length = line.split("\t")
        if not headword.startswith("00-"):
            spans.add((_number(offset), _number(length)))
    for start, size in sorted(spans):
        raw = book[start : start + size].decode(errors="replace")
        field = _FIELD.search(raw)
        medical = field is not None and " ".join(field[1].split()) in _MEDICAL_FIELDS
        yield str(start), _entry(raw), medical


def _number(digits: str) -> int:
    value = 0
    for digit in digits:
        value = value * 64 + _BASE64[digit]
    return value


def _entry(raw: str) -> str:
    """The prose of an entry: edition and sound marks dropped, spelt-out letters restored, broken lines joined."""
    body = _NEXT_HEADWORD.sub("", _EDITION.sub("", raw))
    blocks = re.split(r"\n[ \t]*\n", _DERIVED.sub(lambda match: match[1].translate(_ACCENTS), body))
    blocks[0] = _SOUND.sub("", blocks[0])
    text = "\n\n".join(blocks).replace("{", "").replace("}", "")
    text = unicodedata.normalize("NFC", _SPELT.sub(_letter, text))
    paragraphs = []
    for block in text.split("\n\n"):
        lines = (" ".join(line.split()) for line in _NEW_LINE.split(block))
        paragraphs += [line for line in lines if line]
    return "\n".join(paragraphs)


def _letter(match: re.Match[str]) -> str:
    """The character that a bracketed spelling stands for; what is no spelling, such as [Obs.], stays."""
    name, mark, after, before = match.groups()
    if name:
        return _NAMED.get(name, match[0])
    return after + _MARKS[mark] if mark else before + "\u0306"


def wordnet(path: Path) -> Iterator[tuple[str, str]]:
    """Meanings with their words, glosses and examples, grouped under the meaning they are kinds of."""
    folder = "usr/share/wordnet"
    parts = {"noun": "Kinds of", "verb": "Ways to", "adj": "", "adv": ""}
    members = deb_members(path, {f"{folder}/data.{part}" for part in parts})
    for part, heading in parts.items():
        lines = members[f"{folder}/data.{part}"].decode("ascii").splitlines()
        synsets = [_synset(line) for line in lines if not line.startswith("  ")]
        groups = _by_kind(synsets, heading) if heading else ((offset, text) for offset, _, _, text in synsets)
        joiner = "\n\n" if heading else "\n"
        for first, text in gather(groups, 1200, joiner):
            yield f"{part}-{first}", text


def _synset(line: str) -> tuple[str, str, str, str]:
    """(offset, offset of the meaning it is a kind of or "", words, "words: gloss") of a data line (wndb(5WN))."""
    data, _, gloss = line.partition(" | ")
    fields = data.split()
    count = int(fields[3], 16)
    words = [re.sub(r"\((?:a|p|ip)\)$", "", word).replace("_", " ") for word in fields[4 : 4 + 2 * count : 2]]
    pointers = fields[5 + 2 * count :]
    above = next((pointers[i + 1] for i in range(0, len(pointers) - 1, 4) if pointers[i] in ("@", "@i")), "")
    names = ", ".join(words)
    return fields[0], above, names, f"{names}: {gloss.strip()}"


def _by_kind(synsets: list[tuple[str, str, str, str]], heading: str) -> Iterator[tuple[str, str]]:
    """Meanings under one heading a group, in the order in which the groups first appear."""
    words = {offset: names for offset, _, names, _ in synsets}
    groups: dict[str, list[str]] = {}
    for _, above, _, text in synsets:
        groups.setdefault(above, []).append(text)
    for above, texts in groups.items():
        # Meanings that are kinds of nothing stand alone; long families are cut so that no document is a book.
        title = f"{heading} {words[above]}:\n" if above in words else ""
        for start in range(0, len(texts), 30):
            yield f"{above or 'root'}-{start}", title + "\n".join(texts[start : start + 30])
