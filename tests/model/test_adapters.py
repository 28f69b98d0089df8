"""Low-rank factors beside a frozen model, against a dense computation that makes every W + alpha / rank · A B."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m1jax import model
from m1jax.config import LoraConfig
from m1jax.config import file as config_file
from m1jax.model import adapters, flops
from m1jax.optim import masks
from tests.model import small

CONFIG = small.config(num_layers=5, tie_embeddings=True)
LORA = LoraConfig(rank=3, alpha=6.0)
SOME = LoraConfig(rank=2, alpha=5.0, targets=("q", "v", "down"), layers=(1, 4))
INPUTS = {"q_proj": "er,rhd->ehd", "k_proj": "er,rhd->ehd", "v_proj": "er,rhd->ehd", "o_proj": "hdr,re->hde"}


def first(lora, config=CONFIG):
    return jax.jit(model.initialise, static_argnums=(0, 2))(config, jax.random.key(1), lora)


def learned(lora):
    """Factors that are not at their start: every B has values."""
    rng = np.random.default_rng(0)

    def some(path, leaf):
        is_b = str(path[-1].key) == "b" and adapters.LORA in str(path)
        return jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.float32) if is_b else leaf

    return jax.tree_util.tree_map_with_path(some, first(lora))


def dense(tree, lora):
    """The model's own parameters with each product added, a layer and a matrix at a time, by names written out here."""
    cut = model.layout(CONFIG)
    single = {name: leaf for name, leaf in tree.items() if name not in ("prefix", "periods", "suffix")}
    blocks = {}
    for layer in range(CONFIG.num_layers):
        block = model.block_of(tree, cut.path(layer))
        block = {name: dict(part) for name, part in block.items()}
        for room, matrices in (
            ("attention", ("q_proj", "k_proj", "v_proj", "o_proj")),
            ("mlp", ("gate_proj", "up_proj", "down_proj")),
        ):
            factors = block[room].pop("lora", {})
            for name in matrices:
                chosen = name.removesuffix("_proj") in lora.targets and (not lora.layers or layer in lora.layers)
                if chosen:
                    a, b = factors[name]["a"], factors[name]["b"]
                    product = jnp.einsum(INPUTS.get(name, "er,rf->ef"), a, b, precision="highest")
                    block[room][name] = block[room][name] + lora.alpha / lora.rank * product
        blocks[str(layer)] = block
    return {**single, "prefix": blocks, "periods": {}, "suffix": {}}


@functools.cache
def graph(lora=None, unrolled=False):
    cut = model.Layout(CONFIG.layer_kinds, (), 0, ()) if unrolled else None
    return model.abstract(CONFIG, cut=cut, lora=lora).graphdef


ROWS = (small.tokens(0, 2, 13),)
TARGETS, WEIGHTS = small.tokens(1, 2, 13), jnp.ones((2, 13))


def test_before_the_first_step_the_model_is_the_one_below_bit_for_bit():
    tree = first(LORA)
    with_factors = small.logits(graph(LORA), adapters.scaled(tree, CONFIG, LORA), *ROWS)
    assert np.array_equal(with_factors, small.logits(graph(), adapters.without(tree), *ROWS))
    # The model's own first parameters are those of a run without an adapter; A begins as in PEFT.
    plain = first(None)
    assert jax.tree.all(jax.tree.map(np.array_equal, adapters.without(tree), plain))
    wide = small.config(num_layers=4, hidden=64, ffn=128)
    slot = first(LoraConfig(rank=32), wide)["periods"]["1"]
    for factors, inputs in ((slot["attention"]["lora"]["o_proj"], 64), (slot["mlp"]["lora"]["down_proj"], 128)):
        assert not factors["b"].any() and factors["a"].dtype == factors["b"].dtype == "float32"
        bound = inputs**-0.5
        assert 0.99 * bound < np.abs(factors["a"]).max() <= bound
        np.testing.assert_allclose(factors["a"].std(), bound / 3**0.5, rtol=0.05)
        assert not np.array_equal(factors["a"][0], factors["a"][1])


