"""A second optimiser through the frame as it is: a rule that treats matrices apart, each layer of a stack by itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from m1jax import objectives
from m1jax.config import MeshConfig
from m1jax.config.schema import OPTIMIZERS
from m1jax.optim import optimizer
from m1jax.optim.adamw import adamw
from m1jax.parallel import mesh as meshes
from m1jax.train import program as programs
from tests.parallel import toy


def spectral(settings):
    """Momentum whose matrices are divided by their largest singular value's bound, each layer of a stack apart."""

    def scaled(matrix):
        return matrix / (jnp.linalg.norm(matrix.reshape(matrix.shape[0], -1)) + 1e-8)

    def update(updates, state, params=None):
        return jax.tree.map(lambda u: jax.vmap(scaled)(u) if u.ndim > 2 else u, updates), state

    apart = optax.chain(optax.trace(0.9), optax.GradientTransformation(lambda _: optax.EmptyState(), update))

    def labels(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "apart" if "mlp" in jax.tree_util.keystr(path) else "adamw", params
        )

    return optax.multi_transform({"apart": apart, "adamw": adamw(settings)}, labels)


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setitem(optimizer.RULES, "spectral", spectral)
    run = toy.config()
    return dataclasses.replace(run, optimizer=dataclasses.replace(run.optimizer, name="spectral"))


def test_the_config_and_the_table_name_the_same_rules():
    assert set(OPTIMIZERS) == set(optimizer.RULES)


def test_its_state_follows_the_parameters_and_a_mesh_changes_nothing(config):
    one = meshes.make(MeshConfig(), jax.devices()[:1])
    many = meshes.make(MeshConfig(fsdp=4, tensor=2), jax.devices())
    found = {}
    for name, mesh in (("one", one), ("many", many)):
        built = programs.build(config, objectives.make(config, mesh), mesh)
        losses, state = toy.steps(built, toy.state(built, config), [toy.batch(seed) for seed in range(3)])
        found[name] = losses
    np.testing.assert_allclose(found["many"], found["one"], rtol=2e-5)
    momentum = optax.tree_utils.tree_get(state.opt_state, "trace")["periods"]["0"]["mlp"]["up_proj"]
    assert momentum.sharding == state.params["periods"]["0"]["mlp"]["up_proj"].sharding
    assert not momentum.sharding.is_fully_replicated
