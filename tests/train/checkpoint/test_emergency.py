"""Emergency checkpoints of one process: taken where they are newer, never where they belong to another past."""

import contextlib
import dataclasses
import shutil
import threading
import types

import jax
import pytest

from m1jax.errors import UserError
from m1jax.parallel import mesh as meshes
from m1jax.train.loop import fit
from m1jax.train.trainer import Trainer
from tests.train import test_loop


class LostError(Exception):
    """The process is gone: nothing was saved on the way out."""


class Run:
    """A small run of 30 steps with emergency checkpoints of every second step; its losses by step, what it said."""

    def __init__(self, folder):
        self.folder = folder
        config = test_loop.small_config(
            folder / "run",
            checkpoint_every=10,
            emergency_every=2,
            keep_checkpoints=9,
            emergency_folder=folder / "local",
        )
        stages = (
            dataclasses.replace(stage, tokens=10 * stage.global_batch * stage.row_length) for stage in config.stages
        )
        self.config = dataclasses.replace(config, stages=tuple(stages))

    def train(self, until=None, before=lambda step: None):
        """From where it stands, to the end or until the process is lost in step `until`."""
        self.said, self.losses = [], {}
        mesh = meshes.make(self.config.mesh, jax.devices()[:1])
        record = test_loop.Call(lambda report: self.losses.update({report.step: report.loss}))
        trainer = Trainer(self.config, test_loop.Bigram(), mesh, hooks=[record], say=self.said.append)
        self.trainer, self.emergency = trainer, trainer.emergency

        def batches(first):
            for step, batch in enumerate(test_loop.batches_of(self.config)(first), first):
                before(step)
                if step == until:
                    trainer.emergency.close()  # what was begun gets to its end: the steps there do not depend on luck
                    raise LostError
                yield batch

        with trainer, contextlib.suppress(LostError):
            fit(trainer, trainer.restore(), batches)
        return self

    @property
    def first(self):
        """The first step of the last start."""
        return min(self.losses)

    def local(self):
        """The folder of this process's emergency checkpoints."""
        (found,) = (self.folder / "local").glob("*/process-0-of-1")
        return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Losses of the run left alone."""
    return Run(tmp_path_factory.mktemp("whole")).train().losses


def test_goes_on_from_the_newer_one_with_the_same_losses(tmp_path, whole):
    run = Run(tmp_path)
    run.train(until=17).train()
    assert run.first == 17  # step 16 was the last that was kept
    assert run.said == [
        "Training continues from the emergency checkpoint of step 16: the run's folder has none as new."
    ]
    assert run.losses == {step: loss for step, loss in whole.items() if step >= 17}
    assert not list((tmp_path / "local").iterdir())  # a run at its end leaves nothing behind


def test_counts_before_the_first_checkpoint_of_the_folder(tmp_path, whole):
    run = Run(tmp_path).train(until=5).train()
    assert run.first == 5
    assert run.losses == {step: loss for step, loss in whole.items() if step >= 5}


def test_who_goes_back_to_an_earlier_checkpoint_is_obeyed(tmp_path, whole):
    run = Run(tmp_path).train(until=27)
    shutil.rmtree(run.config.checkpoints / "20")
    run.train(until=15)
    assert run.first == 11
    run.train()
    assert run.first == 15  # those of the past that was left do not stand in the way of new ones
    assert run.losses == {step: loss for step, loss in whole.items() if step >= 15}


def test_one_made_while_the_folders_was_written_counts(tmp_path, whole, monkeypatch):
    run = Run(tmp_path)

    def unfinished(step):
        if step == 11:
            monkeypatch.setattr(run.trainer.checkpoints, "latest_step", lambda: None)

    run.train(until=13, before=unfinished).train()
    assert run.first == 13
    assert run.losses == {step: loss for step, loss in whole.items() if step >= 13}


def test_a_run_begun_anew_knows_nothing_of_the_one_before(tmp_path, whole):
    run = Run(tmp_path).train(until=7)
    shutil.rmtree(run.config.checkpoints)
    run.train()
    assert run.losses == whole


@pytest.mark.parametrize("part", ["state", "meta"])
@pytest.mark.parametrize(("garbled", "first"), [(("16",), 15), (("14", "16"), 11)])
def test_a_garbled_one_is_stepped_over(tmp_path, whole, part, garbled, first):
    run = Run(tmp_path).train(until=17)
    for step in garbled:
        for file in (run.local() / step / part).rglob("*"):
            if file.is_file() and file.stat().st_size > 40:
                file.write_bytes(file.read_bytes()[:40])
    run.train()
    assert run.first == first
    assert run.losses == {step: loss for step, loss in whole.items() if step >= first}


@pytest.mark.parametrize("trouble", ["gone", "full"])
def test_where_it_cannot_be_written_the_run_goes_on(tmp_path, whole, monkeypatch, trouble):
    run = Run(tmp_path)
    room = shutil.disk_usage

    def spoil(step):
        if step == 5 and trouble == "full":
            few = types.SimpleNamespace(free=100)
            monkeypatch.setattr(shutil, "disk_usage", lambda path: few if "process-0" in str(path) else room(path))
        elif step == 5:
            run.emergency.wait()  # what is being written would make its folder again
            run.local().rename(tmp_path / "gone")
            next((tmp_path / "local").iterdir()).joinpath("process-0-of-1").write_text("a file in its place")

    before = threading.active_count()
    run.train(before=spoil)
    assert run.losses == whole
    (sentence,) = run.said
    assert sentence.startswith("Emergency checkpoints have stopped, training continues without them (")
    assert ("MB are free" in sentence) == (trouble == "full")
    assert threading.active_count() <= before  # none that waits in vain and holds the process


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "local").write_text("a file")
    with pytest.raises(UserError, match=r"train\.emergency_folder = .* cannot be written to"):
        Run(tmp_path).train()
