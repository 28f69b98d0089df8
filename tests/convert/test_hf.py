import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import m1jax
from m1jax import convert, model
from m1jax.errors import UserError
from tests.model import small

PATTERNS = [
    {},
    {"pattern": ("global", "window", "window"), "num_layers": 5},
    {"pattern": ("window", "global", "global", "window"), "num_layers": 3},
    {"pattern": ("global",), "num_layers": 2},
    {"num_layers": 12, "param_dtype": "bfloat16", "compute_dtype": "bfloat16"},
]


@pytest.fixture
def exported(tmp_path):
    config = small.config()
    convert.export(model.create(config, 0)[1], config, 1e5, None, tmp_path, {"eos_token_id": 2})
    return tmp_path


@pytest.mark.parametrize("changes", PATTERNS)
def test_round_trip_is_exact(changes, tmp_path):
    config = small.config(**changes)
    _, params = model.create(config, 3)
    convert.export(params, config, 12345.5, None, tmp_path)
    found, rope_base, read = convert.read(tmp_path)
    assert rope_base == 12345.5 and found.layer_kinds == config.layer_kinds
    assert model.abstract(found).shapes == model.abstract(config).shapes
    jax.tree.map(np.testing.assert_array_equal, read, params)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(read)} == {config.param_dtype} == {found.compute_dtype}
    again = tmp_path / "again"
    again.mkdir()
    convert.export(read, found, rope_base, None, again)
    assert (again / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    assert (again / "config.json").read_bytes() == (tmp_path / "config.json").read_bytes()


def test_tensors_have_the_reference_names_shapes_and_values(exported):
    tensors = load_file(exported / "model.safetensors")
    layer = {
        "input_layernorm.weight": (16,),
        "self_attn.o_proj.weight": (16, 16),
        "post_attention_layernorm.weight": (16,),
        "mlp.gate_proj.weight": (24, 16),
        "mlp.up_proj.weight": (24, 16),
        "mlp.down_proj.weight": (16, 24),
    }
    wanted = {"model.embed_tokens.weight": (260, 16), "model.norm.weight": (16,), "lm_head.weight": (260, 16)}
    for i in range(4):
        kv_heads, head_dim = ((1, 8), (2, 4))[i % 2]
        wanted |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
        wanted[f"model.layers.{i}.self_attn.W_pack.weight"] = (16 + 2 * kv_heads * head_dim, 16)
        wanted |= {f"model.layers.{i}.self_attn.conv_{x}": (1, 1, kv_heads, 1, 2) for x in "kv"}
    assert {name: tensor.shape for name, tensor in tensors.items()} == wanted

    # One product by each layout: x @ W of ours is W x of theirs, rows Q | K | V, head by head.
    _, params = model.create(small.config(), 0)
    ours = jax.tree.map(lambda leaf: np.asarray(leaf[1]), params["periods"]["1"])["attention"]
    x = np.random.default_rng(0).normal(size=16)
    packed = tensors["model.layers.3.self_attn.W_pack.weight"] @ x
    heads = [np.einsum("e,ehd->hd", x, ours[f"{name}_proj"]).ravel() for name in "qkv"]
    np.testing.assert_allclose(packed, np.concatenate(heads), rtol=1e-5)
    mixed = np.random.default_rng(1).normal(size=(4, 4))
    out = tensors["model.layers.3.self_attn.o_proj.weight"] @ mixed.ravel()
    np.testing.assert_allclose(out, np.einsum("hd,hde->e", mixed, ours["o_proj"]), rtol=1e-5)
    np.testing.assert_array_equal(tensors["model.layers.3.self_attn.conv_k"][0, 0, :, 0], ours["conv_k"])
    # NormHead as stored: not normalised.
    np.testing.assert_array_equal(tensors["lm_head.weight"], params["head"]["weight"])


def test_config_json_has_every_reference_key(exported):
    content = json.loads((exported / "config.json").read_text())
    keys = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "num_swa_attention_heads",
        "num_swa_key_value_heads",
        "sliding_window",
        "sliding_window_layers",
        "conv_window",
        "rope_theta",
        "rms_norm_eps",
        "max_position_embeddings",
        "model_max_length",
        "hidden_act",
        "initializer_range",
        "tie_word_embeddings",
        "model_type",
        "architectures",
    ]
    assert set(keys) <= set(content)
    assert content["sliding_window_layers"] == [1, 3] and content["rope_theta"] == 1e5
    assert content["architectures"] == ["BaichuanM1ForCausalLM"] and content["model_type"] == "baichuan_m1"
    assert content["eos_token_id"] == 2
    assert json.loads((exported / "generation_config.json").read_text())["eos_token_id"] == 2


