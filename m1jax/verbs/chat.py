"""`m1 chat`: a conversation with a trained model, turn by turn on one warm cache."""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from m1jax.config.seeds import LIMIT
from m1jax.errors import UserError
from m1jax.show import console as consoles
from m1jax.verbs.arguments import Parser, add_sampling, example, opened, sampling_of

if TYPE_CHECKING:  # they load JAX, which takes seconds: `chat` imports what it needs
    from m1jax.generate.chat import Conversation
    from m1jax.generate.sampling import Sampling
    from m1jax.generate.text import Answer

HELP = "/reset forgets the conversation, /quit leaves."


def arguments(parser: Parser) -> None:
    """Adds the verb's arguments."""
    example(parser, "m1 chat --model runs/quickstart --temperature 0.7 --top-p 0.9")
    parser.add_argument("--system", metavar="TEXT", help="the system message, instead of the chat format's own")
    parser.add_argument("--chat-format", metavar="NAME", help="Baichuan-M1 or ChatML (default: the model's own)")
    add_sampling(parser, max_new_tokens=512)


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    chat(
        args.model,
        system=args.system,
        chat_format=args.chat_format,
        max_new_tokens=args.max_new_tokens,
        sampling=sampling_of(args),
        seed=args.seed,
        tensor=args.tensor,
        adapter=args.adapter,
        as_json=args.json,
    )


def chat(
    folder: str,
    *,
    system: str | None,
    chat_format: str | None,
    max_new_tokens: int,
    sampling: "Sampling",
    seed: int,
    tensor: int,
    as_json: bool,
    adapter: str | None = None,
) -> None:
    """Reads one turn a line from standard input, answers it, and continues until /quit or the input's end.

    `chat_format` names a known format; by default it is recognised (`m1jax.tokenizer.chat.of`). It is printed once, on
    standard error. Raises UserError for a model without tokenizer or chat format, settings out of range and, if the
    input is not a terminal, a full context.
    """
    from m1jax.generate.chat import Conversation
    from m1jax.parallel import jax_setup
    from m1jax.tokenizer import chat as chats

    jax_setup.prepare()
    console = consoles.make(as_json)
    sampling.check(1)
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens must be at least 1, got {max_new_tokens}.")
    model, tokenizer = opened(folder, tensor, adapter=adapter)
    talk = chats.of(tokenizer, chat_format)
    consoles.make(as_json=True).print(Text(f"chat format: {talk.origin}", "dim"), soft_wrap=True)
    conversation = Conversation(model, tokenizer, talk, system)
    somebody = sys.stdin.isatty()
    if somebody:
        console.print(HELP, style="dim")
    for number, line in enumerate(_lines(somebody)):
        if line == "/quit":
            return
        if line == "/reset":
            conversation = Conversation(model, tokenizer, talk, system)
        elif line.startswith("/"):
            console.print(f"{line.split()[0]} is unknown: {HELP}", style="yellow")
        else:
            try:
                pieces = conversation.ask(line, max_new_tokens, sampling, (seed + number) % LIMIT)
            except UserError as error:
                if not somebody:
                    raise
                console.print(Text(f"m1: {error}", "yellow"))
                continue
            _print_answer(pieces, console, conversation, as_json)


def _lines(somebody: bool) -> Iterator[str]:
    """What is typed or piped in, line by line, without empty ones; ends with the input, and at Ctrl-C."""
    if somebody:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (gives `input` its editing keys, where the platform has it)
    while True:
        try:
            line = input("> ") if somebody else sys.stdin.readline()
        except (EOFError, KeyboardInterrupt):
            return
        if not somebody and not line:
            return
        if not somebody:
            line = line.removeprefix("\ufeff")  # a byte-order mark, which some editors put before the first line
        if line.strip():
            yield line.strip()


def _print_answer(
    pieces: Iterator[list["Answer"]], console: Console, conversation: "Conversation", as_json: bool
) -> None:
    """Prints the answer as it is generated, or as one line of JSON; Ctrl-C ends the answer, and the chat continues."""
    from m1jax.show.answers import read_all

    found, _ = read_all(pieces, None if as_json else console)
    if not as_json:
        console.print()
        return
    (answer,) = found
    line = {
        "role": "assistant",
        "content": answer.text,
        "tokens": answer.tokens,
        "finish_reason": answer.finish_reason or "interrupted",
        "context_tokens": len(conversation.tokens),
    }
    print(json.dumps(line, ensure_ascii=False), flush=True)
