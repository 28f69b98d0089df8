"""From a folder of conversations or preferences and a model to a tuned one: what `m1 sft` and `m1 prefer` share."""

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from m1jax import artefact
from m1jax import tokenizer as tokenizers
from m1jax.config import RunConfig
from m1jax.errors import UserError
from m1jax.show import console as consoles
from m1jax.tokenizer import chat as chats
from m1jax.tokenizer.chat import jinja, template
from m1jax.train.run.holder import check_free
from m1jax.verbs.arguments import Parser, add_config, config_of
from m1jax.verbs.command import main

_SHOWN = 1000
"""Characters of a conversation that the example shows."""


def arguments(parser: Parser) -> None:
    """Adds the arguments of `walk`."""
    shared_arguments(parser)
    parser.add_argument(
        "--prepare",
        action="store_true",
        help="write and show the rows only; then train with `m1 train`, on several hosts too",
    )


def shared_arguments(parser: Parser) -> None:
    """Adds the arguments of every verb that tunes a model, `m1 rl` among them."""
    add_config(parser)
    parser.add_argument("--language", default="en", help="language of the records where they do not say (default: en)")
    parser.add_argument(
        "--amend",
        action="store_true",
        help="accept settings and stages that changed since the checkpoint, and record them",
    )


def walk(args: argparse.Namespace, what: str, given: str | None, objective: Sequence[str]) -> int:
    """Runs the verbs from the records in the folder `given`, which are `what`, to the trained model.

    `objective` are those of which the config must have one. Returns the first status of a command that is not 0.
    """
    if args.prepare:
        # On a TPU pod one host prepares by itself: the others, for which its devices would wait, are not there yet.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    console = consoles.make()
    config = config_of(args)
    check(config, what, given, objective)
    copy_tokenizer(config, console)
    return run_all(commands(shared(args), reading(args, what, given), args.prepare, args.amend), console)


def run_all(verbs: Sequence[Sequence[str]], console: Console) -> int:
    """Runs verbs one after the other, each printed before; returns the first status that is not 0, else 0."""
    for command in verbs:
        console.print(f"[bold]$ m1 {shlex.join(command)}[/]", soft_wrap=True)
        if status := main(command):
            return status
    return 0


def shared(args: argparse.Namespace) -> list[str]:
    """The arguments that every verb of a walk gets."""
    given = ["--config", args.config, *(part for override in args.overrides for part in ("--set", override))]
    return [*given, *(["--debug"] if args.debug else [])]


def reading(args: argparse.Namespace, what: str, given: str | None) -> list[str]:
    """The verb that reads the records, which are `what`, in the folder `given`; empty without one."""
    return ["corpus", *shared(args), f"--{what}", given, "--language", args.language] if given else []


def commands(shared: Sequence[str], read: list[str], prepare: bool, amend: bool) -> list[list[str]]:
    """The verbs in order, as arguments of `m1`: `shared` are those of each, `read` is the one that reads records."""
    train = [] if prepare else [["train", *shared, *(["--amend"] if amend else [])]]
    return [*([read] if read else []), ["pack", *shared], ["curriculum", *shared, "--characters", str(_SHOWN)], *train]


def check(config: RunConfig, what: str, given: str | None, objective: Sequence[str]) -> None:
    """Raises UserError where the config is not one of tuning by these objectives, or there are no records."""
    if config.objective not in objective:
        verbs = {"next_token": "m1 sft", "preference": "m1 prefer", "reward": "m1 prefer", "policy": "m1 rl"}
        other = verbs.get(config.objective, "m1 train")
        raise UserError(
            f"config key objective = {config.objective!r} is not for this verb, which needs {' or '.join(objective)}: "
            f"run `{other}`, or change the key."
        )
    if not config.train.initial:
        raise UserError(
            "config key train.initial is empty: name the folder of the model to fine-tune, a run's, an imported or an "
            "exported one."
        )
    if config.train.validate_every and not config.data.heldout_share:
        raise UserError(
            f"config key train.validate_every = {config.train.validate_every} measures held-out {what}, but "
            f"data.heldout_share is 0: set it above 0, or validate_every to 0."
        )
    if given is None and artefact.stamp(config.corpus) is None:
        raise UserError(f"{config.corpus} has no {what}: give their folder with --{what} DIR.")


def copy_tokenizer(config: RunConfig, console: Console) -> None:
    """Copies the tokenizer of the model that the run begins with, unless data.tokenizer names another.

    A run that has a copy does not need the model again. Where the config names a chat format, the copy has its
    template, so that the model is later used as it was trained.
    """
    initial = Path(config.train.initial)
    if config.data.tokenizer or (artefact.stamp(config.tokenizer) and not initial.is_dir()):
        return
    # They load JAX, which takes seconds: not for `m1 sft --help`.
    from m1jax import loading
    from m1jax.convert import config_json, tokenizer_files

    source, ids = loading.tokenizer_files(initial)
    files = tokenizer_files.of_folder(source) if source else []
    if source is None or not files:
        raise UserError(f"config key train.initial: {initial} holds no tokenizer: name one with data.tokenizer.")
    name = config.data.chat_format
    of = artefact.key(artefact.state_of(files), dict(ids), name, str(tokenizers.special_ids(config)))
    if artefact.is_whole(config.tokenizer, "tokenizer", of):
        return
    check_free(config.journal, config.tokenizer)
    with artefact.building(config.tokenizer, "tokenizer", of) as folder:
        tokenizer_files.write(source, folder, config_json.single(ids))
        if name:
            copy = tokenizers.load(folder, tokenizers.special_ids(config))
            known = chats.FormatChat(chats.named(name), copy).format
            text = jinja.template(known, list(copy.special_tokens))
            (folder / template.FILE).write_text(text, encoding="utf-8")
    console.print(f"Tokenizer of {initial} in {config.tokenizer}.", highlight=False, soft_wrap=True)
