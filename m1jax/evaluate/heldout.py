"""Held-out documents as tokens, and their measurement on the live parameters of a training run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from m1jax import artefact, model
from m1jax.config import RunConfig, StageConfig
from m1jax.errors import UserError
from m1jax.evaluate.bits import NONE, Learned, bits_per_byte
from m1jax.evaluate.scoring import TargetLogprobs
from m1jax.evaluate.trained import logprobs
from m1jax.model import adapters
from m1jax.parallel import rules
from m1jax.parallel.attention import partitioned
from m1jax.rows.encoding import encode
from m1jax.text.corpus import check_ids
from m1jax.text.documents import Document, read_documents
from m1jax.tokenizer import Tokenizer
from m1jax.train.hooks.validation import BITS, LOSS

Documents = Mapping[str, list[Learned]]
"""Held-out documents by source."""
BATCH_TOKENS = 8192
"""Tokens scored at once on each group of devices that holds rows of its own."""


def encoded(corpus: Path, tokenizer: Tokenizer, longest: int) -> Documents:
    """The held-out documents of the corpus in a folder, as rows would have them.

    Documents that are never cut, such as conversations, are left out where they have more than `longest` tokens, which
    is what packing does with those that do not fit its shortest rows. Raises UserError where no document is left, a
    file cannot be read, or conversations were written with another tokenizer.
    """
    check_ids(corpus, artefact.stamp(corpus) or {}, tokenizer)
    folder = corpus / "heldout"
    if not folder.is_dir():
        raise UserError(
            f"{folder} is missing, so nothing is held out: set data.heldout_share above 0 and make the corpus again, "
            f"or set train.validate_every to 0."
        )
    by_source: dict[str, list[Document]] = {}
    for document in read_documents(folder):
        by_source.setdefault(document.source, []).append(document)
    found = {source: list(_learned(some, tokenizer, longest)) for source, some in by_source.items()}
    if not any(found.values()):
        raise UserError(f"{folder} holds no document that fits a row of {longest} tokens: run `m1 corpus` again.")
    return found


def _learned(documents: Sequence[Document], tokenizer: Tokenizer, longest: int) -> Iterator[Learned]:
    batch = encode(documents, tokenizer, np.uint32)
    weights = batch.spans.of_tokens(len(batch.tokens))
    ends = np.cumsum(batch.lengths).tolist()
    for document, length, end in zip(documents, batch.lengths.tolist(), ends, strict=True):
        if length and not (document.stays_whole and length > longest):
            piece = slice(end - length, end)
            yield Learned(batch.tokens[piece], weights[piece], document.stays_whole)


def measure(
    config: RunConfig, mesh: Mesh, documents: Documents, tokenizer: Tokenizer
) -> Callable[[Any, StageConfig], dict[str, float]]:
    """A function of (parameters, stage) to held-out loss and bits per byte, in all and by source.

    At most `train.validate_tokens` tokens of each source are scored (the last conversation whole), the same ones each
    time, in rows of the stage's length and with its rotary base; one program is compiled for each row length. All
    processes call it together. See `m1jax.evaluate.bits` for what is measured.
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
        total = sum(found.values(), NONE)
        named = {"": total, **{f"/{source}": bits for source, bits in sorted(found.items()) if bits.targets}}
        return {f"{LOSS}{name}": bits.loss(config.train.loss_mean) for name, bits in named.items()} | {
            f"{BITS}{name}": bits.per_byte for name, bits in named.items() if bits.bytes
        }

    return measured


def _live_scorer(config: RunConfig, mesh: Mesh) -> Callable[[Any, float], TargetLogprobs]:
    """Log p(target) of parameters that are laid out over `mesh`; every process gives and gets whole batches."""
    lora = config.train.lora
    abstract = model.abstract(config.model, partitioned(mesh), rules.activation_constraint(mesh), lora=lora)
    sharding = rules.batch_sharding(mesh)

    def score(params: Any, batch: Any, rope_base: Any) -> Any:
        params = adapters.scaled(params, config.model, lora)
        return logprobs(abstract.graphdef, params, batch, rope_base, chunk=config.train.loss_chunk)

    compiled = jax.jit(score, out_shardings=rules.replicated(mesh))

    def scorer(params: Any, rope_base: float) -> TargetLogprobs:
        # An objective may have more trees beside the model's, such as a reference.
        own = {name: params[name] for name in abstract.shapes}

        def target_logprobs(batch: Mapping[str, np.ndarray]) -> np.ndarray:
            on_devices = {name: placed(value, sharding) for name, value in batch.items()}
            return np.asarray(compiled(own, on_devices, np.float32(rope_base)))

        return target_logprobs

    return scorer


def placed(value: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """A whole array, which every process has, laid out over devices."""
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
