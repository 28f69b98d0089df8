"""The next batch is on its way to the devices while they compute."""

import dataclasses

import jax
import numpy as np

from m1jax.config import MeshConfig, RampConfig
from m1jax.parallel import mesh as meshes
from m1jax.train.feed import Feed
from m1jax.train.objective import Column
from m1jax.train.run import history
from tests.train import test_loop


def source(events):
    for i in range(4):
        events.append(f"read {i}")
        yield {"tokens": np.full((2, 8), i, np.int32)}


def test_the_next_batch_is_placed_before_it_is_taken():
    mesh = meshes.make(MeshConfig(), jax.devices()[:1])
    events = []
    feed = Feed(source(events), mesh, {"tokens": Column(np.int32)})
    for i in range(4):
        fed = feed.take()
        assert events == [f"read {k}" for k in range(i + 1)]
        assert isinstance(fed.device["tokens"], jax.Array) and fed.waited >= 0
        np.testing.assert_array_equal(fed.device["tokens"], fed.host["tokens"])
        assert fed.host["tokens"][0, 0] == i
        if i < 3:
            feed.prepare()
            assert events[-1] == f"read {i + 1}"


def test_the_loop_reads_on_before_it_waits_for_metrics(tmp_path, monkeypatch):
    """A step is dispatched, the next batch read and placed, and only then the metrics of the step before fetched."""
    config = test_loop.small_config(tmp_path, checkpoint_every=100)
    events = []
    original = test_loop.batches_of

    def batches_of(config, spoil):
        def batches(first):
            for i, batch in enumerate(original(config, spoil)(first), first):
                events.append(("read", i))
                yield batch

        return batches

    monkeypatch.setattr(test_loop, "batches_of", batches_of)
    test_loop.run(config, on_report=lambda report: events.append(("metrics", report.step - 1)))
    last = config.total_steps - 1
    assert [step for kind, step in events if kind == "read"] == list(range(last + 1))
    for step in range(last - 1):
        assert events.index(("read", step + 2)) < events.index(("metrics", step))


def test_a_ramp_in_the_loop(tmp_path, monkeypatch):
    config = test_loop.small_config(tmp_path, checkpoint_every=100)
    stage = dataclasses.replace(config.stages[0], ramp=RampConfig(1, 1, 60))
    config = dataclasses.replace(config, stages=(stage, *config.stages[1:]))
    sizes = [rows for rows, steps in stage.batches for _ in range(steps)]
    seen = []

    def batches(config, spoil):
        def made(first):
            for step, batch in enumerate(plain(config, spoil)(first), first):
                rows = sizes[step] if step < stage.steps else len(batch["tokens"])
                yield {name: value[:rows] for name, value in batch.items()}

        return made

    plain = test_loop.batches_of
    monkeypatch.setattr(test_loop, "batches_of", batches)
    test_loop.run(config, on_report=seen.append)
    assert sizes[:4] == [1, 1, 2, 3]
    assert [report.tokens for report in seen[: len(sizes)]] == list(16 * np.cumsum(sizes))


def test_the_history_of_a_run(tmp_path):
    path = tmp_path / "train" / "history.jsonl"
    assert history.read(path) == []
    history.append(path, 4, ["stage 'b' was added"])
    history.append(path, 4, ["stage 'b' was added"])
    history.append(path, 9, ["stage 'b': steps was 1, is 2", "x"])
    path.open("a").write('{"time": "cut')
    found = history.read(path)
    assert [(line["step"], len(line["changes"])) for line in found] == [(4, 1), (9, 2)]
    assert all(line["time"].endswith("+00:00") for line in found)
