"""The `m1` command: verbs only. What a verb does is in m1jax/recipes/, imported when the verb runs."""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from m1jax import __version__
from m1jax.errors import InterruptedRunError, UserError

USER_ERROR, FAILURE = 2, 1
# sysexits' EX_TEMPFAIL: nothing is wrong, start the same command again. Launch scripts rely on it.
AGAIN = 75
Verb = Callable[[argparse.Namespace], int | None]


class _Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        print(f"m1: {message}: see `{self.prog} --help`.", file=sys.stderr)
        raise SystemExit(USER_ERROR)


def _quickstart(args: argparse.Namespace) -> int:
    from m1jax.recipes import quickstart

    return quickstart.run(args.config, args.overrides, text=args.text, main=main)


def _corpus(args: argparse.Namespace) -> None:
    from m1jax.recipes import corpus

    corpus.run(_config(args), text=args.text, language=args.language)


def _tokenizer_train(args: argparse.Namespace) -> None:
    from m1jax.recipes import rows

    rows.train_tokenizer(_config(args))


def _pack(args: argparse.Namespace) -> None:
    from m1jax.recipes import rows

    rows.pack(_config(args))


def _curriculum(args: argparse.Namespace) -> None:
    from m1jax.recipes import rows

    rows.show_curriculum(_config(args), as_json=args.json)


def _train(args: argparse.Namespace) -> None:
    from m1jax.recipes import training

    training.run(_config(args))


def _eval(args: argparse.Namespace) -> None:
    from m1jax.recipes import evaluation

    evaluation.run(
        _config(args),
        step=args.step,
        task_names=args.tasks,
        limit=args.limit,
        heldout_tokens=args.heldout_tokens,
        plain=args.plain,
        as_json=args.json,
    )


def _generate(args: argparse.Namespace) -> None:
    from m1jax.recipes import generation

    generation.run(
        args.model,
        args.prompts,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
        as_json=args.json,
    )


def _export(args: argparse.Namespace) -> None:
    from m1jax.recipes import export

    export.run(args.model, args.out, verify=args.verify)


def _report(args: argparse.Namespace) -> None:
    from m1jax.recipes import report

    report.run(_config(args), as_json=args.json)


def _config(args: argparse.Namespace) -> Any:
    from m1jax import config_file

    return config_file.load(args.config, args.overrides)


def _add(verbs: Any, name: str, help_text: str, example: str, run: Verb, config: bool = True) -> _Parser:
    parser = verbs.add_parser(
        name,
        help=help_text,
        description=help_text[0].upper() + help_text[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if config:
        parser.add_argument("--config", required=True, metavar="FILE", help="config file, or the name of a shipped one")
        parser.add_argument(
            "--set",
            dest="overrides",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="override one key of the config, e.g. model.hidden=512; may be repeated",
        )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run)
    return parser


def _sampling_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="sample among the K likeliest; 0 is all")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="sample among the likeliest of mass P")
    parser.add_argument("--seed", type=int, default=0)


