"""The loop with a small loss of its own: it knows nothing of the model."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m1jax.config import file as config_file
from m1jax.errors import InterruptedRunError, UserError
from m1jax.parallel import mesh as meshes
from m1jax.train.hooks.hook import Hook
from m1jax.train.hooks.journal import TIMING, Journal, read_journal
from m1jax.train.loop import fit
from m1jax.train.objective import Objective, Ratio, Terms
from m1jax.train.report import StepReport
from m1jax.train.trainer import Trainer

VOCAB = 300
FILE = "metrics.jsonl"
TINY = str(pathlib.Path(__file__).parents[1] / "tiny.py")


def small_config(tmp_path, **train):
    return config_file.load(
        TINY,
        [
            f"folder={tmp_path}",
            "data.row_lengths=(16,32)",
            "stages.0.tokens=320",
            "stages.0.row_length=16",
            "stages.0.global_batch=4",
            "stages.0.learning_rate.warmup_steps=0",
            "stages.1.tokens=320",
            "stages.1.row_length=16",
            "stages.1.global_batch=4",
            "stages.2.tokens=320",
            "stages.2.row_length=32",
            "stages.2.global_batch=2",
            *(f"train.{name}={value}" for name, value in train.items()),
        ],
    )


class Bigram(Objective):
    """Two matrices: the next token from the one before."""

    @property
    def axes(self):
        return {"embed": ("vocab", "embed"), "head": ("embed", "vocab")}

    @property
    def shapes(self):
        return jax.eval_shape(self.initialise)

    def initialise(self):
        keys = jax.random.split(jax.random.key(0), 2)
        return {"embed": jax.random.normal(keys[0], (VOCAB, 8)), "head": jax.random.normal(keys[1], (8, VOCAB))}

    def terms(self, params, batch, stage):
        logits = params["embed"][batch["tokens"]] @ params["head"]
        losses = jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0]
        return Terms(Ratio((losses * batch["weights"]).sum(), batch["weights"].sum()), {})

    def flops(self, positions):
        return 6.0 * 2 * 8 * VOCAB * positions.size


class Call(Hook):
    """Calls a function with every report."""

    def __init__(self, function):
        self.report = function


def batches_of(config, spoil=()):
    def batches(first):
        for step in range(first, config.total_steps):
            stage = config.timeline.stage(step)
            rng = np.random.default_rng(step)
            tokens = rng.integers(0, VOCAB, (stage.global_batch, stage.row_length), np.int32)
            weights = np.ones(tokens.shape, np.float32)
            if step in spoil:
                weights[0, 0] = np.nan
            yield {
                "tokens": tokens,
                "targets": (tokens * 7 + 1) % VOCAB,
                "weights": weights,
                "segment_ids": np.ones_like(tokens),
                "positions": np.broadcast_to(np.arange(stage.row_length, dtype=np.int32), tokens.shape),
            }

    return batches


def run(config, mesh=None, on_report=None, spoil=(), hooks=(), objective=None, **rest):
    """Trains a config; `on_report` and `hooks` come after a journal."""
    hooks = [Journal(Path(config.folder) / "journal"), *([Call(on_report)] if on_report else []), *hooks]
    mesh = mesh or meshes.make(config.mesh, jax.devices()[:1])
    with Trainer(config, objective or Bigram(), mesh, hooks=hooks, **rest) as trainer:
        return fit(trainer, trainer.restore(), batches_of(config, spoil))


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_an_interrupted_run_continues_to_the_same_bits(tmp_path):
    whole = run(small_config(tmp_path / "whole", checkpoint_every=4))
    config = small_config(tmp_path / "cut", checkpoint_every=4)
    cuts = iter([3, 8, 12])
    cut = next(cuts)

    def interrupt(report):
        if report.step == cut:
            os.kill(os.getpid(), signal.SIGTERM)

    for _ in range(3):
        with pytest.raises(InterruptedRunError, match="the same command continues"):
            run(config, on_report=interrupt)
        cut = next(cuts, None)
    state = run(config, on_report=interrupt)
    assert int(state.step) == config.total_steps == 15
    assert same(whole, state)
    cut_losses, whole_losses = (
        [{k: v for k, v in line.items() if k not in TIMING} for line in read_journal(tmp_path / run / "journal" / FILE)]
        for run in ("cut", "whole")
    )
    assert cut_losses == whole_losses
    assert [line["step"] for line in cut_losses] == list(range(1, 16))
    assert cut_losses[-1]["tokens"] == 5 * 64 * 3
    assert cut_losses[-1]["loss"] < cut_losses[0]["loss"]


def test_a_batch_without_a_target_stops_the_run(tmp_path):
    """It has no loss: neither 0 nor a step that is skipped in silence."""
    config, reports = small_config(tmp_path, checkpoint_every=100), []

    def batches(first):
        for step, batch in enumerate(batches_of(config)(first), first):
            yield {**batch, "weights": batch["weights"] * (step != 6)}

    mesh = meshes.make(config.mesh, jax.devices()[:1])
    refused = pytest.raises(UserError, match=r"step 7 \(stage 'medical', global rows 24 to 27\) has nothing to learn")
    with Trainer(config, Bigram(), mesh, hooks=[Call(reports.append)]) as trainer, refused:
        fit(trainer, trainer.restore(), batches)
    assert [report.skipped for report in reports] == [False] * 6 + [True] and np.isnan(reports[-1].loss)


def test_one_bad_batch_moves_nothing_and_many_stop_the_run(tmp_path):
    config = small_config(tmp_path / "one", checkpoint_every=100)
    reports = []
    state = run(config, on_report=reports.append, spoil={6})
    assert [r.skipped for r in reports] == [i == 6 for i in range(15)]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    with pytest.raises(UserError, match=r"not finite in 10 steps in a row, up to step 12 \(global rows 8 to 43\)"):
        run(small_config(tmp_path / "many", checkpoint_every=100), spoil=range(2, 15))


def test_eight_devices_give_the_loss_of_one(tmp_path):
    losses: dict[str, list[float]] = {}
    axes = {"one": {}, "data": {}, "fsdp": {"fsdp": 2, "tensor": 2}, "all": {"fsdp": 2, "tensor": 2, "context": 2}}
    for name, sizes in axes.items():
        config = small_config(tmp_path / name, checkpoint_every=100)
        stages = tuple(dataclasses.replace(stage, global_batch=8) for stage in config.stages)
        config = dataclasses.replace(config, stages=stages, mesh=dataclasses.replace(config.mesh, **sizes))
        mesh = meshes.make(config.mesh, jax.devices()[: 1 if name == "one" else 8])
        meshes.check_batches(config, mesh)
        losses[name] = []
        run(config, mesh=mesh, on_report=lambda report, name=name: losses[name].append(report.loss))
    for name in ("data", "fsdp", "all"):
        np.testing.assert_allclose(losses[name], losses["one"], rtol=2e-5)


def test_a_batch_that_devices_do_not_divide_is_refused(tmp_path):
    config = small_config(tmp_path)
    with pytest.raises(UserError, match=r"stages\.2\.global_batch = 2 rows cannot be divided over 4 devices"):
        meshes.check_batches(config, meshes.make(config.mesh, jax.devices()[:4]))


def report_of(step, stage, loss):
    rest = {field.name: 0 for field in dataclasses.fields(StepReport) if field.name not in ("values", "rows", "stage")}
    return StepReport(**{**rest, "step": step, "stage": stage, "loss": loss, "rows": (0, 0)})


def test_the_journal_forgets_what_came_after_the_checkpoint(tmp_path):
    journal = Journal(tmp_path)
    journal.begin(0)
    for step in range(1, 6):
        journal.report(report_of(step, "a", float(step)))
    journal.end()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 6, "loss": 6.0})[:9])  # a killed process
    journal = Journal(tmp_path)
    journal.begin(3)
    journal.report(report_of(4, "a", 40.0))
    journal.end()
    assert [line["loss"] for line in read_journal(tmp_path / "metrics.jsonl")] == [1.0, 2.0, 3.0, 40.0]


def test_tensorboard_reads_the_journal_without_tensorflow(tmp_path):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    journal = Journal(tmp_path)
    journal.begin(0)
    journal.report(report_of(1, "general", 2.5))
    journal.end()
    (path,) = (tmp_path / "tensorboard" / "general").iterdir()
    events = list(EventFileLoader(str(path)).Load())
    (value,) = (value for value in events[-1].summary.value if value.tag == "loss")
    assert events[-1].step == 1
    number = value.simple_value or value.tensor.float_val[0]
    assert number == 2.5


def test_the_loop_never_imports_tensorflow():
    program = """
import sys
import m1jax.curriculum.loader, m1jax.loading, m1jax.objectives, m1jax.train.trainer, m1jax.evaluate.heldout
import m1jax.train.hooks.journal, m1jax.train.hooks.progress, m1jax.train.loop, m1jax.verbs.train, pathlib, tempfile
journal = m1jax.train.hooks.journal.Journal(pathlib.Path(tempfile.mkdtemp()))
journal.begin(0)
journal.end()
assert not {"tensorflow", "seqio", "torch"} & set(sys.modules), sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", program], check=True)
