"""The answers of both kinds of completions: whole, or as server-sent events."""

import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from m1jax.errors import UserError
from m1jax.serve.asked import Asked
from m1jax.serve.choices import Choice, Delta, of_chat, of_completion
from m1jax.serve.errors import RequestError
from m1jax.serve.metrics import Metrics
from m1jax.serve.served import Served
from m1jax.serve.worker import Call, Worker

_SEPARATORS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}
"""Characters at which many a client ends a line, though those of an event end at line feeds and carriage returns."""


@dataclass
class Answering:
    """One HTTP request for completions, until all of its choices are complete."""

    served: Served
    asked: Asked
    metrics: Metrics
    is_chat: bool
    call: Call
    begun: float
    choices: list[Choice]
    name: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def begin(cls, served: Served, worker: Worker, asked: Asked, metrics: Metrics, is_chat: bool) -> "Answering":
        """Hands the requests to the engine; raises RequestError where it refuses them or too many wait."""
        waiting = served.engine.waiting
        if waiting and waiting + len(asked.requests) > served.settings.max_waiting:
            raise RequestError(
                429,
                f"{waiting} requests wait already: try again later.",
                code="rate_limit_exceeded",
                retry_after=worker.seconds_of_queue(),
            )
        begun = time.monotonic()
        try:
            call = worker.submit(asked.requests, served.settings.timeout)
        except UserError as error:
            raise RequestError(400, str(error), code="context_length_exceeded") from error
        choices = [Choice(served, request, asked.stop, asked.echo) for request in asked.requests]
        return cls(served, asked, metrics, is_chat, call, begun, choices)

    async def whole(self) -> dict[str, Any]:
        """The JSON of the answer; raises RequestError where the engine failed."""
        async for _ in self._deltas():
            pass
        choices = [self._whole(number, choice) for number, choice in enumerate(self.choices)]
        kind = "chat.completion" if self.is_chat else "text_completion"
        return {**self._head(kind), "choices": choices, "usage": self.usage}

    async def events(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events; an error is the last of them."""
        try:
            async for event in self._events():
                yield event
        except RequestError as error:
            yield _event(error.body)

    async def _events(self) -> AsyncIterator[bytes]:
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        more = {"usage": None} if self.asked.include_usage else {}
        if self.is_chat:
            for number in range(len(self.choices)):
                first = {"index": number, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
                yield _event({**self._head(kind), "choices": [{**first, "logprobs": None}], **more})
        async for number, delta in self._deltas():
            if delta.text or delta.finish_reason or (delta.entries and self.asked.logprobs):
                yield _event({**self._head(kind), "choices": [self._piece(number, delta)], **more})
        if self.asked.include_usage:
            yield _event({**self._head(kind), "choices": [], "usage": self.usage})
        yield b"data: [DONE]\n\n"

    async def _deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        """What is new of any choice; whatever happens, nothing goes on afterwards."""
        first = True
        try:
            async for number, progress in self.call:
                if progress.error:
                    raise RequestError(500, progress.error)
                if first and progress.tokens:
                    self.metrics.first_token.observe(time.monotonic() - self.begun)
                    first = False
                choice = self.choices[number]
                delta = choice.push(progress, self.call.tickets[number])
                if choice.finish_reason is not None:
                    self.call.end(number)
                yield number, delta
        except TimeoutError as error:
            raise RequestError(504, f"the answer took longer than {self.served.settings.timeout:g} seconds.") from error
        finally:
            self.call.cancel()

    @property
    def usage(self) -> dict[str, Any]:
        """Tokens; those of a prompt count once for all of its choices."""
        firsts = range(0, len(self.choices), self.asked.choices_per_prompt)
        prompt = sum(len(self.asked.requests[i].tokens) for i in firsts)
        new = sum(choice.new_tokens for choice in self.choices)
        cached = sum(self.call.tickets[i].cached_tokens for i in firsts)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": new,
            "total_tokens": prompt + new,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def _head(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.is_chat else "cmpl"
        return {"id": f"{prefix}-{self.name}", "object": kind, "created": self.created, "model": self.served.name}

    def _whole(self, number: int, choice: Choice) -> dict[str, Any]:
        end = {"index": number, "finish_reason": choice.finish_reason}
        if self.is_chat:
            message = {"role": "assistant", "content": choice.text, "refusal": None}
            return {**end, "message": message, "logprobs": self._logprobs(choice)}
        return {**end, "text": choice.text, "logprobs": self._logprobs(choice)}

    def _piece(self, number: int, delta: Delta) -> dict[str, Any]:
        end = {"index": number, "finish_reason": delta.finish_reason, "logprobs": self._logprobs(delta)}
        if self.is_chat:
            return {**end, "delta": {"content": delta.text} if delta.text else {}}
        return {**end, "text": delta.text}

    def _logprobs(self, of: Choice | Delta) -> dict[str, Any] | None:
        if not self.asked.logprobs:
            return None
        return (of_chat if self.is_chat else of_completion)(self.served, of.entries)


def _event(body: dict[str, Any]) -> bytes:
    text = json.dumps(body, ensure_ascii=False).translate(_SEPARATORS)
    return b"data: " + text.encode(errors="replace") + b"\n\n"
