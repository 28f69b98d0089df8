"""Rounds of fine-tuning are stages: what configs/sft_rounds.py reads, and a run that was killed between two of them."""

import dataclasses
import math
import os
import signal

import jax
import numpy as np
import pytest

from m1jax.config import LearningRateConfig
from m1jax.config import file as config_file
from m1jax.curriculum.curriculum import Curriculum
from m1jax.curriculum.loader import Loader
from m1jax.errors import InterruptedRunError, UserError
from m1jax.optim.schedules import learning_rate
from m1jax.parallel import mesh as meshes
from m1jax.rows.manifest import open_stores
from m1jax.rows.packing import pack
from m1jax.text.conversations import Conversation, checked
from m1jax.text.rendering import Renderer
from m1jax.tokenizer import chat
from m1jax.train.loop import fit
from m1jax.train.trainer import Trainer
from tests.rows import toy_rows
from tests.tokenizer.chat.chat_tokenizers import OURS, talk
from tests.train import test_loop

ROUNDS = ("general", "knowledge", "reasoning", "long_context", "safety")
GENERAL = {"maths", "code", "inhouse"}


@pytest.fixture(scope="module")
def config():
    return config_file.load("configs/sft_rounds.py")


def manifest(config, windows):
    """Packed conversations of each kind, so many windows of 100 rows."""
    windows_by_source = {name: {config.data.row_lengths[0]: [100] * windows} for name in config.data.domains}
    return toy_rows.manifest(windows_by_source, {name: name for name in config.data.domains})


def test_the_five_rounds_read_the_kinds_of_the_report(config):
    assert tuple(stage.name for stage in config.stages) == ROUNDS
    medical = {"knowledge", "understanding", "reasoning", "long_context", "safety"}
    assert set(config.data.domains) == GENERAL | medical
    curriculum = Curriculum(config.stages, manifest(config, 100), config.seed, config.data.max_epochs)
    for stage in config.stages:
        shares = {use.source: use.share for use in curriculum.table() if use.stage == stage.name}
        assert sum(shares.values()) == pytest.approx(1)
        for name, share in shares.items():
            assert share == pytest.approx(stage.mixture.get(f"domain:{name}", 0), abs=1e-3)
        assert sum(shares.get(kind, 0) for kind in GENERAL) == pytest.approx(1 if stage.name == "general" else 0.25)
        assert stage.name == "general" or max(shares, key=shares.get) == stage.name


def test_each_round_is_a_cosine_from_2e_5(config):
    rate = learning_rate(config)
    for stage, first in zip(config.stages, config.timeline.first_steps[:-1], strict=True):
        warmup, steps = stage.learning_rate.warmup_steps, stage.steps
        assert rate(first) < rate(first + warmup) == pytest.approx(2e-5)
        for step in (warmup, (steps + warmup) // 2, steps - 1):
            part = (step - warmup) / (steps - warmup)
            expected = 2e-6 + (2e-5 - 2e-6) * (1 + math.cos(math.pi * part)) / 2
            assert rate(first + step) == pytest.approx(expected, rel=1e-4)


def test_kinds_with_too_few_conversations_are_refused(config):
    """The cap is the user's: data.max_epochs, by kind too."""
    with pytest.raises(UserError, match=r"would be read \d+\.\d\d times .*data\.max_epochs\['\*'\] = 3"):
        Curriculum(config.stages, manifest(config, 4), config.seed, config.data.max_epochs)
    with pytest.raises(UserError, match=r"data\.max_epochs\['domain:safety'\] = 0\.5 allows"):
        caps = {"domain:safety": 0.5}
        Curriculum(config.stages, manifest(config, 30), config.seed, caps)


def rounds(folder):
    """A run of two rounds over packed conversations of two kinds: its config, and what makes its batches."""

    def documents(kind):
        turns = [(("user", f"{kind} {i}?"), ("assistant", f"It is {i}.")) for i in range(12)]
        talks = [
            Conversation(f"{kind}#{i}", *checked(talk(*some)), kind, "en", kind, shard=kind)
            for i, some in enumerate(turns)
        ]
        return Renderer(chat.of(OURS), OURS, 64).documents(talks)

    sources = {kind: lambda kind=kind: documents(kind) for kind in ("maths", "safety")}
    packed = pack(sources, OURS, folder / "rows", [64], 4, 0)
    base = test_loop.small_config(folder, checkpoint_every=100)
    stages = tuple(
        toy_rows.stage(name, 64, 2, 3, mixture, skip_steps=False)
        for name, mixture in (
            ("general", {"domain:maths": 1.0}),
            ("safety", {"domain:maths": 0.3, "domain:safety": 0.7}),
        )
    )
    rate = LearningRateConfig(start=1e-2, end=1e-3, shape="cosine")
    stages = tuple(dataclasses.replace(stage, learning_rate=rate) for stage in stages)
    config = dataclasses.replace(base, stages=stages, folder=str(folder))

    def batches(step):
        curriculum = Curriculum(stages, packed, 0)
        loader = Loader(curriculum, open_stores(folder / "rows", packed, curriculum.used))
        return loader.batches(step, curriculum.timeline.steps)

    return config, batches


def trained(folder, killed_at=None):
    """The losses and the last state of a run, and after which steps it began; it is killed once, after a step."""
    config, batches = rounds(folder)
    mesh = meshes.make(config.mesh, jax.devices()[:1])
    losses, begun = {}, []

    def report(found):
        losses[found.step] = found.loss
        if found.step + 1 == killed_at and len(begun) == 1:  # it comes while the next step is taken
            os.kill(os.getpid(), signal.SIGTERM)

    def run():
        with Trainer(config, Wide(), mesh, hooks=[test_loop.Call(report)]) as trainer:
            state = trainer.restore()
            begun.append(int(state.step))
            return fit(trainer, state, batches)

    if killed_at is not None:
        with pytest.raises(InterruptedRunError):
            run()
    return losses, run(), begun


class Wide(test_loop.Bigram):
    """The bigram over the ids of the conversations' tokenizer."""

    def initialise(self):
        keys = jax.random.split(jax.random.key(0), 2)
        return {
            "embed": jax.random.normal(keys[0], (OURS.vocab_size, 8)),
            "head": jax.random.normal(keys[1], (8, OURS.vocab_size)),
        }


def test_a_run_that_was_killed_between_two_rounds_goes_on_as_if_it_had_not(tmp_path):
    """It goes on at the first step of the second round, with the conversations of both kinds."""
    losses, state, _ = trained(tmp_path / "whole")
    found, last, begun = trained(tmp_path / "killed", killed_at=3)
    assert begun == [0, 3] and found == losses and test_loop.same(state, last)
    assert set(losses) == set(range(1, 7)) and len(set(losses.values())) == 6
    assert np.isfinite(list(losses.values())).all()
