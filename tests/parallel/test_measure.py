"""What devices do in a second is measured on numbers that are checked."""

import jax
import pytest

from m1jax.config import MeshConfig
from m1jax.parallel import measure
from m1jax.parallel import mesh as meshes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_are_exact_and_a_wrong_one_is_seen(dtype, monkeypatch):
    rate, right = measure.product(jax.devices()[0], 64, dtype)
    assert rate > 0
    assert right
    sound = measure.jnp.matmul
    monkeypatch.setattr(measure.jnp, "matmul", lambda a, b, **rest: sound(a, b, **rest).at[3, 5].add(1.0))
    assert not measure.product(jax.devices()[0], 64, dtype)[1]


def test_collectives_are_checked_along_every_axis():
    mesh = meshes.make(MeshConfig(replica=2, data=1, fsdp=2, tensor=2))
    for axis in ("replica", "fsdp", "tensor"):
        rate, right = measure.collective(mesh, axis, 1024)
        assert rate > 0
        assert right
