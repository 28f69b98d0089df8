"""Collectives of programs for TPUs, counted by hand: six layers whose weights are sharded, as in a training step."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

pytest.importorskip("libtpu")

from m1jax.config import MeshConfig
from m1jax.parallel import mesh as meshes
from m1jax.plan import compiling, topologies

LAYERS, WIDTH = 6, 2048
WEIGHT = WIDTH * WIDTH * 2  # bytes of a layer's weights in bf16


def collectives_of(topology, slices=1, **sizes):
    """{(kind, axes): (count, bytes)} of the gradient of a chain of layers, weights and rows over fsdp."""
    topology = topologies.parse(topology, slices)
    mesh = meshes.make(MeshConfig(**sizes), topology.devices())

    def array(shape, *spec):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

    def layer(x, w):
        return jnp.tanh(x @ w), None

    def loss(w, x):
        return jax.lax.scan(layer, x, w)[0].astype(jnp.float32).sum()

    weights = array((LAYERS, WIDTH, WIDTH), None, "fsdp")
    rows = array((WIDTH, WIDTH), ("replica", "fsdp"))
    with compiling.lowering(mesh):
        lowered = jax.jit(jax.grad(loss), out_shardings=weights.sharding).lower(weights, rows)
    found = compiling.facts(lowered, "0" * 16, mesh, topology, {})
    return {(c.kind, c.axes): (c.count, c.bytes) for c in found.collectives}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize("context", [2, 4])
def test_a_layer_gathers_its_weights_twice_and_scatters_their_gradient_once(context):
    fsdp = 64 // context
    share = (fsdp - 1) / fsdp
    assert collectives_of("v5p:4x4x4", fsdp=fsdp, context=context) == {
        ("all-gather", "fsdp"): (2 * LAYERS, 2 * LAYERS * share * WEIGHT),
        ("reduce-scatter", "fsdp"): (LAYERS, LAYERS * share * WEIGHT),
    }


@pytest.mark.parametrize("topology", ["v5p:4x4x4", "v5e:8x8"])
def test_one_group_of_all_64_chips_gathers_and_scatters_by_all_reduce(topology):
    """The compiler's choice, at twice the bytes: gathered once (kept for backward), gradients reduced in float32."""
    assert collectives_of(topology, fsdp=64) == {
        ("all-reduce", "fsdp"): (2 * LAYERS, 2 * 63 / 64 * LAYERS * (WEIGHT + 2 * WEIGHT)),
    }


@pytest.mark.parametrize("fsdp", [1, 4])
def test_gradients_cross_slices_once_a_layer_as_shards(fsdp):
    """The compiler takes an iteration out of the loop of the backward pass: the loop that is left runs one less."""
    found = collectives_of({1: "v5e:1x1", 4: "v5e:2x2"}[fsdp], 2, replica=2, fsdp=fsdp)
    assert found["recv", "replica"] == (LAYERS, LAYERS * WEIGHT / fsdp)


def test_gathers_of_one_group_of_all_8_chips_are_gathers():
    assert collectives_of("v5p:2x2x2", fsdp=8) == {
        ("all-gather", "fsdp"): (2 * LAYERS, 2 * LAYERS * 7 / 8 * WEIGHT),
        ("all-reduce", "fsdp"): (LAYERS, 2 * LAYERS * 7 / 8 * WEIGHT),
    }
