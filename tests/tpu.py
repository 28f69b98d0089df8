"""Devices of TPU topologies that nobody holds, for tests that compile with the real compiler (libtpu)."""

import pytest

from m1jax.plan import topologies


def devices(topology):
    """The devices of, say, v5p:2x2x1; skips the test where libtpu is not installed."""
    pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install libtpu")
    return topologies.parse(topology).devices()
