"""The loop never waits for the step that it has just dispatched, and compiles a step once a shape."""

import numpy as np
import pytest

from m1jax.train import loop
from m1jax.train import program as programs
from tests.train import probe, test_loop


def reads_between(tmp_path, monkeypatch):
    """For every step but the first: was anything read after it was dispatched and before the next batch was placed?"""
    events = []
    config = test_loop.small_config(tmp_path, checkpoint_every=100)
    build = programs.build

    class Watched:
        """A program that notes when a step is dispatched."""

        def __init__(self, program):
            self._program = program

        def __getattr__(self, name):
            return getattr(self._program, name)

        def step(self, *arguments):
            found = self._program.step(*arguments)
            events.append("dispatched")
            return found

    monkeypatch.setattr(programs, "build", lambda *args, **kwargs: Watched(build(*args, **kwargs)))
    prepare = loop.Feed.prepare

    def prepared(self):
        prepare(self)
        events.append("placed")

    monkeypatch.setattr(loop.Feed, "prepare", prepared)
    with probe.host_reads(lambda stack: events.append("read")):
        test_loop.run(config)
    dispatched = [i for i, event in enumerate(events) if event == "dispatched"]
    assert len(dispatched) == config.total_steps
    return ["read" in events[i : events.index("placed", i)] for i in dispatched[:-1]], events


def test_nothing_is_read_before_the_next_batch_is_under_way(tmp_path, monkeypatch):
    found, events = reads_between(tmp_path, monkeypatch)
    assert not any(found)
    # The probe does see the reads that the loop makes in their place: metrics, one step late.
    assert events.count("read") >= len(found)


def seeded(kind):
    """Steps whose metrics are read at once, in several ways."""
    ways = {
        "float": lambda metrics: float(metrics["loss"]),
        "numpy": lambda metrics: np.asarray(metrics["loss"]),
        "item": lambda metrics: metrics["loss"].item(),
        "wait": lambda metrics: metrics["loss"].block_until_ready(),
        "branch": lambda metrics: bool(metrics["skipped"]),
    }
    return ways[kind]


@pytest.mark.parametrize("kind", ["float", "numpy", "item", "wait", "branch"])
def test_a_seeded_read_is_caught(tmp_path, monkeypatch, kind):
    read = seeded(kind)
    prepare = loop.Feed.prepare
    last = {}
    add = loop.Reporter.add

    def keep(self, taken):
        last["metrics"] = taken.metrics
        add(self, taken)

    def careless(self):
        if "metrics" in last:
            read(last.pop("metrics"))
        prepare(self)

    monkeypatch.setattr(loop.Reporter, "add", keep)
    monkeypatch.setattr(loop.Feed, "prepare", careless)
    found, _ = reads_between(tmp_path, monkeypatch)
    assert all(found[1:])


def test_one_compilation_a_stage(tmp_path):
    """Three stages of two shapes: the second goes on with the first one's program."""
    config = test_loop.small_config(tmp_path, checkpoint_every=100)
    assert [(stage.global_batch, stage.row_length) for stage in config.stages] == [(4, 16), (4, 16), (2, 32)]
    with probe.compilations() as counts:
        test_loop.run(config)
    steps = {name: count for name, count in counts.items() if "train_step" in name}
    assert sum(steps.values()) == 2, counts
