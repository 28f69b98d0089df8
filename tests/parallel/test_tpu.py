"""Meshes of TPUs that nobody holds, and the step compiled for them."""

import re

import pytest

pytest.importorskip("libtpu")

from m1jax.config import MeshConfig
from m1jax.errors import UserError
from m1jax.parallel import mesh as meshes
from m1jax.plan import topologies
from tests.parallel import toy

TALKS_TO_HOST = ("callback", "infeed", "outfeed", "host_transfer=true")


def test_neighbours_in_the_mesh_are_neighbours_on_the_torus():
    mesh = meshes.make(MeshConfig(fsdp=4, tensor=4), topologies.parse("v5e:4x4").devices())
    for line in mesh.devices.reshape(4, 4):
        assert len({device.coords[0] for device in line}) == 1 or len({device.coords[1] for device in line}) == 1


def test_only_replica_crosses_slices():
    devices = topologies.parse("v5e:2x2", slices=2).devices()
    mesh = meshes.make(MeshConfig(replica=2, fsdp=4), devices)
    assert [{device.slice_index for device in part.flat} for part in mesh.devices] == [{0}, {1}]
    with pytest.raises(UserError, match=r"mesh.replica = 1 does not spread over the 2 slices"):
        meshes.make(MeshConfig(fsdp=8), devices)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["block", "offload"])
def test_the_step_never_talks_to_the_host(remat):
    run = toy.config(f"train.remat={remat}", "train.accumulation=2", "model.compute_dtype=bfloat16")
    mesh = meshes.make(MeshConfig(fsdp=2, context=2), topologies.parse("v5e:2x2").devices())
    compiled = toy.program(run, mesh).step.lower(*toy.program(run, mesh).arguments(8, 128)).compile()
    text = compiled.as_text()
    assert not [word for word in TALKS_TO_HOST if word in text]
    # On a TPU a sum of bfloat16 over devices stays bfloat16. Gradients of parameters are float32; those of K and V,
    # which have the 128 positions of a row, are in their own dtype.
    reduced = re.findall(r"= (\S+|\(.*?\)) (?:all-reduce|reduce-scatter)(?:-start)?\(", text)
    shapes = re.findall(r"(f32|bf16)\[([\d,]*)\]", " ".join(reduced))
    assert "f32" in {kind for kind, _ in shapes}
    assert all("128" in shape.split(",") for kind, shape in shapes if kind == "bf16")
    # Block inputs of five periods of two layers wait in the host's memory, where they are sent there.
    assert (compiled.memory_analysis().host_temp_size_in_bytes > 0) == (remat == "offload")
