"""Objectives of other shapes through the same step: pairs with a frozen reference, and mostly frozen models."""

import dataclasses

import jax
import numpy as np
import pytest

from m1jax.config import MeshConfig
from m1jax.objectives.next_token import NextToken
from m1jax.optim import masks
from m1jax.parallel import mesh as meshes
from m1jax.train import program as programs
from m1jax.train.checkpoint.folder import existing
from m1jax.train.objective import StageScalars
from m1jax.train.trainer import Trainer
from tests.parallel import toy
from tests.train import pairs
from tests.train.test_loop import same, small_config

ROWS, LENGTH = 8, 32
BATCHES = [pairs.batch(seed, ROWS, LENGTH) for seed in range(4)]
SCALARS = StageScalars(np.float32(1e4), np.bool_(False))


def mesh_of(**sizes):
    return meshes.make(MeshConfig(**sizes), jax.devices()[: 8 if sizes else 1])


def steps(config, mesh):
    built = programs.build(config, pairs.Preference(), mesh)
    state, found = built.create(), []
    for batch in BATCHES:
        placed = {
            name: jax.device_put(value, built.arguments(ROWS, LENGTH)[1][name].sharding)
            for name, value in batch.items()
        }
        state, metrics = built.step(state, placed, SCALARS)
        found.append((float(metrics["loss"]), float(metrics["accuracy"]), float(metrics["grad_norm"])))
    return np.array(found), state


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return steps(small_config(tmp_path_factory.mktemp("pairs")), mesh_of())


def test_pairs_are_judged_against_a_frozen_reference(expected):
    found, state = expected
    first = jax.device_get(jax.jit(pairs.Preference().initialise)())
    np.testing.assert_allclose(found[0, 0], pairs.reference_loss(first, BATCHES[0]), rtol=1e-5)
    assert same(state.frozen["reference"], first["reference"])
    assert state.frozen["reference"]["embed"].dtype == "bfloat16"
    now = {**jax.device_get(state.params), "reference": first["reference"]}
    assert pairs.reference_loss(now, BATCHES[0]) < found[0, 0] - 1e-3


@pytest.mark.parametrize(
    ("parts", "sizes"), [(2, {}), (8, {}), (1, {"fsdp": 4, "tensor": 2}), (2, {"fsdp": 2, "context": 2, "tensor": 2})]
)
def test_neither_micro_batches_nor_devices_change_a_mean_over_pairs(tmp_path, expected, parts, sizes):
    # The rows hold one or two pairs: a mean of means would differ in the second digit.
    counts = [len(np.unique(row)) for row in BATCHES[0]["pair"]]
    assert len(set(counts)) > 1
    found, _ = steps(small_config(tmp_path, accumulation=parts), mesh_of(**sizes))
    np.testing.assert_allclose(found, expected[0], rtol=2e-5)


def test_a_reference_is_saved_and_restored_with_the_run(tmp_path):
    config = small_config(tmp_path)
    with Trainer(config, pairs.Preference(), mesh_of()) as trainer:
        state = trainer.restore()
        trainer.save(state, 0)
    other = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, fsdp=4, tensor=2))
    with Trainer(other, pairs.Preference(), mesh_of(fsdp=4, tensor=2)) as trainer:
        again = trainer.restore()
        assert trainer.restored is not None
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), again)
        params = existing(config.checkpoints).restore_params(target.all_params, 0)
    assert same(params, state.all_params) and set(params) == {"embed", "head", "reference"}
    assert same(state, again)
    assert not again.frozen["reference"]["embed"].sharding.is_fully_replicated


class Narrow(NextToken):
    """Trains the norms of a model and freezes the rest."""

    def trained(self, path):
        return "norm" in path


def test_frozen_parameters_have_neither_gradients_nor_moments_in_the_compiled_step():
    config = toy.config("model.hidden=256", "model.ffn=512")
    mesh = mesh_of()
    memory, sizes = {}, {}
    for objective in (NextToken(config, mesh), Narrow(config, mesh)):
        built = programs.build(config, objective, mesh)
        name = type(objective).__name__
        sizes[name] = [
            sum(leaf.size * 4 for leaf in jax.tree.leaves(tree)) for tree in (built.params, built.state.params)
        ]
        memory[name] = built.step.lower(*built.arguments(1, 64)).compile().memory_analysis()
    everything, (_, trained) = sizes["NextToken"][0], sizes["Narrow"]
    assert sizes["NextToken"] == [everything, everything] and trained < everything / 100
    arguments = {name: found.argument_size_in_bytes for name, found in memory.items()}
    # Parameters and two moments of each trained one, and little else.
    assert abs(arguments["NextToken"] - 3 * everything) < everything / 100
    assert abs(arguments["Narrow"] - (everything + 2 * trained)) < everything / 100
    # The gradients of all parameters are what the frozen ones lack.
    saved = memory["NextToken"].temp_size_in_bytes - memory["Narrow"].temp_size_in_bytes
    assert saved > 0.7 * everything


def test_frozen_parameters_change_no_gradient_of_the_others():
    config, mesh = toy.config(), mesh_of()
    first = jax.device_get(jax.jit(NextToken(config, mesh).initialise)())
    batch = toy.batch()
    moved = {}
    for objective in (NextToken(config, mesh), Narrow(config, mesh)):
        built = programs.build(config, objective, mesh)
        state, metrics = built.step(built.begin(jax.device_put(first)), jax.device_put(batch), toy.SCALARS)
        moved[type(objective).__name__] = float(metrics["grad_norm/norm"])
        if isinstance(objective, Narrow):
            assert same(state.frozen["embed"], first["embed"])
    np.testing.assert_allclose(moved["Narrow"], moved["NextToken"], rtol=1e-5)


def test_a_tree_is_cut_and_joined_by_paths():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    chosen, frozen = masks.split(tree, lambda path: path in ("a/c/d", "e"))
    assert (chosen, frozen) == ({"a": {"c": {"d": 2}}, "e": 3}, {"a": {"b": 1}})
    assert masks.merge(chosen, frozen) == masks.merge(frozen, chosen) == tree
    assert masks.split(tree, lambda path: True) == (tree, {})
    with pytest.raises(ValueError, match="both trees hold a leaf 'e'"):
        masks.merge(chosen, {"e": 4})
