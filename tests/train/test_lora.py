"""Runs that train an adapter or some parameters: what the compiled step holds, how it moves, and how it continues."""

import dataclasses

import jax
import numpy as np
import pytest

from m1jax.config import MeshConfig
from m1jax.errors import UserError
from m1jax.model import adapters
from m1jax.objectives.next_token import NextToken
from m1jax.optim import masks
from m1jax.optim import optimizer as optimizers
from m1jax.parallel import mesh as meshes
from m1jax.train import program as programs
from m1jax.train.trainer import Trainer
from tests.parallel import toy
from tests.train.test_loop import same

LORA = ("train.lora.rank=4", "train.lora.alpha=8.0", "train.frozen_dtype=bfloat16")


def mesh_of(**sizes):
    return meshes.make(MeshConfig(**sizes), jax.devices()[: 8 if sizes else 1])


def built(config, mesh=None):
    mesh = mesh or mesh_of()
    return programs.build(config, NextToken(config, mesh), mesh)


def nbytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_a_frozen_model_has_neither_gradients_nor_moments_in_the_compiled_step():
    """Ten layers, whose five periods are a loop: no stack of gradients is made in it."""
    lora = built(toy.config("model.hidden=128", "model.ffn=512", "train.remat=block", *LORA[:2]))
    memory = lora.step.lower(*lora.arguments(1, 16)).compile().memory_analysis()
    everything, factors = nbytes(lora.state.frozen), nbytes(lora.state.params)
    assert 0 < factors < everything / 10
    assert abs(memory.argument_size_in_bytes - everything - 3 * factors) < everything / 50
    # With the gradients of all parameters it would be more than `everything`.
    assert memory.temp_size_in_bytes < 0.4 * everything


def batches(count):
    return [toy.batch(seed, 4, 32) for seed in range(count)]


def stepped(trainer, state, ones, first=0):
    losses = []
    for number, one in enumerate(ones, first):
        sharding = trainer.program.arguments(4, 32)[1]
        placed = {name: jax.device_put(value, sharding[name].sharding) for name, value in one.items()}
        state, metrics = trainer.step(state, placed, number)
        losses.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    return losses, state


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three steps, with a checkpoint after the first; the config, losses and the state before and after."""
    config = toy.config(
        f"folder={tmp_path_factory.mktemp('lora')}",
        "model.num_layers=4",
        "optimizer.name=muon",
        "optimizer.eps=1e-2",
        *LORA,
    )
    # So large an eps that Adam does not divide rounding by rounding: the first gradients of A are zeros, as B is.
    mesh = mesh_of()
    with Trainer(config, NextToken(config, mesh), mesh) as trainer:
        state = trainer.restore()
        first = jax.device_get(state)
        one, state = stepped(trainer, state, batches(3)[:1])
        trainer.save(state, 1)
        rest, state = stepped(trainer, state, batches(3)[1:], 1)
        trainer.wait()
    return config, [*one, *rest], first, jax.device_get(state)


def test_factors_move_and_the_frozen_model_does_not(run):
    _, losses, first, last = run
    assert same(first.frozen, last.frozen)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(last.frozen)} == {"bfloat16"}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(last.params)} == {"float32"}
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), first.params, last.params)
    assert all(jax.tree.leaves(moved)) and jax.tree.structure(adapters.only(moved)) == jax.tree.structure(moved)
    assert np.isfinite(losses).all()


def test_it_continues_on_other_devices_with_the_same_losses(run):
    config, losses, _, last = run
    with Trainer(config, NextToken(config, mesh_of()), mesh_of()) as trainer:
        again, state = stepped(trainer, trainer.restore(), batches(3)[1:], 1)
    assert again == losses[1:] and same(jax.device_get(state), last)
    config = dataclasses.replace(config, mesh=MeshConfig(fsdp=4, tensor=2))
    mesh = mesh_of(fsdp=4, tensor=2)
    with Trainer(config, NextToken(config, mesh), mesh) as trainer:
        state = trainer.restore()
        factors = state.params["periods"]["1"]["mlp"]["lora"]["down_proj"]
        assert factors["a"].sharding.shard_shape(factors["a"].shape) == (2, 24, 4)
        assert factors["b"].sharding.shard_shape(factors["b"].shape) == (2, 4, 8)
        found, _ = stepped(trainer, state, batches(3)[1:], 1)
    np.testing.assert_allclose(found, losses[1:], rtol=2e-4)


def test_muon_moves_factors_as_adamw_does(run):
    """A matrix of Muon's is the model's, not a factor of a change to it."""
    config = run[0]
    updates = {}
    for name in ("muon", "adamw"):
        rule = optimizers.make(dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, name=name)))
        rng = np.random.default_rng(0)
        grads = jax.tree.map(lambda leaf, rng=rng: rng.normal(size=leaf.shape).astype(np.float32), run[2].params)
        updates[name] = rule.update(grads, rule.init(run[2].params), run[2].params, step=0)[0]
    assert same(updates["muon"], updates["adamw"])


def test_patterns_say_what_is_trained():
    def trained(*patterns, lora=0):
        config = toy.config("model.num_layers=5", f"train.trained={list(patterns)}", f"train.lora.rank={lora}")
        shapes = NextToken(config, mesh_of()).shapes
        chosen, _ = masks.split(shapes, masks.of_run(config, shapes))
        return {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(chosen)}

    assert len(trained()) == 3 * 11 + 3
    assert trained("head", "norm") == {"head/weight", "norm/weight"}
    assert trained("layers/4/mlp") == {f"suffix/0/mlp/{name}_proj" for name in ("gate", "up", "down")}
    assert trained("layers/[024]/*/q_proj") == {"periods/0/attention/q_proj", "suffix/0/attention/q_proj"}
    assert {name for name in trained("embed", lora=2) if "lora" not in name} == {"embed/weight"}
    with pytest.raises(UserError, match=r"q_proj of layer 2 but not of layer 0.* layers 0, 2 or none.*train\.lora"):
        trained("layers/[24]/*/q_proj")
