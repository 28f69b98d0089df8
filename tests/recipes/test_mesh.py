"""The model's step on eight virtual devices, laid out along every mesh axis, gives the loss of one device."""

import functools

import jax
import numpy as np
import pytest

from m1jax import config_file, model
from m1jax.config import MeshConfig
from m1jax.parallel import mesh as meshes
from m1jax.parallel import rules
from m1jax.train import program
from m1jax.train.loss import next_token_loss
from tests.recipes.conftest import TINY

CONFIG = config_file.load(TINY)


def batches(steps=3, rows=8, length=64):
    for _ in range(steps):
        rng = np.random.default_rng(0)  # the same batch: a loss that falls shows that the updates are right too
        tokens = rng.integers(0, 512, (rows, length + 1), np.int32)
        # Three documents a row, the last of them padding, with borders anywhere.
        borders = np.sort(rng.integers(1, length, (rows, 2)), axis=1)
        index = np.arange(length)
        segments = 1 + (index >= borders[:, :1]) + (index >= borders[:, 1:])
        starts = np.where(segments == 1, 0, np.where(segments == 2, borders[:, :1], borders[:, 1:]))
        last = np.append(segments[:, 1:] != segments[:, :-1], np.ones((rows, 1), bool), axis=1)
        yield {
            "tokens": tokens[:, :-1],
            "targets": tokens[:, 1:],
            "weights": np.where(last | (segments == 3), 0, 1).astype(np.float32),
            "segment_ids": np.where(segments == 3, 0, segments).astype(np.int32),
            "positions": (index - starts).astype(np.int32),
        }


def losses(mesh_config, devices):
    mesh = meshes.make(mesh_config, jax.devices()[:devices])
    init = functools.partial(model.initialise, CONFIG.model, 0)
    built = program.build(
        CONFIG,
        mesh,
        loss_fn=next_token_loss(CONFIG, mesh),
        params=jax.eval_shape(init),
        params_axes=model.abstract(CONFIG.model).axes,
    )
    state = built.create(init)
    found = []
    for batch in batches():
        batch = jax.device_put(batch, rules.batch_sharding(mesh))
        state, metrics = built.step(state, batch, np.float32(1e4), np.bool_(True))
        found.append((float(metrics["loss"]), float(metrics["grad_norm"])))
        assert float(metrics["targets"]) == batch["weights"].sum()
    return np.array(found), state


MESHES = [{}, {"fsdp": 4, "tensor": 2}, {"replica": 2, "fsdp": 2, "context": 2}, {"tensor": 2, "context": 2, "fsdp": 2}]


@pytest.fixture(scope="module")
def expected():
    found, _ = losses(MeshConfig(), 1)
    assert found[-1, 0] < found[0, 0]
    return found


@pytest.mark.parametrize("sizes", MESHES, ids=lambda sizes: "-".join(sizes) or "data")
def test_eight_devices_give_the_losses_of_one(sizes, expected):
    found, state = losses(MeshConfig(**sizes), 8)
    np.testing.assert_allclose(found, expected, rtol=5e-5)
    if sizes.get("tensor"):
        # One KV head on global layers cannot be split: by rule it is held whole by every device.
        attention = state.params["periods"]["0"]["attention"]
        assert attention["q_proj"].sharding.spec[2] == "tensor"
        assert attention["k_proj"].sharding.spec[2] is None
