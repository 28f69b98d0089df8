"""An objective beside a frozen reference: the model that the run begins with.

The reference is a tree of its own, `reference`, beside the model's parameters; or, where only the factors of an adapter
are trained, the model without them, which needs no memory of its own.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from m1jax import model
from m1jax.config import RunConfig
from m1jax.model import adapters
from m1jax.model.flops import forward_flops
from m1jax.objectives.scalar import Headed
from m1jax.parallel import rules
from m1jax.parallel.attention import partitioned

REFERENCE = "reference"
"""The tree of the reference beside that of the model, where it is one of its own."""


class Referenced(Headed):
    """What objectives share that compare a model with the one that it was."""

    def __init__(self, config: RunConfig, mesh: Mesh):
        """`mesh` is that of the step, whose devices need not exist."""
        super().__init__(config, mesh)
        self._apart = not config.train.lora.rank or bool(config.train.trained)
        self._plain = model.abstract(config.model, partitioned(mesh), rules.activation_constraint(mesh))

    @property
    def shapes(self) -> dict[str, Any]:
        """The model's parameters and heads, and the reference's under `reference`."""
        return {**super().shapes, **({REFERENCE: self._kept} if self._apart else {})}

    @property
    def axes(self) -> dict[str, Any]:
        """Their logical axes."""
        return {**super().axes, **({REFERENCE: self._plain.axes} if self._apart else {})}

    def initialise(self) -> dict[str, Any]:
        """The model that the run's seed makes, twice."""
        first = super().initialise()
        if not self._apart:
            return first
        own = adapters.without({name: first[name] for name in self._policy.shapes})
        return {**first, REFERENCE: jax.tree.map(lambda leaf, kept: leaf.astype(kept.dtype), own, self._kept)}

    def begin(self, read: Callable[[Any], Any], target: Any) -> Any:
        """The model that the run begins with, and the reference, which is the same."""
        own = super().begin(read, target)
        return {**own, REFERENCE: read(target[REFERENCE])} if self._apart else own

    def trained(self, path: str) -> bool:
        """As the model's and the heads', and nothing of the reference."""
        return not path.startswith(f"{REFERENCE}/") and super().trained(path)

    def flops(self, positions: np.ndarray) -> float:
        """The model forward and backward, and the reference forward."""
        return super().flops(positions) + forward_flops(self._config.model, positions)

    def reference(self, params: dict[str, Any]) -> model.Decoder:
        """The reference of these parameters."""
        own = {name: params[name] for name in self._policy.shapes}
        merged: model.Decoder = nnx.merge(
            self._plain.graphdef, params[REFERENCE] if self._apart else adapters.without(own)
        )
        return merged

    @property
    def _kept(self) -> dict[str, Any]:
        dtype = self._config.train.frozen_dtype
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype), self._plain.shapes)
