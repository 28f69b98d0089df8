"""Real processes read the same global batches, however many there are, and go on from where others stopped."""

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from tests import compiling
from tests.curriculum import test_loader
from tests.rows import toy_rows

ROOT = str(Path(__file__).parents[2])
READ = """
    import sys
    sys.path.insert(0, {root!r})
    from pathlib import Path
    import numpy as np
    from tests.curriculum import test_loader
    index, count, first, last = map(int, sys.argv[1:5])
    batches = test_loader.make(Path({folder!r}), index, count).batches(first, last)
    np.savez(sys.argv[5], **{{f"{{first + i}}/{{k}}": v for i, b in enumerate(batches) for k, v in b.items()}})
"""
JAX = """
    import sys
    sys.path.insert(0, {root!r})
    from pathlib import Path
    import jax, numpy as np
    jax.distributed.initialize({address!r}, num_processes=2, process_id=int(sys.argv[1]))
    from jax.experimental import multihost_utils
    from m1jax.config import MeshConfig
    from m1jax.parallel import mesh as meshes
    from m1jax.train.feed import Feed
    from tests.curriculum import test_loader
    assert jax.process_count() == 2 and len(jax.devices()) == 2
    feed = Feed(test_loader.make(Path({folder!r}), jax.process_index(), 2).batches(9, 13), meshes.make(MeshConfig()))
    found = {{}}
    for step in range(9, 13):
        batch = feed.take().device
        found |= {{f"{{step}}/{{k}}": multihost_utils.process_allgather(v, tiled=True) for k, v in batch.items()}}
    np.savez(sys.argv[2], **found)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    toy_rows.pack_lengths(folder, test_loader.LENGTHS, [16, 64], 20, domains={"b": "medical"})
    return folder


def start(code, *arguments):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": compiling.FLAGS}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(processes):
    for process in processes:
        _, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors


def equal(parts, expected, first):
    """Shares of processes, in order, make up the batches of one process."""
    for step, batch in enumerate(expected, first):
        for name, value in batch.items():
            np.testing.assert_array_equal(np.concatenate([part[f"{step}/{name}"] for part in parts]), value)


@pytest.mark.slow
def test_four_processes_then_two_then_one(folder, tmp_path):
    whole = list(test_loader.make(folder).batches(0, 17))
    code = READ.format(root=ROOT, folder=str(folder))
    for count, first, last in ((4, 0, 9), (2, 9, 13), (1, 13, 17)):
        outs = [tmp_path / f"{count}-{index}.npz" for index in range(count)]
        finish([start(code, index, count, first, last, out) for index, out in enumerate(outs)])
        equal([np.load(out) for out in outs], whole[first:last], first)


@pytest.mark.slow
def test_two_processes_of_jax_hold_one_global_batch(folder, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    code = JAX.format(root=ROOT, folder=str(folder), address=address)
    outs = [tmp_path / f"{index}.npz" for index in range(2)]
    finish([start(code, index, out) for index, out in enumerate(outs)])
    whole = list(test_loader.make(folder).batches(9, 13))
    for out in outs:
        equal([np.load(out)], whole, 9)
