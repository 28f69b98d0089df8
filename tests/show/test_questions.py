"""The table of answers by kind."""

import json

from m1jax.evaluate import answers
from m1jax.evaluate.answers import Answers
from m1jax.evaluate.asking import Spoken
from m1jax.evaluate.items import Item
from m1jax.show import questions
from tests.show.test_evaluation import text_of


def result(model, hits):
    items = tuple(Item(str(n), f"{n}?", ("yes", "no"), 0, ["[sign]", "cause"][n % 2]) for n in range(20))
    scores = tuple((-1.0, -2.0) if n < hits else (-2.0, -1.0) for n in range(20))
    return Answers(items, scores, {"model": f"runs/{model}", "set": "wards", "form": "chat", "chat": "ChatML"})


def test_a_line_has_what_blind_answers_reach_and_the_other_model():
    own, other = result("tuned", 15), result("before", 5)
    lines = answers.by_kind(own, other)
    made = questions.lines(lines, own.about, other.about)
    rows = [" ".join(line.replace("│", " ").split()) for line in text_of(made.table).splitlines()]
    assert "tuned: wards, asked as a chat (ChatML)" in rows[0]
    low, high = lines[2].own.interval
    shown = f"all 20 50.0 100.0 100.0 75.0 ({100 * low:.1f}, {100 * high:.1f})"
    (whole,) = [row for row in rows if row.startswith("all")]
    assert whole.startswith(shown)
    low, high = lines[2].difference.interval
    assert whole.endswith(f"+50.0 ({100 * low:+.1f}, {100 * high:+.1f})")
    assert any(row.startswith("[sign] 10 ") for row in rows)
    data = json.loads(json.dumps(made.data, allow_nan=False))
    assert (data["all"]["own"]["correct"], data["cause"]["difference"]["only_first"]) == (15, 5)
    alone = questions.lines(answers.by_kind(own), {**own.about, "form": "base"}, None)
    mixed = questions.lines(lines, own.about, {**other.about, "form": "base"})
    assert "before, as text" in text_of(mixed.table) and "before, as" not in text_of(made.table)
    assert "difference" not in text_of(alone.table) and "a text that goes on" in text_of(alone.table)


def test_what_a_model_said_stands_below_the_right_answer():
    text = questions.spoken(Spoken("a", "sign", "Which [ward]?", "North", "South\x1b[2J")).plain
    assert text.split("\n") == ["sign: Which [ward]?", "  right: North", "  said:  South␛[2J"]
