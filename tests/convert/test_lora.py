"""A run that trained an adapter, as every reader of its folder has it: merged, or in PEFT's files beside its base."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from m1jax import convert, loading, model
from m1jax import tokenizer as tokenizers
from m1jax.config import LoraConfig, MeshConfig
from m1jax.convert import peft_files
from m1jax.convert.parameters import InMemory
from m1jax.convert.torch_model.modeling_m1 import BaichuanM1ForCausalLM
from m1jax.model import adapters
from m1jax.objectives.next_token import NextToken
from m1jax.parallel import mesh as meshes
from m1jax.train.trainer import Trainer
from m1jax.verbs import main
from tests.convert import checkpoints, torch_exports
from tests.model import small
from tests.parallel import toy
from tests.train.test_loop import same

ALL = LoraConfig(rank=4, alpha=6.0)
SOME = LoraConfig(rank=3, alpha=9.0, targets=("q", "v", "o"), layers=(1, 4))
QUERIES = LoraConfig(rank=2, alpha=1.0, targets=("q",))
MODEL = ("model.num_layers=5", "model.num_heads=4", "model.window_num_heads=8")


def configured(folder, lora, *overrides):
    values = (f"train.lora.{name}={value}" for name, value in dataclasses.asdict(lora).items())
    return toy.config(f"folder={folder}", *MODEL, *values, *overrides)


def one(state):
    return jax.device_put(jnp.int32(1), state.step.sharding)


def trained(folder, lora, *overrides):
    """A run's folder with a checkpoint whose factors are not at their start; its parameters, factors among them."""
    config = configured(folder, lora, *overrides)
    mesh = meshes.make(MeshConfig(), jax.devices()[:1])
    tokenizers.train(["the heart is left"] * 2, vocab_size=512).save(folder / "tokenizer")
    with Trainer(config, NextToken(config, mesh), mesh) as trainer:
        state = trainer.restore()
        rng = np.random.default_rng(1)

        def moved(leaf):
            return jax.device_put(rng.normal(0, 0.2, leaf.shape).astype(leaf.dtype), leaf.sharding)

        state = dataclasses.replace(state, params=jax.tree.map(moved, state.params), step=one(state))
        trainer.save(state, 1)
        trainer.wait()
        return folder, jax.device_get(state.all_params)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("lora") / "run", ALL, "train.frozen_dtype=bfloat16")


TOKENS = torch.randint(3, 260, (2, 24), generator=torch.Generator().manual_seed(0))


def close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-7), found, expected)


def logits_of(model):
    with torch.no_grad():
        return model.eval()(TOKENS).logits.numpy()


def test_whatever_reads_the_run_gets_the_merged_model(run, tmp_path):
    folder, params = run
    config = configured(folder, ALL).model
    assert params["embed"]["weight"].dtype == "bfloat16" and params["norm"]["weight"].dtype == "bfloat16"
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
    expected = jax.device_get(adapters.merged(wide, config, ALL))
    close(loading.from_run(folder).params, expected)
    next_run = toy.config(f"train.initial={folder}", *MODEL)
    mesh = meshes.make(MeshConfig(fsdp=4, tensor=2))
    on_mesh = loading.initial(next_run, loading.target_of(config, mesh))
    close(on_mesh, expected)
    assert main(["export", "--model", str(folder), "--out", str(tmp_path / "hf")]) == 0
    kept = load_file(tmp_path / "hf" / "model.safetensors")
    assert kept["model.layers.0.mlp.up_proj.weight"].dtype == "float32"
    assert kept["model.embed_tokens.weight"].dtype == "bfloat16"
    from_export = toy.config(f"train.initial={tmp_path / 'hf'}", *MODEL)
    close(loading.initial(from_export, loading.target_of(config)), expected)


