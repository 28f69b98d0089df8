"""A team with text of its own kinds edits a config and no code: the road from folders and fields to the report."""

import ast
import json
import pathlib
import re

import pyarrow.parquet as pq
import pytest

import m1jax
from m1jax import artefact
from m1jax import tokenizer as tokenizers
from m1jax.config import file as config_file
from m1jax.text.documents import read_documents
from m1jax.text.sources import SOURCES
from m1jax.verbs import main
from tests import texts
from tests.verbs.three_domains import DOMAINS

CONFIG = str(pathlib.Path(__file__).with_name("three_domains.py"))


def write(folder):
    """Two domains in folders, all three in a field of one file, texts that name none, and a misspelt one."""
    for seed, domain in enumerate(("radiology", "pathology")):
        (folder / domain / "cases").mkdir(parents=True)
        lines = [json.dumps({"id": number, "text": text}) for number, text in enumerate(texts.sentences(seed, 60))]
        for shard in range(2):
            (folder / domain / "cases" / f"{shard}.jsonl").write_text("\n".join(lines[shard::2]))
    records = [{"text": text, "domain": DOMAINS[number % 3]} for number, text in enumerate(texts.sentences(7, 120))]
    records.append({"text": "A record whose domain no config lists.", "domain": "Radiology"})
    (folder / "reports").mkdir()
    (folder / "reports" / "reports.jsonl").write_text("\n".join(map(json.dumps, records)))
    for number, text in enumerate(texts.sentences(8, 20)):
        (folder / f"letter-{number}.txt").write_text(text)
    return folder


def verb(run, *arguments):
    action = arguments[:2] if arguments[0] == "tokenizer" else arguments[:1]
    return main([*action, "--config", CONFIG, "--set", f"folder={run}", *arguments[len(action) :]])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The road, walked once."""
    folder = tmp_path_factory.mktemp("domains")
    text = write(folder / "text")
    run = folder / "run"
    for arguments in (("corpus", "--text", str(text)), ("tokenizer", "train"), ("pack",), ("train",)):
        assert verb(run, *arguments) == 0
    assert verb(run, "eval", "--tasks") == 0
    return run


def test_the_corpus_has_the_domains_that_folders_and_fields_name(run):
    sources = {name: entry["domain"] for name, entry in artefact.stamp(run / "corpus")["sources"].items()}
    assert sources == {
        "cases": "radiology",
        "cases-pathology": "pathology",
        "reports": "radiology",
        "reports-pathology": "pathology",
        "reports-guidelines": "guidelines",
        "text": "radiology",
    }
    (aside,) = pq.read_table(run / "corpus" / "rejected.parquet").to_pylist()
    assert (aside["origin"], aside["reason"]) == (
        "reports/reports.jsonl#121",
        "domain 'Radiology' is not in data.domains",
    )


def test_each_domain_extends_the_tokenizer_of_those_before(run):
    assert artefact.stamp(run / "tokenizer")["parts"] == [
        {"domains": ["radiology"], "ids": 385},
        {"domains": ["pathology"], "ids": 63},
        {"domains": ["guidelines"], "ids": 64},
    ]
    by_domain = {domain: [] for domain in DOMAINS}
    for document in read_documents(run / "corpus" / "documents"):
        by_domain[document.domain].append(document.text)
    by_hand = tokenizers.train(by_domain["radiology"], 385)
    by_hand = tokenizers.extend(by_hand, by_domain["pathology"], 448)
    by_hand = tokenizers.extend(by_hand, by_domain["guidelines"], 512)
    assert tokenizers.load(run / "tokenizer").fingerprint == by_hand.fingerprint


def test_a_stage_reads_the_domains_of_its_mixture(run, capsys):
    capsys.readouterr()
    assert verb(run, "curriculum", "--json") == 0
    shares = {}
    for use in json.loads(capsys.readouterr().out)["uses"]:
        if use["share"]:
            stage = shares.setdefault(use["stage"], {})
            stage[use["domain"]] = stage.get(use["domain"], 0) + use["share"]
    names = [stage.name for stage in config_file.load(CONFIG).stages]
    assert shares[names[0]] == pytest.approx({"radiology": 1.0}, abs=2e-3)
    assert shares[names[1]] == pytest.approx({"radiology": 0.25, "pathology": 0.75}, abs=2e-3)
    assert shares[names[2]] == pytest.approx({"pathology": 0.5, "guidelines": 0.5}, abs=2e-3)


def test_tables_have_any_names_in_the_order_of_the_config(run, capsys):
    capsys.readouterr()
    assert verb(run, "report") == 0
    rows = re.findall(r"all (\w+)", capsys.readouterr().out)
    assert tuple(rows) == DOMAINS
    (results,) = (run / "eval").glob("*/results.json")
    domains = json.loads(results.read_text())["bits_per_byte"]["model"]["domains"]
    assert tuple(domains) == DOMAINS and all(entry["bytes"] > 0 for entry in domains.values())
    assert verb(run, "tokenizer", "report", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [line["name"] for line in found] == ["this run", "radiology only", "joint"]
    assert list(found[0]["texts"]) == [f"English {domain}" for domain in DOMAINS]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["stages.0.mixture={'domain:radiolgy': 1}"], ["'radiolgy'", "did you mean 'radiology'?"]),
        (["stages.0.mixture={'reprots': 1}"], ["'reprots' matches no source", "did you mean 'reports'?"]),
        (
            [
                "data.domains=('radiology','pathology','guidelines','genetics')",
                "stages.0.mixture={'domain:genetics': 1}",
            ],
            ["'domain:genetics' matches no source", "domain:guidelines"],
        ),
    ],
)
def test_a_mixture_that_names_what_is_not_there(run, capsys, overrides, words):
    capsys.readouterr()
    assert verb(run, "curriculum", *(part for override in overrides for part in ("--set", override))) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert all(word in error for word in words), error


def test_text_that_is_fetched_has_domains_of_its_own(tmp_path, capsys):
    assert verb(tmp_path / "run", "corpus") == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "data.domains lists only radiology, pathology, guidelines: give your own text with --text DIR" in error


def strings(path):
    """Every constant string of a file, docstrings and parts of f-strings too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_the_code_knows_no_domain_by_name():
    """But the packages that it can fetch, the questions that are made of them, and the names of question sets."""
    root = pathlib.Path(m1jax.__file__).parent
    names = re.compile(
        rf"\b({'|'.join(sorted({source.domain for source in SOURCES} | set(DOMAINS)))})\b", re.IGNORECASE
    )
    exempt = {root / "evaluate" / "tasks.py", root / "config" / "synthesis.py", root / "verbs" / "synthesize.py"}
    exempt |= {path for room in ("sources", "synthesis") for path in (root / "text" / room).rglob("*.py")}
    files = set(root.rglob("*.py"))
    assert exempt < files
    assert any(names.search(text) for path in exempt for text in strings(path))
    found = {
        f"{path.relative_to(root)}: {text}" for path in files - exempt for text in strings(path) if names.search(text)
    }
    assert not found
