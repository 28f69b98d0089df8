"""The objective of pre-training: the next token of the same document."""

from typing import Any

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from m1jax import model
from m1jax.config import RunConfig
from m1jax.model import seeds
from m1jax.model.flops import train_flops
from m1jax.model.layout import layout
from m1jax.parallel import rules
from m1jax.parallel.attention import partitioned
from m1jax.train.objective import Batch, Objective, Ratio, StageScalars, Terms


class NextToken(Objective):
    """The weighted mean over targets of -log p(target), nats; log Z beside it.

    The weight of a target is that of its span in the rows: 1 for every token of a document, 0 for the prompt of a
    completion.
    """

    def __init__(self, config: RunConfig, mesh: Mesh):
        """`mesh` is that of the step, whose devices need not exist."""
        self._config = config
        self._kind_of = layout(config.model).kind_of
        abstract = model.abstract(config.model, partitioned(mesh), rules.activation_constraint(mesh))
        self._graphdef, self._shapes, self._axes = abstract.graphdef, abstract.shapes, abstract.axes

    @property
    def shapes(self) -> dict[str, Any]:
        """The model's parameters (m1jax.model.decoder)."""
        return self._shapes

    @property
    def axes(self) -> dict[str, Any]:
        """Their logical axes."""
        return self._axes

    def initialise(self) -> dict[str, Any]:
        """The model that the run's seed makes."""
        return model.initialise(self._config.model, seeds.key(self._config.seed))

    def terms(self, params: dict[str, Any], batch: Batch, stage: StageScalars) -> Terms:
        """Sums over targets, divided by their weights: the loss, and log Z (the log-sum-exp of the logits)."""
        train = self._config.train
        decoder = nnx.merge(self._graphdef, params)
        hidden = decoder.hidden(
            batch["tokens"],
            batch["segment_ids"],
            batch["positions"],
            rope_base=stage.rope_base,
            remat=train.remat,
        )
        loss = decoder.cross_entropy(hidden, batch["targets"], batch["weights"], chunk=train.loss_chunk)
        return Terms(Ratio(loss.loss, loss.weight), {"log_z": Ratio(loss.log_z, loss.weight)})

    def kind_of(self, path: tuple[Any, ...]) -> str:
        """The layer's kind, or the name at the root of the tree."""
        return self._kind_of(path)

    def flops(self, positions: np.ndarray) -> float:
        """Three forward passes: see m1jax.model.flops."""
        return train_flops(self._config.model, positions)
