"""What is served: a model with its tokenizer and chat format, and the limits of the server."""

import time
from dataclasses import dataclass, field
from functools import cached_property

from m1jax.generate.online import Engine
from m1jax.serve.grammar import Grammars
from m1jax.tokenizer import Tokenizer
from m1jax.tokenizer.chat import Chat


@dataclass(frozen=True)
class Settings:
    """Limits of the server, beside those of the engine (`m1jax.generate.room.Limits`)."""

    api_keys: tuple[str, ...] = ()
    """Any of them opens the server; none leaves it open."""
    hosts: tuple[str, ...] = ()
    """Names by which clients may call the server, in their Host header; none for all. A page of another site that lets
    its name mean this machine's address is kept out so."""
    max_waiting: int = 128
    """Requests that may wait for a place; further ones get status 429."""
    max_body: int = 8 << 20
    """Bytes of a request's body."""
    timeout: float = 600.0
    """Seconds of a request from its beginning to its end."""
    default_tokens: int = 1024
    """New tokens of a chat's answer that does not say how many, at most."""
    body_timeout: float = 30.0
    """Seconds in which a request's body must have come."""
    log_text: bool = False
    """Whether prompts and answers are logged."""


@dataclass(frozen=True)
class Served:
    """A model under a name."""

    name: str
    engine: Engine
    tokenizer: Tokenizer
    chat: Chat | None
    """None where the model has no chat format; `no_chat` says why."""
    end_ids: tuple[int, ...]
    """Tokens that end a text."""
    card: str = ""
    """What is known about the model, for people."""
    no_chat: str = ""
    settings: Settings = field(default_factory=Settings)
    created: int = field(default_factory=lambda: int(time.time()))

    @cached_property
    def grammars(self) -> Grammars:
        """Schemas that answers can be held to."""
        return Grammars(self.tokenizer, self.token_bytes, self.engine.vocab_size)

    @property
    def chat_ends(self) -> tuple[int, ...]:
        """Tokens that end an answer of a chat."""
        return tuple(dict.fromkeys([*(self.chat.ends if self.chat else ()), *self.end_ids]))

    @cached_property
    def _special(self) -> dict[int, str]:
        return {i: text for text, i in self.tokenizer.special_tokens.items()}

    @cached_property
    def _before(self) -> list[int]:
        """A token that precedes: many a tokenizer writes the first token of a text differently."""
        return self.tokenizer.encode("a")[:1]

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token inside a text; of a special token its name."""
        if token in self._special:
            return self._special[token].encode()
        return self.tokenizer.decode_bytes([token], self._before)

    def token_text(self, token: int) -> str:
        """A token as the protocol of completions writes it: bytes that are no character by their numbers."""
        data = self.token_bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
