"""Several processes, joined over loopback, give the losses of one; so do 32 devices with every mesh axis at once."""

import json
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from m1jax.config import MeshConfig
from m1jax.errors import AGAIN
from m1jax.parallel import mesh as meshes
from m1jax.parallel.mesh import AXES
from tests.parallel import toy

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def expected():
    built = toy.program(toy.config(), meshes.make(MeshConfig(), jax.devices()[:1]))
    return toy.steps(built, toy.state(built, toy.config()), [toy.batch(step) for step in range(3)])[0]


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "devices", "sizes"),
    [
        (2, 1, {"data": 2}),
        (2, 2, {"fsdp": 2, "context": 2}),
        (4, 1, {"fsdp": 2, "tensor": 2}),  # two processes read the same rows
        (4, 1, {"data": 1, "context": 4}),  # all read the same rows, and compute on a quarter of each
        (1, 32, dict.fromkeys(AXES, 2)),  # every axis at once
    ],
    ids=["2-data", "2-fsdp-context", "4-fsdp-tensor", "4-context", "1-all"],
)
def test_processes_give_the_losses_of_one(tmp_path, expected, count, devices, sizes):
    where = f"localhost:{free_port()}"
    arguments = [[where, str(count), str(i), str(devices), json.dumps(sizes), str(tmp_path)] for i in range(count)]
    program = [sys.executable, "-m", "tests.parallel.processes"]
    started = [subprocess.Popen([*program, *each], cwd=ROOT, stderr=subprocess.PIPE, text=True) for each in arguments]
    try:
        errors = [process.communicate(timeout=600)[1][:2000] for process in started]
        assert [process.returncode for process in started] == [0] * count, "\n\n".join(errors)
    finally:
        for process in started:
            process.kill()
    for i in range(count):
        np.testing.assert_allclose(json.loads((tmp_path / f"{i}.json").read_text()), expected, rtol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_waits_in_vain_is_to_be_started_again(index):
    """A restarted host may come late: jax's own client would abort, which tells a launch script nothing."""
    where = f"localhost:{free_port()}"
    code = (
        "from m1jax.parallel import processes\n"
        "processes.JOIN_SECONDS = 2\n"
        f"processes.start(processes.Processes({where!r}, 2, {index}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == AGAIN
    assert f"process {index} waited 2 s at {where}, but" in done.stderr and "start them again." in done.stderr
