"""The compiled step: what it keeps, what it gives back, and that it gives the same however it is cut."""

import functools

import jax
import numpy as np
import optax
import pytest

from m1jax import objectives
from m1jax.config import MeshConfig
from m1jax.parallel import mesh as meshes
from m1jax.parallel import rules
from tests.parallel import toy

BATCHES = [toy.batch(seed) for seed in range(3)]
TALKS_TO_HOST = ("callback", "infeed", "outfeed", "SendToHost", "RecvFromHost")


def single():
    return meshes.make(MeshConfig(), jax.devices()[:1])


@functools.cache
def trained(*overrides, **sizes):
    """Losses and norms of three steps, and the parameters after them."""
    mesh = meshes.make(MeshConfig(**sizes), jax.devices()) if sizes else single()
    run = toy.config(*overrides)
    built = toy.program(run, mesh)
    found, state = toy.steps(built, toy.state(built, run), BATCHES)
    return found, jax.device_get(state.params)


def assert_same(found, expected, rtol=2e-5):
    np.testing.assert_allclose(found[0], expected[0], rtol=rtol)
    for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        # Adam divides by the gradient's own size: an entry near zero may take the step of another sign.
        assert np.mean(np.abs(a - b) > 2e-4) < 1e-3


@pytest.mark.parametrize("parts", [2, 8])
def test_accumulation_is_exact_per_token(parts):
    # The rows have different numbers of targets: a mean of means would differ in the second digit.
    counts = BATCHES[0]["weights"].sum(axis=1)
    assert counts.max() > 1.5 * counts.min()
    assert_same(trained(f"train.accumulation={parts}"), trained())


def test_accumulation_on_a_mesh_is_that_of_one_device():
    assert_same(trained("train.accumulation=2", fsdp=2, tensor=2, context=2), trained())


def test_micro_batches_leave_every_row_where_it_is():
    mesh = meshes.make(MeshConfig(fsdp=4), jax.devices()[:4])
    split = jax.jit(lambda x: rules.micro_batches(mesh, x, 2), in_shardings=rules.batch_sharding(mesh))
    rows = np.arange(8 * 4, dtype=np.int32).reshape(8, 4)
    np.testing.assert_array_equal(split(rows), [rows[::2], rows[1::2]])
    text = split.lower(rows).compile().as_text()
    assert not any(name in text for name in ("all-gather", "all-to-all", "collective-permute", "all-reduce"))


@pytest.mark.parametrize("remat", ["dots", "block", "offload"])
def test_what_is_computed_again_comes_out_the_same(remat):
    assert_same(trained(f"train.remat={remat}"), trained())


def test_offload_works_on_a_mesh():
    assert_same(trained("train.remat=offload", fsdp=2, tensor=2, context=2), trained())


def test_each_policy_keeps_less_than_the_one_before():
    sizes = {}
    for remat in ("none", "dots", "block"):
        built = toy.program(toy.config(f"train.remat={remat}"), single())
        compiled = built.step.lower(*built.arguments(8, 128)).compile()
        sizes[remat] = compiled.memory_analysis().temp_size_in_bytes
    assert sizes["block"] < sizes["dots"] < sizes["none"], sizes


def test_the_state_is_donated():
    built = toy.program(toy.config(), single())
    state = toy.state(built, toy.config())
    _, after = toy.steps(built, state, BATCHES[:1])
    # The clip writes these without reading them: there is nothing to give back.
    kept = {jax.tree_util.keystr(p) for p, leaf in jax.tree.leaves_with_path(state) if not leaf.is_deleted()}
    assert kept <= {f".opt_state.history.{name}" for name in ("last_norm", "last_mean", "last_skipped")}
    memory = built.step.lower(*built.arguments(8, 64)).compile().memory_analysis()
    arrays = sum(leaf.nbytes for leaf in jax.tree.leaves((after.params, after.opt_state)) if leaf.ndim)
    assert memory.alias_size_in_bytes >= arrays


def test_the_step_never_talks_to_the_host():
    mesh = meshes.make(MeshConfig(fsdp=2, tensor=2, context=2), jax.devices())
    built = toy.program(toy.config("train.remat=block", "train.accumulation=2"), mesh)
    text = built.step.lower(*built.arguments(8, 64)).compile().as_text()
    assert not [word for word in TALKS_TO_HOST if word in text]


def test_a_callback_in_the_loss_would_be_seen():
    objective = objectives.make(toy.config(), single())

    def talking(params, batch):
        terms = objective.terms(params, batch, toy.SCALARS)
        jax.debug.callback(lambda x: None, terms.loss.sum)
        return terms

    text = jax.jit(talking).lower(objective.shapes, BATCHES[0]).compile().as_text()
    assert [word for word in TALKS_TO_HOST if word in text]


def test_a_factored_second_moment_is_small_and_lies_on_every_device():
    mesh = meshes.make(MeshConfig(fsdp=4, tensor=2), jax.devices())
    states = {
        moment: toy.program(toy.config(f"optimizer.second_moment={moment}", "model.ffn=256", "model.hidden=128"), mesh)
        for moment in ("full", "factored")
    }
    sizes = {moment: sum(leaf.size for leaf in jax.tree.leaves(built.state)) for moment, built in states.items()}
    assert sizes["factored"] < 0.8 * sizes["full"]
    state = states["factored"].state
    rows = optax.tree_utils.tree_get(state, "v_row")["periods"]["0"]["mlp"]["up_proj"]
    assert (rows.shape, rows.sharding.is_fully_replicated) == ((5, 128), True)
    first = optax.tree_utils.tree_get(state, "ema")["periods"]["0"]["mlp"]["up_proj"]
    assert first.sharding == state.params["periods"]["0"]["mlp"]["up_proj"].sharding
    assert not first.sharding.is_fully_replicated