def parser() -> argparse.ArgumentParser:
    """The command's parser, with every verb."""
    top = _Parser(
        prog="m1",
        description="Baichuan-M1 language models in JAX: from raw text to a checkpoint that PyTorch users load.",
        epilog="`m1 VERB --help` explains a verb and shows an example.",
    )
    top.add_argument("--version", action="version", version=f"m1jax {__version__}")
    verbs = top.add_subparsers(metavar="VERB", required=True, parser_class=_Parser)
    config = "--config configs/quickstart.py"
    text = "your own .txt, .jsonl or .parquet files instead of fetched text"

    sub = _add(
        verbs, "quickstart", "the whole road once, verb by verb, on real text", f"m1 quickstart {config}", _quickstart
    )
    sub.add_argument("--text", metavar="DIR", help=text)

    sub = _add(
        verbs, "corpus", "fetch or read text and write documents", f"m1 corpus {config} --text my_texts/", _corpus
    )
    sub.add_argument("--text", metavar="DIR", help=text)
    sub.add_argument("--language", default="en", help="language of --text where a record does not say (default: en)")

    tokenizer = verbs.add_parser("tokenizer", help="make a tokenizer", description="Make a tokenizer.")
    actions = tokenizer.add_subparsers(metavar="ACTION", required=True, parser_class=_Parser)
    example = f"m1 tokenizer train {config}"
    _add(actions, "train", "train a byte-level BPE on the corpus", example, _tokenizer_train)

    _add(verbs, "pack", "pack documents into rows of tokens", f"m1 pack {config}", _pack)

    sub = _add(verbs, "curriculum", "show what the stages will read", f"m1 curriculum {config}", _curriculum)
    sub.add_argument("--json", action="store_true", help="print JSON instead of a table")

    _add(verbs, "train", "train, or continue to", f"m1 train {config} --set train.checkpoint_every=100", _train)

    sub = _add(verbs, "eval", "measure bits per byte and answer accuracy", f"m1 eval {config} --step 0", _eval)
    sub.add_argument(
        "--step", type=int, metavar="N", help="checkpoint of step N, 0 the initial model (default: newest)"
    )
    sub.add_argument("--tasks", nargs="*", metavar="TASK", help="question sets to ask (default: all)")
    sub.add_argument("--limit", type=int, default=0, metavar="N", help="ask at most N questions of a set; 0 is all")
    sub.add_argument("--heldout-tokens", type=int, default=0, metavar="N", help="at most N tokens a source; 0 is all")
    sub.add_argument("--plain", action="store_true", help="ask questions without seqio (the numbers are the same)")
    sub.add_argument("--json", action="store_true", help="print JSON instead of tables")

    example = 'm1 generate --model runs/quickstart --prompt "Asthma is" --temperature 0.8'
    sub = _add(verbs, "generate", "continue prompts", example, _generate, config=False)
    sub.add_argument("--model", required=True, metavar="DIR", help="a run's folder or an exported one")
    sub.add_argument("--prompt", dest="prompts", action="append", required=True, help="may be repeated")
    sub.add_argument("--json", action="store_true", help="print JSON instead of text")
    _sampling_arguments(sub)

    example = "m1 export --model runs/quickstart --out exported --verify"
    sub = _add(verbs, "export", "write a checkpoint in the reference layout", example, _export, config=False)
    sub.add_argument("--model", required=True, metavar="DIR", help="a run's folder")
    sub.add_argument("--out", required=True, metavar="DIR", help="folder of config.json, weights, tokenizer")
    sub.add_argument("--verify", action="store_true", help="load the folder with mlx-lm and compare logits")

    sub = _add(verbs, "report", "summary table and loss plot of a run", f"m1 report {config}", _report)
    sub.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit status: 0, 2 for a user's mistake, 75 for "start again", 1 for a failure."""
    args = parser().parse_args(argv)
    try:
        return args.run(args) or 0
    except UserError as error:
        return _refuse(str(error), USER_ERROR, args.debug)
    except InterruptedRunError as error:
        return _refuse(str(error), AGAIN, args.debug)
    except KeyboardInterrupt:
        return _refuse("interrupted: the same command continues.", 130, args.debug)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except Exception as error:  # noqa: BLE001 (the door: whatever is left is told in one sentence)
        if reason := _surroundings(error):
            return _refuse(reason, USER_ERROR, args.debug)
        return _refuse(f"{type(error).__name__}: {error} (--debug shows where).", FAILURE, args.debug)


def _surroundings(error: Exception) -> str | None:
    """What the machine refused, as one sentence; None where the fault is m1jax's own."""
    where = getattr(error, "filename", None) or "the run's folder"
    # Writers in C++ (ArrayRecord, tensorstore, safetensors) report a full disk as errors of their own kinds.
    if getattr(error, "errno", None) == errno.ENOSPC or "no space left on device" in str(error).lower():
        return f"the disk that holds {where} is full: free some space and run the same command again."
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.EACCES, errno.EROFS):
        return f"{where} cannot be written or read ({error.strerror}): mend its permissions or choose another folder."
    return f"{where}: {error.strerror or error}: check the path."


def _refuse(message: str, status: int, debug: bool) -> int:
    if debug:
        raise
    print(f"m1: {message}", file=sys.stderr)
    return status
