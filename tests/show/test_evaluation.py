import io
import json

from rich.console import Console

from m1jax.evaluate.bits import Bits
from m1jax.evaluate.items import Item
from m1jax.evaluate.scoring import RowScorer
from m1jax.show import evaluation
from tests.evaluate.test_choice import evaluate
from tests.evaluate.toy import Toy

DOMAINS = {"onto": "medical", "icd": "medical", "[dict]": "general"}
BEFORE = {"onto": Bits(400.0, 50, 30), "icd": Bits(400.0, 50, 30), "[dict]": Bits(80.0, 10, 4)}
AFTER = {"onto": Bits(100.0, 50, 30), "icd": Bits(150.0, 50, 30), "[dict]": Bits(30.0, 10, 4)}
BIGRAM = {"onto": Bits(120.0, 50, 30), "icd": Bits(140.0, 50, 30), "[dict]": Bits(20.0, 10, 4)}


def text_of(table):
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_bits_stand_by_source_and_domain_beside_each_other():
    made = evaluation.bits({"before": BEFORE, "after": AFTER, "bigram": BIGRAM}, DOMAINS, ("general", "medical"))
    rows = [" ".join(line.replace("│", " ").split()) for line in text_of(made.table).splitlines()]
    assert "medical onto 50 8.000 2.000 2.400" in rows
    assert "medical total 100 8.000 2.500 2.600" in rows
    assert "general [dict] 10 8.000 3.000 2.000" in rows
    assert [row.split()[0] for row in rows if " total " in row] == list(made.data["after"]["domains"])
    assert list(made.data["after"]["domains"]) == ["general", "medical"]
    data = json.loads(json.dumps(made.data, allow_nan=False))
    assert data["after"]["domains"]["medical"] == {"bits_per_byte": 2.5, "bits": 250.0, "bytes": 100, "targets": 60}
    assert data["bigram"]["sources"]["icd"]["bits_per_byte"] == 2.8


def test_a_source_without_text_shows_a_dash_and_null():
    empty = {"onto": Bits(0.0, 0, 0)}
    made = evaluation.bits({"after": empty, "bigram": empty}, {"onto": "medical"}, ("medical",))
    assert "–" in text_of(made.table)
    data = json.loads(json.dumps(made.data, allow_nan=False))
    assert data["after"]["sources"]["onto"]["bits_per_byte"] is None


def test_accuracy_stands_beside_interval_chance_and_the_constant_answer():
    items = [Item(str(n), f"Q{n}", ("yes", "no"), int(n < 6)) for n in range(20)]
    found = evaluate("pubmedqa", items, RowScorer(Toy(), (32,), 64))
    made = evaluation.accuracy([found])
    shown = text_of(made.table)
    low, high = found.interval
    for number in (found.accuracy, low, high, found.chance, 0.7):
        assert f"{100 * number:.1f}%" in shown
    data = json.loads(json.dumps(made.data, allow_nan=False))
    assert data["pubmedqa"]["total"] == 20
    assert data["pubmedqa"]["constant"] == 0.7
    assert data["pubmedqa"]["interval"] == [low, high]
