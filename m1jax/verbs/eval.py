"""`m1 eval`: bits per byte on held-out text and accuracy on questions, of a checkpoint."""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from m1jax import artefact
from m1jax import tokenizer as tokenizers
from m1jax.config import RunConfig
from m1jax.config.folders import RESULTS
from m1jax.errors import UserError
from m1jax.show import console as consoles
from m1jax.verbs.arguments import CONFIG, Parser, add_config, add_json, config_of, example

if TYPE_CHECKING:  # they load JAX, which takes seconds: the functions that measure import what they need
    from m1jax.evaluate.bits import Bits
    from m1jax.evaluate.choice import Result
    from m1jax.evaluate.scoring import TargetLogprobs
    from m1jax.evaluate.tasks import Task
    from m1jax.kernels import AttentionFunction
    from m1jax.loading import Trained
    from m1jax.tokenizer import Tokenizer

ALL_TOKENS = 1 << 40
BATCH_TOKENS = 8192
"""Tokens scored at once."""


def arguments(parser: Parser) -> None:
    """Adds the verb's arguments."""
    example(parser, f"m1 eval {CONFIG} --step 0")
    add_config(parser)
    parser.add_argument(
        "--step", type=int, metavar="N", help="checkpoint of step N, 0 the initial model (default: newest)"
    )
    parser.add_argument("--tasks", nargs="*", metavar="TASK", help="question sets to ask (default: all)")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="ask at most N questions of a set; 0 is all")
    parser.add_argument(
        "--heldout-tokens", type=int, default=0, metavar="N", help="at most N tokens a source; 0 is all"
    )
    parser.add_argument("--plain", action="store_true", help="ask questions without seqio (the numbers are the same)")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    evaluate(config_of(args), args.step, args.tasks, args.limit, args.heldout_tokens, args.plain, args.json)


def evaluate(
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
    source (0: all); questions go through seqio.Evaluator unless `plain`. A trained model is compared with a unigram and
    a bigram fitted on the tokens it saw, and with itself without attention (its output is zero). Raises UserError for a
    missing corpus, checkpoint, task or seqio.
    """
    from m1jax.loading import of_config
    from m1jax.parallel import jax_setup
    from m1jax.show import evaluation

    jax_setup.prepare()
    console = consoles.make(as_json)
    chosen = _tasks(task_names)
    made = artefact.require(config.corpus, "corpus", "corpus")
    trained = of_config(config, step)
    tokenizer = tokenizers.of_run(config)
    folder = config.evaluation(trained.step)
    of = artefact.key(
        trained.key, made["key"], tokenizer.fingerprint, [task.name for task in chosen], limit, heldout_tokens, plain
    )
    if artefact.is_whole(folder, "evaluation", of):
        console.print(f"{folder} is already complete.")
        if as_json:
            print((folder / RESULTS).read_text(encoding="utf-8"))
        return
    domains = {name: entry["domain"] for name, entry in made["sources"].items()}
    with console.status("measuring"), artefact.building(folder, "evaluation", of) as partial:
        measured = _bits(config, trained, tokenizer, domains, heldout_tokens or ALL_TOKENS)
        bits_report = evaluation.bits(measured, domains, config.data.domains)
        console.print(bits_report.table)
        data: dict[str, Any] = {"step": trained.step, "bits_per_byte": bits_report.data}
        if "chat_format" in made:
            loss = evaluation.losses(measured, domains, config.data.domains, config.train.loss_mean)
            console.print(loss.table)
            data["loss"] = loss.data
        if chosen:
            found = [_ask(config, trained, tokenizer, task, limit, plain, console) for task in chosen]
            accuracy = evaluation.accuracy(found)
            console.print(accuracy.table)
            data["accuracy"] = accuracy.data
        (partial / RESULTS).write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    console.print(f"Results in {folder / RESULTS}.")
    if as_json:
        print(json.dumps(data, ensure_ascii=False))


def _tasks(names: Sequence[str] | None) -> list["Task"]:
    from m1jax.evaluate import tasks

    known = {task.name: task for task in tasks.TASKS}
    for name in names or ():
        if name not in known:
            raise UserError(f"there is no question set {name!r}: choose among {', '.join(known)}.")
    return list(known.values()) if names is None else [known[name] for name in names]


def _bits(
    config: RunConfig, trained: "Trained", tokenizer: "Tokenizer", domains: Mapping[str, str], max_tokens: int
) -> dict[str, dict[str, "Bits"]]:
    """Bits of the model and, once it is trained, of those it is compared with, by source."""
    from m1jax.curriculum.loader import Loader
    from m1jax.curriculum.opening import open_curriculum
    from m1jax.evaluate import bits, heldout, ngram
    from m1jax.evaluate.trained import zero_attention

    found = heldout.encoded(config.corpus, tokenizer, min(config.data.row_lengths))
    documents = {source: some for source, some in found.items() if source in domains}
    scorers: dict[str, TargetLogprobs] = {"model": _scorer(trained)}
    if trained.step:
        scorers["no attention"] = _scorer(trained, zero_attention)
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


def _scorer(trained: "Trained", *attention: "AttentionFunction") -> "TargetLogprobs":
    from m1jax.evaluate.trained import target_logprobs
    from m1jax.loading import computed_here

    return target_logprobs(computed_here(trained.config.model), trained.params, trained.rope_base, *attention)


def _ask(
    config: RunConfig,
    trained: "Trained",
    tokenizer: "Tokenizer",
    task: "Task",
    limit: int,
    plain: bool,
    console: Console,
) -> "Result":
    from m1jax.evaluate import choice, seqio_adapter, tasks
    from m1jax.evaluate.scoring import RowScorer

    loaded = tasks.load(task, config.corpus / "evaluation")
    for fault in loaded.malformed:
        console.print(f"set aside: {fault}")
    items = tasks.sample(loaded.items, limit or None, config.seed)
    scorer = RowScorer(_scorer(trained), config.data.row_lengths, BATCH_TOKENS)
    evaluate = choice.evaluate if plain else seqio_adapter.evaluate
    return evaluate(task, items, tokenizer, scorer)
