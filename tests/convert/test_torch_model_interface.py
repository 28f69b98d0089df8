"""What users of transformers expect of a model: its options, training, saving, and errors that name the key."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from m1jax import convert
from m1jax.convert import torch_model
from m1jax.convert.torch_model.configuration_m1 import BaichuanM1Config
from m1jax.convert.torch_model.modeling_m1 import BaichuanM1ForCausalLM
from tests.convert import torch_exports as exports

TOKENS = exports.random_tokens(0, 2, 12)


@pytest.fixture
def found():
    return exports.random_model(exports.config())


def test_outputs(found):
    full = found(TOKENS, output_hidden_states=True)
    assert len(full.hidden_states) == 5 and full.hidden_states[0].equal(found.model.embed_tokens(TOKENS))
    assert full.hidden_states[-1].equal(found.model(TOKENS).last_hidden_state)
    assert found(TOKENS, logits_to_keep=1).logits.shape == (2, 1, 260)
    torch.testing.assert_close(found(TOKENS, logits_to_keep=3).logits, full.logits[:, -3:])
    kept = torch.tensor([0, 7])
    torch.testing.assert_close(found(TOKENS, logits_to_keep=kept).logits, full.logits[:, kept])
    embedded = found(inputs_embeds=found.get_input_embeddings()(TOKENS)).logits
    torch.testing.assert_close(embedded, full.logits)
    loss, logits, *_ = found(TOKENS, labels=TOKENS, return_dict=False)
    assert loss.shape == () and logits.equal(full.logits)
    assert found(TOKENS).past_key_values is not None and found.train()(TOKENS).past_key_values is None
    with pytest.raises(ValueError, match="output_attentions is not available"):
        found(TOKENS, output_attentions=True)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        found()


def test_loss_follows_the_conventions_of_transformers(found):
    logits = found(TOKENS).logits
    labels = TOKENS.clone()
    labels[0, :8] = -100
    summed = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, 260), labels[:, 1:].reshape(-1), reduction="sum"
    )
    counted = int((labels[:, 1:] != -100).sum())
    torch.testing.assert_close(found(TOKENS, labels=labels).loss, summed / counted)
    accumulated = found(TOKENS, labels=labels, num_items_in_batch=torch.tensor(50)).loss
    torch.testing.assert_close(accumulated, summed / 50)


def test_gradient_checkpointing_changes_no_gradient(found):
    def gradients():
        found.zero_grad()
        found(TOKENS, labels=TOKENS, use_cache=True).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in found.named_parameters()}

    found.train()
    expected = gradients()
    found.gradient_checkpointing_enable()
    torch.testing.assert_close(gradients(), expected)


def test_padding_takes_no_part_in_training(found):
    mask = torch.ones_like(TOKENS)
    mask[0, :5] = 0
    labels = TOKENS.masked_fill(mask == 0, -100)
    labels[0, 5] = -100  # the target of the last padding column
    states = found.get_input_embeddings()(TOKENS).detach().requires_grad_()
    found(inputs_embeds=states, attention_mask=mask, labels=labels).loss.backward()
    assert (states.grad[mask == 0] == 0).all() and (states.grad[0, 6:] != 0).any()
    assert all(parameter.grad.isfinite().all() for parameter in found.model.layers.parameters())


@pytest.mark.parametrize("head", [{}, {"tie_embeddings": True, "normalize_head": False}])
def test_what_is_saved_loads_again_here_and_there(head, tmp_path):
    found = exports.random_model(exports.config(**head))
    found.save_pretrained(tmp_path)
    again = BaichuanM1ForCausalLM.from_pretrained(tmp_path)
    assert again(TOKENS).logits.equal(found(TOKENS).logits)
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == bool(head)
    config, rope_base, parameters = convert.read(tmp_path)
    assert rope_base == exports.BASE and (config.window, config.layer_kinds) == (5, ("global", "window") * 2)
    assert (config.normalize_head, config.tie_embeddings) == (not head, bool(head))
    for name, tensor in exports.tensors(config, parameters).items():
        assert tensor.equal(found.state_dict()[name]), name


def test_what_a_file_lacks_is_drawn_and_the_rest_stays(found, tmp_path):
    found.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    missing = "model.layers.1.self_attn.conv_v"
    tensors.pop(missing)
    save_file(tensors, path, metadata={"format": "pt"})
    again = BaichuanM1ForCausalLM.from_pretrained(tmp_path).state_dict()
    torch.testing.assert_close(again.pop(missing).sum(dim=-1), torch.ones(1, 1, 2, 1))
    assert all(tensor.equal(tensors[name]) for name, tensor in again.items())


def test_the_vocabulary_can_grow(found):
    found.resize_token_embeddings(300)
    logits = found(TOKENS).logits
    assert logits.shape == (2, 12, 300)
    lengths = found.lm_head.weight.norm(dim=-1)
    torch.testing.assert_close(logits, found.model(TOKENS).last_hidden_state @ (found.lm_head.weight.T / lengths))


def test_config_holds_the_keys_of_the_checkpoint_and_names_what_is_missing(tmp_path):
    config = exports.torch_config(exports.config())
    config.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["rope_theta"] == exports.BASE and content["model_type"] == "baichuan_m1"
    assert (content["bos_token_id"], content["eos_token_id"], content["pad_token_id"]) == (1, 2, 0)
    required = [
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "num_swa_attention_heads", "num_swa_key_value_heads", "sliding_window",
        "sliding_window_layers", "rope_theta", "rms_norm_eps", "max_position_embeddings",
    ]  # fmt: skip
    for key in required:
        with pytest.raises(ValueError, match=f"lacks {key}:"):
            BaichuanM1Config(**{name: content[name] for name in required if name != key})
    for change, message in (
        ({"conv_window": 3}, "conv_window = 3"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"sliding_window_layers": [4]}, r"sliding_window_layers = \[4\]: they must lie from 0 to 3"),
        ({"num_attention_heads": 3}, "num_attention_heads = 3: hidden_size 16"),
        ({"num_swa_key_value_heads": 3}, "num_swa_key_value_heads = 3 must divide"),
    ):
        with pytest.raises(ValueError, match=message):
            BaichuanM1Config(**{name: content[name] for name in required} | change)


def test_the_files_import_nothing_of_m1jax(tmp_path):
    torch_model.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(torch_model.FILES)
    assert {target.split(".")[0] + ".py" for target in torch_model.AUTO_MAP.values()} <= set(torch_model.FILES)
    for path in tmp_path.iterdir():
        lines = [line for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]
        assert all(line.split()[1].split(".")[0] in ("", "typing", "torch", "transformers") for line in lines)


def test_rotary_angles_are_those_of_float64():
    from m1jax.convert.torch_model.modeling_m1 import rotary

    positions = torch.tensor([[0, 1, 1000, 32767]])
    cos, sin = rotary(positions, 8, 1e6)
    angles = positions.double()[0, :, None] * 1e6 ** (-torch.arange(0, 8, 2).double() / 8)
    np.testing.assert_allclose(cos[0, 0], angles.cos(), atol=4e-3)
    np.testing.assert_allclose(sin[0, 0], angles.sin(), atol=4e-3)
