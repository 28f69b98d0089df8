"""launch/slurm.sh with stand-ins of srun and scontrol: what restarts, what ends, what goes back into the queue."""

import os
import signal
import subprocess
import time

import pytest

from tests.launch.cloud import ROOT


@pytest.fixture
def job(tmp_path):
    """Starts the script; `endings` are the statuses of the steps in order (doctor first), `wait` makes train wait."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "venv" / "bin").mkdir(parents=True)

    def write(path, text):
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)

    write(tmp_path / "venv" / "bin" / "m1", 'exec "$STEP" "$@"')
    write(tmp_path / "bin" / "srun", 'while [[ $1 == --* ]]; do shift; done\nexec "$@"')
    write(tmp_path / "bin" / "scontrol", f'echo "$@" >> {tmp_path}/scontrol')

    def start(endings, wait=False, words=("--config", "c.py")):
        (tmp_path / "endings").write_text("".join(f"{ending}\n" for ending in endings))
        waiting = (
            'if [ "$1" = train ]; then trap "exit 75" TERM; touch began; while :; do sleep 0.1; done; fi'
            if wait
            else ""
        )
        next_one = f'status=$(head -n 1 endings); sed -i 1d endings; echo "$@" >> steps\n{waiting}\nexit "$status"'
        write(tmp_path / "step", next_one)
        environment = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "M1_VENV": str(tmp_path / "venv")}
        environment |= {"STEP": str(tmp_path / "step"), "SLURM_JOB_ID": "77", "M1_PAUSE_SECONDS": "0.1"}
        command = ["bash", str(ROOT / "launch" / "slurm.sh"), *words]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)

    start.folder = tmp_path
    return start


def steps(job):
    return [line.split()[0] for line in (job.folder / "steps").read_text().splitlines()]


def test_again_is_started_again_in_the_job(job):
    assert job([0, 75, 75, 0]).wait(timeout=60) == 0
    assert steps(job) == ["doctor", "train", "train", "train"]
    assert (job.folder / "steps").read_text().splitlines()[1] == "train --config c.py"


@pytest.mark.parametrize("status", [1, 2, 137])
def test_another_status_ends_the_job(job, status):
    assert job([0, status, 0]).wait(timeout=60) == status
    assert steps(job) == ["doctor", "train"]


def test_a_broken_node_ends_it_before_a_step(job):
    process = job([1, 0])
    assert process.wait(timeout=60) == 1
    assert steps(job) == ["doctor"]
    assert "nothing was trained" in process.stderr.read()


def test_the_end_of_time_saves_and_queues_again(job):
    process = job([0], wait=True)
    end = time.monotonic() + 60
    while not (job.folder / "began").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    assert (job.folder / "scontrol").read_text() == "requeue 77\n"


def test_a_missing_environment_is_one_sentence(job):
    (job.folder / "venv" / "bin" / "m1").unlink()
    process = job([0])
    assert process.wait(timeout=60) == 2
    assert "set M1_VENV" in process.stderr.read()
