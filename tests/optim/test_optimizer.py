import dataclasses

import jax.numpy as jnp
import numpy as np

from m1jax import config_file
from m1jax.config import OptimizerConfig
from m1jax.optim import optimizer


def test_norms_and_convolutions_are_not_decayed():
    params = {"periods": {"global": {"attn_norm": 1, "conv_k": 1, "q_proj": 1}}, "final_norm": 1, "head": 1}
    mask = optimizer.decay_mask(OptimizerConfig(eps=1e-8), params)
    assert mask == {
        "periods": {"global": {"attn_norm": False, "conv_k": False, "q_proj": True}},
        "final_norm": False,
        "head": True,
    }


def test_steps_are_adamw_written_out():
    config = config_file.load("quickstart", ["optimizer.weight_decay=0.1", "optimizer.clip.max_norm=1.0"])
    config = dataclasses.replace(config, stages=config.stages[1:2])  # constant learning rate
    rate = config.stages[0].learning_rate.start
    opt = optimizer.make(config)
    rng = np.random.default_rng(0)
    w = rng.normal(size=(4, 3)).astype(np.float32)
    params, state = {"w": jnp.asarray(w)}, opt.init({"w": jnp.asarray(w)})
    m, v, expected = np.zeros_like(w), np.zeros_like(w), w.astype(np.float64)
    for t in range(1, 4):
        g = rng.normal(size=w.shape).astype(np.float32)
        updates, state = opt.update({"w": jnp.asarray(g)}, state, params, step=t - 1, active=True)
        params = {"w": params["w"] + updates["w"]}
        clipped = g * min(1.0, 1.0 / np.sqrt((g**2).sum()))
        m = 0.9 * m + 0.1 * clipped
        v = 0.95 * v + 0.05 * clipped**2
        adam = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
        expected = expected - rate * (adam + 0.1 * expected)
    np.testing.assert_allclose(params["w"], expected, rtol=2e-5, atol=1e-6)
