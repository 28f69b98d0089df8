"""The PyTorch model that an export carries computes what m1jax computes."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax import model
from m1jax.convert.torch_model.modeling_m1 import BaichuanM1ForCausalLM
from m1jax.generate.engine import LanguageModel
from tests.convert import torch_exports as exports
from tests.model import small

ROWS, LENGTH = 2, 23


def tokens_and_documents(seed, documents):
    """(B, S) tokens and m1jax segment ids: up to `documents` documents a row, padding at the end of the second row."""
    rng = np.random.default_rng(seed)
    starts = rng.random((ROWS, LENGTH)) < (documents - 1) / LENGTH
    starts[:, 0] = True
    segments = starts.cumsum(axis=1)
    if documents > 1:
        segments[1, -4:] = 0
    return rng.integers(0, 260, (ROWS, LENGTH)), segments


@pytest.mark.slow
@given(exports.configs(), st.integers(0, 99), st.sampled_from([1, 4]))
@settings(max_examples=6, deadline=None, derandomize=True)
def test_logits_of_any_architecture(config, seed, documents):
    parameters = exports.parameters(config, seed)
    tokens, segments = tokens_and_documents(seed, documents)
    positions = np.array(model.decoder.document_positions(jnp.asarray(segments)))
    graphdef = model.abstract(config).graphdef
    expected = np.array(
        small.logits(graphdef, parameters, jnp.asarray(tokens), jnp.asarray(segments), base=exports.BASE)
    )
    found = exports.torch_model(config, parameters)
    with torch.no_grad():
        if documents == 1:
            logits = found(torch.tensor(tokens)).logits
        else:
            mask, position_ids = torch.tensor(segments > 0).long(), torch.tensor(positions).long()
            logits = found(torch.tensor(tokens), attention_mask=mask, position_ids=position_ids).logits
    real = torch.tensor(segments > 0)
    assert logits.dtype == torch.float32
    exports.assert_close(logits[real], torch.tensor(expected)[real])


@pytest.mark.parametrize("head", [{}, {"tie_embeddings": True, "normalize_head": False}])
def test_loss_and_every_gradient(head):
    config = exports.config(num_layers=2, **head)
    parameters = exports.parameters(config, 1)
    tokens, _ = tokens_and_documents(0, 1)
    graphdef = model.abstract(config).graphdef
    counted = np.ones((ROWS, LENGTH), np.float32)
    counted[:, -1] = 0.0  # no next token
    counted[0, :5] = 0.0

    @jax.jit
    def mean_loss(parameters):
        decoder = nnx.merge(graphdef, parameters)
        hidden = decoder.hidden(jnp.asarray(tokens), rope_base=exports.BASE)
        targets = jnp.roll(jnp.asarray(tokens), -1, axis=1)
        return decoder.cross_entropy(hidden, targets, jnp.asarray(counted), chunk=64).loss / counted.sum()

    expected, gradients = jax.value_and_grad(mean_loss)(parameters)
    found = exports.torch_model(config, parameters).train()
    labels = torch.tensor(tokens)
    labels[0, :6] = -100  # the loss shifts labels: label t is the target of token t-1
    loss = found(torch.tensor(tokens), labels=labels).loss
    assert abs(loss.item() - float(expected)) < 1e-5 * float(expected)
    loss.backward()
    expected_gradients = exports.tensors(config, gradients)
    for name, parameter in found.named_parameters():
        exports.assert_close(parameter.grad, expected_gradients.pop(name))
    assert not expected_gradients


def test_bfloat16_is_as_near_to_float32_as_m1jax():
    """Both round each product, norm and residual to 8 bits of mantissa, at the same places: neither lies farther off.

    About ten roundings a layer of relative size 2^-9 add up, over 2 layers, to sqrt(20) 2^-9 = 0.9% of the logits' root
    mean square, and layers amplify it: twice that passes.
    """
    config = exports.config(num_layers=2)
    parameters = exports.parameters(config, 2)
    halves = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), parameters)
    exact = jax.tree.map(lambda leaf: leaf.astype(np.float32), halves)
    tokens, _ = tokens_and_documents(1, 1)
    half = exports.config(num_layers=2, param_dtype="bfloat16", compute_dtype="bfloat16")
    ours = np.array(small.logits(model.abstract(half).graphdef, halves, jnp.asarray(tokens), base=exports.BASE))
    truth = np.array(small.logits(model.abstract(config).graphdef, exact, jnp.asarray(tokens), base=exports.BASE))
    with torch.no_grad():
        theirs = exports.torch_model(half, halves, torch.bfloat16)(torch.tensor(tokens)).logits.numpy()

    def distance(a, b):
        return np.sqrt(np.mean((a - b) ** 2) / np.mean(truth**2))

    assert distance(theirs, ours) < 0.018
    assert distance(theirs, truth) < 1.2 * distance(ours, truth)


def test_greedy_tokens_past_the_window():
    config = exports.config(pattern=("window", "window", "global"), num_layers=3)
    parameters = exports.parameters(config, 3)
    prompts = [list(range(40, 53)), [7, 8, 9], [100]]
    ours = LanguageModel(config, exports.BASE, parameters).generate(prompts, max_new_tokens=64)
    found = exports.torch_model(config, parameters)
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    settings = {"max_new_tokens": 64, "do_sample": False, "eos_token_id": None}
    theirs = found.generate(padded, attention_mask=mask, **settings)
    assert theirs[:, longest:].tolist() == ours
    alone = found.generate(torch.tensor(prompts[:1]), **settings)
    assert alone[0, longest:].tolist() == ours[0]


def test_initial_weights_are_those_of_the_paper():
    torch.manual_seed(0)
    config = exports.config(num_layers=2, hidden=128, ffn=96, init_std=0.02)
    found = BaichuanM1ForCausalLM(exports.torch_config(config))
    for name, parameter in found.named_parameters():
        if "norm" in name:
            assert (parameter == 1).all()
        elif "conv" in name:
            torch.testing.assert_close(parameter.sum(dim=-1), torch.ones_like(parameter[..., 0]))
            assert (parameter > 0).all()
        else:
            assert abs(parameter.std().item() - 0.02) < 0.002 and abs(parameter.mean().item()) < 0.002
