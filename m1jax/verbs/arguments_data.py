"""Verbs from text to rows: corpus, tokenizer, pack, curriculum."""

import argparse
from typing import Any

from m1jax.errors import UserError
from m1jax.verbs.arguments import CONFIG, TEXT_HELP, add, add_group, config_of


def register(verbs: Any) -> None:
    """Adds the verbs to the command."""
    sub = add(
        verbs, "corpus", "fetch or read text and write documents", f"m1 corpus {CONFIG} --text my_texts/", _corpus
    )
    sub.add_argument("--text", metavar="DIR", help=TEXT_HELP)
    sub.add_argument("--language", default="en", help="language of --text where a record does not say (default: en)")

    actions = add_group(verbs, "tokenizer", "make a tokenizer, or compare it with others")
    example = f"m1 tokenizer train {CONFIG}"
    add(actions, "train", "train a byte-level BPE on the corpus, medical upon general", example, _tokenizer_train)
    example = f"m1 tokenizer report {CONFIG} --against other/tokenizer.json"
    sub = add(actions, "report", "measure the tokenizer on held-out text and terms", example, _tokenizer_report)
    sub.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="TOKENIZER",
        help="another tokenizer: tokenizer.json, SentencePiece model or name of a tiktoken encoding; may be repeated",
    )
    sub.add_argument("--json", action="store_true", help="print JSON instead of tables")

    sub = add(verbs, "pack", "pack documents into rows of tokens", f"m1 pack {CONFIG}", _pack)
    sub.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="NAME[=DOMAIN]",
        help="pack a registered seqio task or mixture too (domain: general); may be repeated; see data.tasks_module",
    )
    sub.add_argument("--workers", type=int, default=0, metavar="N", help="threads (default: data.workers, all cores)")
    sub.add_argument("--verify", action="store_true", help="read the packed rows and compare their checksums instead")

    example = f"m1 curriculum {CONFIG} --plot mixture.png\n  m1 curriculum replay {CONFIG} --step 1200"
    summary = "show what the stages will read, or (replay) the documents of one step"
    sub = add(verbs, "curriculum", summary, example, _curriculum)
    sub.add_argument("action", nargs="?", choices=("replay",), help="show the documents of --step instead")
    sub.add_argument("--step", type=int, metavar="N", help="with replay: a step, counted from 1 as in the log")
    sub.add_argument("--examples", type=int, default=1, metavar="N", help="decoded rows of each stage (default: 1)")
    sub.add_argument("--plot", default="", metavar="FILE.png", help="draw the mixture over tokens")
    sub.add_argument("--json", action="store_true", help="print JSON instead of tables")


def _corpus(args: argparse.Namespace) -> None:
    from m1jax.verbs import corpus

    corpus.run(config_of(args), text=args.text, language=args.language)


def _tokenizer_train(args: argparse.Namespace) -> None:
    from m1jax.verbs import tokenizer

    tokenizer.train(config_of(args))


def _tokenizer_report(args: argparse.Namespace) -> None:
    from m1jax.verbs import tokenizer_report

    tokenizer_report.run(config_of(args), against=args.against, as_json=args.json)


def _pack(args: argparse.Namespace) -> None:
    from m1jax.verbs import pack as packing

    if args.verify:
        packing.verify(config_of(args))
        return
    if args.workers < 0:
        raise UserError(f"--workers {args.workers} must be 0 (all cores) or more.")
    named = [task.partition("=") for task in args.task]
    packing.pack(config_of(args), {name: domain or "general" for name, _, domain in named}, args.workers)


def _curriculum(args: argparse.Namespace) -> None:
    from m1jax.verbs import curriculum

    if (args.action is None) != (args.step is None):
        raise UserError("m1 curriculum replay needs --step N, and --step belongs to replay: give both or neither.")
    if args.examples < 0:
        raise UserError(f"--examples {args.examples} must be 0 or more.")
    config = config_of(args)
    if args.step is not None:
        curriculum.replay(config, args.step, as_json=args.json)
    else:
        curriculum.show(config, examples=args.examples, plot_path=args.plot, as_json=args.json)
