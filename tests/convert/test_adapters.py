"""A folder of an adapter (LoRA) is no model: the refusal says so, wherever a model is read."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import m1jax
from m1jax import loading
from m1jax.config import file as config_file
from m1jax.errors import UserError
from m1jax.verbs import main
from tests.convert import checkpoints
from tests.model import small

CONFIG = small.config(num_layers=1)
TENSOR = "base_model.model.model.layers.0.self_attn.W_pack.lora_A.weight"


@pytest.fixture(params=["alone", "with a config", "beside its model"])
def adapter(request, tmp_path):
    """As peft saves it, and as trainers leave it beside what it was trained on."""
    folder = tmp_path / "lora"
    if request.param == "beside its model":
        checkpoints.write(folder, CONFIG, checkpoints.tensors(CONFIG))
    folder.mkdir(exist_ok=True)
    if request.param == "with a config":
        (folder / "config.json").write_text(json.dumps(checkpoints.config_json(CONFIG)))
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 4, "base_model_name_or_path": "some/base"})
    )
    save_file({TENSOR: np.ones((4, 16), np.float32)}, folder / "adapter_model.safetensors")
    return folder


WORDS = r"lora holds a LORA adapter .*adapter_config\.json.* of some/base.* merge"


def test_every_reader_says_adapter(adapter, tmp_path, capsys):
    for words in (
        ["import", "--from", str(adapter), "--out", str(tmp_path / "ours")],
        ["export", "--model", str(adapter), "--out", str(tmp_path / "out")],
        ["generate", "--model", str(adapter), "--prompt", "a"],
    ):
        assert main(words) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "LORA adapter" in said and "some/base" in said and "merge" in said, said
    with pytest.raises(UserError, match=WORDS):
        m1jax.load(adapter)
    config = config_file.load("quickstart", [f"train.initial={adapter}"])
    with pytest.raises(UserError, match=WORDS):
        loading.initial(config, loading.target_of(config.model))


def test_weights_of_an_adapter_under_another_name_say_adapter(tmp_path):
    folder = checkpoints.write(tmp_path / "hf", CONFIG, checkpoints.tensors(CONFIG))
    path = folder / "model.safetensors"
    save_file(load_file(path) | {TENSOR: np.ones((4, 16), np.float32)}, path)
    with pytest.raises(UserError, match=r"holds an adapter's weights .*lora_A.* merge"):
        m1jax.load(folder)
    save_file({TENSOR: np.ones((4, 16), np.float32)}, path)
    with pytest.raises(UserError, match=r"holds an adapter's weights .*lora_A.* merge"):
        m1jax.load(folder)


def test_a_damaged_adapter_config_is_still_an_adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="holds an adapter"):
        m1jax.load(tmp_path)
