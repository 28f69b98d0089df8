"""Attention on an NVIDIA GPU that is here: outputs and gradients beside the reference."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/dev/nvidia0").exists(), reason="needs an NVIDIA GPU: there is none here")
def test_the_gpu_computes_what_the_reference_does():
    environment = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    run = subprocess.run(
        [sys.executable, "-m", "tests.kernels.gpu_cases"],
        cwd=ROOT,
        env=environment | {"JAX_PLATFORMS": "cuda,cpu"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    cases = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(cases) == 6
    for case in cases:
        assert case["errors"].pop("padding") == 0, case
        # Eight bits of mantissa in operands, weights and their gradients.
        assert all(error < 0.02 for error in case["errors"].values()), case
