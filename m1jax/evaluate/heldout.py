"""Held-out documents as tokens, and their measurement on the live parameters of a training run."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from m1jax import model
from m1jax.config import RunConfig, StageConfig
from m1jax.errors import UserError
from m1jax.evaluate.bits import Bits, bits_per_byte
from m1jax.evaluate.scoring import TargetLogprobs, Tokens
from m1jax.evaluate.trained import logprobs
from m1jax.parallel import rules
from m1jax.parallel.attention import partitioned
from m1jax.text.documents import read_documents
from m1jax.tokenizer import Tokenizer
from m1jax.train.hooks.validation import BITS, LOSS

Documents = Mapping[str, list[Tokens]]
"""Token ids of held-out documents, EOS at the end, by source."""
BATCH_TOKENS = 8192
"""Tokens scored at once on each group of devices that holds rows of its own."""


def tokenized(folder: Path, tokenizer: Tokenizer) -> Documents:
    """The held-out documents of a corpus's folder `heldout`.

    Raises UserError where there are none, a file cannot be read, or they are conversations, whose marks are no text.
    """
    texts: dict[str, list[str]] = {}
    for document in read_documents(folder):
        if any(part.ids for part in document.parts):
            raise UserError(
                f"{folder} holds conversations (document {document.id}), and bits per byte measure plain text: set "
                f"train.validate_every to 0 in a run of them, and measure its model with `m1 eval` on a corpus of text."
            )
        texts.setdefault(document.source, []).append(document.text)
    return {
        source: [[*ids, tokenizer.eos_id] for ids in tokenizer.encode_batch(some)] for source, some in texts.items()
    }


def measure(
    config: RunConfig, mesh: Mesh, documents: Documents, tokenizer: Tokenizer
) -> Callable[[Any, StageConfig], dict[str, float]]:
    """A function of (parameters, stage) to held-out loss (nats a token) and bits per byte, in all and by source.

    At most `train.validate_tokens` tokens of each source are scored, the same ones each time, in rows of the stage's
    length and with its rotary base; one program is compiled for each row length. All processes call it together.
    """
    score = _live_scorer(config, mesh)
    shares = mesh.shape["replica"] * mesh.shape["data"] * mesh.shape["fsdp"]

    def measured(params: Any, stage: StageConfig) -> dict[str, float]:
        found = bits_per_byte(
            documents,
            score(params, stage.rope_base),
            tokenizer.token_bytes,
            row_length=stage.row_length,
            batch_rows=max(1, BATCH_TOKENS // stage.row_length) * shares,
            max_tokens=config.train.validate_tokens,
        )
        total = sum(found.values(), Bits(0.0, 0, 0))
        named = {"": total, **{f"/{source}": bits for source, bits in sorted(found.items()) if bits.bytes}}
        return {f"{LOSS}{name}": bits.nats_per_target for name, bits in named.items()} | {
            f"{BITS}{name}": bits.per_byte for name, bits in named.items()
        }

    return measured


def _live_scorer(config: RunConfig, mesh: Mesh) -> Callable[[Any, float], TargetLogprobs]:
    """Log p(target) of parameters that are laid out over `mesh`; every process gives and gets whole batches."""
    abstract = model.abstract(config.model, partitioned(mesh), rules.activation_constraint(mesh))
    sharding = rules.batch_sharding(mesh)

    score = functools.partial(logprobs, abstract.graphdef, chunk=config.train.loss_chunk)
    compiled = jax.jit(score, out_shardings=rules.replicated(mesh))

    def scorer(params: Any, rope_base: float) -> TargetLogprobs:
        # An objective may have more trees beside the model's, such as a reference.
        own = {name: params[name] for name in abstract.shapes}

        def target_logprobs(batch: Mapping[str, np.ndarray]) -> np.ndarray:
            placed = {name: _placed(value, sharding) for name, value in batch.items()}
            return np.asarray(compiled(own, placed, np.float32(rope_base)))

        return target_logprobs

    return scorer


def _placed(value: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
