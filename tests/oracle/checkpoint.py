"""A model of m1jax under the names of the published checkpoint, without m1jax.convert: the oracle's food.

The shapes and names are the facts' table; m1jax.convert is judged against this in test_agreement.py.
"""

import numpy as np

from m1jax import model


def settings(config, rope_base):
    """config.json of a ModelConfig, with what the oracle reads."""
    return {
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "num_swa_attention_heads": config.window_num_heads,
        "num_swa_key_value_heads": config.window_num_kv_heads,
        "sliding_window": config.window,
        "sliding_window_layers": [i for i, kind in enumerate(config.layer_kinds) if kind == "window"],
        "rope_theta": rope_base,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "normalize_head": config.normalize_head,
    }


def tensors(config, params):
    """Checkpoint tensors (numpy) of a parameter tree, or of a tree of its gradients."""
    tree = model.unrolled(config, params)[1]
    named = {"model.embed_tokens.weight": tree["embed"]["weight"], "model.norm.weight": tree["norm"]["weight"]}
    if not config.tie_embeddings:
        named["lm_head.weight"] = tree["head"]["weight"]
    for i in range(config.num_layers):
        block, at = tree["prefix"][str(i)], f"model.layers.{i}."
        attention = {name: np.asarray(leaf) for name, leaf in block["attention"].items()}
        hidden = config.hidden
        rows = [attention[f"{x}_proj"].reshape(hidden, -1).T for x in "qkv"]
        named[f"{at}input_layernorm.weight"] = block["input_norm"]["weight"]
        named[f"{at}post_attention_layernorm.weight"] = block["post_attention_norm"]["weight"]
        named[f"{at}self_attn.W_pack.weight"] = np.concatenate(rows)
        named[f"{at}self_attn.o_proj.weight"] = attention["o_proj"].reshape(-1, hidden).T
        for x in ("conv_k", "conv_v"):
            named[f"{at}self_attn.{x}"] = attention[x][None, None, :, None, :]
        for x in ("gate_proj", "up_proj", "down_proj"):
            named[f"{at}mlp.{x}.weight"] = np.asarray(block["mlp"][x]).T
    return {name: np.ascontiguousarray(leaf) for name, leaf in named.items()}


def parts(settings, named):
    """The same tensors with W_pack cut into Q, K and V, so that none hides behind a larger one."""
    out = {}
    for name, tensor in named.items():
        if name.endswith("W_pack.weight"):
            windowed = int(name.split(".")[2]) in settings["sliding_window_layers"]
            prefix = "num_swa_" if windowed else "num_"
            hidden, heads = tensor.shape[1], settings[f"{prefix}attention_heads"]
            size = settings[f"{prefix}key_value_heads"] * (hidden // heads)
            cuts = np.split(tensor, [hidden, hidden + size])
            out |= {name.replace("W_pack", f"{x}_rows"): cut for x, cut in zip("qkv", cuts, strict=True)}
        else:
            out[name] = tensor
    return out
