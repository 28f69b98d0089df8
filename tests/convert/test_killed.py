"""Import and export killed at any moment leave nothing that loads; the same command run again makes it whole."""

import os
import signal
import subprocess
import sys
import time

import pytest

import m1jax
from m1jax.errors import UserError
from tests.convert import checkpoints
from tests.model import small

PROGRAM = [sys.executable, "-c", "import sys; from m1jax.verbs import main; sys.exit(main())"]
CONFIG = small.config(vocab_size=100_000, hidden=256, ffn=1024, num_layers=8)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(checkpoint, its import, bytes of its tensors)."""
    folder = tmp_path_factory.mktemp("whole")
    found = checkpoints.tensors(CONFIG)
    source = checkpoints.write(folder / "hf", CONFIG, found, 3)
    ours = folder / "ours"
    subprocess.run([*PROGRAM, "import", "--from", source, "--out", ours], check=True, stdout=subprocess.DEVNULL)
    return source, ours, sum(tensor.nbytes for tensor in found.values())


def written(folder):
    """Bytes in a folder that is being filled and renamed meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.path.getsize(os.path.join(place, name))
            except OSError:
                continue
    return total


def killed(command, out, enough):
    """Starts the command and kills it once so many bytes lie in its hidden folder."""
    partial = out.parent / f".{out.name}.partial"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None and (not partial.exists() or written(partial) < enough):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["import", "export"])
def test_nothing_that_loads_is_left(verb, whole, tmp_path):
    source, ours, size = whole
    out = tmp_path / "out"
    given = ["--from", source] if verb == "import" else ["--model", ours, "--shard-size", "50MB"]
    command = [*PROGRAM, verb, *given, "--out", out]
    kills = 0
    for share in (0, 0.1, 0.5, 0.9, 0.999, 1):
        kills += killed(command, out, share * size)
        if out.exists():  # it was quicker than the kill
            continue
        for folder in (out, tmp_path / ".out.partial"):
            with pytest.raises(UserError):
                m1jax.load(folder)
    assert kills >= 4
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    if verb == "import":
        back = [*PROGRAM, "export", "--model", out, "--out", tmp_path / "back"]
        subprocess.run(back, check=True, stdout=subprocess.DEVNULL)
        out = tmp_path / "back"
    checkpoints.same_bits(checkpoints.read(out), checkpoints.tensors(CONFIG))
