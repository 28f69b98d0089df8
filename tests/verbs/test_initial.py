"""A run that starts from a model: the parameters are that model's, step and optimiser are new."""

import json
import shutil

import jax
import numpy as np
import pytest

from m1jax import loading, model
from m1jax.config import MeshConfig
from m1jax.config import file as config_file
from m1jax.errors import UserError
from m1jax.parallel import mesh as meshes
from m1jax.train.hooks.journal import read_journal
from m1jax.verbs import main
from tests.verbs.conftest import TINY


@pytest.fixture(scope="module")
def imported(road, tmp_path_factory):
    """The road's model, with another end token beside its own."""
    folder = tmp_path_factory.mktemp("initial")
    source = shutil.copytree(road / "export", folder / "hf")
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 73, 511]}))
    command = ["import", "--from", str(source), "--out", str(folder / "m1"), "--verify", "--prompt", "The heart"]
    assert main(command) == 0
    return folder / "m1"


def configured(initial, *overrides):
    return config_file.load(TINY, [f"train.initial={initial}", *overrides])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_kind_of_folder_gives_each_device_its_share(dtype, road, imported):
    expected = loading.from_run(road).params
    mesh = meshes.make(MeshConfig(fsdp=4, tensor=2))
    for folder in (road, imported, road / "export"):
        config = configured(folder, f"model.param_dtype={dtype}")
        found = loading.initial(config, loading.target_of(config.model, mesh))
        assert found["head"]["weight"].sharding.shard_shape((512, 32)) == (256, 8)
        jax.tree.map(lambda leaf, whole: np.testing.assert_array_equal(leaf, whole.astype(dtype)), found, expected)


def test_training_goes_on_from_it(road, imported, tmp_path):
    command = ["train", "--config", TINY, "--set", f"folder={tmp_path / 'run'}", "--set", f"train.initial={imported}"]
    for part in ("corpus", "tokenizer", "rows"):
        command += ["--set", f"data.{part}={road / part}"]
    assert main(command) == 0
    before, after = (read_journal(folder / "train" / "metrics.jsonl") for folder in (road, tmp_path / "run"))
    assert [line["step"] for line in after] == [line["step"] for line in before] == list(range(1, 19))
    # The same rows in the same order, seen a second time by a model that has already learned from them.
    assert after[0]["loss"] < before[0]["loss"] - 1
    # A fresh optimiser: the warm-up begins again, and the clip's history is empty.
    assert after[0]["learning_rate"] == before[0]["learning_rate"] and after[0]["skipped_total"] == 0
    # Texts end where those of the model did, at special tokens that the run's tokenizer has too.
    assert loading.stored(tmp_path / "run").token_ids["eos_token_id"] == [2, 73]
    assert loading.load(tmp_path / "run")[0].eos_ids == (2, 73)
    # Once it has a checkpoint of its own, the run does not look at the model again.
    assert main([*command, "--set", "train.initial=/gone"]) == 0
    started = loading.of_config(configured(imported, f"folder={tmp_path / 'run'}"), 0)
    jax.tree.map(np.testing.assert_array_equal, started.params, loading.from_run(road).params)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.ffn=64", ("ffn = 48", "model.ffn = 64")),
        ("model.window=8", ("window = 16", "model.window = 8")),
        ("model.normalize_head=False", ("normalize_head = True", "model.normalize_head = False")),
        ("model.pattern=('window','global')", ("pattern", "('global', 'window'", "('window', 'global'")),
    ],
)
def test_another_model_is_refused_by_its_first_difference(override, words, road, imported):
    for folder in (road, imported, road / "export"):
        config = configured(folder, override)
        with pytest.raises(UserError) as error:
            loading.initial(config, loading.target_of(config.model))
        assert all(word in str(error.value) for word in ("train.initial", *words)), error.value


def test_a_folder_without_a_model_is_refused(tmp_path):
    config = configured(tmp_path)
    with pytest.raises(UserError, match=str(tmp_path)):
        loading.initial(config, loading.target_of(config.model))


def test_a_pattern_written_otherwise_is_the_same_model(imported):
    config = configured(imported, "model.pattern=('global','window','global','window')")
    found = loading.initial(config, loading.target_of(config.model))
    assert jax.tree.map(lambda leaf: leaf.shape, found) == jax.tree.map(
        lambda leaf: leaf.shape, model.abstract(config.model).shapes
    )
