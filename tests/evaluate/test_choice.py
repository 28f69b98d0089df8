"""A task is defined once: the plain path and seqio.Evaluator give the same numbers, and both are right."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import Toy, alone

from m1jax.errors import UserError
from m1jax.evaluate import choice, seqio_adapter, tasks
from m1jax.evaluate.scoring import RowScorer

TASKS = {task.name: task for task in tasks.TASKS}


class Bytes:
    """A tokenizer of bytes."""

    def encode_batch(self, texts):
        return [list(text.encode()) for text in texts]


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
    for task in tasks.TASKS:
        path = tmp_path / task.source
        path.parent.mkdir(parents=True, exist_ok=True)
        records = lettered if "lettered" in task.parse.__name__ else [r for r in labelled if r["answer"] != "maybe"]
        if task.name == "pubmedqa":
            records = labelled
        lines = [json.dumps(record) for record in records]
        path.write_text("\n".join([*lines, "{broken", json.dumps({"question": "no answer"}), lines[0]]) + "\n")
    return tmp_path


@pytest.mark.parametrize("name", sorted(TASKS))
def test_broken_and_repeated_items_are_named_not_dropped_silently(folder, name):
    loaded = tasks.load(TASKS[name], folder)
    assert len(loaded.malformed) == 2
    assert loaded.repeated == 1
    assert all(item.choices[item.answer] for item in loaded.items)
    assert all(item.text.startswith(("Which organ", "Does remedy")) for item in loaded.items)


@pytest.mark.parametrize("name", ["medqa", "pubmedqa"])
def test_seqio_gives_the_number_of_the_plain_path(folder, name):
    items = tasks.load(TASKS[name], folder).items
    scorer = RowScorer(Toy(), (64, 128), 256)
    plain = choice.evaluate(TASKS[name], items, Bytes(), scorer)
    through_seqio = seqio_adapter.evaluate(TASKS[name], items, Bytes(), scorer)
    for field in ("metric", "correct", "total", "accuracy", "interval", "chance", "accuracies", "tokens"):
        assert getattr(plain, field) == getattr(through_seqio, field), field


def test_the_plain_path_picks_the_likeliest_answer(folder):
    task = TASKS["medqa"]
    items = tasks.load(task, folder).items
    found = choice.evaluate(task, items, Bytes(), RowScorer(Toy(), (64, 128), 256))
    hits = 0
    for item in items:
        prompt = list(item.prompt.encode())
        scores = []
        for option in item.choices:
            tokens = prompt + list(f" {option}".encode())
            scores.append(sum(alone(tokens)[len(prompt) - 1 :]) / len(option.encode()))
        hits += scores.index(max(scores)) == item.answer
    assert found.correct == hits
    assert found.total == 5
    assert found.chance == pytest.approx(1 / 3)


@settings(deadline=None)
@given(st.integers(1, 400), st.data())
def test_the_interval_holds_the_share_and_solves_wilsons_equation(total, data):
    correct = data.draw(st.integers(0, total))
    low, high = choice.wilson(correct, total)
    share = correct / total
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1
    for end in (low, high):
        if 0 < end < 1:  # (share - p)^2 = z^2 p (1 - p) / n
            assert (share - end) ** 2 == pytest.approx(1.959963984540054**2 * end * (1 - end) / total, abs=1e-9)


def test_a_sample_is_the_same_every_time(folder):
    items = tasks.load(TASKS["medqa"], folder).items
    assert tasks.sample(items, 3, seed=1) == tasks.sample(items, 3, seed=1)
    assert tasks.sample(items, None) == list(items)
    with pytest.raises(UserError, match="at least 1"):
        tasks.sample(items, 0)


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
