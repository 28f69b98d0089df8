"""Keys of config.json that change what a model computes: read, or refused by name."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import m1jax
from m1jax import convert, model
from m1jax.convert import agreement, config_json, reading
from m1jax.convert.torch_model.configuration_m1 import BaichuanM1Config
from m1jax.errors import UserError
from m1jax.verbs import main
from tests.convert import checkpoints
from tests.model import small

CONFIG = small.config()
BASE = 1e4


@pytest.fixture
def folder(tmp_path):
    return checkpoints.write(tmp_path / "hf", CONFIG, checkpoints.tensors(CONFIG))


def edit(folder, **keys):
    """Sets keys; the value `...` takes one out."""
    path = folder / "config.json"
    content = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


REFUSED = {
    "rope_scaling": [
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        {"type": "linear", "factor": 2.0},
        {"rope_type": "default", "factor": 2.0},
        {"factor": 2.0},
        "linear",
    ],
    "rope_parameters": [
        {"rope_type": "llama3", "rope_theta": BASE, "factor": 8.0},
        {"rope_type": "default", "rope_theta": BASE, "partial_rotary_factor": 0.5},
        {"full_attention": {"rope_type": "linear", "rope_theta": BASE, "factor": 2.0}},
    ],
    "attention_bias": [True],
    "mlp_bias": [True],
    "qk_layernorm": [True],
    "partial_rotary_factor": [0.5],
    "rope_interleaved": [True],
    "logit_scale": [0.0625],
    "logits_scaling": [8.0],
    "embedding_multiplier": [12.0],
    "final_logit_softcapping": [30.0],
    "quantization_config": [{"quant_method": "gptq", "bits": 4}],
    "num_experts": [8],
    "is_encoder_decoder": [True],
    "hidden_activation": ["gelu_pytorch_tanh"],
    "a_key_of_next_year": [1, False, "yes"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in REFUSED.items() for value in values])
def test_a_key_without_code_is_refused_by_name(key, value, folder):
    edit(folder, **{key: value})
    with pytest.raises(UserError, match=rf"config\.json says {key}.* = .*{_first_word(value)}"):
        config_json.read(folder)


def _first_word(value):
    return next(iter(value)).removesuffix("full_attention") if isinstance(value, dict) else str(value)


HARMLESS = {
    "rope_scaling": [None, {"rope_type": "default"}, {"type": "default", "rope_theta": BASE}],
    "attention_bias": [False, None],
    "attention_dropout": [0.1],
    "use_mrope": [False],
    "head_dim": [8],
    "layer_types": [["full_attention", "sliding_attention"] * 2],
    "use_sliding_window": [True],
    "original_max_position_embeddings": [256],
    "partial_rotary_factor": [1.0],
    "logit_scale": [1, 1.0],
    "final_logit_softcapping": [None],
    "pretraining_tp": [1],
    "transformers_version": ["5.23.0"],
    "dtype": ["bfloat16"],
    "temperature": [0.6],
    "tokenizer_class": ["BaichuanTokenizer"],
    "z_loss_weight": [0],
    "a_key_of_next_year": [None],
    "_attn_implementation": ["sdpa"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in HARMLESS.items() for value in values])
def test_what_says_what_m1jax_computes_is_read(key, value, folder):
    plain = config_json.read(folder)
    edit(folder, **{key: value})
    assert config_json.read(folder) == plain


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("nested", [False, True])
def test_the_base_of_rope_is_read_where_transformers_5_writes_it(key, nested, folder):
    inner = {"rope_type": "default", "rope_theta": 5e5}
    both = {"full_attention": inner, "sliding_attention": inner}
    edit(folder, rope_theta=..., **{key: both if nested else inner})
    assert config_json.read(folder)[1] == 5e5


CONFLICTS = {
    "two bases": ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope_theta = 10000.0", "500000.0"),
    "bases by layer kind": (
        {
            "rope_theta": ...,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 5e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        "500000.0",
        "10000.0",
    ),
    "head_dim": ({"head_dim": 16}, "head_dim = 16", "num_attention_heads = 2 gives 8"),
    "layer_types": (
        {"layer_types": ["full_attention"] * 4},
        "layer_types = ['full_attention', 'full_attention', 'full_attention', 'full_attention']",
        "sliding_window_layers = [1, 3]",
    ),
    "no windows": ({"use_sliding_window": False}, "use_sliding_window = False", "sliding_window_layers = [1, 3]"),
    "stretched": ({"original_max_position_embeddings": 64}, "= 64", "max_position_embeddings = 256"),
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_a_conflict_is_refused_with_both_values(name, folder):
    keys, one, other = CONFLICTS[name]
    edit(folder, **keys)
    with pytest.raises(UserError) as error:
        m1jax.load(folder)
    assert one in str(error.value) and other in str(error.value) and "config.json" in str(error.value)


def add(folder, **tensors):
    path = folder / "model.safetensors"
    save_file(load_file(path) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}, path)


def frequencies(head_dim, base, dtype=np.float32):
    return (base ** (-np.arange(0, head_dim, 2) / head_dim)).astype(dtype)


BUFFERS = {
    "model__layers__0__self_attn__rotary_emb__inv_freq": frequencies(8, BASE),
    "model__layers__1__self_attn__rotary_emb__inv_freq": frequencies(4, BASE, np.float16),
    "model__rotary_emb__inv_freq": frequencies(8, BASE),
    "model__layers__2__self_attn__rotary_emb__cos_cached": np.ones((1, 1, 9, 8), np.float32),
    "model__layers__2__self_attn__masked_bias": np.array(-1e4, np.float32),
    "model__position_ids": np.arange(9)[None],
}


def test_buffers_that_follow_from_the_config_are_skipped_and_said(folder, tmp_path, capsys, caplog):
    add(folder, **BUFFERS)
    assert main(["import", "--from", str(folder), "--out", str(tmp_path / "ours"), "--verify"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "6 tensors that m1jax computes itself were left out: model.layers.0.self_attn.rotary_emb.inv_freq" in printed
    assert "44 tensors" not in printed and "39 tensors read back" in printed
    reading.tree(folder)
    assert "were left out: model.layers.0.self_attn.rotary_emb.inv_freq" in caplog.text


@pytest.mark.parametrize("change", ["buffers", "rope_parameters"])
def test_logits_are_compared_where_mlx_cannot_load_the_folder(change, tmp_path):
    """Its model knows neither buffers nor transformers 5's place of the base: our PyTorch model is asked."""
    config = small.config(num_layers=2)
    convert.export(model.create(config, 0)[1], config, BASE, None, tmp_path)
    if change == "buffers":
        add(tmp_path, **{name: tensor for name, tensor in BUFFERS.items() if name.endswith("inv_freq")})
    else:
        edit(tmp_path, rope_theta=..., rope_parameters={"rope_type": "default", "rope_theta": BASE})
    found = agreement.compare_logits(tmp_path, config, [[5, 6, 7]], m1jax.load(tmp_path, dtype="float32")[0])
    assert found["agrees"] and found["program"].startswith("The PyTorch model")


