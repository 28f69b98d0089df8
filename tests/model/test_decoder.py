import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from m1jax import kernels, model
from m1jax.config import ModelConfig
from m1jax.model import decoder
from tests.model import dense, small

ODD = {"pattern": ("global", "window", "window"), "num_layers": 5}
THREE = {"pattern": ("global", "window", "window"), "num_layers": 8}


def test_the_14b_has_its_published_parameter_count():
    config = ModelConfig(
        vocab_size=133120, hidden=5120, ffn=17408, num_layers=40, num_heads=20, num_kv_heads=2, window_num_heads=40,
        window_num_kv_heads=8, window=8192, norm_eps=1e-6, init_std=0.02, max_positions=32768,
    )  # fmt: skip
    shapes = model.abstract(config).shapes
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 14_470_764_320 == config.num_parameters
    assert shapes["periods"]["1"]["attention"]["k_proj"].shape == (20, 5120, 8, 128)


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


def packed(S, boundary):
    segments = np.where(np.arange(S) < boundary, 1, 2).astype(np.int32)[None]
    return segments, np.where(segments == 1, np.arange(S), np.arange(S) - boundary).astype(np.int32)


@pytest.mark.parametrize("boundary", [1, 3, 4, 5, 6, 127, 128, 129])
def test_no_gradient_crosses_a_document_boundary(boundary):
    """Boundaries at every offset around the window's edge (5) and the query block's (128)."""
    S = 136 if boundary > 100 else 12
    config = small.config()
    graphdef, params = model.create(config, 0)
    segments, positions = packed(S, boundary)

    @jax.jit
    def second_loss(embeddings, segments, positions):
        place = decoder.Place(segments, positions, small.BASE)
        states = nnx.merge(graphdef, params).run(embeddings, place)
        log_p = model.log_likelihood(states, params["head"]["weight"], small.tokens(1, 1, S), chunk=64)
        return jnp.sum(log_p * (segments == 2))

    embeddings = jax.random.normal(jax.random.key(0), (1, S, config.hidden))
    gradient = np.asarray(jax.grad(second_loss)(embeddings, segments, positions))
    assert np.all(gradient[0, :boundary] == 0)
    assert np.all(np.abs(gradient[0, boundary:]).sum(-1) > 0)


@pytest.mark.parametrize("changes", [{}, ODD])
def test_packed_documents_give_the_logits_of_separate_ones(changes):
    graphdef, params = model.create(small.config(**changes), 0)
    lengths = (7, 1, 9, 3)
    documents = [small.tokens(i, 1, n) for i, n in enumerate(lengths)]
    padding = jnp.zeros((1, 4), jnp.int32)
    row = jnp.concatenate([*documents, padding], axis=1)
    segments = jnp.asarray(np.repeat([1, 2, 3, 4, 0], (*lengths, 4))[None], jnp.int32)
    got = small.logits(graphdef, params, row, segments)[0]
    start = 0
    for document, length in zip(documents, lengths, strict=True):
        alone = small.logits(graphdef, params, document)[0]
        np.testing.assert_allclose(got[start : start + length], alone, atol=5e-5)
        start += length
    assert np.all(np.isfinite(got))


def test_padding_on_either_side_changes_no_logit():
    graphdef, params = model.create(small.config(), 0)
    row = small.tokens(0, 1, 9)
    want = small.logits(graphdef, params, row)[0]
    for left, right in ((3, 0), (0, 6), (140, 2)):
        padded = jnp.pad(row, ((0, 0), (left, right)), constant_values=7)
        segments = jnp.pad(jnp.ones_like(row), ((0, 0), (left, right)))
        got = small.logits(graphdef, params, padded, segments)[0, left : left + 9]
        np.testing.assert_allclose(got, want, atol=5e-5)


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


def test_bfloat16_computes_near_float32():
    config = small.config(init_std=0.1)
    graphdef, params = model.create(config, 0)
    narrow = model.abstract(small.config(init_std=0.1, compute_dtype="bfloat16")).graphdef
    rows = (small.tokens(0, 2, 20),)
    assert small.hidden(narrow, params, *rows).dtype == jnp.bfloat16
    got, want = small.logits(narrow, params, *rows), small.logits(graphdef, params, *rows)
    assert got.dtype == jnp.float32
    # Four layers of eight-bit mantissas: a few hundredths of logits that reach about 3.
    assert 0 < small.largest_difference(got, want) < 0.1
    gradient = jax.jit(jax.grad(lambda p: small.loss(narrow, p, rows, rows[0], jnp.ones((2, 20)))))(params)
    exact = jax.jit(jax.grad(lambda p: small.loss(graphdef, p, rows, rows[0], jnp.ones((2, 20)))))(params)
    for ours, true in zip(jax.tree.leaves(gradient), jax.tree.leaves(exact), strict=True):
        assert ours.dtype == jnp.float32 and float(jnp.linalg.norm(ours - true)) < 0.05 * float(jnp.linalg.norm(true))


@pytest.mark.parametrize("changes", [{}, ODD, {"window_num_heads": 8, "window_num_kv_heads": 1, "window": 2}])
def test_logits_loss_and_every_gradient_equal_a_dense_float64_model(changes):
    config = small.config(**changes)
    graphdef, params = model.create(config, 0)
    single = model.unrolled(config, params)[1]
    tokens, targets = np.asarray(small.tokens(0, 2, 12)), np.asarray(small.tokens(1, 2, 12))
    segments = np.array([[1] * 5 + [2] * 7, [3] * 10 + [0] * 2], np.int32)
    weights = (segments > 0).astype(np.float32)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), single)
        want = dense.logits(config, wide, tokens, segments, small.BASE)
        loss, gradient = jax.value_and_grad(dense.loss, argnums=1)(
            config, wide, tokens, segments, small.BASE, targets, weights
        )
    real = segments > 0
    got = np.asarray(small.logits(graphdef, params, tokens, segments))
    np.testing.assert_allclose(got[real], np.asarray(want)[real], atol=1e-4)
    ours, ours_gradient = jax.jit(
        jax.value_and_grad(lambda p: small.loss(graphdef, p, (tokens, segments), targets, weights))
    )(params)
    np.testing.assert_allclose(ours, loss, rtol=1e-5)
    for (path, leaf), true in zip(
        jax.tree_util.tree_leaves_with_path(model.unrolled(config, ours_gradient)[1]),
        jax.tree.leaves(gradient),
        strict=True,
    ):
        distance = np.linalg.norm(np.asarray(leaf) - np.asarray(true)) / np.linalg.norm(np.asarray(true))
        assert distance < 1e-4, jax.tree_util.keystr(path)


def test_a_model_takes_another_attention():
    def nothing(q, k, v, **_):
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