@pytest.mark.parametrize("lora", [ALL, SOME, QUERIES], ids=["all", "some", "queries alone"])
def test_peft_loads_the_files_onto_the_base_with_the_merged_models_logits(lora, tmp_path):
    config = torch_exports.config(num_layers=5)
    rng = np.random.default_rng(0)
    shapes = model.abstract(config, lora=lora).shapes
    tree = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    peft_files.write(tmp_path, InMemory(tree), config, lora, "some/base")
    plain = torch_exports.torch_model(config, adapters.without(tree))
    before = logits_of(plain)
    both = PeftModel.from_pretrained(plain, tmp_path)
    expected = logits_of(torch_exports.torch_model(config, jax.device_get(adapters.merged(tree, config, lora))))
    np.testing.assert_allclose(logits_of(both), expected, atol=2e-5 * np.abs(expected).max())
    assert np.abs(expected - before).max() > 0.005 * np.abs(before).max()
    np.testing.assert_allclose(logits_of(both.merge_and_unload()), expected, atol=2e-5 * np.abs(expected).max())
    # What only Q and V have is no row of K.
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    parts = len({"q", "k", "v"} & set(lora.targets))
    assert content["rank_pattern"] == ({"W_pack": parts * lora.rank} if parts > 1 else {})
    assert content["base_model_name_or_path"] == "some/base"
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert len(tensors) == 2 * len(content["target_modules"]) * len(lora.layers or range(5))
    name = "base_model.model.model.layers.1.self_attn.W_pack.lora_"
    assert tensors[f"{name}A.weight"].shape == (parts * lora.rank, 16)
    assert tensors[f"{name}B.weight"][16:24].any() == ("k" in lora.targets) and tensors[f"{name}B.weight"][:16].any()


def test_the_verb_writes_an_adapter_that_peft_loads_onto_the_exported_base(run, tmp_path, capsys):
    folder, params = run
    base, out = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    convert.export(adapters.without(params), configured(folder, ALL).model, 1e4, None, base)
    command = ["export", "--model", str(folder), "--adapter", "--base", str(base), "--out", str(out)]
    assert main(command) == 0
    both = PeftModel.from_pretrained(BaichuanM1ForCausalLM.from_pretrained(base, dtype=torch.float32), out)
    ours = np.asarray(loading.load(folder, dtype="float32")[0](TOKENS.numpy().astype(np.int32)))
    np.testing.assert_allclose(logits_of(both), ours, atol=2e-5 * np.abs(ours).max())
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    assert AutoTokenizer.from_pretrained(out).eos_token_id == 2
    assert main(command) == 0 and "already complete" in capsys.readouterr().out


def test_a_next_run_has_factors_of_its_own_seed_beside_a_frozen_model_in_its_dtype(run, tmp_path):
    assert main(["export", "--model", str(run[0]), "--out", str(tmp_path / "hf"), "--dtype", "float32"]) == 0
    for folder in (run[0], tmp_path / "hf"):
        config = configured("none", SOME, f"train.initial={folder}", "train.frozen_dtype=bfloat16")
        mesh = meshes.make(MeshConfig(), jax.devices()[:1])
        target = Trainer(config, NextToken(config, mesh), mesh).program.params
        found = loading.initial(config, target)
        assert same(jax.tree.map(lambda leaf: leaf.dtype, found), jax.tree.map(lambda leaf: leaf.dtype, target))
        assert found["embed"]["weight"].dtype == "bfloat16"
    assert same(adapters.only(found), adapters.only(jax.jit(NextToken(config, mesh).initialise)()))
    narrow = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), loading.from_run(run[0]).params)
    assert same(adapters.without(found), narrow)


def test_what_is_no_adapter_is_said(run, tmp_path, capsys):
    def refused(words, *said):
        assert main(["export", *map(str, words), "--out", str(tmp_path / "out")]) == 2
        err = " ".join(capsys.readouterr().err.split())
        assert all(word in err for word in said), err
        assert not (tmp_path / "out").exists()

    checkpoints.write(tmp_path / "other", small.config(num_layers=1), checkpoints.tensors(small.config(num_layers=1)))
    assert main(["import", "--from", str(tmp_path / "other"), "--out", str(tmp_path / "m1")]) == 0
    refused(["--model", tmp_path / "m1", "--adapter"], "has no adapter")
    refused(["--model", run[0], "--adapter"], "--base", "began from its seed")
    refused(["--model", run[0], "--base", "some/base"], "--adapter")
    refused(["--model", run[0], "--adapter", "--verify", "--base", "some/base"], "--verify")
    folder, _ = trained(tmp_path / "run", QUERIES, "train.trained=['norm']")
    refused(["--model", folder, "--adapter", "--base", "some/base"], "train.trained = ['norm']", "without --adapter")
    assert main(["export", "--model", str(folder), "--out", str(tmp_path / "hf")]) == 0