@pytest.mark.parametrize("lora", [LORA, SOME], ids=["all", "some layers and matrices"])
def test_loss_and_gradients_of_the_factors_are_those_of_a_dense_computation(lora):
    tree = learned(lora)

    def factored(factors):
        params = adapters.scaled(masks.merge(adapters.without(tree), factors), CONFIG, lora)
        return small.loss(graph(lora), params, ROWS, TARGETS, WEIGHTS)

    def whole(factors):
        params = dense(masks.merge(adapters.without(tree), factors), lora)
        return small.loss(graph(unrolled=True), params, ROWS, TARGETS, WEIGHTS)

    (found, found_grads), (expected, expected_grads) = (
        jax.jit(jax.value_and_grad(loss))(adapters.only(tree)) for loss in (factored, whole)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for (path, leaf), other in zip(
        jax.tree_util.tree_leaves_with_path(found_grads), jax.tree.leaves(expected_grads), strict=True
    ):
        np.testing.assert_allclose(leaf, other, atol=1e-4 * np.abs(other).max() + 1e-9, err_msg=str(path))
    for path, leaf in jax.tree_util.tree_leaves_with_path(found_grads):
        names = [str(key.key) for key in path]
        layers = model.layout(CONFIG).layers_at(*names[:2])
        for layer, grad in zip(layers, leaf if names[0] == "periods" else [leaf], strict=True):
            assert bool(grad.any()) == lora.of_layer(layer), (names, layer)


def test_the_merged_model_is_the_adapters_within_rounding():
    lora = SOME
    tree = learned(lora)
    beside = small.logits(graph(lora), adapters.scaled(tree, CONFIG, lora), *ROWS)
    merged = adapters.merged(tree, CONFIG, lora)
    assert jax.tree.structure(merged) == jax.tree.structure(first(None))
    np.testing.assert_allclose(small.logits(graph(), merged, *ROWS), beside, atol=1e-4 * np.abs(beside).max())
    plain = small.logits(graph(), adapters.without(tree), *ROWS)
    assert np.abs(plain - beside).max() > 0.1 * np.abs(beside).max()
    one = model.block_of(merged, model.layout(CONFIG).path(1))["mlp"]["down_proj"]
    np.testing.assert_allclose(one, dense(tree, lora)["prefix"]["1"]["mlp"]["down_proj"], rtol=1e-4, atol=1e-5)


def test_factors_lie_on_the_axes_of_their_matrix():
    found = model.abstract(CONFIG, lora=LORA).axes["periods"]["0"]
    assert found["attention"]["lora"]["k_proj"] == {
        "a": ("layers", "embed", "rank"), "b": ("layers", "rank", "kv_heads", "head_dim")
    }  # fmt: skip
    assert found["attention"]["lora"]["o_proj"]["a"] == ("layers", "heads", "head_dim", "rank")
    assert found["mlp"]["lora"]["down_proj"] == {"a": ("layers", "ffn", "rank"), "b": ("layers", "rank", "embed")}
    shapes = adapters.only(model.abstract(CONFIG, lora=SOME).shapes)
    assert set(shapes["periods"]["1"]["attention"]["lora"]) == {"q_proj", "v_proj"}
    assert "0" not in shapes["periods"] and set(shapes) == {"periods", "suffix"}


def test_flops_of_a_frozen_model_leave_out_gradients_that_do_not_exist():
    config = small.config(num_layers=4)
    positions = np.arange(10)
    forward, full = flops.forward_flops(config, positions), flops.train_flops(config, positions)
    train = config_file.load("quickstart").train

    def count(**changes):
        return flops.train_flops(config, positions, dataclasses.replace(train, **changes))

    assert full == count() == 3 * forward
    # Two of six a scalar of each frozen matrix are left out; the factors of q are (16 + 16) · 3 a layer.
    matrices = flops.matmul_parameters(config)
    lora = LoraConfig(rank=3, targets=("q",))
    assert count(lora=lora) == full - 2 * 10 * matrices + 6 * 10 * 4 * 3 * (16 + 16)
    # Of a trained head alone everything else runs forward only.
    assert count(trained=("head",)) == forward + 2 * (2 * 260 * 16 * 10)
    upper = small.config(num_layers=2, pattern=config.layer_kinds[2:])
    head = 2 * 10 * 260 * 16
    assert count(trained=("layers/[23]", "head", "norm")) == forward + 2 * flops.forward_flops(upper, positions)
    assert count(trained=("layers/[23]",)) == forward + 2 * flops.forward_flops(upper, positions) - head
