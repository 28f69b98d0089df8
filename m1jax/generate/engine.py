"""A model ready to answer: logits, continuations, sessions of several turns, beam search.

Legend: B batch, S sequence, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from m1jax.config import ModelConfig
from m1jax.errors import UserError
from m1jax.generate import programs
from m1jax.generate.batching import Batcher
from m1jax.generate.beams import beam_search
from m1jax.generate.likelihood import Likelihoods, end_likelihoods
from m1jax.generate.online import Engine
from m1jax.generate.room import Limits
from m1jax.generate.sampling import Floats, Integers, Sampling
from m1jax.generate.session import CHUNK, Generation, Session, bucket, check_tokens

Array = jax.Array


class LanguageModel:
    """A model ready to answer: `model(tokens)` gives logits, `model.generate(tokens, ...)` continues prompts.

    `rope_base` is that of the stage the parameters come from, `eos_ids` are the tokens that end a text where the
    model's own files name them.
    """

    def __init__(
        self,
        config: ModelConfig,
        rope_base: float,
        parameters: dict[str, Any],
        mesh: Mesh | None = None,
        eos_ids: Sequence[int] = (),
    ):
        """From the parameter tree of `m1jax.model.create` or of a checkpoint.

        On a mesh (`m1jax.parallel.mesh`) parameters and caches are split over its "tensor" axis, KV heads that it does
        not divide are held by every device; tokens and logits are the same on all. Raises UserError where another
        dimension does not divide.
        """
        self.config = config
        self.rope_base = rope_base
        self.eos_ids = tuple(eos_ids)
        self._prepared = programs.prepare(config, rope_base, parameters, mesh)

    def __call__(self, tokens: Any, segment_ids: Any = None, positions: Any = None) -> Array:
        """Logits (B, S, V) float32 of tokens (B, S) integers; a single row (S,) gives (S, V).

        `segment_ids` and `positions` (same shape): see `m1jax.model.Decoder.hidden`; documents of a packed row with 0
        for padding, and positions that by default restart in each document. Raises UserError for a token outside the
        vocabulary.
        """
        tokens = np.asarray(tokens)
        check_tokens(self.config.vocab_size, tokens)
        rows = [
            None if x is None else jnp.atleast_2d(jnp.asarray(x, jnp.int32)) for x in (tokens, segment_ids, positions)
        ]
        ready = self._prepared
        logits = programs.forward(ready.structure, ready.mesh, ready.parameters, ready.rope_base, *rows)
        return logits[0] if tokens.ndim == 1 else logits

    def session(self, batch: int = 1, capacity: int = 0) -> Session:
        """An empty context for each of `batch` rows, to be extended turn by turn.

        The cache starts with `capacity` tokens a row and grows when it must. Raises UserError for more than the model
        has positions.
        """
        return Session(self._prepared, batch, capacity)

    def batcher(self, slots: int = 16) -> Batcher:
        """Continuous batching: many continuations in so many slots, several of a prompt, with their log-probabilities.

        The same draws as `generate` only in kind: a continuation's key is that of its number.
        """
        return Batcher(self._prepared, slots)

    def online(self, limits: Limits | None = None) -> Engine:
        """Continuous batching for requests that come at any time, as `m1 serve` runs it.

        Raises UserError for limits that hold no request.
        """
        return Engine(self._prepared, Limits() if limits is None else limits)

    def generate(
        self,
        tokens: Sequence[int] | Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: Floats = 0.0,
        top_k: Integers = 0,
        top_p: Floats = 1.0,
        min_p: Floats = 0.0,
        repetition_penalty: Floats = 1.0,
        seed: int = 0,
        eos_id: int | Sequence[int] | None = None,
    ) -> Any:
        """Continues one prompt (a list of ids gives a list) or several of any lengths (a list of lists).

        Only the new tokens are returned, at most `max_new_tokens`; where an `eos_id` (one or several ids) ended a row
        it is the last. Sampling settings: see `m1jax.generate.Sampling`; a number, or one for each prompt. The same
        seed gives the same tokens; what a row draws depends on the seed and its number, not on the other rows. Raises
        UserError for an empty prompt, a token outside the vocabulary, a setting outside its range, or more tokens than
        the model has positions.
        """
        prompts, single = self._prompts(tokens)
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        generation = self.start(prompts, max_new_tokens, sampling, seed, eos_id, flow=False)
        for _ in generation:
            pass
        return generation.new[0] if single else generation.new

    def stream(
        self,
        tokens: Sequence[int],
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        eos_id: int | Sequence[int] | None = None,
    ) -> Iterator[int]:
        """The tokens of `generate` for one prompt, as they come: first one by one, then some at a time."""
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        for (newest,) in self.start([tokens], max_new_tokens, sampling, seed, eos_id):
            yield from newest

    def end_likelihoods(
        self,
        prompts: Sequence[Sequence[int]],
        ends: Sequence[Sequence[Sequence[int]]],
        advance: Callable[[int], None] = lambda _: None,
    ) -> Likelihoods:
        """Log p(end | prompt) in nats, summed over tokens, of each of the `ends` of each prompt (ids, none empty).

        A prompt is read once for all of its ends. `advance` is called with the number of prompts that were finished.
        Raises UserError for a token outside the vocabulary and more tokens than the model has positions.
        """
        return end_likelihoods(self._prepared, list(zip(prompts, ends, strict=True)), advance)

    def beam_search(
        self,
        tokens: Sequence[int] | Sequence[Sequence[int]],
        max_new_tokens: int,
        num_beams: int = 4,
        length_penalty: float = 1.0,
        eos_id: int | Sequence[int] | None = None,
    ) -> Any:
        """The best continuation of each prompt that a search with `num_beams` beams finds, as `generate` returns it.

        Hypotheses are ranked by log-likelihood over length^length_penalty (`m1jax.generate.beams`). Raises UserError
        as `generate` does.
        """
        prompts, single = self._prompts(tokens)
        session = self._prefilled(prompts, max_new_tokens, Sampling(), fill_up=False)
        found = beam_search(session, max_new_tokens, num_beams, length_penalty, eos_id)
        return found[0] if single else found

    def start(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        sampling: Sampling,
        seed: int = 0,
        eos_id: int | Sequence[int] | None = None,
        *,
        flow: bool = True,
    ) -> Generation:
        """A generation that has read its prompts, on a session of its own (`Generation.session`)."""
        session = self._prefilled(prompts, max_new_tokens, sampling)
        return Generation(session, max_new_tokens, sampling, seed, eos_id, flow=flow, rows=len(prompts))

    def _prompts(self, tokens: Any) -> tuple[Sequence[Sequence[int]], bool]:
        single = len(tokens) > 0 and np.ndim(tokens[0]) == 0
        return ([tokens] if single else tokens), single

    def _prefilled(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, sampling: Sampling, fill_up: bool = True
    ) -> Session:
        """A session that holds the prompts, and empty rows up to a batch that programs are compiled for."""
        sampling.check(len(prompts))
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens must be at least 1, got {max_new_tokens}.")
        if not len(prompts) or not all(len(prompt) for prompt in prompts):
            raise UserError("a prompt is empty: give each at least one token.")
        longest = max(len(prompt) for prompt in prompts)
        Session.check_room(self._prepared, longest + max_new_tokens)
        batch = bucket(len(prompts), 1) if fill_up else len(prompts)
        session = Session(self._prepared, batch, min(longest, CHUNK))
        session.extend([*prompts, *[[]] * (len(session.tokens) - len(prompts))])
        return session
