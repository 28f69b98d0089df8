"""Files that only grow: what a killed process left unfinished costs no other line."""

import json

import pytest

from m1jax.errors import UserError
from m1jax.train.hooks.journal import Journal, read_journal
from m1jax.train.run import goodput, history, records
from tests.train.test_loop import report_of


def test_a_line_after_an_unfinished_one_is_a_line_of_its_own(tmp_path):
    path = tmp_path / "train" / "some.jsonl"
    records.append(path, {"step": 1, "word": "Größe\u2028"})
    with open(path, "ab") as file:
        file.write('{"step": 2, "word": "é'.encode()[:-1])  # killed in the middle of a character
    records.append(path, {"step": 3})
    assert records.read(path) == [{"step": 1, "word": "Größe\u2028"}, {"step": 3}]
    assert records.read(tmp_path / "nothing") == []


def test_starts_and_changes_survive_an_unfinished_line(tmp_path):
    starts, changes = tmp_path / "starts.jsonl", tmp_path / "history.jsonl"
    goodput.note_start(starts, 0)
    history.append(changes, 3, ["a was 1, is 2"])
    for path in (starts, changes):
        with open(path, "ab") as file:
            file.write(b'{"time": 12')
    goodput.note_start(starts, 7)
    history.append(changes, 5, ["a was 2, is 3"])
    assert [line["step"] for line in records.read(starts)] == [0, 7]
    assert goodput.measure(starts, [], records.read(starts)[0]["time"] + 5).starts == 2
    assert [line["step"] for line in history.read(changes)] == [3, 5]


def journal_with(folder, last):
    journal = Journal(folder)
    journal.begin(0)
    for step in range(1, last + 1):
        journal.report(report_of(step, "a", float(step)))
    return journal


def test_a_journal_goes_on_in_the_same_file(tmp_path):
    journal_with(tmp_path, 5).end()
    path = tmp_path / "metrics.jsonl"
    before = path.stat().st_ino
    with open(path, "ab") as file:
        file.write(b'{"step": 6')
    journal = Journal(tmp_path)
    journal.begin(3)
    journal.report(report_of(4, "a", 40.0))
    journal.end()
    assert path.stat().st_ino == before
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [1.0, 2.0, 3.0, 40.0]


def test_a_second_writer_is_refused_and_no_line_is_lost(tmp_path):
    journal = journal_with(tmp_path, 2)
    with pytest.raises(UserError, match="another process"):
        Journal(tmp_path).begin(0)
    journal.report(report_of(3, "a", 3.0))
    journal.end()
    assert [line["step"] for line in read_journal(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    second = Journal(tmp_path)
    second.begin(3)
    second.end()
