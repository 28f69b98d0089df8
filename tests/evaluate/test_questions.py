"""Questions from files: what is read, and what is set aside with its reason."""

import gzip
import json

import pytest

from m1jax.errors import UserError
from m1jax.evaluate import items as item_sets
from m1jax.evaluate import questions
from m1jax.evaluate.items import Item

GOOD = {"question": "Which ward treats nostalgitis?", "choices": ["North", "Harbour"], "answer": 1}


def lines(*records):
    return "".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records)


def test_a_file_of_questions(tmp_path):
    file = tmp_path / "wards.jsonl"
    whole = {**GOOD, "question": " Where? ", "id": 7, "kind": "place", "entity": "W:1", "context": "A clinic.\n"}
    file.write_text("\ufeff" + lines(GOOD, "", {**whole, "licence": "MIT", "source": "own", "language": "en"}))
    assert questions.load(file).items == (
        Item("wards.jsonl:1", GOOD["question"], ("North", "Harbour"), 1, "wards"),
        Item("7", "Where?", ("North", "Harbour"), 1, "place", "A clinic.", "W:1"),
    )


def test_a_folder_of_questions(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.jsonl").write_text(lines(GOOD))
    with gzip.open(tmp_path / "inner" / "b.jsonl.gz", "wt") as file:
        file.write(lines({**GOOD, "question": "Who?"}))
    (tmp_path / "notes.txt").write_text("no question")
    found = questions.load(tmp_path).items
    assert [(item.id, item.kind) for item in found] == [("a.jsonl:1", "a"), ("inner/b.jsonl.gz:1", "b")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ({"choices": ["a", "b"], "answer": 0}, "no field 'question'"),
        ({**GOOD, "question": " "}, "an empty question"),
        ({**GOOD, "question": ["a"]}, "a field is not a text"),
        ({**GOOD, "question": "half \ud83d"}, "not UTF-8"),
        ({**GOOD, "kind": 3}, "a field is not a text"),
        ({**GOOD, "choices": "ab"}, "the choices are not a list of texts"),
        ({**GOOD, "choices": ["a", 2]}, "the choices are not a list of texts"),
        ({**GOOD, "choices": ["a"], "answer": 0}, "fewer than two choices"),
        ({**GOOD, "choices": ["a", " "]}, "an empty choice"),
        ({**GOOD, "choices": ["a", "b", "a "]}, "two equal choices"),
        ({**GOOD, "answer": 2}, "an answer outside of its choices"),
        ({**GOOD, "answer": -1}, "an answer outside of its choices"),
        ({**GOOD, "answer": "Harbour"}, "the answer is not the index of a choice (a whole number, from 0)"),
        ({**GOOD, "answer": True}, "the answer is not the index of a choice (a whole number, from 0)"),
        ({**GOOD, "id": "first", "question": "Another?"}, "the id of an earlier question"),
        ({**GOOD, "id": "other"}, "a repeated question"),
    ],
)
def test_a_line_that_is_no_question_is_set_aside_with_its_reason(tmp_path, line, reason):
    file = tmp_path / "q.jsonl"
    file.write_text(lines({**GOOD, "id": "first"}, line, {**GOOD, "question": "The last?"}))
    loaded = questions.load(file)
    assert [item.id for item in loaded.items] == ["first", "q.jsonl:3"]
    assert [(fault.place, fault.reason) for fault in loaded.set_aside] == [("q.jsonl:2", reason)]


def test_where_nothing_is_left_there_is_one_sentence(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text("")
    with pytest.raises(UserError, match=r"q\.jsonl holds no question \(no line"):
        questions.load(file)
    file.write_text(lines("{", "{", {**GOOD, "answer": 5}))
    with pytest.raises(UserError, match=r"\(2 for not JSON, 1 for an answer outside of its choices\)"):
        questions.load(file)
    with pytest.raises(UserError, match="does not exist"):
        questions.load(tmp_path / "none.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no \.jsonl file"):
        questions.load(tmp_path / "empty")
    (tmp_path / "q.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match=r"q\.jsonl\.gz cannot be read"):
        questions.load(tmp_path / "q.jsonl.gz")


def test_samples_are_of_every_kind_and_always_the_same():
    items = [Item(str(n), "?", ("a", "b"), 0, "many" if n < 50 else "few") for n in range(53)]
    drawn = item_sets.spread(items, 5)
    assert drawn == item_sets.spread(items, 5) != item_sets.spread(items, 5, seed=1)
    assert sorted(item.kind for item in drawn[:4]) == ["few", "few", "many", "many"]
    assert len({item.id for item in item_sets.spread(items, 60)}) == 53
