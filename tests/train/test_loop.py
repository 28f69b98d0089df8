"""The loop with a small loss of its own: it knows nothing of the model."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m1jax.config import file as config_file
from m1jax.config import to_dict
from m1jax.errors import InterruptedRunError, UserError
from m1jax.parallel import mesh as meshes
from m1jax.train.checkpoint.checkpoints import Checkpoints, Meta
from m1jax.train.hooks.journal import TIMING, Journal, read_journal
from m1jax.train.loop import fit
from m1jax.train.run.reports import stage_of

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


def bigram_loss(params, batch, rope_base):
    logits = params["embed"][batch["tokens"]] @ params["head"]
    losses = jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0]
    return (losses * batch["weights"]).sum(), batch["weights"].sum()


def init_params():
    keys = jax.random.split(jax.random.key(0), 2)
    return {"embed": jax.random.normal(keys[0], (VOCAB, 8)), "head": jax.random.normal(keys[1], (8, VOCAB))}


AXES = {"embed": ("vocab", "embed"), "head": ("embed", "vocab")}


def batches_of(config, spoil=()):
    def batches(first):
        for step in range(first, config.total_steps):
            stage = stage_of(config, step)
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


META = Meta(run={}, curriculum={}, versions={})


def run(config, mesh=None, on_report=None, spoil=(), folder="checkpoints", **rest):
    checkpoints = Checkpoints(
        config.checkpoints.parent / folder, config.train.keep_checkpoints, config.train.keep_every
    )
    journal = None

    def on_start(first, saved):
        nonlocal journal
        journal = Journal(config.checkpoints.parent / "journal", first)

        def record(report):
            journal.write(
                report.step, report.stage, {"loss": report.loss, "norm": report.grad_norm, "tokens": report.tokens}
            )
            if on_report:
                on_report(report)

        return [record]

    try:
        return fit(
            config,
            mesh=mesh or meshes.make(config.mesh, jax.devices()[:1]),
            init_params=init_params,
            params_axes=AXES,
            loss_fn=bigram_loss,
            batches=batches_of(config, spoil),
            checkpoints=checkpoints,
            meta=dataclasses.replace(META, run=to_dict(config)),
            on_start=on_start,
            **rest,
        )
    finally:
        checkpoints.close()
        if journal:
            journal.close()


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


def test_the_journal_forgets_what_came_after_the_checkpoint(tmp_path):
    journal = Journal(tmp_path, 0)
    for step in range(1, 6):
        journal.write(step, "a", {"loss": float(step)})
    journal.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 6, "loss": 6.0})[:9])  # a killed process
    journal = Journal(tmp_path, 3)
    journal.write(4, "a", {"loss": 40.0})
    journal.close()
    assert [line["loss"] for line in read_journal(tmp_path / "metrics.jsonl")] == [1.0, 2.0, 3.0, 40.0]


def test_tensorboard_reads_the_journal_without_tensorflow(tmp_path):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    journal = Journal(tmp_path, 0)
    journal.write(1, "general", {"loss": 2.5})
    journal.close()
    (path,) = (tmp_path / "tensorboard" / "general").iterdir()
    events = list(EventFileLoader(str(path)).Load())
    (value,) = events[-1].summary.value
    assert (events[-1].step, value.tag) == (1, "loss")
    number = value.simple_value or value.tensor.float_val[0]
    assert number == 2.5


def test_the_loop_never_imports_tensorflow():
    program = """
import sys
import m1jax.curriculum.loader, m1jax.loading, m1jax.objectives.next_token, m1jax.train.checkpoint.emergency
import m1jax.train.hooks.journal, m1jax.train.hooks.progress, m1jax.train.loop, m1jax.verbs.train, pathlib, tempfile
journal = m1jax.train.hooks.journal.Journal(pathlib.Path(tempfile.mkdtemp()), 0)
journal.write(1, "a", {"loss": 1.0})
journal.close()
assert not {"tensorflow", "seqio", "torch"} & set(sys.modules), sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", program], check=True)
