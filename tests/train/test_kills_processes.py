"""One of four processes killed or frozen, each in turn: the others say so, end with AGAIN, and two go on."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from m1jax.errors import AGAIN
from m1jax.train.hooks.journal import read_journal
from tests import compiling

ROOT = Path(__file__).parents[2]
SILENCE = 5.0
STEPS = 60


def start(folder, count, seconds=0.2, emergency=""):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": compiling.FLAGS, "PYTHONPATH": str(ROOT)}
    environment["TOY_EMERGENCY"] = str(emergency)
    command = [sys.executable, "-m", "tests.train.toy_run", str(folder), str(seconds), str(STEPS // 3), str(SILENCE)]
    return [
        subprocess.Popen(
            [*command, address, str(count), str(index)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def until_step(folder, step, processes):
    journal = folder / "train" / "metrics.jsonl"
    while len(read_journal(journal)) < step:
        assert all(process.poll() is None for process in processes), [p.communicate()[1] for p in processes if p.poll()]
        time.sleep(0.1)


def losses(folder):
    return [line["loss"] for line in read_journal(folder / "train" / "metrics.jsonl")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Losses of an uninterrupted run of two processes."""
    folder = tmp_path_factory.mktemp("whole")
    for process in (running := start(folder, 2, seconds=0)):
        assert process.wait(300) == 0, [p.communicate()[1] for p in running]
    assert len(losses(folder)) == STEPS
    return losses(folder)


# Each rank in turn; process 0, which jax's service lives in, both ways.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "how"), [(0, "SIGKILL"), (1, "SIGSTOP"), (2, "SIGKILL"), (3, "SIGSTOP"), (0, "SIGSTOP")]
)
def test_one_of_four_is_lost(tmp_path, whole, rank, how):
    running = start(tmp_path, 4)
    try:
        until_step(tmp_path, 8, running)
        running[rank].send_signal(getattr(signal, how))
        for index, process in enumerate(running):
            if index != rank:
                _, said = process.communicate(timeout=120)
                assert process.returncode == AGAIN, said
                assert f"m1: process {rank} of 4 no longer responds after step" in said
                report = (tmp_path / "train" / f"process-{index}.stopped.txt").read_text()
                assert f"process {index} stops after step" in report
                assert "Thread 0x" in report and "toy_run.py" in report
    finally:
        for process in running:
            process.kill()
            process.communicate()
    if rank == 0 and how == "SIGKILL":
        for process in (running := start(tmp_path, 2, seconds=0)):
            assert process.wait(300) == 0, [p.communicate()[1] for p in running]
        np.testing.assert_allclose(losses(tmp_path), whole, rtol=1e-5)


@pytest.mark.slow
def test_a_signal_to_one_of_two_makes_both_save_the_same_step(tmp_path, whole):
    running = start(tmp_path, 2)
    until_step(tmp_path, 8, running)
    running[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [AGAIN, AGAIN], said
    sentences = [next(line for line in text.splitlines() if "after step" in line) for text in said]
    assert sentences[0] == sentences[1]
    step = int(sentences[0].split("after step ")[1].split()[0])
    assert (tmp_path / "checkpoints" / str(step)).is_dir()
    assert len(losses(tmp_path)) == step < STEPS
    for process in (running := start(tmp_path, 2, seconds=0)):
        assert process.wait(300) == 0, [p.communicate()[1] for p in running]
    assert losses(tmp_path) == whole


@pytest.mark.slow
@pytest.mark.parametrize("machine_is_new", [False, True])
def test_killed_processes_go_on_from_what_their_machines_kept(tmp_path, whole, machine_is_new):
    local = tmp_path / "local"
    running = start(tmp_path, 2, emergency=local)
    until_step(tmp_path, 30, running)
    for process in running:
        process.kill()
        process.communicate()
    kept = [
        {int(step.name) for step in folder.iterdir() if step.name.isdigit()} for folder in sorted(local.glob("*/*"))
    ]
    assert len(kept) == 2
    common = max(set.intersection(*kept))
    if machine_is_new:
        for folder in local.glob("*/process-1-of-2"):
            shutil.rmtree(folder)
    running = start(tmp_path, 2, seconds=0, emergency=local)
    said = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    taken = f"continues from the emergency checkpoint of step {common}:" in said[0]
    assert taken == (not machine_is_new and common > 20)
    assert losses(tmp_path) == whole
