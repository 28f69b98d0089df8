"""The check of the configured attention against the reference."""

import dataclasses
from collections.abc import Sequence

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
        window = 100 if kind == "window" else None
        with jax.default_device(host):
            q, k, v, layer, rows = _attention_case(head_dim, window)
            expected = np.asarray(kernels.attention(q, k, v, layer, rows))
        q, k, v = (x.astype(dtype) for x in (q, k, v))
        moved = jax.device_put((q, k, v, dataclasses.replace(layer, impl=name), rows), jax.local_devices()[0])
        found = np.asarray(jax.jit(kernels.attention)(*moved)).astype(np.float32)
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


def _attention_case(
    head_dim: int, window: int | None
) -> tuple[jax.Array, jax.Array, jax.Array, kernels.AttentionLayer, kernels.Rows]:
    """q, k and v, a layer and rows: two rows of three documents and padding, four query heads on two."""
    rng = np.random.default_rng(0)
    count, length, heads, kv_heads = 2, 256, 4, 2
    segments = np.repeat([1, 2, 3, 0], [100, 37, 103, 16])[None].repeat(count, 0)
    starts = np.array([0, 0, 100, 137])[segments]

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    q, k, v = (normal(count, length, each, head_dim) for each in (heads, kv_heads, kv_heads))
    layer = kernels.AttentionLayer(
        conv_k=normal(kv_heads, 2),
        conv_v=normal(kv_heads, 2),
        inv_freq=jnp.asarray(1e4 ** (-np.arange(head_dim // 2) * 2 / head_dim), jnp.float32),
        window=window,
        scale=head_dim**-0.5,
    )
    positions = np.where(segments > 0, np.arange(length) - starts, 0)
    rows = kernels.Rows(positions=jnp.asarray(positions, jnp.int32), segment_ids=jnp.asarray(segments, jnp.int32))
    return q, k, v, layer, rows
