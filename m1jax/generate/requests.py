"""What may be asked of the engine of `m1jax.generate.online`, and what it tells while it answers."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from m1jax.config import ModelConfig
from m1jax.config.seeds import checked
from m1jax.errors import UserError
from m1jax.generate.programs import Draws
from m1jax.generate.sampling import Sampling
from m1jax.generate.session import check_tokens
from m1jax.generate.steering import ALTERNATIVES, ANY, Constraint, Steering, words
from m1jax.model import seeds

END_IDS = 16
"""End tokens that a request may name."""
_PENALTY, _BIAS = 2.0, 100.0
"""OpenAI's ranges, on both sides of 0."""

Alternative = tuple[int, float]
"""A token and its log p, nats."""


@dataclass(frozen=True)
class Request:
    """A prompt, and how it is to be continued.

    Continuation `sample` of a seed is the one that `Batcher.run` gives the number `sample` for a single prompt. log p
    is in nats, at temperature 1, before penalties, biases and filters.
    """

    tokens: Sequence[int]
    max_new_tokens: int
    """0 only reads the prompt."""
    sampling: Sampling = field(default_factory=Sampling)
    """One number for each setting."""
    seed: int = 0
    sample: int = 0
    end_ids: Sequence[int] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    alternatives: int = 0
    """Likeliest tokens that are told beside each token."""
    score_prompt: bool = False
    """Whether to tell log p and alternatives of the prompt's tokens too."""
    constraint: Constraint | None = None
    """What the answer may be; of this request alone."""

    @property
    def need(self) -> int:
        """Positions that the request takes at most."""
        return len(self.tokens) + self.max_new_tokens

    def check(self, config: ModelConfig, context: int) -> None:
        """Raises UserError for what a model cannot do with a context of so many positions."""
        self.sampling.check(1)
        checked(self.seed)
        if not len(self.tokens):
            raise UserError("a prompt is empty: give it at least one token.")
        check_tokens(config.vocab_size, np.asarray(self.tokens))
        if self.max_new_tokens < 0:
            raise UserError(f"max_new_tokens must be at least 0, got {self.max_new_tokens}.")
        if self.need > context:
            raise UserError(
                f"the prompt has {len(self.tokens)} tokens and {self.max_new_tokens} new ones are asked for, the "
                f"context holds {context}: shorten the prompt or ask for fewer new tokens."
            )
        if len(self.end_ids) > END_IDS:
            raise UserError(f"a request names at most {END_IDS} end tokens, got {len(self.end_ids)}.")
        for name, value in (("presence", self.presence_penalty), ("frequency", self.frequency_penalty)):
            if not -_PENALTY <= value <= _PENALTY:
                raise UserError(f"{name}_penalty must be from -2 to 2, got {value}.")
        if not 0 <= self.alternatives <= ALTERNATIVES:
            raise UserError(f"logprobs must be from 0 to {ALTERNATIVES}, got {self.alternatives}.")
        for token, value in self.logit_bias.items():
            if not 0 <= token < config.vocab_size:
                raise UserError(f"logit_bias names the token {token}, the vocabulary has {config.vocab_size}.")
            if not -_BIAS <= value <= _BIAS:
                raise UserError(f"logit_bias must be from -100 to 100, got {value} for the token {token}.")

    def draws(self, vocab_size: int) -> Draws:
        """What the request draws with, as the only row."""
        seen, bias = np.zeros((1, vocab_size), bool), np.zeros((1, vocab_size), np.float32)
        seen[0, list(self.tokens)] = True
        for token, value in self.logit_bias.items():
            bias[0, token] = value
        steering = Steering(
            jnp.asarray(bias),
            jnp.zeros((1, vocab_size), jnp.int32),
            jnp.full(1, self.presence_penalty, jnp.float32),
            jnp.full(1, self.frequency_penalty, jnp.float32),
            jnp.full(1, self.alternatives, jnp.int32),
            jnp.full((1, words(vocab_size)), ANY),
        )
        key = jax.random.fold_in(seeds.key(self.seed), self.sample)
        return Draws(jnp.asarray(seen), key[None], self.sampling.controls(1), steering)


def empty_draws(size: int, vocab_size: int) -> Draws:
    """Those of slots that nobody holds."""
    one = Request([0], 1).draws(vocab_size)
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, size, axis=0), one)


class PromptScores(NamedTuple):
    """Of each token of a prompt but the first: log p, and the likeliest tokens in its place."""

    log_p: list[float]
    alternatives: list[list[Alternative]]


class Progress(NamedTuple):
    """What is new of an answer."""

    tokens: list[int]
    log_p: list[float]
    alternatives: list[list[Alternative]]
    """Of each new token, likeliest first; empty lists where none were asked for."""
    finish_reason: str | None = None
    """ "eos" where the last token is one of the end tokens, "length", "error", or None while it goes on."""
    error: str = ""


Listener = Callable[[Progress], None]
_numbers = itertools.count()


class Ticket:
    """A request that the engine has taken, and how far it is."""

    def __init__(self, request: Request, listener: Listener):
        self.request, self.number = request, next(_numbers)
        self._listener = listener
        self.new: list[int] = []
        self.prompt: PromptScores | None = None
        """Where `score_prompt` asks for it, once the prompt has been read."""
        self.cached_tokens = 0
        """Tokens of the prompt that another request had read."""
        self.finished = self.cancelled = False

    @property
    def length(self) -> int:
        """Tokens so far, the prompt's among them."""
        return len(self.request.tokens) + len(self.new)

    def tell(self, progress: Progress) -> None:
        """Adds what is new, and tells the listener unless the request was cancelled."""
        self.new += progress.tokens
        self.finished = progress.finish_reason is not None
        if not self.cancelled:
            self._listener(progress)

    def fail(self, sentence: str) -> None:
        """Ends the request with an error."""
        self.tell(Progress([], [], [], "error", sentence))


def finite(log_p: Sequence[float]) -> bool:
    """Whether all are numbers; those of a damaged model are not."""
    return all(map(math.isfinite, log_p))
