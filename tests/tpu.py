"""Devices of TPU topologies that nobody holds, for tests that compile with the real compiler (libtpu)."""

import os

import pytest

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")  # else a second process dies on the lock file
os.environ.setdefault("TPU_LOG_DIR", "disabled")  # else libtpu fills the disk


def devices(topology):
    """The devices of, say, v5p:2x2x1; skips the test where libtpu is not installed."""
    pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install libtpu")
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
