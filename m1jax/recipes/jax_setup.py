"""What every verb that computes does first."""

import os
from pathlib import Path


def prepare() -> None:
    """Keeps compiled programs between runs (in $JAX_COMPILATION_CACHE_DIR, else ~/.cache/m1jax/xla), quietens Orbax."""
    import jax
    from absl import logging

    # Orbax warns of every array written in small chunks and every folder opened to read: both are meant.
    logging.set_verbosity(logging.ERROR)

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "m1jax" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
