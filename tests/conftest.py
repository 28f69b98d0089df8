"""Tests run on CPU, on eight virtual devices, with compiled programs kept between runs."""

import os
import pathlib

from tests import compiling

os.environ["JAX_PLATFORMS"] = "cpu"
flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {compiling.FLAGS}"
os.environ["XLA_FLAGS"] = flags
os.environ["NPROC"] = "512"  # threads of XLA's CPU pool, see parallel/jax_setup.py
cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "m1jax" / "xla"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jax  # noqa: E402
import pytest  # noqa: E402


def pytest_collection_modifyitems(items):
    """Files with slow tests come first: started last, a long file would leave the other core without work."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="module", autouse=True)
def _flags_and_programs_of_a_module():
    """Frees what a module compiled: every program holds memory maps, and a process may have 65,530 of them."""
    os.environ["XLA_FLAGS"] = flags  # for programs that tests start; what compiles for TPUs takes it away
    yield
    jax.clear_caches()
