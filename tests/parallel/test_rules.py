import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from m1jax.config import MeshConfig
from m1jax.errors import UserError
from m1jax.parallel import mesh as meshes
from m1jax.parallel import rules

MESH = meshes.make(MeshConfig(fsdp=2, tensor=4), jax.devices())


def test_axes_are_laid_out_by_the_one_table():
    shapes = {"q_proj": jax.ShapeDtypeStruct((64, 8, 16), jnp.float32)}
    found = rules.parameter_shardings(MESH, shapes, {"q_proj": ("embed", "heads", "head_dim")})
    assert found["q_proj"].spec == PartitionSpec("fsdp", "tensor", None)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12))
def test_kv_heads_are_split_evenly_or_held_whole(heads):
    found = rules.parameter_sharding(MESH, (64, heads, 16), ("embed", "kv_heads", "head_dim"), "k_proj")
    assert found.spec[1] == ("tensor" if heads % 4 == 0 else None)
    assert found.shard_shape((64, heads, 16)) == (32, heads // 4 if heads % 4 == 0 else heads, 16)


def test_any_other_dimension_that_does_not_divide_is_named():
    shapes = {"mlp": {"up_proj": jax.ShapeDtypeStruct((64, 42), jnp.float32)}}
    with pytest.raises(UserError, match=r"mlp/up_proj has 42 along 'ffn', which mesh.tensor = 4 does not divide"):
        rules.parameter_shardings(MESH, shapes, {"mlp": {"up_proj": ("embed", "ffn")}})


def test_a_mesh_that_does_not_multiply_out_is_refused():
    with pytest.raises(UserError, match="do not make 8 devices"):
        meshes.make(MeshConfig(fsdp=3), jax.devices())
