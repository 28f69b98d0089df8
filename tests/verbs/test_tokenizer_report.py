"""`m1 tokenizer report`: its numbers are those of the files, its peers are trained once, what is missing is named."""

import itertools
import json
import shutil

import pytest
import tokenizers

from m1jax import artefact
from m1jax.config import file as config_file
from m1jax.errors import UserError
from m1jax.text.corpus import write_corpus
from m1jax.text.documents import Document, read_documents
from m1jax.verbs import main
from m1jax.verbs.tokenizer import train
from m1jax.verbs.tokenizer_report import report
from tests import texts
from tests.verbs.conftest import TINY

SIZES = ["model.vocab_size=600", "data.vocab_size=600"]


def documents():
    for number, (seed, language, domain) in enumerate(
        itertools.product(range(2), ("en", "zh"), ("general", "medical"))
    ):
        for i, text in enumerate(texts.sentences(number, 12)):
            shown = text if language == "en" else "".join(c for c in text if c >= "\u3000") or "心肺"
            yield Document(
                f"{language}-{domain}/{seed}-{i}", f"{shown} {seed}{i}", f"{language}-{domain}", language, domain
            )
    for i in range(40):
        yield Document(f"mondo/{i}", f"feveritis {i % 7} of hearts\nA disease {i}.", "mondo", "en", "medical")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run's folder with a corpus in two languages, its evaluation questions, and a tokenizer."""
    run = tmp_path_factory.mktemp("report") / "run"
    details = {}
    with artefact.building(run / "corpus", "corpus", "made here", details) as folder:
        found = write_corpus(folder, documents(), heldout_share=0.2)
        details["sources"] = {
            name: {"domain": source.domains[0], "bytes": source.bytes} for name, source in found.sources.items()
        }
    train(config_file.load(TINY, [f"folder={run}", *SIZES]))
    return run


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def reported(run, capsys, *arguments):
    capsys.readouterr()
    sets = [part for key in (f"folder={run}", *SIZES) for part in ("--set", key)]
    assert main(["tokenizer", "report", "--config", TINY, *sets, "--json", *arguments]) == 0
    return {line["name"]: line for line in json.loads(capsys.readouterr().out)}


def test_the_numbers_are_those_of_the_files(run, capsys, tmp_path):
    other = tmp_path / "other" / "tokenizer.json"
    other.parent.mkdir()
    theirs = tokenizers.Tokenizer.from_file(str(run / "tokenizer" / "tokenizer.json"))
    theirs.normalizer = tokenizers.normalizers.Lowercase()
    theirs.save(str(other))
    found = reported(run, capsys, "--against", str(other))
    assert list(found) == ["this run", "other", "general only", "joint"]
    assert list(found["joint"]["texts"]) == ["English general", "English medical", "Chinese general", "Chinese medical"]
    files = {"this run": run / "tokenizer", "other": other.parent}
    files |= {name: run / "tokenizer-report" / name.replace(" ", "-") for name in ("general only", "joint")}
    for name, folder in files.items():
        plain = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        kinds = {"English general": ["en-general"], "English medical": ["en-medical", "mondo"]}
        for kind, sources in kinds.items():
            heldout = list(itertools.chain.from_iterable(read(run, "heldout", source) for source in sources))
            tokens = sum(len(plain.encode(text, add_special_tokens=False).ids) for text in heldout)
            entry = found[name]["texts"][kind]
            assert entry["bytes_per_token"] == sum(len(text.encode()) for text in heldout) / tokens
            assert entry["tokens_per_character"] == tokens / sum(map(len, heldout))
        terms = found[name]["terms"]["diseases (MONDO)"]
        assert terms["terms"] == 7 and terms["units"] == 2  # seven numbers; feveritis and hearts
        single = [len(plain.encode(f" {word}", add_special_tokens=False).ids) == 1 for word in ("feveritis", "hearts")]
        assert terms["single"] == sum(single)
        assert found[name]["vocab_size"] == plain.get_vocab_size() and 0 < found[name]["used_share"] < 1
    assert (
        found["this run"]["terms"]["diseases (MONDO)"]["single"]
        > 0
        == found["general only"]["terms"]["diseases (MONDO)"]["single"]
    )
    assert json.loads((run / "tokenizer-report" / "report.json").read_text()) == list(found.values())
    assert (run / "tokenizer-report" / "compression.png").read_bytes().startswith(b"\x89PNG")


def read(run, part, source):
    path = run / "corpus" / part / f"{source}.parquet"
    return [document.text for document in read_documents(path)]


def test_the_peers_are_trained_once(run, capsys):
    first = reported(run, capsys)
    places = [run / "tokenizer-report" / name / "tokenizer.json" for name in ("general-only", "joint")]
    times = [place.stat().st_mtime_ns for place in places]
    assert reported(run, capsys) == first
    assert [place.stat().st_mtime_ns for place in places] == times


def test_tables_for_people(run, capsys):
    report(config_file.load(TINY, [f"folder={run}", *SIZES]), [], as_json=False)
    shown = capsys.readouterr().out
    assert "this run" in shown and "general only" in shown and "compression.png" in shown.replace("\n", "")


def refused(run, against, words):
    with pytest.raises(UserError, match=words):
        report(config_file.load(TINY, [f"folder={run}", *SIZES]), against, as_json=True)


def test_what_is_missing_is_named(run, monkeypatch, tmp_path):
    refused(run, ["nowhere/tokenizer.json"], "nowhere/tokenizer.json is missing")
    refused(run, ["gpt5"], "gpt5 is neither a file nor an encoding of tiktoken .*cl100k_base")
    for variable in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nobody listens there: no network
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    refused(run, ["cl100k_base"], "cl100k_base of tiktoken cannot be fetched .* TIKTOKEN_CACHE_DIR")
    shutil.rmtree(run / "tokenizer")
    refused(run, [], "run `m1 tokenizer train` first")
    shutil.rmtree(run / "corpus")
    refused(run, [], "run `m1 corpus` first")


def test_an_encoding_of_tiktoken(run, capsys, monkeypatch, tmp_path):
    """A plugin registers one, as tiktoken's documentation asks; the shipped ones need a download."""
    import tiktoken.registry

    plugin = tmp_path / "tiktoken_ext" / "bytes_only.py"
    plugin.parent.mkdir()
    plugin.write_text(
        "def bytes_only():\n"
        "    ranks = {bytes([byte]): byte for byte in range(256)}\n"
        "    special = {'<s>': 256}\n"
        "    return dict(name='bytes_only', pat_str=r'\\S+|\\s+', mergeable_ranks=ranks, special_tokens=special)\n"
        "ENCODING_CONSTRUCTORS = {'bytes_only': bytes_only}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(tiktoken.registry, "ENCODING_CONSTRUCTORS", None)
    tiktoken.registry._available_plugin_modules.cache_clear()
    found = reported(run, capsys, "--against", "bytes_only")
    assert found["bytes_only"]["vocab_size"] == 257
    assert {entry["bytes_per_token"] for entry in found["bytes_only"]["texts"].values()} == {1.0}
