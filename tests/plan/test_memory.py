"""The memory formula: exact where shapes and layout decide, near the compiler on the programs that it was set by."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from m1jax import config_file, model
from m1jax.parallel import mesh as meshes
from m1jax.parallel import rules
from m1jax.plan import memory

GIB = 2**30


@pytest.mark.parametrize(("fsdp", "tensor"), [(1, 1), (8, 1), (2, 4), (4, 2), (1, 4)])
@pytest.mark.parametrize("name", ["m1_14b", "m1_1b5"])
def test_parameters_are_those_that_the_rules_lay_out(name, fsdp, tensor):
    config = config_file.load(name).model
    shape = (1, 1, fsdp, tensor, 1)
    mesh = Mesh(np.asarray(jax.devices()[: fsdp * tensor]).reshape(shape), meshes.AXES)
    abstract = model.abstract(config)
    shardings = rules.parameter_shardings(mesh, abstract.shapes, abstract.axes)
    exact = sum(
        np.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in zip(jax.tree.leaves(abstract.shapes), jax.tree.leaves(shardings), strict=True)
    )
    # Convolution weights, a few hundred scalars, are left out of the formula.
    assert memory.parameter_bytes(config, mesh.shape) == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize(("context", "compiled"), [(4, 12.72), (1, 30.65)])
def test_the_14b_is_near_what_the_compiler_said(context, compiled):
    """On v5e:16x16 (docs/plan.md) and v5p:4x4x4, 64 along fsdp, accumulation 8, GiB a device."""
    config = config_file.load("m1_14b")
    mesh = {"replica": 1, "data": 1, "fsdp": 64, "tensor": 1, "context": context}
    assert memory.estimate(config, config.stages[0], mesh).total / GIB == pytest.approx(compiled, rel=0.1)


def test_each_remat_policy_keeps_less_than_the_one_before():
    config = config_file.load("m1_14b").model
    for kind in ("global", "window"):
        kept = [memory.kept_per_token(config, kind, remat, 1) for remat in ("none", "dots", "block", "offload")]
        assert kept == sorted(kept, reverse=True) and len(set(kept)) == 4
