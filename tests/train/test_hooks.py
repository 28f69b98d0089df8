"""Hooks: reports one step late, reads where they are named, a state of their own, and trackers."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from m1jax.config import MeshConfig
from m1jax.errors import UserError
from m1jax.parallel import mesh as meshes
from m1jax.train.hooks.average import WeightAverage, state_hooks
from m1jax.train.hooks.hook import Hook
from m1jax.train.hooks.journal import read_journal
from m1jax.train.hooks.validation import BITS, LOSS, Validation
from m1jax.train.hooks.wandb import Wandb
from m1jax.train.trainer import Trainer
from tests.train import test_loop
from tests.train.test_loop import Bigram, run, same, small_config


class Diary(Hook):
    """Writes down every call in order; reads the state after the named steps."""

    def __init__(self, reads=()):
        self.events, self._reads = [], reads

    def begin(self, step):
        self.events.append(("begin", step))

    def before(self, step):
        self.events.append(("before", step))

    def report(self, report):
        self.events.append(("report", report.step))

    def reads(self, step):
        return step in self._reads

    def read(self, step, state):
        assert int(state.step) == step
        self.events.append(("read", step))
        return {"half": step / 2}

    def end(self):
        self.events.append(("end",))


def test_reports_come_a_step_late_and_the_state_is_read_where_it_is_named(tmp_path):
    diary = Diary(reads=(3, 15))
    run(small_config(tmp_path, checkpoint_every=100), hooks=[diary])
    events = diary.events
    assert events[0] == ("begin", 0) and events[-1] == ("end",)
    for step in range(1, 14):
        assert events.index(("before", step + 1)) < events.index(("report", step)) < events.index(("before", step + 2))
    assert [event for event in events if event[0] == "read"] == [("read", 3), ("read", 15)]
    assert events.index(("before", 3)) < events.index(("read", 3)) < events.index(("report", 3))
    lines = read_journal(tmp_path / "journal" / test_loop.FILE)
    assert [line.get("half") for line in lines] == [None, None, 1.5, *[None] * 11, 7.5]


@pytest.mark.parametrize("failure", [UserError("x"), KeyboardInterrupt()])
def test_hooks_end_however_the_run_ends(tmp_path, failure):
    diary = Diary()

    def fail(report):
        raise failure

    with pytest.raises(type(failure)):
        run(small_config(tmp_path, checkpoint_every=100), hooks=[diary], on_report=fail)
    assert diary.events[-1] == ("end",)


class Keeping(Hook):
    """Keeps a copy of the parameters after every step."""

    def __init__(self):
        self.params = []

    def reads(self, step):
        return True

    def read(self, step, state):
        self.params.append(jax.device_get(state.params))
        return {}


DECAY = 0.75


def averaged(config, **rest):
    kept = Keeping()
    state = run(config, hooks=[*state_hooks(config.train), kept], **rest)
    return state, kept.params


def test_a_moving_average_is_that_of_the_parameters_of_every_step(tmp_path):
    config = small_config(tmp_path, checkpoint_every=4, average_decay=DECAY)
    state, params = averaged(config)
    expected = jax.device_get(jax.jit(Bigram().initialise)())
    for one in params:
        expected = jax.tree.map(lambda mean, leaf: DECAY * mean + (1 - DECAY) * leaf, expected, one)
    found = state.hooks["average"]
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert not same(found, state.params)


def test_a_moving_average_changes_no_step(tmp_path):
    plain = run(small_config(tmp_path / "plain", checkpoint_every=100))
    state, _ = averaged(small_config(tmp_path / "averaged", checkpoint_every=100, average_decay=DECAY))
    assert same(plain.params, state.params) and plain.hooks == {}


def test_a_moving_average_is_saved_and_resharded_over_another_mesh(tmp_path):
    config = small_config(tmp_path, checkpoint_every=5, average_decay=DECAY)
    state, _ = averaged(config)
    other = dataclasses.replace(config, mesh=MeshConfig(fsdp=4, tensor=2))
    with Trainer(other, Bigram(), meshes.make(other.mesh, jax.devices()), hooks=[WeightAverage(DECAY)]) as trainer:
        again = trainer.restore()
    assert same(state, again)
    for name in ("embed", "head"):
        kept = again.hooks["average"][name]
        assert kept.sharding == again.params[name].sharding and not kept.sharding.is_fully_replicated


def test_a_run_that_kept_no_average_is_not_silently_gone_on_with(tmp_path):
    config = small_config(tmp_path, checkpoint_every=5)
    run(config)
    with pytest.raises(UserError, match=r"has no hooks\.average\.embed, but the config needs hooks\.average\.embed"):
        averaged(dataclasses.replace(config, train=dataclasses.replace(config.train, average_decay=DECAY)))


def test_validation_is_measured_at_its_steps_on_the_parameters_after_them(tmp_path):
    config = small_config(tmp_path, checkpoint_every=100, validate_every=6)
    seen, kept = [], Keeping()

    def measure(params, stage):
        seen.append((jax.device_get(params), stage.name))
        return {LOSS: float(len(seen)), BITS: 0.5, f"{LOSS}/notes": 2.0}

    run(config, hooks=[Validation(config, measure), kept])
    assert [name for _, name in seen] == ["medical", "annealing", "annealing"]
    for (params, _), step in zip(seen, (6, 12, 15), strict=True):
        assert same(params, kept.params[step - 1])
    lines = read_journal(tmp_path / "journal" / test_loop.FILE)
    assert {line["step"]: line[LOSS] for line in lines if LOSS in line} == {6: 1.0, 12: 2.0, 15: 3.0}
    assert lines[5][f"{LOSS}/notes"] == 2.0


def test_time_in_which_hooks_read_is_no_time_of_a_step(tmp_path):
    class Slow(Hook):
        def reads(self, step):
            return step == 8

        def read(self, step, state):
            import time

            time.sleep(1.5)
            return {}

    reports = []
    run(small_config(tmp_path, checkpoint_every=100), hooks=[Slow()], on_report=reports.append)
    assert sum(report.seconds for report in reports[7:9]) < 1.5


def test_wandb_receives_every_step(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = small_config(tmp_path, checkpoint_every=100)
    logged = {}
    original = wandb.Run.log

    def log(self, data, step=None, **rest):
        logged[step] = dict(data)
        return original(self, data, step=step, **rest)

    monkeypatch.setattr(wandb.Run, "log", log)
    run(config, hooks=[Wandb(config)])
    lines = read_journal(tmp_path / "journal" / test_loop.FILE)
    assert {step: data["loss"] for step, data in logged.items()} == {line["step"]: line["loss"] for line in lines}
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_unknown_trackers_and_decays_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"train\.trackers must hold wandb, got 'tensorbord'"):
        small_config(tmp_path, trackers="('tensorbord',)")
    with pytest.raises(UserError, match=r"train\.average_decay must be below 1, got 1\.0"):
        small_config(tmp_path, average_decay=1.0)
    config = small_config(tmp_path)
    assert json.loads(json.dumps(config.train.trackers)) == []
