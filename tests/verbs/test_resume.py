"""`m1 train` on a folder that is in use, and on one whose run was made with other settings."""

import os
import signal

import pytest

from m1jax.errors import AGAIN
from m1jax.train.hooks.journal import Journal
from m1jax.train.run import history
from m1jax.train.run.lease import Lease
from m1jax.verbs import main
from tests.verbs.test_bad_input import refused, verb


def test_a_second_training_on_a_live_folder_is_refused_before_it_touches_anything(capsys, tmp_path):
    with Lease(tmp_path / "train"):
        before = [(path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file()]
        refused(capsys, verb("train", tmp_path), tmp_path, f"process {os.getpid()} on {os.uname().nodename}")
        assert [(path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file()] == before


@pytest.mark.parametrize(
    ("name", "override"),
    [
        ("corpus", "data.heldout_share=0.4"),
        ("tokenizer train", "data.tokenizer_bytes=5000"),
        ("pack", "data.packing_window=9"),
    ],
)
def test_nothing_that_a_live_run_reads_is_replaced(capsys, tmp_path, road, text, name, override):
    for part in ("corpus", "tokenizer", "rows"):
        (tmp_path / part).symlink_to(road / part)
    more = ["--text", str(text)] if name == "corpus" else []
    with Lease(tmp_path / "train"):
        refused(capsys, [*verb(name, tmp_path, override), *more], "which would be replaced", f"process {os.getpid()}")


@pytest.fixture
def begun(road, tmp_path):
    """A run that took two steps."""
    folder = tmp_path / "run"
    for name in ("corpus", "tokenizer", "rows"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(road / name)
    overrides = [f"stages.{i}.tokens={tokens}" for i, tokens in enumerate((1024, 512, 1024))]
    overrides += ["stages.0.learning_rate.warmup_steps=0", "train.checkpoint_every=100"]

    def train(*more, amend=()):
        return [*verb("train", folder, *overrides, *more), *amend]

    def stop(report):
        if report.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Journal, "report", lambda self, report, original=Journal.report: original(self, report) or stop(report)
        )
        assert main(train()) == AGAIN
    return folder, train


def test_settings_that_changed_are_named_refused_and_recorded(begun, capsys):
    folder, train = begun
    changed = ("optimizer.weight_decay=0.3", "stages.2.learning_rate.end=2e-4", "train.loss_chunk=128")
    metrics = (folder / "train" / "metrics.jsonl").read_bytes()
    # Before the arrays are read, which would not fit.
    refused(capsys, train("optimizer.clip.history=7"), "optimizer.clip.history was", "is 7")
    words = ("optimizer.weight_decay was 0.1, is 0.3", "stage 'annealing': learning_rate.end was 0.0001, is 0.0002")
    refused(capsys, train(*changed), *words, "--amend")
    assert not (folder / "train" / "history.jsonl").exists()
    assert (folder / "train" / "metrics.jsonl").read_bytes() == metrics
    assert main(train(*changed, amend=["--amend"])) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in words) and "train.loss_chunk was 256, is 128" in said
    (line,) = history.read(folder / "train" / "history.jsonl")
    assert line["changes"] == [*words, "train.loss_chunk was 256, is 128"]
    assert main(train(*changed)) == 0  # the checkpoint holds them now
    assert len(history.read(folder / "train" / "history.jsonl")) == 1
