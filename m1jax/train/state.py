"""What a run carries from step to step."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """A plain pytree: step int32 () (steps taken, skipped ones included), parameters, optimiser state."""

    step: jax.Array
    params: Any
    opt_state: Any

    @classmethod
    def create(cls, params: Any, optimizer: optax.GradientTransformationExtraArgs) -> "TrainState":
        """The state before the first step."""
        return cls(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params))
