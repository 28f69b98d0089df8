"""`m1 tokenizer train`: the two parts, how much text they see, existing tokenizers, and what is refused."""

import json
import shutil

import pytest

from m1jax import artefact
from m1jax import tokenizer as tokenizers
from m1jax.config import file as config_file
from m1jax.errors import UserError
from m1jax.text.documents import read_documents
from m1jax.verbs import main
from m1jax.verbs.tokenizer import train
from tests import texts
from tests.verbs.conftest import TINY


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A run's folder with nothing but a corpus of both domains."""
    folder = tmp_path_factory.mktemp("tokenizer") / "run"
    text = texts.write(folder.parent / "text", count=80)
    assert main(["corpus", "--config", TINY, "--set", f"folder={folder}", "--text", str(text)]) == 0
    return folder


@pytest.fixture
def run(corpus, tmp_path):
    return shutil.copytree(corpus, tmp_path / "run")


def config(folder, *overrides):
    return config_file.load(TINY, [f"folder={folder}", "model.vocab_size=100_000", *overrides])


def parts(*given):
    """An override of data.vocab_parts: (domain, ids), or a domain alone for whom the ids are left open."""
    entries = [{"domain": one} if isinstance(one, str) else {"domain": one[0], "ids": one[1]} for one in given]
    return f"data.vocab_parts={entries}"


def decided(run):
    """(domains, ids) of each part, as the stamp records them."""
    return [(part["domains"], part["ids"]) for part in artefact.stamp(run / "tokenizer")["parts"]]


def test_both_parts_are_trained_and_recorded(run, capsys):
    train(config(run, "data.vocab_size=700", parts(("general", 600), "medical")))
    assert "(600 ids by general text, 100 by medical text; fingerprint" in " ".join(capsys.readouterr().out.split())
    tokenizer = tokenizers.load(run / "tokenizer")
    stamp = artefact.stamp(run / "tokenizer")
    assert (stamp["vocab_size"], tokenizer.vocab_size) == (700, 700)
    assert decided(run) == [(["general"], 600), (["medical"], 100)]
    assert stamp["fingerprint"] == tokenizer.fingerprint
    sources = artefact.stamp(run / "corpus")["sources"]
    assert stamp["bytes"] == {name: source["bytes"] for name, source in sources.items()}
    general = [text.text for text in read_documents(run / "corpus" / "documents" / "general.parquet")]
    alone = tokenizers.train(general, 600)
    assert tokenizer.merges[: len(alone.merges)] == alone.merges
    capsys.readouterr()
    train(config(run, "data.vocab_size=700", parts(("general", 600), ("medical", 100))))
    assert "is already complete" in capsys.readouterr().out.replace("\n", " ")


def test_the_share_of_the_parts_is_three_quarters_where_it_is_left_open(run):
    train(config(run, "data.vocab_size=800"))
    assert decided(run) == [(["general"], 600), (["medical"], 200)]


def test_the_config_says_whose_ids_come_first_and_others_join_the_last(run):
    train(config(run, "data.vocab_size=700", parts("medical", "general")))
    first = tokenizers.load(run / "tokenizer")
    assert decided(run) == [(["medical"], 525), (["general"], 175)]
    train(config(run, "data.vocab_size=700", "data.domains=('medical','general')"))
    assert tokenizers.load(run / "tokenizer").fingerprint == first.fingerprint
    train(config(run, "data.vocab_size=700", parts("medical")))
    assert decided(run) == [(["medical", "general"], 700)]
    everything = [document.text for document in read_documents(run / "corpus" / "documents")]
    assert tokenizers.load(run / "tokenizer").fingerprint == tokenizers.train(everything, 700).fingerprint


def test_an_open_part_of_too_little_text_leaves_its_ids_to_the_next(run):
    """The general text holds fewer tokens than three quarters of so large a vocabulary."""
    with pytest.raises(UserError) as refused:
        train(config(run, "data.vocab_size=90_000"))
    size = int(str(refused.value).split("data.vocab_size=")[1].split(" ")[0])
    train(config(run, f"data.vocab_size={size}"))
    (_, first), (_, second) = decided(run)
    assert first < size * 3 // 4 and first + second == size


@pytest.mark.parametrize("kept", ["general", "medical"])
def test_a_corpus_of_one_domain(run, kept):
    gone = ({"general", "medical"} - {kept}).pop()
    (run / "corpus" / "documents" / f"{gone}.parquet").unlink()
    path = run / "corpus" / artefact.STAMP
    stamp = json.loads(path.read_text())
    del stamp["sources"][gone]
    path.write_text(json.dumps(stamp))
    train(config(run, "data.vocab_size=600"))
    assert decided(run) == [([kept], 600)]
    for change in (parts(("general", 500), "medical"), parts(gone)):
        with pytest.raises(UserError, match=f"holds no {gone} text, which data.vocab_parts names"):
            train(config(run, "data.vocab_size=600", change))
    assert tokenizers.load(run / "tokenizer").vocab_size == 600


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.vocab_size=90_000"], r"holds only \d+ tokens that occur twice, fewer than data.vocab_size = 90000"),
        (
            ["data.vocab_size=90_000", parts(("general", 80_000), "medical")],
            r"general text .* fewer than data.vocab_parts.0.ids = 80000: set data.vocab_parts.0.ids=\d+ or",
        ),
        (
            ["data.vocab_size=90_000", parts("general", ("medical", 89_500))],
            r"medical text .* fewer than data.vocab_parts.1.ids = 89500: set data.vocab_parts.1.ids=\d+ or",
        ),
        (["data.vocab_size=600", parts(("general", 384), "medical")], "ids = 384 leaves no room"),
    ],
)
def test_sizes_that_do_not_fit(run, overrides, words):
    with pytest.raises(UserError, match=words):
        train(config(run, *overrides))
    assert not (run / "tokenizer").exists() and not list(run.glob(".tokenizer*"))


def test_the_size_that_the_error_names_works(run):
    with pytest.raises(UserError) as refused:
        train(config(run, "data.vocab_size=90_000"))
    size = str(refused.value).split("data.vocab_size=")[1].split(" ")[0]
    train(config(run, f"data.vocab_size={size}"))
    assert tokenizers.load(run / "tokenizer").vocab_size == int(size)


def test_an_existing_tokenizer_is_used_as_it_is(run, tmp_path, capsys):
    train(config(run, "data.vocab_size=600"))
    other = tmp_path / "other.json"
    saved = json.loads((run / "tokenizer" / "tokenizer.json").read_text())
    other.write_text(json.dumps({**saved, "normalizer": {"type": "NFC"}}))
    capsys.readouterr()
    with pytest.raises(UserError, match=r"set the config keys data\.special_ids\.bos"):
        train(config(run, f"data.tokenizer={other}"))
    ids = [f"data.special_ids.{name}={i}" for name, i in (("bos", 1), ("eos", 2), ("pad", 0))]
    given = config(run, f"data.tokenizer={other}", *ids)
    train(given)
    assert "existing tokenizer of 600 ids" in " ".join(capsys.readouterr().out.split())
    sets = [part for key in (f"folder={run}", "model.vocab_size=600", f"data.tokenizer={other}", *ids)
            for part in ("--set", key)]  # fmt: skip
    assert main(["pack", "--config", TINY, *sets]) == 0
    manifest = json.loads((run / "rows" / "manifest.json").read_text())
    assert manifest["tokenizer"] == tokenizers.of_run(given).fingerprint
