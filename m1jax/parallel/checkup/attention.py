"""The check of the configured attention against the reference."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m1jax import kernels
from m1jax.config import RunConfig
from m1jax.parallel.checkup.finding import BROKEN, LEFT_OUT, OK, SLOW, Finding

TOLERANCE = {"float32": 2e-3, "bfloat16": 4e-2}
"""Largest difference from the reference, by the largest output: a TPU's float32 products are bf16 in three passes."""


def kernel(config: RunConfig) -> Sequence[Finding]:
    """The configured attention on this device against the reference on the host's CPU, for each layer kind."""
    name, dtype = config.model.attention, config.model.compute_dtype
    better = [each for each, platform in kernels.PLATFORMS.items() if platform == jax.default_backend()]
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
        return [Finding("kernel", LEFT_OUT, "jax has no CPU to compute the reference on: unset JAX_PLATFORMS")]
    findings = []
    for kind in dict.fromkeys(config.model.pattern):
        _, _, head_dim = config.model.heads(kind)
        with jax.default_device(host):
            arguments = _attention_case(head_dim)
            window = 100 if kind == "window" else None
            expected = np.asarray(kernels.attention(**arguments, window=window, scale=head_dim**-0.5))
        place = jax.local_devices()[0]
        moved = {key: jax.device_put(_cast(value, dtype), place) for key, value in arguments.items()}

        @jax.jit
        def attend(moved: dict[str, Any], window: int | None = window, dim: int = head_dim) -> jax.Array:
            return kernels.attention(**moved, window=window, scale=dim**-0.5, impl=name)

        found = np.asarray(attend(moved)).astype(np.float32)
        error = float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))
        told = f"{name}, {dtype}, head_dim {head_dim}: differs by {error:.1e} of the largest output"
        right = bool(np.isfinite(found).all()) and error <= TOLERANCE[dtype]
        if not right:
            advice = "the kernel is wrong on this device: set model.attention to reference, and report it"
            findings.append(Finding(f"kernel: {kind}", BROKEN, told, advice))
        elif better and name not in better:
            findings.append(Finding(f"kernel: {kind}", SLOW, told, f"set model.attention to {' or '.join(better)}"))
        else:
            findings.append(Finding(f"kernel: {kind}", OK, told))
    return findings


def _attention_case(head_dim: int) -> dict[str, Any]:
    """Arguments of `kernels.attention`: two rows of three documents and padding, four query heads on two."""
    rng = np.random.default_rng(0)
    rows, length, heads, kv_heads = 2, 256, 4, 2
    segments = np.repeat([1, 2, 3, 0], [100, 37, 103, 16])[None].repeat(rows, 0)
    starts = np.array([0, 0, 100, 137])[segments]
    case = {
        "q": rng.standard_normal((rows, length, heads, head_dim)),
        "k": rng.standard_normal((rows, length, kv_heads, head_dim)),
        "v": rng.standard_normal((rows, length, kv_heads, head_dim)),
        "conv_k": rng.standard_normal((kv_heads, 2)),
        "conv_v": rng.standard_normal((kv_heads, 2)),
        "inv_freq": 1e4 ** (-np.arange(head_dim // 2) * 2 / head_dim),
    }
    floats = {name: jnp.asarray(value, jnp.float32) for name, value in case.items()}
    positions = np.where(segments > 0, np.arange(length) - starts, 0)
    return {**floats, "positions": jnp.asarray(positions, jnp.int32), "segment_ids": jnp.asarray(segments, jnp.int32)}


def _cast(value: jax.Array, dtype: str) -> jax.Array:
    return value.astype(dtype) if value.ndim == 4 else value