@pytest.mark.parametrize(("scale", "base"), [(0.5, BASE), (1.0, 3e4)])
def test_frequencies_that_the_config_does_not_give_are_refused(scale, base, folder):
    """A checkpoint whose rotary positions were scaled, in the weights' buffers only."""
    add(folder, model__layers__3__self_attn__rotary_emb__inv_freq=np.float32(scale) * frequencies(4, base))
    with pytest.raises(UserError, match=r"layers\.3\.self_attn\.rotary_emb\.inv_freq .* rope_theta = 10000"):
        m1jax.load(folder)


def test_a_tensor_that_could_matter_is_still_refused(folder):
    add(folder, model__layers__0__self_attn__W_pack__bias=np.zeros(32, np.float32))
    with pytest.raises(UserError, match=r"more than config\.json describes: model\.layers\.0\.self_attn\.W_pack\.bias"):
        m1jax.load(folder)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope_theta = 10000.0"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"head_dim": 16}, "head_dim = 16"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": BASE}, "head_dim": 8, "rope_scaling": None}, None),
        ({"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": BASE}}, None),
    ],
)
def test_the_exported_pytorch_model_refuses_the_same(keys, said):
    content = checkpoints.config_json(CONFIG) | keys
    if said is None:
        assert BaichuanM1Config(**content).rope_theta == BASE
    else:
        with pytest.raises(ValueError, match=said):
            BaichuanM1Config(**content)
