"""A model's log-probabilities, for everything in this room that scores tokens."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from m1jax import kernels, model
from m1jax.config import ModelConfig
from m1jax.evaluate.scoring import TargetLogprobs


def target_logprobs(
    config: ModelConfig, params: Any, rope_base: float, attention: kernels.AttentionFunction = kernels.attention
) -> TargetLogprobs:
    """Log p(target) of a model for every token of a batch, float32 (B, S), nats."""
    graphdef = model.abstract(config, attention).graphdef
    score = jax.jit(lambda params, batch: logprobs(graphdef, params, batch, rope_base, chunk=1024))
    return lambda batch: np.asarray(score(params, dict(batch)))


def logprobs(
    graphdef: Any, params: Any, batch: Mapping[str, jax.Array], rope_base: float | jax.Array, chunk: int
) -> jax.Array:
    """Log p(target) of every token of a batch, float32 (B, S), nats; for use inside jit.

    `graphdef` is a Decoder's, `params` its parameters, `chunk` the number of tokens whose logits exist at once.
    """
    decoder = nnx.merge(graphdef, params)
    hidden = decoder.hidden(batch["tokens"], batch["segment_ids"], batch["positions"], rope_base=rope_base)
    return decoder.log_likelihood(hidden, batch["targets"], chunk=chunk)


def zero_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    layer: kernels.AttentionLayer,
    rows: kernels.Rows,
    *,
    return_lse: bool = False,
) -> jax.Array:
    """Attention whose output is zero: a model with it sees one token at a time."""
    del k, v, layer, rows
    assert not return_lse, "a model asks for outputs only"
    return jnp.zeros_like(q)
