"""`m1 eval`: bits per byte on held-out text and accuracy on questions, of a run; questions for any model."""

import argparse
import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from m1jax import artefact
from m1jax import tokenizer as tokenizers
from m1jax.config import RunConfig, to_dict
from m1jax.config.folders import RESULTS
from m1jax.errors import UserError
from m1jax.show import console as consoles
from m1jax.show.progress import counting
from m1jax.verbs.arguments import CONFIG, Parser, add_config, add_json, config_of, example

if TYPE_CHECKING:  # they load JAX, which takes seconds: the functions that measure import what they need
    from m1jax.evaluate.asking import Subject
    from m1jax.evaluate.bits import Bits
    from m1jax.evaluate.choice import Result
    from m1jax.evaluate.scoring import TargetLogprobs
    from m1jax.evaluate.tasks import Task
    from m1jax.kernels import AttentionFunction
    from m1jax.loading import Trained
    from m1jax.tokenizer import Tokenizer

FORMS = ("base", "chat", "chat-cloze")
"""As m1jax.evaluate.forms has them."""
ALL_TOKENS = 1 << 40
BATCH_TOKENS = 8192
"""Tokens scored at once."""


def arguments(parser: Parser) -> None:
    """Adds the verb's arguments."""
    example(
        parser,
        f"m1 eval {CONFIG} --step 0",
        "m1 eval --model runs/sft --questions questions.jsonl --form chat --against models/base --samples 3",
        "m1 eval --model runs/sft --tasks boolq --form chat --against models/base",
    )
    add_config(parser, required=False)
    parser.add_argument("--tasks", nargs="*", metavar="TASK", help="question sets to ask (default with --config: all)")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="ask at most N questions of a set; 0 is all")
    add_json(parser)
    run = parser.add_argument_group("of a run", "With --config: bits per byte on held-out text too.")
    run.add_argument(
        "--step", type=int, metavar="N", help="checkpoint of step N, 0 the initial model (default: newest)"
    )
    run.add_argument("--heldout-tokens", type=int, default=0, metavar="N", help="at most N tokens a source; 0 is all")
    run.add_argument("--seqio", action="store_true", help="ask questions through seqio.Evaluator (the same numbers)")
    model = parser.add_argument_group(
        "of any model",
        "With --model. A question is a line of a .jsonl file:\n"
        '  {"question": text, "choices": [texts], "answer": index of the right one, from 0},\n'
        'optionally with "id", "kind", "context" and "entity".',
    )
    model.add_argument("--model", metavar="DIR", help="a run's folder, imported or exported")
    model.add_argument("--questions", metavar="PATH", help="a .jsonl file of questions, or a folder of them")
    model.add_argument(
        "--form",
        choices=FORMS,
        help="a text that goes on (base, default); or a chat as in `m1 chat`, whose question lists the choices (chat) "
        "or does not (chat-cloze)",
    )
    model.add_argument("--against", metavar="PATH", help="compare with another model, or with an earlier result")
    model.add_argument("--against-form", choices=FORMS, help="form for the other model (default: the same)")
    model.add_argument("--samples", type=int, default=0, metavar="N", help="show N greedy answers, in the chat form")
    model.add_argument("--chat-format", metavar="NAME", help="Baichuan-M1 or ChatML (default: the model's own)")
    model.add_argument("--dtype", choices=("float32", "bfloat16"), help="compute in it (default: as stored)")
    model.add_argument("--out", metavar="DIR", help="folder of the results (default: eval in the model's folder)")


_OF_RUN = ("step", "heldout_tokens", "seqio", "overrides")
_OF_MODEL = ("questions", "form", "against", "against_form", "samples", "chat_format", "dtype", "out")


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    if (args.config is None) == (args.model is None):
        raise UserError("give either --config FILE for a run, or --model DIR for the model in a folder.")
    given, alone = ("--model", _OF_RUN) if args.config is None else ("--config", _OF_MODEL)
    for name in alone:
        if getattr(args, name) not in (None, 0, False, []):
            flag = "--set" if name == "overrides" else f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} does not go with {given}: see `m1 eval --help`.")
    if args.limit < 0 or args.samples < 0:
        raise UserError("--limit and --samples are numbers of questions: give 0 or more.")
    if args.config is not None:
        evaluate(config_of(args), args.step, args.tasks, args.limit, args.heldout_tokens, args.seqio, args.json)
        return
    ask(args)


def ask(args: argparse.Namespace) -> None:
    """Asks the model in a folder the questions, and prints accuracy by kind; every set's answers are kept.

    Raises UserError where there are no questions, or a model cannot be asked in the form.
    """
    from m1jax.evaluate import answers, asking
    from m1jax.parallel import jax_setup
    from m1jax.show import questions as tables

    jax_setup.prepare()
    console = consoles.make(args.json)
    tell = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
    sets = asking.sets(args.questions, args.tasks or (), args.limit)
    for one in sets:
        for reason, count in one.loaded.reasons:
            tell(f"{one.name}: set aside {count:,} for {reason}")
    subject = _subject(args.model, args.dtype, args.chat_format)
    if args.samples:
        _ = subject.chat  # where there is none, this says so before the questions are asked
    form = args.form or "base"
    out = Path(args.out) if args.out else subject.folder / "eval"
    progress = functools.partial(counting, console)
    found = [asking.answered(subject, one, form, out, tell, progress) for one in sets]
    others: Sequence[answers.Answers | None] = [None] * len(sets)
    if args.against is not None and (known := asking.earlier(Path(args.against), len(sets))):
        others = [known]
    elif args.against is not None:
        other = _subject(args.against, args.dtype, None)
        beside = out / "against" if args.out else other.folder / "eval"
        theirs = args.against_form or form
        others = [asking.answered(other, one, theirs, beside, tell, progress) for one in sets]
    data: dict[str, Any] = {}
    for one, own, against in zip(sets, found, others, strict=True):
        report = tables.lines(answers.by_kind(own, against), own.about, against.about if against else None)
        console.print(report.table)
        if against and (shared := len(own.ids & against.ids)) < len(own.items):
            tell(f"Compared on the {shared:,} questions that both results have.")
        data[one.name] = {**own.about, "against": dict(against.about) if against else None, "kinds": report.data}
    if args.samples:
        said = asking.spoken(subject, [item for one in sets for item in one.items], args.samples)
        for answer in said:
            console.print(tables.spoken(answer), soft_wrap=True)
        data["samples"] = [dataclasses.asdict(answer) for answer in said]
    tell(f"Answers in {out}.")
    if args.json:
        print(json.dumps(data, ensure_ascii=False))


