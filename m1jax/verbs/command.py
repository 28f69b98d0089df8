"""The `m1` command: the table of verbs, their parsers, and the exit status of every outcome."""

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from m1jax import __version__, disk
from m1jax.errors import AGAIN, FAILURE, INTERRUPTED, USER_ERROR, InterruptedRunError, UserError

VERBS = {
    "quickstart": ("quickstart", "run every step once on real text, from the corpus to the export"),
    "corpus": ("corpus", "fetch or read text and write documents"),
    "synthesize": ("synthesize", "make questions and answers from ontologies"),
    "tokenizer train": ("tokenizer", "train a byte-level BPE on the corpus, one domain after the other"),
    "tokenizer report": ("tokenizer_report", "measure the tokenizer on held-out text and terms"),
    "pack": ("pack", "pack documents into rows of tokens"),
    "curriculum": ("curriculum", "show what the stages will read, or (replay) the documents of one step"),
    "train": ("train", "train a run, or continue it"),
    "sft": ("sft", "fine-tune a model on conversations, or continue it"),
    "prefer": ("prefer", "train a model on preferences between two answers, or continue it"),
    "rl": ("rl", "train a model by rewards for its own answers (ELO, PPO), or continue it"),
    "eval": ("eval", "measure bits per byte and answer accuracy"),
    "needle": ("needle", "ask a chat model for a fact hidden in long text, by length and depth"),
    "report": ("report", "print a run's summary and plot its loss"),
    "plan": ("plan", "estimate memory, traffic and time of a run on TPUs that are not attached"),
    "generate": ("generate", "generate text that continues prompts"),
    "chat": ("chat", "talk with a model, one line a turn"),
    "serve": ("serve", "answer the OpenAI protocol over HTTP, with a chat page"),
    "import": ("importing", "read a Hugging Face checkpoint"),
    "export": ("export", "write a checkpoint in the reference layout"),
    "doctor": ("doctor", "measure this machine and say what is slow or broken (exit status 1)"),
}
"""Each verb's file in m1jax/verbs/ and its help, in the order of `m1 --help`, a line for each action of a verb."""
ACTIONS = {"tokenizer": "make a tokenizer, or compare it with others"}
"""Help of the verbs that have actions."""


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        """One sentence and exit status 2."""
        print(f"m1: {message}: see `{self.prog} --help`.", file=sys.stderr)
        raise SystemExit(USER_ERROR)


class VerbParser(Parser):
    """The parser of a verb, which imports the verb's file when it parses: that is, when the verb is named."""

    def __init__(self, *, module: str | None = None, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **settings)
        self._module = module

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, once the verb has added its arguments."""
        if self._module:
            verb = importlib.import_module(f"m1jax.verbs.{self._module}")
            verb.arguments(self)
            self.add_argument("--debug", action="store_true", help="show the traceback of an error")
            self.set_defaults(run=verb.run)
        return super().parse_known_args(args, namespace)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit status: 0, 2 for a user's mistake, 75 for "start again", 1 for a failure."""
    args = _parsed(sys.argv[1:] if argv is None else argv)
    try:
        status = args.run(args) or 0
        sys.stdout.flush()  # here, where a reader that went away is handled
        return status
    except UserError as error:
        return _refuse(str(error), USER_ERROR, args.debug)
    except InterruptedRunError as error:
        return _refuse(str(error), AGAIN, args.debug)
    except KeyboardInterrupt:
        return _refuse("interrupted: the same command continues.", INTERRUPTED, args.debug)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except Exception as error:  # noqa: BLE001 (the outermost function: every other error becomes one sentence)
        if reason := _surroundings(error):
            return _refuse(reason, USER_ERROR, args.debug)
        return _refuse(f"{type(error).__name__}: {error} (--debug shows where).", FAILURE, args.debug)


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; ends with exit status 2 where they are wrong, and 0 after --help and --version."""
    top = Parser(
        prog="m1",
        description="Baichuan-M1 language models in JAX: from raw text to a checkpoint that PyTorch users load.",
        epilog="`m1 VERB --help` explains a verb and shows an example.",
    )
    top.add_argument("--version", action="version", version=f"m1jax {__version__}")
    verbs = top.add_subparsers(metavar="VERB", required=True, parser_class=VerbParser)
    actions: dict[str, Any] = {}
    for words, (module, summary) in VERBS.items():
        verb, _, action = words.partition(" ")
        if action and verb not in actions:
            parser = verbs.add_parser(verb, help=ACTIONS[verb], description=_sentence(ACTIONS[verb]))
            actions[verb] = parser.add_subparsers(metavar="ACTION", required=True, parser_class=VerbParser)
        level = actions[verb] if action else verbs
        level.add_parser(action or verb, help=summary, description=_sentence(summary), module=module)
    _check_spelling(top, argv)
    return top.parse_args(argv)


def _sentence(summary: str) -> str:
    return f"{summary[0].upper()}{summary[1:]}."


def _check_spelling(top: Parser, argv: Sequence[str]) -> None:
    """Ends with a sentence that names the nearest verb or action if the given one does not exist."""
    verb, action, *_ = [*(word for word in argv if not word.startswith("-")), "", ""]
    kind, word, known = "verb", verb, list(dict.fromkeys(words.partition(" ")[0] for words in VERBS))
    if verb in ACTIONS:
        kind, word = f"action of {verb}", action
        known = [words.partition(" ")[2] for words in VERBS if words.startswith(f"{verb} ")]
    if word and word not in known:
        near = difflib.get_close_matches(word, known, n=1)
        top.error(
            f"unknown {kind} {word!r}, " + (f"did you mean {near[0]!r}" if near else f"known are {', '.join(known)}")
        )


def _surroundings(error: Exception) -> str | None:
    """One sentence where the machine refused something; None where the fault is m1jax's own."""
    where = getattr(error, "filename", None) or "the run's folder"
    if sentence := disk.refusal(error, where):
        return sentence
    return f"{where}: {error.strerror or error}: check the path." if isinstance(error, OSError) else None


def _refuse(message: str, status: int, debug: bool) -> int:
    if debug:
        raise
    print(f"m1: {message}", file=sys.stderr)
    return status
