"""The TPU kernels under shard_map, in Pallas's interpreter, against the reference on one device."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m1jax.config import MeshConfig
from m1jax.kernels import reference
from m1jax.kernels.tpu import attention as tpu
from m1jax.kernels.tpu.schedule import Blocks, Tiling
from m1jax.parallel import mesh as meshes
from m1jax.parallel.attention import partitioned
from tests.kernels.rows import arguments


def kernel(q, k, v, layer, rows, **settings):
    """Blocks of 128, so that a shard has several."""
    T = k.shape[1]
    tiling = Tiling(Blocks(128, 128), Blocks(128, 128), 1, -(-T // 128) * 128, 1, 2**26)
    return tpu.attention(q, k, v, layer, rows, tiling=tiling, chip="v6e", interpret=True, **settings)


@functools.partial(jax.jit, static_argnums=(0, 1))
def judged(attention, window, x, segments, positions):
    """((output, log-sum), gradients) of a weighing of both."""

    def loss(x):
        inv_freq = jnp.linspace(1.0, 0.1, x["q"].shape[-1] // 2)
        out, lse = attention(*arguments(x, segments, positions, window, inv_freq=inv_freq), return_lse=True)
        weigh = jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
        return jnp.sum(out * weigh) + jnp.sum(jnp.where(segments[:, :, None] > 0, lse, 0) * weigh[..., 0]), (out, lse)

    (_, found), gradients = jax.value_and_grad(loss, has_aux=True)(x)
    return found, gradients


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "window"),
    [
        ({"context": 2}, None),
        ({"context": 2}, 130),
        ({"context": 4}, 200),
        ({"fsdp": 2, "tensor": 2}, 129),
        ({"tensor": 2, "context": 2}, None),
    ],
    ids=str,
)
def test_kernels_over_a_mesh_give_what_the_reference_gives_on_one_device(sizes, window):
    B, S, H, K, D = 2, 512, 4, 2, 64
    rng = np.random.default_rng(0)
    shapes = {"q": (B, S, H, D), "k": (B, S, K, D), "v": (B, S, K, D), "conv_k": (K, 2), "conv_v": (K, 2)}
    x = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    # Borders at, before and behind those of shards and blocks; padding at the end of one row.
    rows = [[127, 1, 130, 200, 54], [256, 200]]
    segments, positions = np.zeros((2, B, S), np.int32)
    for row, lengths in enumerate(rows):
        segments[row, : sum(lengths)] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
        positions[row, : sum(lengths)] = np.concatenate([np.arange(length) for length in lengths])
    mesh = meshes.make(MeshConfig(data=1, **sizes), jax.devices()[: math.prod(sizes.values())])
    ours, want = (
        judged(attention, window, x, segments, positions)
        for attention in (partitioned(mesh, kernel), reference.attention)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * max(1, np.abs(b).max())),
        jax.device_get(ours),
        jax.device_get(want),
    )
