"""The state that a run carries from step to step."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax

from m1jax.optim import masks


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """A plain pytree: step int32 () (steps taken, skipped ones included), parameters, optimiser state, hooks' state.

    `params` are the trained parameters and `frozen` the others, which have no gradient and no moments; `hooks` holds
    the state of each hook that has one, by the hook's name.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    frozen: Any = field(default_factory=dict)
    hooks: Mapping[str, Any] = field(default_factory=dict)

    @property
    def all_params(self) -> Any:
        """Trained and frozen parameters as one tree."""
        return masks.merge(self.params, self.frozen) if self.frozen else self.params

    @classmethod
    def create(
        cls, params: Any, optimizer: optax.GradientTransformationExtraArgs, frozen: Any = None, hooks: Any = None
    ) -> "TrainState":
        """The state before the first step."""
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            frozen=frozen or {},
            hooks=hooks or {},
        )
