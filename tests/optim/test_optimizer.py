import dataclasses

import jax.numpy as jnp
import numpy as np

from m1jax.config import OptimizerConfig
from m1jax.config import file as config_file
from m1jax.optim import adamw, optimizer
from m1jax.optim.schedules import learning_rate


def test_norms_and_convolutions_are_not_decayed():
    params = {"periods": {"global": {"attn_norm": 1, "conv_k": 1, "q_proj": 1}}, "final_norm": 1, "head": 1}
    mask = adamw.decay_mask(OptimizerConfig(eps=1e-8), params)
    assert mask == {
        "periods": {"global": {"attn_norm": False, "conv_k": False, "q_proj": True}},
        "final_norm": False,
        "head": True,
    }


def test_steps_are_adamw_written_out():
    config = config_file.load(
        "quickstart", ["optimizer.name=adamw", "optimizer.weight_decay=0.1", "optimizer.clip.max_norm=1.0"]
    )
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


def test_a_factored_second_moment_is_adafactors():
    run = config_file.load(
        "quickstart", ["optimizer.name=adamw", "optimizer.second_moment=factored", "optimizer.clip.max_norm=0"]
    )
    rng = np.random.default_rng(0)
    params = {"w": np.zeros((128, 160), np.float32), "norm": np.zeros(160, np.float32)}
    opt = optimizer.make(run)
    state = opt.init(params)
    row, column, plain, mean = np.zeros(128), np.zeros(160), np.zeros(160), {"w": 0.0, "norm": 0.0}
    for step in range(3):
        grads = {name: rng.normal(size=value.shape) for name, value in params.items()}
        updates, state = opt.update(
            {name: value.astype(np.float32) for name, value in grads.items()}, state, params, step=step
        )
        # Shazeer & Stern (arXiv 1804.04235), algorithm 4, written plainly in float64.
        decay = 1 - (step + 1) ** -0.8
        row = decay * row + (1 - decay) * (grads["w"] ** 2).mean(axis=1)
        column = decay * column + (1 - decay) * (grads["w"] ** 2).mean(axis=0)
        plain = decay * plain + (1 - decay) * grads["norm"] ** 2
        for name, second in (("w", np.outer(row, column) / row.mean()), ("norm", plain)):
            scaled = grads[name] / np.sqrt(second)
            scaled /= max(1, np.sqrt((scaled**2).mean()))
            mean[name] = 0.9 * mean[name] + 0.1 * scaled
            expected = -float(learning_rate(run)(step)) * mean[name] / (1 - 0.9 ** (step + 1))
            np.testing.assert_allclose(updates[name], expected, rtol=2e-5, atol=1e-8)
