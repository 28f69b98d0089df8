"""Settings of JAX and Orbax, made first by every verb that computes."""

import os
import re
from pathlib import Path

VIRTUAL_DEVICES = re.compile(r"--xla_force_host_platform_device_count=(\d+)")
THREADS_PER_DEVICE = 64


def prepare() -> None:
    """Keeps compiled programs between runs ($JAX_COMPILATION_CACHE_DIR, else ~/.cache/m1jax/xla); silences Orbax."""
    if found := VIRTUAL_DEVICES.search(os.environ.get("XLA_FLAGS", "")):
        # XLA's CPU backend starts independent collectives of one step in any order and blocks a thread in each: with
        # fewer threads than that, devices would wait for each other for ever. It sizes its pool by this variable.
        os.environ.setdefault("NPROC", str(THREADS_PER_DEVICE * int(found[1])))
    import jax
    from absl import logging

    # Orbax warns of small chunks and of folders opened to read, which are intended, and logs errors that it raises.
    logging.set_verbosity(logging.FATAL)

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "m1jax" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
