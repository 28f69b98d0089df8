"""An exponential moving average of the weights."""

from typing import Any

import jax
import jax.numpy as jnp

from m1jax.config import TrainConfig
from m1jax.train.hooks.hook import StateHook


class WeightAverage(StateHook):
    """Keeps average <- decay · average + (1 - decay) · parameters after every step, in float32.

    It starts as the first parameters (Polyak & Juditsky 1992, with the exponential weights of Kingma & Ba 2015,
    section 7.2, and no correction of the start).
    """

    name = "average"

    def __init__(self, decay: float):
        self._decay = decay

    def init(self, params: Any) -> Any:
        """The parameters in float32."""
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)

    def update(self, state: Any, params: Any) -> Any:
        """The average with one more step in it."""
        return jax.tree.map(
            lambda mean, leaf: mean + (1 - self._decay) * (leaf.astype(jnp.float32) - mean), state, params
        )


def state_hooks(config: TrainConfig) -> tuple[StateHook, ...]:
    """The hooks with a state that a run's config asks for: `m1 train` runs them and `m1 plan` counts their state."""
    return (WeightAverage(config.average_decay),) if config.average_decay else ()
