"""The objective of pre-training and fine-tuning: the next token of the same document.

With targets t of weight w_t, and ℓ_t = −log p(t), the loss of a global batch (all hosts, all micro-batches) is

    train.loss_mean = "tokens"           Σ_t w_t ℓ_t / Σ_t w_t
    train.loss_mean = "conversations"    1/N Σ_c (Σ_{t in c} w_t ℓ_t / Σ_{t in c} w_t)

over its N conversations c that have a target: a long answer counts by its tokens, or as much as a short one.

Legend: B rows of a batch, S tokens of a row.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from m1jax import model
from m1jax.config import RunConfig
from m1jax.model import adapters, seeds
from m1jax.model.flops import train_flops
from m1jax.model.layout import layout
from m1jax.optim import masks
from m1jax.parallel import rules
from m1jax.parallel.attention import partitioned
from m1jax.train.objective import Batch, Objective, Ratio, StageScalars, Terms


class NextToken(Objective):
    """The mean over targets of -log p(target), nats, as `train.loss_mean` weighs them; log Z beside it.

    The weight of a target is that of its span in the rows: 1 for every token of a document, 0 for the prompt of a
    completion.
    """

    def __init__(self, config: RunConfig, mesh: Mesh):
        """`mesh` is that of the step, whose devices need not exist."""
        self._config = config
        self._kind_of = layout(config.model).kind_of
        lora = config.train.lora
        abstract = model.abstract(config.model, partitioned(mesh), rules.activation_constraint(mesh), lora=lora)
        self._graphdef, self._axes = abstract.graphdef, abstract.axes
        self._trained = masks.of_run(config, abstract.shapes)
        self._shapes = masks.frozen_in(abstract.shapes, self._trained, config.train.frozen_dtype)

    @property
    def shapes(self) -> dict[str, Any]:
        """The model's parameters (m1jax.model.decoder)."""
        return self._shapes

    @property
    def axes(self) -> dict[str, Any]:
        """Their logical axes."""
        return self._axes

    def initialise(self) -> dict[str, Any]:
        """The model that the run's seed makes, and the first factors of an adapter."""
        first = model.initialise(self._config.model, seeds.key(self._config.seed), self._config.train.lora)
        return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), first, self._shapes)

    def trained(self, path: str) -> bool:
        """See m1jax.optim.masks.of_run."""
        return self._trained(path)

    def terms(self, params: dict[str, Any], batch: Batch, stage: StageScalars) -> Terms:
        """Sums over targets and what divides them: the loss, and log Z (the log-sum-exp of the logits)."""
        train = self._config.train
        weights, denominator = batch["weights"], jnp.sum(batch["weights"])
        if train.loss_mean == "conversations":
            weights, denominator = of_conversations(weights, batch["segment_ids"])
        decoder, hidden = self.read(params, batch, stage)
        loss = decoder.cross_entropy(hidden, batch["targets"], weights, chunk=train.loss_chunk)
        return Terms(Ratio(loss.loss, denominator), {"log_z": Ratio(loss.log_z, denominator)})

    def read(self, params: dict[str, Any], batch: Batch, stage: StageScalars) -> tuple[model.Decoder, jax.Array]:
        """The model of these parameters, and its hidden states (B, S, E) of a batch."""
        train, decoder = self._config.train, self.decoder(params)
        given = batch["tokens"], batch["segment_ids"], batch["positions"]
        return decoder, decoder.hidden(*given, rope_base=stage.rope_base, remat=train.remat, unroll=train.unroll)

    def decoder(self, params: dict[str, Any]) -> model.Decoder:
        """The model of these parameters."""
        merged: model.Decoder = nnx.merge(
            self._graphdef, adapters.scaled(params, self._config.model, self._config.train.lora)
        )
        return merged

    def kind_of(self, path: tuple[Any, ...]) -> str:
        """The layer's kind, or the name at the root of the tree."""
        return self._kind_of(path)

    def flops(self, positions: np.ndarray) -> float:
        """Forward and backward through what is trained: see m1jax.model.flops."""
        return train_flops(self._config.model, positions, self._config.train)


def of_conversations(weights_BS: jax.Array, segment_ids_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weights of targets that add up to 1 in each segment, float32 (B, S), and the number of segments, float32 ().

    A conversation is a segment of one row, so that neither devices nor micro-batches cut one. Segments without a target
    do not count.
    """
    S = weights_BS.shape[1]
    totals_BS = jax.vmap(lambda weights, ids: jax.ops.segment_sum(weights, ids, S + 1))(weights_BS, segment_ids_BS)
    total_BS = jnp.take_along_axis(totals_BS, segment_ids_BS, axis=1)
    return weights_BS / jnp.where(total_BS > 0, total_BS, 1.0), jnp.sum(totals_BS > 0).astype(jnp.float32)
