"""`m1 eval`: bits per byte on held-out text and accuracy on questions, of a checkpoint."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

from m1jax import artefact, kernels, model
from m1jax import tokenizer as tokenizers
from m1jax.config import RunConfig
from m1jax.curriculum.loader import Loader
from m1jax.errors import UserError
from m1jax.evaluate import bits, choice, ngram, report, seqio_adapter, tasks
from m1jax.evaluate.scoring import RowScorer, TargetLogprobs
from m1jax.loading import Trained, computed_here, of_config
from m1jax.show import console as consoles
from m1jax.text.documents import read_documents
from m1jax.tokenizer import Tokenizer
from m1jax.verbs import jax_setup
from m1jax.verbs.curriculum import open_curriculum

RESULTS = "results.json"
ALL_TOKENS = 1 << 40
BATCH_TOKENS = 8192
"""Tokens scored at once."""


def folder_of(config: RunConfig, step: int) -> Path:
    """Where the results of a step lie."""
    return Path(config.folder) / "eval" / f"step-{step}"


def run(
    config: RunConfig,
    step: int | None,
    task_names: Sequence[str] | None,
    limit: int,
    heldout_tokens: int,
    plain: bool,
    as_json: bool,
) -> None:
    """Measures the checkpoint of `step` (None: the newest, 0: the initial model) and writes results.json.

    `task_names` are the question sets (None: all), `limit` questions of each (0: all), `heldout_tokens` of each
    source (0: all); questions go through seqio.Evaluator unless `plain`. A trained model stands beside a unigram and
    a bigram fitted on the tokens it saw, and beside itself with its attention's output zeroed. Raises UserError for a
    missing corpus, checkpoint, task or seqio.
    """
    jax_setup.prepare()
    console = consoles.make(as_json)
    chosen = _tasks(task_names)
    made = artefact.require(config.corpus, "corpus", "corpus")
    trained = of_config(config, step)
    tokenizer = tokenizers.of_run(config)
    folder = folder_of(config, trained.step)
    of = artefact.key(
        trained.key, made["key"], tokenizer.fingerprint, [task.name for task in chosen], limit, heldout_tokens, plain
    )
    if artefact.is_whole(folder, "evaluation", of):
        console.print(f"{folder} is whole already.")
        if as_json:
            print((folder / RESULTS).read_text(encoding="utf-8"))
        return
    domains = {name: entry["domain"] for name, entry in made["sources"].items()}
    with console.status("measuring"), artefact.building(folder, "evaluation", of) as partial:
        measured = _bits(config, trained, tokenizer, domains, heldout_tokens or ALL_TOKENS)
        bits_report = report.bits(measured, domains)
        console.print(bits_report.table)
        data: dict[str, Any] = {"step": trained.step, "bits_per_byte": bits_report.data}
        if chosen:
            found = [_ask(config, trained, tokenizer, task, limit, plain, console) for task in chosen]
            accuracy = report.accuracy(found)
            console.print(accuracy.table)
            data["accuracy"] = accuracy.data
        (partial / RESULTS).write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    console.print(f"Results in {folder / RESULTS}.")
    if as_json:
        print(json.dumps(data, ensure_ascii=False))


def _tasks(names: Sequence[str] | None) -> list[tasks.Task]:
    known = {task.name: task for task in tasks.TASKS}
    for name in names or ():
        if name not in known:
            raise UserError(f"there is no question set {name!r}: choose among {', '.join(known)}.")
    return list(known.values()) if names is None else [known[name] for name in names]


def zero_attention(q: jax.Array, k: jax.Array, v: jax.Array, **_: Any) -> jax.Array:
    """Attention whose output is zero: what is left of a model without it sees one token at a time."""
    del k, v
    return jnp.zeros_like(q)


def target_logprobs(trained: Trained, attention: kernels.AttentionFunction = kernels.attention) -> TargetLogprobs:
    """Log p(target) of a model for every token of a batch, float32 (B, S), nats."""
    graphdef = model.abstract(computed_here(trained.config.model), attention).graphdef

    @jax.jit
    def score(params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        decoder = nnx.merge(graphdef, params)
        place = batch["segment_ids"], batch["positions"]
        hidden = decoder.hidden(batch["tokens"], *place, rope_base=trained.rope_base)
        return decoder.log_likelihood(hidden, batch["targets"], chunk=1024)

    return lambda batch: np.asarray(score(trained.params, dict(batch)))


def _bits(
    config: RunConfig, trained: Trained, tokenizer: Tokenizer, domains: Mapping[str, str], max_tokens: int
) -> dict[str, dict[str, bits.Bits]]:
    """Bits of the model and, once it is trained, of what stands beside it, by source."""
    texts: dict[str, list[str]] = {}
    for document in read_documents(config.corpus / "heldout"):
        if document.source in domains:
            texts.setdefault(document.source, []).append(document.text)
    documents = {
        source: [[*ids, tokenizer.eos_id] for ids in tokenizer.encode_batch(some)] for source, some in texts.items()
    }
    scorers: dict[str, TargetLogprobs] = {"model": target_logprobs(trained)}
    if trained.step:
        scorers["no attention"] = target_logprobs(trained, zero_attention)
        curriculum, stores = open_curriculum(config)
        seen = Loader(curriculum, stores).batches(0, trained.step)
        unigram, bigram = ngram.fit(seen, tokenizer.vocab_size)
        scorers |= {"unigram": unigram.target_logprobs, "bigram": bigram.target_logprobs}
    row_length = max(config.data.row_lengths)
    return {
        name: bits.bits_per_byte(
            documents,
            scorer,
            tokenizer.token_bytes,
            row_length=row_length,
            batch_rows=max(1, BATCH_TOKENS // row_length),
            max_tokens=max_tokens,
        )
        for name, scorer in scorers.items()
    }


def _ask(
    config: RunConfig,
    trained: Trained,
    tokenizer: Tokenizer,
    task: tasks.Task,
    limit: int,
    plain: bool,
    console: Console,
) -> choice.Result:
    loaded = tasks.load(task, config.corpus / "evaluation")
    for fault in loaded.malformed:
        console.print(f"set aside: {fault}")
    items = tasks.sample(loaded.items, limit or None, config.seed)
    scorer = RowScorer(target_logprobs(trained), config.data.row_lengths, BATCH_TOKENS)
    evaluate = choice.evaluate if plain else seqio_adapter.evaluate
    return evaluate(task, items, tokenizer, scorer)
