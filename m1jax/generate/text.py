"""Text from tokens as they come: whole characters only, and nothing that may turn out to be a stop string."""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from m1jax.errors import UserError
from m1jax.generate.session import Generation
from m1jax.tokenizer import Tokenizer


@dataclass
class Answer:
    """What has been generated for one prompt: `new` is the text since the answer was last handed out."""

    text: str = ""
    new: str = ""
    tokens: list[int] = field(default_factory=list)
    """Up to the one that ended it: an end token, or the one that completed a stop string."""
    finish_reason: str | None = None
    """ "eos", "stop" or "length"; None while it goes on."""


def answers(generation: Generation, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> Iterator[list[Answer]]:
    """The answer of each row, handed out again and again as it grows; the last time with every finish reason.

    A stop string ends a row wherever it begins and ends among the tokens; it is cut from the text. Raises UserError
    for an empty stop string.
    """
    if not all(stop):
        raise UserError("a stop string is empty: give it at least one character.")
    found = [Answer() for _ in generation.new]
    prompts = generation.session.tokens
    writers = [Writer(tokenizer, stop, prompts[row]) for row in range(len(found))]
    for newest in generation:
        for row, (answer, writer, tokens) in enumerate(zip(found, writers, newest, strict=True)):
            answer.new = ""
            if answer.finish_reason is not None:
                continue
            for token in tokens:
                answer.tokens.append(token)
                answer.new += writer.push(token)
                if writer.stopped:
                    answer.finish_reason = "stop"
                    generation.end(row)
                    break
            else:
                answer.finish_reason = generation.finish_reasons[row]
                if answer.finish_reason is not None:
                    answer.new += writer.finish()
            answer.text += answer.new
        yield found


class Writer:
    """Turns the tokens of one row into text, one by one, and watches for stop strings."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), before: Sequence[int] = ()):
        """`before` are the tokens that precede; they are not written."""
        self._decoder, self._stop = tokenizer.decoder(), tuple(stop)
        self._decoder.begin(before)
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False
        """Whether a stop string has come; nothing is written any more then."""

    def push(self, token: int) -> str:
        """The text that is certain now, often none: a token may hold half a character, or the start of a stop."""
        if self.stopped:
            return ""
        return self._released(self._characters.decode(self._decoder.push(token)))

    def finish(self) -> str:
        """What was held back, where no stop string has come."""
        if self.stopped:
            return ""
        text = self._released(self._characters.decode(self._decoder.finish(), final=True)) + self._held
        self._held = ""
        return text

    def _released(self, new: str) -> str:
        text = self._held + new
        # The stop string that ends first counts, whatever pieces the text comes in; of several the longest.
        ends = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)[1]]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that begin `stop`, the most that do."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
