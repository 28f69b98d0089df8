import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from m1jax.errors import UserError
from m1jax.evaluate import seqio_adapter
from m1jax.evaluate.scoring import RowScorer
from m1jax.evaluate.tasks import TASKS
from tests.evaluate.test_choice import evaluate, items_of


def random_model(batch):
    """Numbers that depend on token, target and position, so that choices differ."""
    tokens, targets, positions = (batch[key].astype(np.uint64) for key in ("tokens", "targets", "positions"))
    mixed = tokens * 31 + targets * 101 + positions * 7
    return -((mixed * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(40)) / 2.0**24 * 9).astype(np.float32)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_seqio_gives_the_plain_paths_number(task):
    pytest.importorskip("seqio")
    items = items_of(60)
    scorer = RowScorer(random_model, (64, 128), 512)
    plain = evaluate(task.name, items, scorer)
    adapted = evaluate(task.name, items, scorer, seqio_adapter.evaluate)
    assert 0.1 < plain.accuracy < 0.9
    for field in ("task", "metric", "correct", "total", "accuracy", "interval", "chance", "accuracies", "tokens"):
        assert getattr(adapted, field) == getattr(plain, field)


def test_seqio_judges_by_itself(monkeypatch):
    """The number comes out of seqio.Evaluator: what it hands to the metric is what counts."""
    pytest.importorskip("seqio")
    items = items_of(10)
    scorer = RowScorer(random_model, (64,), 512)
    asked = []
    real = seqio_adapter._score_dataset

    def backwards(dataset, given):
        scores = real(dataset, given)
        asked.extend(scores)
        return scores[::-1]  # seqio sorts them by index again

    monkeypatch.setattr(seqio_adapter, "_score_dataset", backwards)
    adapted = evaluate(TASKS[0].name, items, scorer, seqio_adapter.evaluate)
    assert adapted.correct == evaluate(TASKS[0].name, items, scorer).correct
    assert [index for index, _ in asked] == list(range(sum(len(item.choices) for item in items)))


def test_a_failure_of_the_model_leaves_no_task_behind():
    seqio = pytest.importorskip("seqio")

    def broken(batch):
        return np.full(batch["tokens"].shape, np.nan)

    for _ in range(2):
        with pytest.raises(UserError, match="no numbers"):
            evaluate(TASKS[0].name, items_of(3), RowScorer(broken, (64,), 512), seqio_adapter.evaluate)
    assert not [name for name in seqio.TaskRegistry.names() if name.startswith("m1jax")]


def test_without_seqio_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"m1jax\[data\]"):
        evaluate(TASKS[0].name, items_of(3), RowScorer(random_model, (64,), 512), seqio_adapter.evaluate)


@pytest.mark.slow
def test_the_adapter_is_silent_and_the_plain_path_loads_no_tensorflow():
    pytest.importorskip("seqio")
    program = (
        "import sys; sys.path.insert(0, '.')\n"
        "from m1jax.evaluate import bits, choice, ngram, seqio_adapter\n"
        "from m1jax.show import evaluation\n"
        "assert not {'seqio', 'tensorflow', 'jax'} & set(sys.modules)\n"
        "from tests.evaluate.test_seqio_adapter import *\n"
        "scorer = RowScorer(random_model, (64,), 512)\n"
        "print(evaluate(TASKS[0].name, items_of(5), scorer, seqio_adapter.evaluate).total)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "5\n", "")
