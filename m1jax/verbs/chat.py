"""`m1 chat`: a conversation with a trained model, turn by turn on one warm cache."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from m1jax.errors import UserError
from m1jax.generate import LanguageModel, Sampling
from m1jax.generate import chat as chats
from m1jax.generate.session import Generation
from m1jax.generate.text import Answer, answers
from m1jax.loading import load
from m1jax.show import console as consoles
from m1jax.tokenizer import DEFAULT_SYSTEM, Tokenizer
from m1jax.verbs import jax_setup
from m1jax.verbs.generate import mesh_of, read_all

HELP = "/reset forgets the conversation, /quit leaves."


def run(
    folder: str, *, system: str, max_new_tokens: int, sampling: Sampling, seed: int, tensor: int, as_json: bool
) -> None:
    """Reads one turn a line from standard input, answers it, and goes on until /quit or the input's end.

    Raises UserError for a model without tokenizer, a tokenizer without role tokens, settings out of range and, where
    nobody is there to reset it, a context that is full.
    """
    jax_setup.prepare()
    console = consoles.make(as_json)
    sampling.check(1)
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens must be at least 1, got {max_new_tokens}.")
    model, tokenizer = load(Path(folder), mesh_of(tensor))
    if tokenizer is None:
        raise UserError(f"{folder} holds no tokenizer.json, so text cannot be read: put it beside config.json.")
    conversation = Conversation(model, tokenizer, system)
    somebody = sys.stdin.isatty()
    if somebody:
        console.print(HELP, style="dim")
    for number, line in enumerate(_lines(somebody)):
        if line == "/quit":
            return
        if line == "/reset":
            conversation = Conversation(model, tokenizer, system)
        elif line.startswith("/"):
            console.print(f"{line.split()[0]} is unknown: {HELP}", style="yellow")
        else:
            try:
                pieces = conversation.ask(line, max_new_tokens, sampling, seed + number)
            except UserError as error:
                if not somebody:
                    raise
                console.print(Text(f"m1: {error}", "yellow"))
                continue
            _print_answer(pieces, console, conversation, as_json)


class Conversation:
    """A session that speaks the chat format; each turn computes only what is new."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, system: str = DEFAULT_SYSTEM):
        """Raises UserError where the tokenizer has no role tokens."""
        self._model, self._tokenizer = model, tokenizer
        self._opening = chats.turn(tokenizer, "system", system)
        self._ends = chats.ends(tokenizer)
        self._session = model.session()

    @property
    def tokens(self) -> list[int]:
        """Everything said so far, with its role tokens."""
        return self._session.tokens[0]

    def ask(self, text: str, max_new_tokens: int, sampling: Sampling, seed: int) -> Iterator[list[Answer]]:
        """The answer as it comes (`m1jax.generate.text.answers`).

        Raises UserError, and leaves the conversation as it was, where the context has no room for an answer.
        """
        opening = [] if self.tokens else self._opening
        new = [*opening, *chats.turn(self._tokenizer, "user", text), self._tokenizer.roles["assistant"]]
        room = self._model.config.max_positions - len(self.tokens) - len(new)
        if room < 1:
            raise UserError(
                f"the context is full: {len(self.tokens)} tokens and this turn's {len(new)} leave no room for an answer"
                f" in {self._model.config.max_positions} positions; /reset starts anew."
            )
        self._session.extend(new)
        generation = Generation(self._session, min(max_new_tokens, room), sampling, seed, self._ends)
        return answers(generation, self._tokenizer)


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
        if line.strip():
            yield line.strip()


def _print_answer(pieces: Iterator[list[Answer]], console: Console, conversation: Conversation, as_json: bool) -> None:
    """The answer as it comes, or as one line of JSON; Ctrl-C ends it with what is there, and the chat goes on."""
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
