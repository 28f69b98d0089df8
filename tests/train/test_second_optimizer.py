"""Muon through the frame: its state is laid out as the parameters are, and a mesh changes no loss."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from m1jax import objectives
from m1jax.config import MeshConfig
from m1jax.config.schema import OPTIMIZERS
from m1jax.optim import optimizer
from m1jax.parallel import mesh as meshes
from m1jax.train import program as programs
from tests.parallel import toy


@pytest.fixture
def config():
    run = toy.config()
    return dataclasses.replace(run, optimizer=dataclasses.replace(run.optimizer, name="muon"))


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
    momentum = optax.tree_utils.tree_get(
        state.opt_state, "mu", filtering=lambda path, _: "muon" in jax.tree_util.keystr(path)
    )["periods"]["0"]["mlp"]["up_proj"]
    assert momentum.sharding == state.params["periods"]["0"]["mlp"]["up_proj"].sharding
    assert not momentum.sharding.is_fully_replicated