def _subject(folder: str, dtype: str | None, chat_format: str | None) -> "Subject":
    from m1jax.evaluate.asking import Subject
    from m1jax.loading import fingerprint, load

    path = Path(folder)
    return Subject(path, f"{fingerprint(path)} {dtype}", lambda: load(path, dtype=dtype), chat_format)


def evaluate(
    config: RunConfig,
    step: int | None,
    task_names: Sequence[str] | None,
    limit: int,
    heldout_tokens: int,
    seqio: bool,
    as_json: bool,
) -> None:
    """Measures the checkpoint of `step` (None: the newest, 0: the initial model) and writes results.json.

    `task_names` are the question sets (None: all), `limit` questions of each (0: all), `heldout_tokens` of each
    source (0: all); questions go through seqio.Evaluator with `seqio`. A trained model is compared with a unigram and
    a bigram fitted on the tokens it saw, and with itself without attention (its output is zero). Raises UserError for a
    missing corpus, checkpoint, task or seqio. Of a run on pairs it measures what the objective reports.
    """
    from m1jax import objectives
    from m1jax.evaluate import tasks
    from m1jax.loading import of_config
    from m1jax.parallel import jax_setup
    from m1jax.show import evaluation

    jax_setup.prepare()
    console = consoles.make(as_json)
    if objectives.on_pairs(config):
        _evaluate_pairs(config, step, as_json, console)
        return
    chosen = tasks.named(task_names)
    made = artefact.require(config.corpus, "corpus", "corpus")
    if task_names is None and not (config.corpus / "evaluation").is_dir():
        chosen = []
        console.print(f"No questions are asked: {config.corpus} has none, because its text was not fetched.")
    trained = of_config(config, step)
    tokenizer = tokenizers.of_run(config)
    folder = config.evaluation(trained.step)
    asked = [task.name for task in chosen]
    of = artefact.key(trained.key, made["key"], tokenizer.fingerprint, asked, limit, heldout_tokens, seqio)
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
            found = [_ask(config, trained, tokenizer, task, limit, seqio, console) for task in chosen]
            accuracy = evaluation.accuracy(found)
            console.print(accuracy.table)
            data["accuracy"] = accuracy.data
        (partial / RESULTS).write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    console.print(f"Results in {folder / RESULTS}.")
    if as_json:
        print(json.dumps(data, ensure_ascii=False))


def _evaluate_pairs(config: RunConfig, step: int | None, as_json: bool, console: Console) -> None:
    """The loss and what else the objective reports of all held-out pairs, with its reference or its head."""
    from m1jax import loading, objectives
    from m1jax.evaluate import heldout_pairs
    from m1jax.parallel import mesh as meshes
    from m1jax.show import evaluation

    if step == 0:
        raise UserError(
            "step 0 of a run on pairs is the model that it began with, to which every pair is even: name a later step."
        )
    made, tokenizer = artefact.require(config.corpus, "corpus", "corpus"), tokenizers.of_run(config)
    mesh = meshes.make(config.mesh)
    objective = objectives.make(config, mesh)
    length = max(stage.row_length for stage in config.stages)
    rows = heldout_pairs.rows_of(config.corpus, tokenizer, length, ALL_TOKENS)
    step, params = loading.all_params(config, objective, mesh, step)
    folder = config.evaluation(step)
    of = artefact.key(to_dict(config), step, made["key"], tokenizer.fingerprint)
    with console.status("measuring"):
        found = heldout_pairs.measure(config, mesh, objective, rows)(params, config.timeline.stage(step - 1))
    report = evaluation.pairs(found, config.objective)
    console.print(report.table)
    data = {"step": step, "pairs": len(rows), "heldout": report.data}
    with artefact.building(folder, "evaluation", of) as partial:
        (partial / RESULTS).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    console.print(f"{len(rows):,} held-out pairs after step {step}. Results in {folder / RESULTS}.")
    if as_json:
        print(json.dumps(data))


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
    seqio: bool,
    console: Console,
) -> "Result":
    from m1jax.evaluate import choice, forms, items, seqio_adapter, tasks
    from m1jax.evaluate.scoring import RowScorer

    loaded = tasks.load(task, config.corpus / "evaluation")
    for reason, count in loaded.reasons:
        console.print(f"{task.name}: set aside {count} for {reason}", highlight=False)
    some = items.sample(loaded.items, limit or None, config.seed)
    scorer = RowScorer(_scorer(trained), config.data.row_lengths, BATCH_TOKENS)
    evaluate = seqio_adapter.evaluate if seqio else choice.evaluate
    return evaluate(task.name, task.metric, some, forms.as_text(some, tokenizer), scorer)
