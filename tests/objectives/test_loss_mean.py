"""The mean over conversations: each counts the same, wherever it is in the batch and however the batch is cut."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax import model
from m1jax.config import MeshConfig
from m1jax.curriculum.curriculum import Curriculum
from m1jax.curriculum.opening import _check_conversations
from m1jax.errors import UserError
from m1jax.objectives.next_token import of_conversations
from m1jax.parallel import mesh as meshes
from tests.parallel import toy
from tests.rows import toy_rows

ROWS, LENGTH = 8, 64
SMALL = ("model.num_layers=2", "model.ffn=32")


def batch_of(seed=0):
    """Rows of one to four conversations and padding, of all lengths and weights; some have no target."""
    rng = np.random.default_rng(seed)
    found = {name: np.zeros((ROWS, LENGTH), np.int32) for name in ("tokens", "targets", "segment_ids", "positions")}
    found["weights"] = np.zeros((ROWS, LENGTH), np.float32)
    for row in range(ROWS):
        start = 0
        for segment in range(1, int(rng.integers(2, 6))):
            end = start + int(rng.integers(2, 17))
            ids = rng.integers(0, 512, end - start, np.int32)
            found["tokens"][row, start:end] = ids
            found["targets"][row, start : end - 1] = ids[1:]
            found["segment_ids"][row, start:end] = segment
            found["positions"][row, start:end] = np.arange(end - start)
            found["weights"][row, start : end - 1] = rng.choice([0, 0, 0.25, 1], end - start - 1)
            start = end
    return found


def apart(batch):
    """Each conversation that has a target in a row of its own: tokens, targets and weights (N, LENGTH)."""
    found = []
    for row in range(ROWS):
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            mine = batch["segment_ids"][row] == segment
            if batch["weights"][row][mine].any():
                size = mine.sum()
                one = {name: np.pad(batch[name][row][mine], (0, LENGTH - size)) for name in batch}
                found.append({**one, "segment_ids": (np.arange(LENGTH) < size).astype(np.int32)})
    return {name: np.stack([one[name] for one in found]) for name in batch}


@functools.cache
def expected():
    """The loss, and the norm of its gradient, from the conversations apart."""
    run, one = toy.config(*SMALL), apart(batch_of())
    params = jax.device_get(toy.state(toy.program(run, meshes.make(MeshConfig(), jax.devices()[:1])), run).params)
    graphdef = model.abstract(run.model).graphdef

    def loss(params):
        rows = one["tokens"], one["segment_ids"], one["positions"]
        logits = nnx.merge(graphdef, params)(*rows, rope_base=toy.BASE)
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), one["targets"][..., None], -1)[..., 0]
        return jnp.mean(-(log_p * one["weights"]).sum(1) / one["weights"].sum(1))

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    norm = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(gradient)))
    return float(value), norm, len(one["tokens"])


@pytest.mark.parametrize(("parts", "sizes"), [(1, {}), (2, {}), (2, {"fsdp": 2, "tensor": 2, "context": 2})])
def test_neither_micro_batches_nor_devices_nor_packing_change_it(parts, sizes):
    run = toy.config(*SMALL, "train.loss_mean=conversations", f"train.accumulation={parts}")
    mesh = meshes.make(MeshConfig(**sizes), jax.devices()[: 8 if sizes else 1])
    built = toy.program(run, mesh)
    shardings = {name: array.sharding for name, array in built.arguments(ROWS, LENGTH)[1].items()}
    placed = {name: jax.device_put(array, shardings[name]) for name, array in batch_of().items()}
    _, found = built.step(toy.state(built, run), placed, toy.SCALARS)
    value, norm, count = expected()
    assert float(found["denominator"]) == count
    np.testing.assert_allclose((found["loss"], found["grad_norm"]), (value, norm), rtol=2e-5)
    assert count < batch_of()["segment_ids"].max(axis=1).sum()  # one at least has no target


def test_it_is_not_the_mean_over_tokens():
    one = apart(batch_of())
    counts = one["weights"].sum(1)
    assert counts.max() > 3 * counts.min()


@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 5), st.sampled_from([0.0, 0.1, 1.0, 7.0])), max_size=6),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=40, deadline=None)
def test_weights_of_each_conversation_add_up_to_one(rows):
    """Segments of any number and length in rows of 32; by hand in float64."""
    weights, ids = np.zeros((4, 32), np.float32), np.zeros((4, 32), np.int32)
    expected, count = np.zeros((4, 32)), 0
    for row, segments in enumerate(rows):
        start = 0
        for number, (size, weight) in enumerate(segments, 1):
            ids[row, start : start + size] = number
            if size > 1 and weight:
                weights[row, start : start + size - 1] = weight
                expected[row, start : start + size - 1] = 1 / (size - 1)
                count += 1
            start += size
    found, total = jax.jit(of_conversations)(weights, ids)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert float(total) == count


def test_text_that_is_cut_has_no_mean_over_conversations():
    manifest = toy_rows.manifest({"talks": {8: [4]}, "notes": {8: [4]}})
    whole = dataclasses.replace(manifest.sources["talks"], columns={"whole": "int32"})
    manifest = dataclasses.replace(manifest, sources={**manifest.sources, "talks": whole})
    _check_conversations(Curriculum((toy_rows.stage("one", 8, 2, 2, {"talks": 1.0}),), manifest, 0))
    both = Curriculum((toy_rows.stage("one", 8, 2, 2, {"talks": 1.0, "notes": 1.0}),), manifest, 0)
    with pytest.raises(UserError, match=r"train\.loss_mean = 'conversations', but source 'notes' holds text"):
        _check_conversations(both)