def test_tokenizer_files_come_along_without_the_stamp(tmp_path):
    tokenizer, folder = tmp_path / "tokenizer", tmp_path / "export"
    for path in (tokenizer, folder):
        path.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "m1jax.json"):
        (tokenizer / name).write_text('{"model": {"vocab": {"a": 0}}}')
    config = small.config(num_layers=2)
    convert.export(model.create(config, 0)[1], config, 1e5, tokenizer, folder)
    assert {path.name for path in folder.iterdir()} == {
        "tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json", "model.safetensors",
        "configuration_m1.py", "cache_m1.py", "modeling_m1.py",
    }  # fmt: skip
    assert (folder / "tokenizer.json").read_bytes() == (tokenizer / "tokenizer.json").read_bytes()


REQUIRED = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rope_theta",
    "num_swa_attention_heads",
    "num_swa_key_value_heads",
    "sliding_window",
    "sliding_window_layers",
    "conv_window",
    "rms_norm_eps",
    "max_position_embeddings",
    "hidden_act",
    "initializer_range",
    "tie_word_embeddings",
]


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_config_key_is_named(key, exported):
    edit_config(exported, lambda content: content.pop(key))
    with pytest.raises(UserError, match=f"config.json lacks the key {key}:"):
        convert.read(exported)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_size", 16.0, "hidden_size = 16.0: it must be a positive int"),
        ("sliding_window", 0, "sliding_window = 0: it must be a positive int"),
        ("rope_theta", "high", "rope_theta = 'high'"),
        ("sliding_window_layers", [1, 4], r"sliding_window_layers = \[1, 4\]: it must list layer numbers from 0 to 3"),
        ("sliding_window_layers", None, "sliding_window_layers = None"),
        ("conv_window", 3, "conv_window = 3: m1jax reads 2 only"),
        ("hidden_act", "gelu", "hidden_act = 'gelu': m1jax reads 'silu' only"),
        ("tie_word_embeddings", "yes", "tie_word_embeddings = 'yes': it must be true or false"),
        ("normalize_head", 0, "normalize_head = 0: it must be true or false"),
        ("eos_token_id", "end", "eos_token_id = 'end': it must be a token's id"),
        ("num_attention_heads", 3, "does not divide"),
    ],
)
def test_a_bad_config_value_is_named(key, value, message, exported):
    edit_config(exported, lambda content: content.update({key: value}))
    with pytest.raises(UserError, match=message):
        m1jax.load(exported)


@pytest.mark.parametrize("text", ["{", "[]", "\x00\x01"])
def test_a_damaged_config_is_named(text, exported):
    (exported / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        convert.read(exported)


def set_tensor(name, value):
    def change(tensors):
        tensors[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.2.mlp.up_proj.weight"), r"lacks model\.layers\.2\.mlp\.up_proj\.weight:"),
        (lambda t: t.pop("lm_head.weight"), r"lacks lm_head\.weight"),
        (set_tensor("model.extra", np.ones(3, np.float32)), r"more than config\.json describes: model\.extra"),
        (
            set_tensor("model.layers.1.self_attn.W_pack.weight", np.ones((24, 16), np.float32)),
            r"model\.layers\.1\.self_attn\.W_pack\.weight has the shape \(24, 16\), config\.json asks for \(32, 16\)",
        ),
        (
            set_tensor("model.layers.0.self_attn.conv_k", np.ones((1, 2), np.float32)),
            r"conv_k has the shape \(1, 2\), config\.json asks for \(1, 1, 1, 1, 2\)",
        ),
        (set_tensor("model.norm.weight", np.ones(16, np.int32)), r"model\.norm\.weight is I32"),
        (set_tensor("model.norm.weight", np.ones(16, ml_dtypes.float8_e4m3fn)), r"model\.norm\.weight is F8_E4M3"),
    ],
)
def test_a_wrong_tensor_is_named(change, message, exported):
    path = exported / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(UserError, match=message):
        convert.read(exported)


def test_missing_and_truncated_files_are_named(exported, tmp_path):
    weights = exported / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        convert.read(exported)
    weights.unlink()
    with pytest.raises(UserError, match=r"holds neither model\.safetensors nor"):
        convert.read(exported)
    with pytest.raises(UserError, match=r"config\.json is missing"):
        convert.read(pathlib.Path(tmp_path / "nowhere"))


def test_bfloat16_keeps_every_bit(tmp_path):
    config = small.config(num_layers=1, param_dtype="bfloat16", compute_dtype="bfloat16")
    _, params = model.create(config, 0)
    bits = np.random.default_rng(0).integers(0, 2**16, (260, 16), np.uint16)
    bits[(bits & 0x7F80) == 0x7F80] = 0x8000  # no NaN, no infinity, but zeros of both signs
    params["head"]["weight"] = bits.view(ml_dtypes.bfloat16)
    convert.export(params, config, 1e5, None, tmp_path)
    assert np.array_equal(convert.read(tmp_path)[2]["head"]["weight"].view(np.uint16), bits)


def edit_config(folder, change):
    content = json.loads((folder / "config.json").read_text())
    change(content)
    (folder / "config.json").write_text(json.dumps(content))
