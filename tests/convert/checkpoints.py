"""Random checkpoints in the reference layout, spelled out from the facts: nothing of m1jax.convert makes them."""

import json

import ml_dtypes
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

BF16 = np.dtype(ml_dtypes.bfloat16)
F32 = np.dtype(np.float32)


def shapes(config):
    E, F, V = config.hidden, config.ffn, config.vocab_size
    found = {"model.embed_tokens.weight": (V, E), "model.norm.weight": (E,)}
    if not config.tie_embeddings:
        found["lm_head.weight"] = (V, E)
    for i, kind in enumerate(config.layer_kinds):
        window = kind == "window"
        heads = config.window_num_heads if window else config.num_heads
        kv_heads = config.window_num_kv_heads if window else config.num_kv_heads
        head_dim = E // heads
        layer = {
            "input_layernorm.weight": (E,),
            "self_attn.W_pack.weight": ((heads + 2 * kv_heads) * head_dim, E),
            "self_attn.o_proj.weight": (E, E),
            "self_attn.conv_k": (1, 1, kv_heads, 1, 2),
            "self_attn.conv_v": (1, 1, kv_heads, 1, 2),
            "post_attention_layernorm.weight": (E,),
            "mlp.gate_proj.weight": (F, E),
            "mlp.up_proj.weight": (F, E),
            "mlp.down_proj.weight": (E, F),
        }
        found |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return found


def numbers(shape, dtype, rng):
    """Any bits that are a finite number: zeros of both signs, subnormals and huge ones among them."""
    kind, exponent = {2: (np.uint16, 0x7F80), 4: (np.uint32, 0x7F800000)}[dtype.itemsize]
    bits = rng.integers(0, np.iinfo(kind).max, shape, kind, endpoint=True)
    bits[(bits & exponent) == exponent] &= kind(np.iinfo(kind).max ^ exponent)
    return bits.view(dtype)


def tensors(config, dtype_of=lambda name: F32, seed=0):
    rng = np.random.default_rng(seed)
    return {name: numbers(shape, dtype_of(name), rng) for name, shape in shapes(config).items()}


def config_json(config, **changes):
    content = {
        "architectures": ["BaichuanM1ForCausalLM"], "model_type": "baichuan_m1",
        "vocab_size": config.vocab_size, "hidden_size": config.hidden, "intermediate_size": config.ffn,
        "num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads, "num_swa_attention_heads": config.window_num_heads,
        "num_swa_key_value_heads": config.window_num_kv_heads, "sliding_window": config.window,
        "sliding_window_layers": [i for i, kind in enumerate(config.layer_kinds) if kind == "window"],
        "conv_window": 2, "rope_theta": 10000.0, "rms_norm_eps": config.norm_eps, "hidden_act": "silu",
        "max_position_embeddings": config.max_positions, "model_max_length": config.max_positions,
        "initializer_range": config.init_std, "tie_word_embeddings": config.tie_embeddings, "eos_token_id": [2, 3],
    }  # fmt: skip
    if not config.normalize_head:
        content["normalize_head"] = False
    return content | changes


def split(found, files):
    """The tensors dealt to so many files, as {file name: tensors}."""
    names = sorted(found)
    return {
        f"model-{i + 1:05}-of-{files:05}.safetensors": {name: found[name] for name in names[i::files]}
        for i in range(files)
    }


def write(folder, config, found, files=1):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_json(config)))
    if files == 1:
        save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    shards = split(found, files)
    for name, shard in shards.items():
        save_file(shard, folder / name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, shard in shards.items() for name in shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def read(folder):
    """Every tensor of a folder's safetensors files, by the library alone."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118
                assert name not in found
                found[name] = file.get_tensor(name)
    return found


def same_bits(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert found[name].tobytes() == tensor.tobytes(), name
