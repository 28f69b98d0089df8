"""A number for every token: linear heads beside the model, such as a reward or a critic.

Legend: B rows of a batch, S tokens of a row, E hidden.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from m1jax import model
from m1jax.config import RunConfig
from m1jax.objectives.next_token import NextToken
from m1jax.parallel import rules
from m1jax.train.objective import Batch, Objective, StageScalars

Array = jax.Array

AXES: Mapping[str, tuple[str, ...]] = {"weight": ("embed",), "bias": ()}
"""Logical axes of a head."""


def shapes(hidden: int) -> dict[str, Any]:
    """The parameters of a head: weight (E,) and bias (), float32."""
    return {"weight": jax.ShapeDtypeStruct((hidden,), jnp.float32), "bias": jax.ShapeDtypeStruct((), jnp.float32)}


def values(head: Mapping[str, Array], hidden_BSE: Array) -> Array:
    """The number of every token, (B, S) float32, from hidden states after the final norm."""
    return jnp.einsum("bse,e->bs", hidden_BSE.astype(jnp.float32), head["weight"]) + head["bias"]


class Headed(Objective):
    """What objectives share that train the model with scalar heads, which begin as zeros and are always trained."""

    heads: tuple[str, ...] = ()
    """Names of the heads: their trees are beside the model's at the root."""

    def __init__(self, config: RunConfig, mesh: Mesh):
        """`mesh` is that of the step, whose devices need not exist."""
        self._config = config
        self._policy = NextToken(config, mesh)

    @property
    def model_shapes(self) -> dict[str, Any]:
        """The model's own parameters, as a tree of jax.ShapeDtypeStruct."""
        return self._policy.shapes

    @property
    def shapes(self) -> dict[str, Any]:
        """The model's parameters, and each head's."""
        return {**self._policy.shapes, **{name: shapes(self._config.model.hidden) for name in self.heads}}

    @property
    def axes(self) -> dict[str, Any]:
        """Their logical axes."""
        return {**self._policy.axes, **{name: dict(AXES) for name in self.heads}}

    def initialise(self) -> dict[str, Any]:
        """The model that the run's seed makes."""
        return {**self._policy.initialise(), **self._zeros()}

    def begin(self, read: Callable[[Any], Any], target: Any) -> Any:
        """The model that the run begins with."""
        own = read({name: target[name] for name in self._policy.shapes})
        if not self.heads:
            return own
        shardings = rules.shardings_of({name: target[name] for name in self.heads})
        return {**own, **jax.jit(self._zeros, out_shardings=shardings)()}

    def trained(self, path: str) -> bool:
        """As the model's, and every head."""
        return path.split("/")[0] in self.heads or self._policy.trained(path)

    def kind_of(self, path: tuple[Any, ...]) -> str:
        """As the model's."""
        return self._policy.kind_of(path)

    def flops(self, positions: np.ndarray) -> float:
        """The model forward and backward."""
        return self._policy.flops(positions)

    def read(self, params: dict[str, Any], batch: Batch, stage: StageScalars) -> tuple[model.Decoder, Array]:
        """The model of these parameters, and its hidden states (B, S, E) of a batch."""
        return self._policy.read({name: params[name] for name in self._policy.shapes}, batch, stage)

    def _zeros(self) -> dict[str, Any]:
        hidden = self._config.model.hidden
        return {
            name: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes(hidden)) for name in self.heads
        }
