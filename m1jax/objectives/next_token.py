"""The loss of pre-training."""

from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from m1jax import model
from m1jax.config import RunConfig
from m1jax.parallel import rules
from m1jax.parallel.attention import partitioned
from m1jax.train.step import Batch, LossFn


def next_token_loss(config: RunConfig, mesh: Mesh) -> LossFn:
    """The sum over targets of -log p(target), their number and the sum of log Z, of a run's model over `mesh`."""
    graphdef = model.abstract(config.model, partitioned(mesh), rules.activation_constraint(mesh)).graphdef

    def loss_fn(params: Any, batch: Batch, rope_base: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        decoder = nnx.merge(graphdef, params)
        hidden = decoder.hidden(
            batch["tokens"], batch["segment_ids"], batch["positions"], rope_base=rope_base, remat=config.train.remat
        )
        loss = decoder.cross_entropy(hidden, batch["targets"], batch["weights"], chunk=config.train.loss_chunk)
        return loss.loss, {"targets": loss.weight, "log_z": loss.log_z}

    return loss_fn
