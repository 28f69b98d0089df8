"""What the verbs share: a parser that speaks in sentences, and arguments that several verbs take."""

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from m1jax.errors import USER_ERROR

CONFIG = "--config configs/quickstart.py"
TEXT_HELP = "your own .txt, .jsonl or .parquet files instead of fetched text"
Verb = Callable[[argparse.Namespace], int | None]


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        """One sentence and exit status 2."""
        print(f"m1: {message}: see `{self.prog} --help`.", file=sys.stderr)
        raise SystemExit(USER_ERROR)


def add(verbs: Any, name: str, help_text: str, example: str, run: Verb, config: bool = True) -> Parser:
    """A verb's parser with its help, its example and `--debug`, and `--config` and `--set` where a run is meant."""
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


def add_group(verbs: Any, name: str, help_text: str) -> Any:
    """A verb whose next word is an action; `add` adds actions to what this returns."""
    parser = verbs.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
    return parser.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)


def config_of(args: argparse.Namespace) -> Any:
    """The RunConfig that `--config` and `--set` name."""
    from m1jax.config import file as config_file

    return config_file.load(args.config, args.overrides)
