"""Tiny models of random shapes, on both sides: m1jax parameters and the PyTorch model that an export carries.

The tensors are renamed here from the facts alone, so that a fault of `m1jax.convert.table` cannot hide.
"""

import math

import jax
import numpy as np
import torch
from hypothesis import strategies as st

from m1jax import model
from m1jax.config import ModelConfig
from m1jax.convert.torch_model.configuration_m1 import BaichuanM1Config
from m1jax.convert.torch_model.modeling_m1 import BaichuanM1ForCausalLM

BASE = 1e4


@st.composite
def configs(draw):
    """Any head counts (group 1, 5 and 10, one KV head), any pattern, windows from 1 up."""
    shapes = st.tuples(st.sampled_from([1, 2]), st.sampled_from([1, 5, 10]))
    (kv_heads, group), (window_kv_heads, window_group) = draw(shapes), draw(shapes)
    heads, window_heads = kv_heads * group, window_kv_heads * window_group
    hidden = 2 * math.lcm(heads, window_heads)
    hidden *= -(-16 // hidden)
    pattern = draw(st.lists(st.sampled_from(["global", "window"]), min_size=1, max_size=3).map(tuple))
    return config(
        hidden=hidden, num_heads=heads, num_kv_heads=kv_heads, window_num_heads=window_heads,
        window_num_kv_heads=window_kv_heads, pattern=pattern, num_layers=len(pattern),
        window=draw(st.sampled_from([1, 2, 5, 40])), normalize_head=draw(st.booleans()),
        tie_embeddings=draw(st.booleans()),
    )  # fmt: skip


def config(**changes):
    fields = {
        "vocab_size": 260, "hidden": 16, "ffn": 24, "num_layers": 4, "num_heads": 2, "num_kv_heads": 1,
        "window_num_heads": 4, "window_num_kv_heads": 2, "window": 5, "norm_eps": 1e-6, "init_std": 0.3,
        "max_positions": 256,
    }  # fmt: skip
    return ModelConfig(**(fields | changes))


def parameters(config, seed):
    """A random m1jax parameter tree, float32: norms other than 1, convolutions that do not sum to 1."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = "/".join(str(key.key) for key in path)
        centre, std = (1.0, 0.3) if "norm" in name else (0.5, 0.3) if "conv" in name else (0.0, config.init_std)
        return rng.normal(centre, std, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, model.abstract(config).shapes)


def torch_config(config, **changes):
    kinds = config.layer_kinds
    fields = {
        "vocab_size": config.vocab_size, "hidden_size": config.hidden, "intermediate_size": config.ffn,
        "num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads, "num_swa_attention_heads": config.window_num_heads,
        "num_swa_key_value_heads": config.window_num_kv_heads, "sliding_window": config.window,
        "sliding_window_layers": [i for i, kind in enumerate(kinds) if kind == "window"], "rope_theta": BASE,
        "rms_norm_eps": config.norm_eps, "max_position_embeddings": config.max_positions,
        "initializer_range": config.init_std, "normalize_head": config.normalize_head,
        "tie_word_embeddings": config.tie_embeddings, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    return BaichuanM1Config(**(fields | changes))


def tensors(config, parameters):
    """Tensors by the names of the reference checkpoint, from an m1jax parameter tree (or its gradients)."""
    named = {
        "model.embed_tokens.weight": parameters["embed"]["weight"],
        "model.norm.weight": parameters["norm"]["weight"],
    }
    if not config.tie_embeddings:
        named["lm_head.weight"] = parameters["head"]["weight"]
    cut = model.layout(config)
    for i in range(config.num_layers):
        block = jax.tree.map(np.asarray, model.block_of(parameters, cut.path(i)))
        attention, mlp, E = block["attention"], block["mlp"], config.hidden
        rows = [attention[f"{name}_proj"].reshape(E, -1).T for name in "qkv"]
        layer = {
            "input_layernorm.weight": block["input_norm"]["weight"],
            "post_attention_layernorm.weight": block["post_attention_norm"]["weight"],
            "self_attn.W_pack.weight": np.concatenate(rows),
            "self_attn.o_proj.weight": attention["o_proj"].reshape(-1, E).T,
            "self_attn.conv_k": attention["conv_k"][None, None, :, None],
            "self_attn.conv_v": attention["conv_v"][None, None, :, None],
            **{f"mlp.{name}.weight": mlp[name].T for name in ("gate_proj", "up_proj", "down_proj")},
        }
        named |= {f"model.layers.{i}.{name}": tensor for name, tensor in layer.items()}
    return {name: torch.tensor(np.asarray(tensor, np.float32)) for name, tensor in named.items()}


def torch_model(config, parameters, dtype=torch.float32):
    """The PyTorch model with m1jax's parameters, ready to answer."""
    found = BaichuanM1ForCausalLM(torch_config(config))
    missing, extra = found.load_state_dict(tensors(config, parameters), strict=False)
    assert not extra and set(missing) <= ({"lm_head.weight"} if config.tie_embeddings else set())
    found.tie_weights()
    return found.to(dtype).eval()


def random_model(config, seed=0):
    """A PyTorch model whose parameters are all random: norms too, and convolutions that do not sum to 1."""
    torch.manual_seed(seed)
    found = BaichuanM1ForCausalLM(torch_config(config)).eval()
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "norm" in name or "conv" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    return found


def random_tokens(seed, *shape):
    """None of the special ones, from which `generate` would infer padding."""
    return torch.randint(3, 260, shape, generator=torch.Generator().manual_seed(seed))


def assert_close(found, expected, tolerance=1e-4):
    """Within a share of the largest expected value."""
    assert found.shape == expected.shape
    difference = (found - expected).abs().max().item() / max(expected.abs().max().item(), 1e-30)
    assert difference <= tolerance, difference
