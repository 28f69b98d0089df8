"""The choices of an answer as they grow: tokens become text, stop strings end it, log-probabilities are kept."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from m1jax.generate.requests import Alternative, Progress, Request, Ticket
from m1jax.generate.text import Writer
from m1jax.serve.served import Served

_REASONS = {"eos": "stop", "length": "length"}


class Entry(NamedTuple):
    """A token whose log-probability is told."""

    token: int
    log_p: float | None
    """None for the first token of a prompt."""
    alternatives: Sequence[Alternative]
    offset: int
    """Characters of the text before it."""


@dataclass
class Delta:
    """What is new of a choice."""

    text: str = ""
    entries: list[Entry] = field(default_factory=list)
    finish_reason: str | None = None


class Choice:
    """One choice; `text`, `entries` and `finish_reason` are all there is so far."""

    def __init__(self, served: Served, request: Request, stop: Sequence[str], echo: bool):
        """With `echo` the text begins with the prompt's."""
        self._served, self._request, self._echo = served, request, echo
        self._writer = Writer(served.tokenizer, stop, request.tokens)
        self.text = ""
        self.entries: list[Entry] = []
        self.finish_reason: str | None = None
        self.new_tokens = 0

    def push(self, progress: Progress, ticket: Ticket) -> Delta:
        """Takes what the engine tells; after a stop string nothing more is taken."""
        delta = Delta()
        if self._echo:
            self._prompt(delta, ticket)
            self._echo = False
        for token, log_p, alternatives in zip(progress.tokens, progress.log_p, progress.alternatives, strict=True):
            delta.entries.append(Entry(token, log_p, alternatives, len(self.text) + len(delta.text)))
            delta.text += self._writer.push(token)
            self.new_tokens += 1
            if self._writer.stopped:
                delta.finish_reason = "stop"
                break
        else:
            if progress.finish_reason is not None:
                delta.text += self._writer.finish()
                delta.finish_reason = "stop" if self._writer.stopped else _REASONS[progress.finish_reason]
        self.text += delta.text
        self.entries += delta.entries
        self.finish_reason = delta.finish_reason
        return delta

    def _prompt(self, delta: Delta, ticket: Ticket) -> None:
        """The prompt's text, and its log-probabilities where they were asked for."""
        writer, scores = Writer(self._served.tokenizer), ticket.prompt
        for number, token in enumerate(self._request.tokens):
            if self._request.score_prompt and scores is not None:
                log_p = scores.log_p[number - 1] if number else None
                alternatives = scores.alternatives[number - 1] if number else []
                delta.entries.append(Entry(token, log_p, alternatives, len(delta.text)))
            delta.text += writer.push(token)
        delta.text += writer.finish()


def of_completion(served: Served, entries: Sequence[Entry]) -> dict[str, Any]:
    """Log-probabilities as /v1/completions writes them."""

    def beside(entry: Entry) -> dict[str, float] | None:
        if entry.log_p is None:
            return None
        found: dict[str, float] = {}
        # Tokens may be written alike: the likeliest of them counts.
        for token, log_p in [*entry.alternatives, (entry.token, entry.log_p)]:
            found.setdefault(served.token_text(token), log_p)
        return found

    return {
        "tokens": [served.token_text(entry.token) for entry in entries],
        "token_logprobs": [entry.log_p for entry in entries],
        "top_logprobs": [beside(entry) for entry in entries],
        "text_offset": [entry.offset for entry in entries],
    }


def of_chat(served: Served, entries: Sequence[Entry]) -> dict[str, Any]:
    """Log-probabilities as /v1/chat/completions writes them."""

    def one(token: int, log_p: float | None) -> dict[str, Any]:
        data = served.token_bytes(token)
        return {"token": data.decode(errors="replace"), "logprob": log_p, "bytes": list(data)}

    content = [
        {**one(entry.token, entry.log_p), "top_logprobs": [one(*other) for other in entry.alternatives]}
        for entry in entries
    ]
    return {"content": content, "refusal": None}
