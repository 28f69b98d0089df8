"""Goodput by hand."""

import json

import pytest

from m1jax.train.run import goodput


def line(step, seconds, wait=0.0, stage="a"):
    return {"step": step, "stage": stage, "seconds": seconds, "data_wait": wait}


def test_steps_that_count_over_the_wall_time_of_all_starts(tmp_path):
    starts = tmp_path / "starts.jsonl"
    starts.write_text(json.dumps({"time": 100.0, "step": 0}) + "\n" + json.dumps({"time": 150.0, "step": 3}) + "\n{cut")
    # The first steps after a start, and of a stage, compile: they count as their stage's median.
    lines = [line(1, 9.0), line(2, 1.0), line(3, 1.5, wait=0.5), line(4, 8.0), line(5, 1.0)]
    lines += [line(6, 7.0, stage="b"), line(7, 2.0, stage="b"), line(8, 2.0, stage="b")]
    found = goodput.measure(starts, lines, now=200.0)
    assert found.starts == 2
    assert found.wall == 100.0
    assert found.productive == pytest.approx(5 * 1.0 + 3 * 2.0)
    assert found.sentence == "Goodput 11%: 11 s of steps in 100 s, 2 starts."


def test_a_start_is_added(tmp_path):
    goodput.note_start(tmp_path / "train" / "starts.jsonl", 0)
    goodput.note_start(tmp_path / "train" / "starts.jsonl", 7)
    steps = [json.loads(text)["step"] for text in (tmp_path / "train" / "starts.jsonl").read_text().splitlines()]
    assert steps == [0, 7]
