"""A task is defined once: the plain path and seqio.Evaluator give the same numbers, and both are right."""

import json
import subprocess
import sys

import pytest

from m1jax.errors import UserError
from m1jax.evaluate import choice, forms, seqio_adapter, tasks
from m1jax.evaluate.items import REPEATED, Item, sample
from m1jax.evaluate.scoring import RowScorer
from tests.evaluate.toy import Toy, alone

TASKS = {task.name: task for task in tasks.TASKS}


class Bytes:
    """A tokenizer of bytes."""

    def encode_batch(self, texts):
        return [list(text.encode()) for text in texts]


def items_of(number):
    """Items of two to four choices."""
    return [Item(f"i{n}", f"{n * n}?", tuple("abcdefgh"[n % 2 : 2 + n % 3 + n % 2]), n % 2) for n in range(number)]


def evaluate(name, items, scorer, how=choice.evaluate):
    """A task's result on items that are asked as plain text in bytes."""
    task = TASKS[name]
    return how(task.name, task.metric, items, forms.as_text(items, Bytes()), scorer)


@pytest.fixture
def folder(tmp_path):
    """Items of our own in the formats of the package, some of them broken."""
    lettered = [
        {"question": f"Which organ hurts in case {n}?", "options": "A. liver\nB. the left lung\nC. heart", "answer": a}
        for n, a in enumerate(["A. liver", "C. heart", "B. the left lung", "A. liver", "C. heart"])
    ]
    labelled = [
        {"question": f"Does remedy {n} help?", "passage": f"We gave remedy {n} to {n + 3} patients.", "answer": a}
        for n, a in enumerate(["yes", "no", "maybe", "yes"])
    ]
    boolean = [{**record, "answer": str(record["answer"] == "yes")} for record in labelled]
    two = [record for record in labelled if record["answer"] != "maybe"]
    records_of = {"pubmedqa": labelled, "pubmedqa-artificial": two, "boolq": boolean}
    for task in tasks.TASKS:
        path = tmp_path / task.source
        path.parent.mkdir(parents=True, exist_ok=True)
        records = records_of.get(task.name, lettered)
        lines = [json.dumps(record) for record in records]
        path.write_text("\n".join([*lines, "{broken", json.dumps({"question": "no answer"}), lines[0]]) + "\n")
    return tmp_path


@pytest.mark.parametrize("name", sorted(TASKS))
def test_broken_and_repeated_items_are_named_not_dropped_silently(folder, name):
    loaded = tasks.load(TASKS[name], folder)
    reasons = dict(loaded.reasons)
    assert (reasons.pop(REPEATED), reasons.pop("not JSON"), len(reasons)) == (1, 1, 1)
    assert all(item.choices[item.answer] for item in loaded.items)
    assert all(item.text.startswith(("Which organ", "Does remedy")) for item in loaded.items)


@pytest.mark.parametrize("name", ["medqa", "pubmedqa"])
def test_seqio_gives_the_number_of_the_plain_path(folder, name):
    items = tasks.load(TASKS[name], folder).items
    scorer = RowScorer(Toy(), (64, 128), 256)
    plain = evaluate(name, items, scorer)
    through_seqio = evaluate(name, items, scorer, seqio_adapter.evaluate)
    for field in ("metric", "correct", "total", "accuracy", "interval", "chance", "accuracies", "tokens"):
        assert getattr(plain, field) == getattr(through_seqio, field), field


def test_the_plain_path_picks_the_likeliest_answer(folder):
    items = tasks.load(TASKS["medqa"], folder).items
    found = evaluate("medqa", items, RowScorer(Toy(), (64, 128), 256))
    hits = 0
    for item in items:
        prompt = list(forms.text_before(item).encode())
        scores = []
        for option in item.choices:
            tokens = prompt + list(f" {option}".encode())
            scores.append(sum(alone(tokens)[len(prompt) - 1 :]) / len(option.encode()))
        hits += scores.index(max(scores)) == item.answer
    assert found.correct == hits
    assert found.total == 5
    assert found.chance == pytest.approx(1 / 3)


def test_a_sample_is_the_same_every_time(folder):
    items = tasks.load(TASKS["medqa"], folder).items
    assert sample(items, 3, seed=1) == sample(items, 3, seed=1)
    assert sample(items, None) == list(items)
    with pytest.raises(UserError, match="at least 1"):
        sample(items, 0)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"MedQA/test\.jsonl.*m1 corpus"):
        tasks.load(TASKS["medqa"], tmp_path)


def test_metric_code_imports_no_tensorflow():
    program = """
import sys
import m1jax.evaluate.tasks, m1jax.evaluate.choice, m1jax.evaluate.bits, m1jax.evaluate.seqio_adapter
assert not {"tensorflow", "seqio"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_oracle_is_right_and_its_opposite_is_wrong():
    items = items_of(12)

    class Oracle:
        max_tokens = 99
        sign = 1.0

        def __call__(self, rows):
            right = [index == item.answer for item in items for index in range(len(item.choices))]
            return [self.sign * (0.0 if hit else -1.0) for hit, _ in zip(right, rows, strict=True)]

    oracle = Oracle()
    assert evaluate("pubmedqa", items, oracle).correct == 12
    oracle.sign = -1.0
    assert evaluate("pubmedqa", items, oracle).correct == 0


def test_where_choices_are_shared_the_best_constant_answer_is_told():
    items = [Item(str(n), "?", ("yes", "no", "maybe"), int(n < 3)) for n in range(10)]
    result = evaluate("pubmedqa", items, RowScorer(Toy(), (32,), 64))
    assert result.constant == 0.7
    assert result.chance == pytest.approx(1 / 3)


def test_a_long_prompt_loses_its_beginning_alike_for_all_choices():
    items = [Item("long", "", ("ab", "abcd"), 0), Item("short", "", ("ab", "c"), 0)]
    asked = forms.continued(["0123456789", "01"], [item.choices for item in items], Bytes())
    made, shortened = choice.requests(asked, items, 12)
    assert shortened == 1
    assert [bytes(request.tokens) for request in made] == [b"3456789 ab", b"3456789 abcd", b"01 ab", b"01 c"]
    assert [request.first for request in made] == [7, 7, 2, 2]
    assert [(request.item, request.choice) for request in made] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_choice_as_long_as_a_row_is_refused():
    item = Item("x/7", "", ("a" * 7, "b"), 0)
    with pytest.raises(UserError, match=r"item x/7 fills a row of 8 tokens"):
        choice.requests(forms.as_text([item], Bytes()), [item], 8)
