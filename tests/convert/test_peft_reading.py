"""A LoRA as peft saves it, merged into its model by m1jax: the logits are those of peft's own model."""

import json

import jax
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file, save_file

import m1jax
from m1jax import convert, model
from m1jax.convert.torch_model.modeling_m1 import BaichuanM1ForCausalLM
from m1jax.errors import UserError
from m1jax.verbs import main
from tests.convert import torch_exports

CONFIG = torch_exports.config(num_layers=3)
TOKENS = torch.randint(3, CONFIG.vocab_size, (2, 24), generator=torch.Generator().manual_seed(0))
SETTINGS = {
    "all": {"r": 4, "lora_alpha": 6, "target_modules": ["W_pack", "o_proj", "gate_proj", "up_proj", "down_proj"]},
    "patterns": {
        "r": 3, "lora_alpha": 9, "target_modules": ["W_pack", "down_proj"], "layers_to_transform": [0, 2],
        "layers_pattern": "layers", "rank_pattern": {"W_pack": 6}, "alpha_pattern": {"layers.2.mlp.down_proj": 1.5},
    },
    "orthogonal": {"r": 4, "lora_alpha": 2, "init_lora_weights": "orthogonal", "target_modules": ["up_proj"]},
    "rslora": {"r": 4, "lora_alpha": 2, "use_rslora": True, "target_modules": ["up_proj"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peft") / "base"
    folder.mkdir()
    tree = jax.device_get(model.create(CONFIG, 0)[1])
    convert.export(tree, CONFIG, 1e4, None, folder)
    return folder


def saved(base, folder, **settings):
    """peft's model with random factors, saved as peft does."""
    plain = BaichuanM1ForCausalLM.from_pretrained(base, dtype=torch.float32)
    both = get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in both.named_parameters():
            if "lora_" in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    both.save_pretrained(folder)
    return both


def logits_of(one):
    with torch.no_grad():
        return one.eval()(TOKENS).logits.numpy()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_merged_models_logits_are_pefts(base, tmp_path, settings):
    both = saved(base, tmp_path / "lora", **settings)
    expected = logits_of(both)
    with both.disable_adapter():
        alone = logits_of(both)
    found = np.asarray(m1jax.load(base, dtype="float32", adapter=tmp_path / "lora")[0](TOKENS.numpy()))
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    assert np.abs(expected - alone).max() > 0.005 * np.abs(alone).max()


def test_an_import_holds_the_merged_matrices_and_is_made_again_for_another_adapter(base, tmp_path, capsys):
    both = saved(base, tmp_path / "lora", **SETTINGS["all"])
    command = ["import", "--from", str(base), "--adapter", str(tmp_path / "lora"), "--out", str(tmp_path / "m1")]
    assert main([*command, "--verify"]) == 0
    assert "all are equal to the checkpoint" in capsys.readouterr().out
    expected = logits_of(both)
    found = np.asarray(m1jax.load(tmp_path / "m1", dtype="float32")[0](TOKENS.numpy()))
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    assert main([*command, "--verify"]) == 0 and "already complete" in capsys.readouterr().out
    expected = logits_of(saved(base, tmp_path / "lora", **SETTINGS["rslora"]))
    assert main([*command, "--verify"]) == 0 and "already complete" not in capsys.readouterr().out
    found = np.asarray(m1jax.load(tmp_path / "m1", dtype="float32")[0](TOKENS.numpy()))
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


WRONG = {
    "dora": ({"use_dora": True}, {}, "sets use_dora, m1jax merges a plain LoRA"),
    "pissa": ({"init_lora_weights": "pissa"}, {}, "sets init_lora_weights, m1jax merges a plain LoRA"),
    "unknown": ({"use_something_new": True}, {}, "sets use_something_new, m1jax merges a plain LoRA"),
    "bias": ({"bias": "all"}, {}, "sets bias, m1jax"),
    "pattern": ({"rank_pattern": {"(": 3}}, {}, "a rank_pattern or alpha_pattern that is no mapping"),
    "no mapping": ({"alpha_pattern": [3]}, {}, "a rank_pattern or alpha_pattern that is no mapping"),
    "no rank": ({"rank_pattern": {"up_proj": 0}}, {}, "rank 0 and alpha"),
    "kind": ({"peft_type": "IA3"}, {}, "is of the kind IA3"),
    "rank": ({"r": 0}, {}, "r = 0, which must be a number above 0"),
    "other rank": ({"r": 5}, {}, "has the shape (4, "),
    "other model": ({}, {"up_proj": "q_proj"}, "has no matrix model.layers.0.mlp.q_proj"),
    "embedding": ({}, {"lora_A.weight": "lora_embedding_A"}, "which is no factor of a LoRA"),
    "half": ({}, {"layers.0.mlp.up_proj.lora_B": ""}, "lora_B.weight is missing"),
}


@pytest.mark.parametrize(("content", "names", "sentence"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_merged_is_one_sentence(base, tmp_path, content, names, sentence):
    folder = tmp_path / "lora"
    saved(base, folder, r=4, lora_alpha=2, target_modules=["up_proj"])
    path, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    path.write_text(json.dumps({**json.loads(path.read_text()), **content}))
    tensors = load_file(weights)
    for old, new in names.items():
        tensors = {name.replace(old, new): value for name, value in tensors.items() if new or old not in name}
    save_file(tensors, weights)
    with pytest.raises(UserError) as error:
        m1jax.load(base, adapter=folder)
    assert sentence in str(error.value), str(error.value)


def test_damaged_missing_and_misplaced_adapters_are_said(base, tmp_path, capsys):
    folder = tmp_path / "lora"
    saved(base, folder, r=4, lora_alpha=2, target_modules=["up_proj"])

    def refused(*words):
        assert main([*map(str, words)]) == 2
        return " ".join(capsys.readouterr().err.split())

    command = ["import", "--from", base, "--out", tmp_path / "m1", "--adapter"]
    assert "holds no adapter_config.json" in refused(*command, tmp_path)
    assert "leave out --prompt or --adapter" in refused(*command, folder, "--verify", "--prompt", "a")
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {name: np.full_like(value, np.nan) for name, value in tensors.items()}, folder / "adapter_model.safetensors"
    )
    assert "holds NaN or infinity" in refused(*command, folder)
    (folder / "adapter_model.safetensors").write_bytes(b"half")
    assert "is damaged" in refused(*command, folder)
    (folder / "adapter_model.safetensors").unlink()
    assert "holds neither adapter_model.safetensors" in refused(*command, folder)
    assert not (tmp_path / "m1").exists()
    assert main(["import", "--from", str(base), "--out", str(tmp_path / "plain")]) == 0
    with pytest.raises(UserError, match="is a run or an import: export it first"):
        m1jax.load(tmp_path / "plain", adapter=folder)
