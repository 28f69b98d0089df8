"""A run that trains few of its parameters: whatever reads its folder gets the frozen ones too, in their dtype."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from m1jax import loading
from m1jax import tokenizer as tokenizers
from m1jax.config import MeshConfig
from m1jax.convert import parameters
from m1jax.objectives.next_token import NextToken
from m1jax.parallel import mesh as meshes
from m1jax.train.trainer import Trainer
from m1jax.verbs import main
from tests.parallel import toy
from tests.train.test_loop import same


class Norms(NextToken):
    """Trains the norms; the other parameters are frozen, as bfloat16."""

    def trained(self, path):
        return "norm" in path

    def initialise(self):
        return jax.tree_util.tree_map_with_path(self._cast, super().initialise())

    @property
    def shapes(self):
        return jax.eval_shape(self.initialise)

    def _cast(self, path, leaf):
        return leaf if self.trained(jax.tree_util.keystr(path)) else leaf.astype(jnp.bfloat16)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of the run, and its parameters."""
    folder = tmp_path_factory.mktemp("frozen") / "run"
    config = toy.config(f"folder={folder}", "model.num_layers=2")
    mesh = meshes.make(MeshConfig(), jax.devices()[:1])
    tokenizers.train(["the heart is left"] * 2, vocab_size=512).save(folder / "tokenizer")
    with Trainer(config, Norms(config, mesh), mesh) as trainer:
        state = trainer.restore()
        state = dataclasses.replace(state, step=jax.device_put(jnp.int32(1), state.step.sharding))
        assert state.frozen
        trainer.save(state, 1)
        trainer.wait()
        return folder, jax.device_get(state.all_params)


def initial(folder):
    """What a run that starts from the model in a folder gets."""
    config = toy.config(f"train.initial={folder}", "model.num_layers=2")
    return loading.initial(config, loading.target_of(config.model))


def test_frozen_parameters_are_read_with_the_trained_ones(run):
    folder, params = run
    assert same(loading.from_run(folder).params, params)
    assert same(initial(folder), params)
    assert loading.load(folder)[0].config.param_dtype == "float32"
    on_disk = parameters.OnDisk(loading.stored(folder).parameters)
    assert (on_disk.dtype("embed/weight"), on_disk.dtype("norm/weight")) == ("bfloat16", "float32")


def test_frozen_parameters_are_exported(run, tmp_path):
    folder, params = run
    assert main(["export", "--model", str(folder), "--out", str(tmp_path / "hf")]) == 0
    assert same(initial(tmp_path / "hf"), params)
