"""Answers by kind: what is counted, compared and kept."""

import json

import pytest

from m1jax import artefact
from m1jax.errors import UserError
from m1jax.evaluate import answers, statistics
from m1jax.evaluate.answers import Answers
from m1jax.evaluate.forms import Asked
from m1jax.evaluate.items import Item


def item(name, *choices, kind="organ", answer=0, entity=""):
    return Item(name, f"{name}?", choices, answer, kind, entity=entity)


ITEMS = (
    item("a", "long choice", "no"),
    item("b", "eye", "ear", "longest", answer=1),
    item("c", "yes", "no", kind="doubt", answer=1),
    item("d", "no", "yes", kind="doubt", answer=0),
)
# By likelihood b, c and d are right; per byte a too, and then b is not.
SCORES = ((-8.0, -3.0), (-3.0, -2.9, -3.1), (-2.2, -2.0), (-1.0, -1.2))


def result(form="chat", items=ITEMS, scores=SCORES):
    return Answers(tuple(items), tuple(scores), {"form": form, "set": "s", "model": "m"})


def test_a_line_for_each_kind_and_one_for_all():
    organ, doubt, whole = answers.by_kind(result())
    assert [line.kind for line in (organ, doubt, whole)] == ["organ", "doubt", "all"]
    assert (organ.own.correct, doubt.own.correct, whole.own.correct) == (1, 2, 3)
    assert organ.chance == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert organ.longest == 0.5  # of a the longest choice is right, of b it is not
    assert doubt.longest == 0
    assert (organ.constant, doubt.constant, whole.constant) == (None, 1.0, None)
    assert whole.own.interval == statistics.wilson(3, 4)
    assert organ.own.metric == "likelihood"
    assert organ.own.other == 0.5  # a is right per byte: -8 / 11 against -3 / 2
    assert organ.against is None and organ.difference is None


def test_ties_of_the_longest_are_shared():
    (line,) = answers.by_kind(result(items=[item("a", "one", "two", "x")], scores=[(-1.0, -2.0, -3.0)]))
    assert line.longest == 0.5


def test_a_text_that_goes_on_is_compared_by_byte_unless_all_share_their_choices():
    organ, doubt, whole = answers.by_kind(result("base"))
    assert (organ.own.metric, doubt.own.metric) == ("likelihood per byte", "likelihood")
    assert whole.own.metric == "likelihood or likelihood per byte"
    assert (organ.own.accuracy, organ.own.other) == (0.5, 0.5)
    assert doubt.own.accuracy == 1


def test_choices_that_questions_share_are_labels():
    doubts = [item(str(n), *(("yes", "no") if n % 2 else ("是", "否"))) for n in range(4)]
    assert answers.metric("base", doubts) == "likelihood"
    assert answers.metric("base", doubts[:3]) == "likelihood per byte"
    assert answers.metric("chat", doubts[:3]) == "likelihood"


def test_two_models_are_compared_on_the_questions_that_both_answered():
    worse = tuple(tuple(reversed(scores)) for scores in SCORES)
    other = result(items=ITEMS[:3][::-1], scores=worse[:3][::-1])
    organ, doubt, whole = answers.by_kind(result(), other)
    assert (organ.own.total, organ.against.total) == (2, 2)
    assert (doubt.own.total, doubt.against.total, doubt.difference.items) == (2, 1, 1)
    assert doubt.difference.difference == 1  # c was right here only
    assert (whole.difference.only_first, whole.difference.only_second) == (1, 1)
    assert whole.difference.interval == statistics.paired([False, True, True], [True, True, False], "abc").interval


def test_questions_about_one_entity_widen_the_intervals():
    scores = [(-1.0, -2.0)] * 20 + [(-2.0, -1.0)] * 20
    alone = result(items=[item(str(n), "a", "b") for n in range(40)], scores=scores)
    shared = result(items=[item(str(n), "a", "b", entity=str(n // 4)) for n in range(40)], scores=scores)
    (narrow,), (wide,) = answers.by_kind(alone), answers.by_kind(shared)
    assert narrow.own.interval == statistics.wilson(20, 40)
    assert wide.own.interval == pytest.approx(statistics.wilson(4.5, 9))
    (difference,) = answers.by_kind(shared, shared)
    assert difference.difference.difference == 0


def test_other_questions_are_no_comparison():
    changed = (item("a", "long choice", "none"), *ITEMS[1:])
    with pytest.raises(UserError, match="question a is not the same"):
        answers.by_kind(result(), result(items=changed))
    strangers = [item("x", "a", "b")]
    with pytest.raises(UserError, match="no question in common"):
        answers.by_kind(result(), result(items=strangers, scores=[(-1.0, -2.0)]))


def test_what_is_kept_is_read_again(tmp_path):
    folder = tmp_path / "result"
    with artefact.building(folder, answers.KIND, "k") as partial:
        answers.write(result(), partial)
    assert answers.read(folder) == answers.read(folder / "items.jsonl") == result()
    first = json.loads((folder / "items.jsonl").read_text().splitlines()[0])
    assert (first["question"], first["choices"], first["scores"]) == ("a?", ["long choice", "no"], [-8.0, -3.0])
    with open(folder / "items.jsonl", "a") as file:
        file.write("{")
    with pytest.raises(UserError, match="damaged"):
        answers.read(folder)
    with pytest.raises(UserError, match="no finished answers"):
        answers.read(tmp_path)


def test_what_does_not_fit_the_context_is_set_aside():
    asked = [Asked((1,) * 5, ((1, 2), (1,))), Asked((1,) * 6, ((1,), (1, 2)))]
    items, kept, too_long = answers.fitting(ITEMS[:2], asked, 7)
    assert (items, kept) == ([ITEMS[0]], asked[:1])
    assert [(fault.place, fault.reason) for fault in too_long] == [("b", "longer than the context of 7 tokens")]
