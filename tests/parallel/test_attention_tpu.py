"""Attention over meshes of TPUs through the real compiler: what is sent, and that each shard runs one kernel a call."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from m1jax.config import MeshConfig
from m1jax.parallel import mesh as meshes
from m1jax.parallel.attention import partitioned
from tests import tpu
from tests.kernels.rows import arguments

COLLECTIVES = ("all-gather", "reduce-scatter", "collective-permute", "all-reduce", "all-to-all")


def compiled(topology, sizes, impl, S, H, K, D, window):
    """The gradient of attention in all its arrays, compiled for a mesh over `topology`."""
    mesh = meshes.make(MeshConfig(data=1, **sizes), tpu.devices(topology))
    heads = None if K % mesh.shape["tensor"] else "tensor"

    def array(shape, *spec, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

    B = sizes.get("fsdp", 1)
    rows = meshes.BATCH_AXES, "context"
    x = {
        "q": array((B, S, H, D), *rows, "tensor"),
        "k": array((B, S, K, D), *rows, heads),
        "v": array((B, S, K, D), *rows, heads),
        "conv_k": array((K, 2), heads, dtype=jnp.float32),
        "conv_v": array((K, 2), heads, dtype=jnp.float32),
    }
    ids = array((B, S), *rows, dtype=jnp.int32)

    def loss(x, segments, positions, inv_freq):
        out = partitioned(mesh)(*arguments(x, segments, positions, window, inv_freq=inv_freq, impl=impl))
        return jnp.sum(out.astype(jnp.float32) ** 2)

    return jax.jit(jax.grad(loss)).lower(x, ids, ids, array((D // 2,), dtype=jnp.float32)).compile().as_text()


def sent(text):
    """Kind and result shape of every collective over bfloat16 (activations)."""
    found = re.findall(rf"= \(?(bf16\[[\d,]*\])[^\n]*? ({'|'.join(COLLECTIVES)})(?:-start)?\(", text)
    return sorted((kind, shape) for shape, kind in found)


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["reference", "pallas_tpu"])
@pytest.mark.parametrize(
    ("topology", "sizes"), [("v5p:2x2x1", {"context": 4}), ("v5p:2x2x4", {"context": 4, "fsdp": 4})]
)
def test_global_layers_gather_keys_and_scatter_their_gradients(impl, topology, sizes):
    text = compiled(topology, sizes, impl, S=1024, H=20, K=2, D=256, window=None)
    # Half of each shard's 256 queries go to the mirror and back, forward and backward.
    assert sent(text) == [
        *[("all-gather", "bf16[1,1024,512]")] * 2,
        *[("collective-permute", "bf16[1,128,20,256]")] * 4,
        *[("reduce-scatter", "bf16[1,256,512]")] * 2,
    ]


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["reference", "pallas_tpu"])
@pytest.mark.parametrize(("window", "hops"), [(256, [256]), (300, [44, 256])])
def test_window_layers_send_a_halo_and_nothing_else(impl, window, hops):
    text = compiled("v5p:2x2x1", {"context": 4}, impl, S=1024, H=40, K=8, D=128, window=window)
    # K and V, forward and backward.
    assert sent(text) == sorted(("collective-permute", f"bf16[1,{hop},8,128]") for hop in hops for _ in range(4))


@pytest.mark.slow
def test_tensor_shards_hold_the_kv_head_of_their_queries_and_send_nothing():
    text = compiled("v5p:2x2x1", {"tensor": 4}, "pallas_tpu", S=1024, H=20, K=2, D=256, window=None)
    # K and V are whole on every shard, so their gradient is summed over the shards; nothing else moves.
    assert {kind for kind, _ in sent(text)} <= {"all-reduce"}
