"""The optimiser of a run: a rule behind the clip, on the run's schedule."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from m1jax.config import OptimizerConfig, RunConfig
from m1jax.optim.adamw import adamw
from m1jax.optim.clipping import guard, scaling
from m1jax.optim.muon import muon
from m1jax.optim.schedules import learning_rate

Rule = Callable[[OptimizerConfig], optax.GradientTransformation]
"""Settings to a transformation of scaled gradients into updates, before the learning rate.

It receives trees of trained parameters only. A rule that treats parameters apart (by path, or each layer of a stack
under `model.layout.stacked`) does so inside, as optax.multi_transform does; what it keeps for a parameter in its shape
is sharded as the parameter is.
"""
RULES: dict[str, Rule] = {"adamw": adamw, "muon": muon}
"""By the name that the config key `optimizer.name` gives (config/schema.py: OPTIMIZERS)."""


def make(config: RunConfig) -> optax.GradientTransformationExtraArgs:
    """The optimiser of a run: the clip, then the rule that the config names, on the run's schedule.

    The norm that the clip looks at is the one before it. The schedule runs on the global step, given as
    `update(…, step=…)`, which a skipped step advances like any other.
    """
    settings = config.optimizer
    rule = optax.chain(scaling(settings.clip), RULES[settings.name](settings))
    return _scaled(guard(rule, settings.clip), learning_rate(config))


def _scaled(
    inner: optax.GradientTransformationExtraArgs, rate: optax.Schedule
) -> optax.GradientTransformationExtraArgs:
    """`inner`'s updates times minus the learning rate at the global step, which advances on a skipped step too."""

    def update(
        grads: optax.Updates, state: Any, params: optax.Params | None = None, *, step: Any, **extra: Any
    ) -> tuple[optax.Updates, Any]:
        updates, state = inner.update(grads, state, params, **extra)
        scale = -rate(step)
        return jax.tree.map(lambda u: (scale * u).astype(u.dtype), updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)
