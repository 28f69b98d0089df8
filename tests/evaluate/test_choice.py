"""A task is defined once: the plain path and seqio.Evaluator give the same numbers, and both are right."""

import json
import subprocess
import sys

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers

from m1jax.errors import UserError
from m1jax.evaluate import choice, seqio_adapter, tasks
from m1jax.evaluate.scoring import RowScorer
from m1jax.tokenizer import SpecialIds
from m1jax.tokenizer.json_file import JsonTokenizer
from tests.evaluate.toy import Toy, alone

TASKS = {task.name: task for task in tasks.TASKS}


class Bytes:
    """A tokenizer of bytes."""

    def encode_batch(self, texts):
        return [list(text.encode()) for text in texts]


def items_of(number):
    """Items of two to eight choices."""
    return [
        tasks.Item(f"i{n}", f"Question: {n * n}?\nAnswer:", tuple("abcdefgh"[: 2 + n % 3] * (1 + n % 2)), n % 2, "")
        for n in range(number)
    ]


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
    assert (low == 0, high == 1) == (correct == 0, correct == total)
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


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3 (Wilson, without continuity correction).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_are_the_published_ones(correct, total, low, high):
    assert choice.wilson(correct, total) == pytest.approx((low, high), abs=5e-5)
    mirrored = choice.wilson(total - correct, total)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_an_oracle_is_right_and_its_opposite_is_wrong():
    items = items_of(12)

    class Oracle:
        max_tokens = 99
        sign = 1.0

        def __call__(self, rows):
            right = [index == item.answer for item in items for index in range(len(item.choices))]
            return [self.sign * (0.0 if hit else -1.0) for hit, _ in zip(right, rows, strict=True)]

    oracle = Oracle()
    assert choice.evaluate(TASKS["pubmedqa"], items, Bytes(), oracle).correct == 12
    oracle.sign = -1.0
    assert choice.evaluate(TASKS["pubmedqa"], items, Bytes(), oracle).correct == 0


def test_where_choices_are_shared_the_best_constant_answer_is_told():
    items = [tasks.Item(str(n), "Q:", ("yes", "no", "maybe"), int(n < 3), "") for n in range(10)]
    result = choice.evaluate(TASKS["pubmedqa"], items, Bytes(), RowScorer(Toy(), (16,), 64))
    assert result.constant == 0.7
    assert result.chance == pytest.approx(1 / 3)


def test_a_long_prompt_loses_its_beginning_alike_for_all_choices():
    items = [tasks.Item("long", "0123456789", ("ab", "abcd"), 0, ""), tasks.Item("short", "01", ("ab",), 0, "")]
    asked, shortened = choice.requests(items, Bytes(), 12)
    assert shortened == 1
    assert [bytes(request.tokens) for request in asked] == [b"3456789 ab", b"3456789 abcd", b"01 ab"]
    assert [request.first for request in asked] == [7, 7, 2]
    assert [(request.item, request.choice) for request in asked] == [(0, 0), (0, 1), (1, 0)]


def test_a_choice_as_long_as_a_row_is_refused():
    with pytest.raises(UserError, match=r"item x/7 fills a row of 8 tokens"):
        choice.requests([tasks.Item("x/7", "Q:", ("a" * 7,), 0, "")], Bytes(), 8)


PIECES = [
    "▁Where",
    "▁is",
    "▁it",
    ":",
    "▁the",
    "▁heart",
    "▁lung",
    "▁",
    "the",
    ":▁the",
    "：肺",
    "：",
    "肺",
    "炎",
    "在",
    "哪",
]


def dummy_prefix():
    """A tokenizer that puts a space before every text, and one token that spans the join of prompt and choice."""
    special = ["<s>", "</s>", "<pad>", "<unk>"]
    scores = [(token, 0.0) for token in special] + [(piece, -float(len(PIECES) - n)) for n, piece in enumerate(PIECES)]
    scores = [(piece, -1.0 if piece in (":▁the", "：肺") else score) for piece, score in scores]
    backend = tokenizers.Tokenizer(models.Unigram(scores, unk_id=3, byte_fallback=False))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.add_special_tokens(special)
    return JsonTokenizer(backend, SpecialIds(0, 1, 2))


def names(tokenizer, ids):
    return [tokenizer._tokens[i] for i in ids]


def test_the_tokens_of_a_choice_are_those_of_the_whole_text():
    tokenizer = dummy_prefix()
    items = [tasks.Item("a", "Where is it", ("heart", "lung lung"), 0, "")]
    asked, _ = choice.requests(items, tokenizer, 99)
    for request, option in zip(asked, items[0].choices, strict=True):
        assert list(request.tokens) == tokenizer.encode(f"Where is it {option}")
    assert [names(tokenizer, request.tokens[request.first :]) for request in asked] == [
        ["▁heart"],
        ["▁lung", "▁lung"],
    ]


def test_where_a_token_spans_the_join_all_choices_are_cut_before_it():
    tokenizer = dummy_prefix()
    items = [tasks.Item("a", "Where is it:", ("the heart", "heart"), 0, "")]
    asked, _ = choice.requests(items, tokenizer, 99)
    assert [list(request.tokens) for request in asked] == [
        tokenizer.encode("Where is it: the heart"),
        tokenizer.encode("Where is it: heart"),
    ]
    # What is scored begins at the same place of the text for every choice, else one would be scored for less text.
    assert [names(tokenizer, request.tokens[request.first :]) for request in asked] == [
        [":▁the", "▁heart"],
        [":", "▁heart"],
    ]
    # One token holds the whole prompt and a part of the choice: nothing would be left to condition on.
    asked, _ = choice.requests([tasks.Item("b", ":", ("the", "heart"), 0, "")], Joined(), 99)
    assert [(request.tokens, request.first) for request in asked] == [((1, 3), 1), ((1, 4), 1)]


class Joined:
    """Knows five texts."""

    def encode_batch(self, texts):
        return [{":": [1], ": the": [2], ": heart": [1, 4], " the": [3], " heart": [4]}[text] for text in texts]


@settings(deadline=None)
@given(
    st.text("ab :", min_size=1, max_size=8), st.lists(st.text("ab :", min_size=1, max_size=4), min_size=1, max_size=3)
)
def test_bytes_are_cut_at_the_prompt(prompt, choices):
    asked, _ = choice.requests([tasks.Item("a", prompt, tuple(choices), 0, "")], Bytes(), 99)
    assert [request.first for request in asked] == [len(prompt)] * len(choices)
