import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from m1jax import kernels, model
from m1jax.model import decoder
from tests.model import small

ODD = {"pattern": ("global", "window", "window"), "num_layers": 5}
THREE = {"pattern": ("global", "window", "window"), "num_layers": 8}


@pytest.mark.parametrize("changes", [{}, ODD, THREE, {"param_dtype": "bfloat16"}])
def test_created_parameters_are_those_of_abstract(changes):
    config = small.config(**changes)
    graphdef, params = model.create(config, 0)
    shapes, axes = model.abstract(config)[1:]
    assert model.abstract(config).graphdef == graphdef
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    assert sum(x.size for x in jax.tree.leaves(params)) == config.num_parameters
    jax.tree.map(
        lambda shape, names: (isinstance(names, tuple) and len(names) == shape.ndim) or pytest.fail(), shapes, axes
    )
    assert axes["embed"]["weight"] == ("vocab", "embed")
    assert {str(x.dtype) for x in jax.tree.leaves(params)} == {config.param_dtype}


def test_initial_values_have_the_stated_spread():
    config = small.config(hidden=64, ffn=128, num_layers=8, init_std=0.02)
    _, params = model.create(config, 1)
    slot = params["periods"]["1"]
    for leaf, std in (
        (params["embed"]["weight"], 0.02),
        (slot["attention"]["q_proj"], 0.02),
        (slot["attention"]["o_proj"], 0.02 / 4),
        (slot["mlp"]["down_proj"], 0.02 / 4),
    ):
        assert abs(float(leaf.std()) / std - 1) < 0.05 and abs(float(leaf.mean())) < 0.1 * std
    assert np.allclose(slot["attention"]["conv_k"].sum(-1), 1) and float(slot["attention"]["conv_k"].min()) > 0
    assert np.all(slot["input_norm"]["weight"] == 1)
    layers = [leaf[n] for leaf in jax.tree.leaves(slot["mlp"]) for n in range(4)]
    assert len({float(layer.ravel()[0]) for layer in layers}) == len(layers), "two layers start alike"
    assert small.largest_difference(params, model.create(config, 1)[1]) == 0
    assert small.largest_difference(params["embed"], model.create(config, 2)[1]["embed"]) > 0


@pytest.mark.parametrize("changes", [{"num_layers": 4}, ODD, {"num_layers": 12}])
def test_scanned_layers_equal_unrolled_ones(changes):
    config = small.config(**changes)
    scanned = model.create(config, 0)
    single = model.unrolled(config, scanned[1])
    rows = (small.tokens(0, 2, 13),)
    np.testing.assert_allclose(small.hidden(*scanned, *rows), small.hidden(*single, *rows), atol=2e-5)
    # The cut changes no initial value either.
    flat = decoder.Decoder(config, rngs=nnx.Rngs(jax.random.key(0)), cut=model.Layout(config.layer_kinds, (), 0, ()))
    assert small.largest_difference(nnx.to_pure_dict(nnx.state(flat)), single[1]) < 1e-6


def test_remat_changes_no_gradient():
    graphdef, params = model.create(small.config(), 0)
    rows = small.tokens(0, 2, 11)

    @functools.partial(jax.jit, static_argnums=1)
    def gradient(params, remat):
        return jax.grad(lambda p: small.hidden(graphdef, p, rows, remat=remat)[:, 3].sum())(params)

    assert small.largest_difference(gradient(params, "none"), gradient(params, "block")) < 2e-5


def test_positions_and_rope_base_matter_and_may_be_traced():
    graphdef, params = model.create(small.config(), 0)
    row = small.tokens(0, 1, 9)
    want = small.logits(graphdef, params, row)
    np.testing.assert_allclose(small.logits(graphdef, params, row, base=jnp.float32(small.BASE)), want, atol=1e-4)
    np.testing.assert_allclose(nnx.merge(graphdef, params)(row, rope_base=small.BASE), want, atol=1e-4)
    assert small.largest_difference(small.logits(graphdef, params, row, base=100.0), want) > 1e-3
    ones, positions = jnp.ones_like(row), jnp.arange(9)[None]
    # RoPE is relative: a shift changes nothing, a stretch does.
    np.testing.assert_allclose(small.logits(graphdef, params, row, ones, positions + 50), want, atol=1e-3)
    assert small.largest_difference(small.logits(graphdef, params, row, ones, positions * 2), want) > 1e-3


def test_a_model_takes_another_attention():
    def nothing(q, k, v, layer, rows):
        return jnp.zeros_like(q)

    config = small.config()
    _, params = model.create(config, 0)
    row = small.tokens(0, 1, 9)
    blind = model.abstract(config, nothing).graphdef
    swapped = row.at[0, 2].set((row[0, 2] + 1) % 260)
    before, after = small.hidden(blind, params, row), small.hidden(blind, params, swapped)
    assert np.array_equal(before[0, 3:], after[0, 3:]) and not np.array_equal(before[0, 2], after[0, 2])
    seeing = model.abstract(config, kernels.attention).graphdef
    assert not np.allclose(small.hidden(seeing, params, row)[0, 3:], small.hidden(seeing, params, swapped)[0, 3:])
