"""Several turns on one warm cache: only what is new is computed.

Legend: B batch, S sequence, V vocabulary.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m1jax.config import seeds
from m1jax.errors import UserError
from m1jax.generate import programs
from m1jax.generate.programs import ROOM, Draws, Prepared, State
from m1jax.generate.sampling import Floats, Integers, Sampling, row_keys

Array = jax.Array

# Prompts are prefilled in chunks of this many tokens, after a first one of what is left over: programs are then
# compiled for few lengths, and the scores of a prefill stay small.
CHUNK = 512
_SMALLEST = 16
# Room is made for this many new tokens at a time, or for as many as the row has if that is more: a decoding step reads
# the whole cache, so that room for later costs time now, and making it costs a copy and a compilation.
_ROOM_AHEAD = 256
# What is handed out at once: as many tokens as take about this long, in seconds, so that text seems to flow while the
# device seldom waits for the host.
_FLOW = 0.1
_EOS_SLOTS = 8
_NO_TOKEN = -1


@dataclass
class Timing:
    """Tokens and seconds of a session so far; what compiling took is counted by itself."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    compile_seconds: float = 0.0


class Session:
    """A batch of contexts on one cache, extended by given tokens and by generated ones.

    `tokens` are those of each row that the cache holds, `state` the cache itself with room for `capacity` of them,
    `timing` what was spent so far. Made by `LanguageModel.session`.
    """

    def __init__(self, prepared: Prepared, batch: int, capacity: int = 0):
        """`capacity` tokens a row are reserved at once; room for more is made when it is needed."""
        if batch < 1:
            raise UserError(f"a session needs a batch of at least 1, got {batch}.")
        self.check_room(prepared, capacity)
        self.prepared = prepared
        self.tokens: list[list[int]] = [[] for _ in range(batch)]
        self.timing = Timing()
        self.capacity = self._capacity_for(capacity)
        self.state: State = prepared.placed(self.timed(prepared.arrange, programs.start, batch, self.capacity))

    @staticmethod
    def check_room(prepared: Prepared, positions: int) -> None:
        """Raises UserError where a row of `positions` tokens is longer than the model allows."""
        most = prepared.config.max_positions
        if positions > most:
            raise UserError(
                f"prompt and new tokens need {positions} positions, the model has {most}: shorten the prompt or lower "
                f"max_new_tokens."
            )

    @property
    def cache_bytes(self) -> int:
        """Bytes of the keys, values and last raw pairs of all rows and layers."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.state.cache.layers))

    def extend(self, tokens: Sequence[int] | Sequence[Sequence[int]]) -> Array:
        """Adds tokens to each row; returns the logits (B, V) float32 after each row's last token.

        A flat list of ids extends the only row of a batch of 1. Rows may get different numbers of tokens, none too.
        Raises UserError, and changes nothing, for a token outside the vocabulary and for more tokens than positions;
        and where the model answers with something that is no number.
        """
        flat = len(self.tokens) == 1 and (len(tokens) == 0 or np.ndim(tokens[0]) == 0)
        rows = [np.asarray(row) for row in ([tokens] if flat else tokens)]
        if len(rows) != len(self.tokens):
            raise UserError(f"a session of {len(self.tokens)} rows was extended by {len(rows)}: give tokens for each.")
        for row in rows:
            check_tokens(self.prepared.config.vocab_size, row)
        lengths = np.array([len(row) for row in self.tokens])
        self.check_room(self.prepared, int(max(lengths + [len(row) for row in rows])))
        started, compiling = time.perf_counter(), self.timing.compile_seconds
        for chunk, real in _chunks(rows):
            lengths = lengths + real.sum(axis=1)
            self.make_room(int(lengths.max()))
            self.state = self.timed(self.prepared.run, programs.prefill, self.state, chunk, real)
        logits = jax.block_until_ready(self.state.logits)
        if bool(jnp.isnan(logits).any()):  # every choice among NaNs is the first token
            raise UserError("the model gives logits that are no numbers: take an earlier checkpoint.")
        for context, new in zip(self.tokens, rows, strict=True):
            context += new.tolist()
        spent = time.perf_counter() - started - (self.timing.compile_seconds - compiling)
        self.timing.prefill_seconds += spent
        self.timing.prefill_tokens += sum(map(len, rows))
        return jnp.copy(logits)  # the session's own will be overwritten

    def generate(
        self,
        max_new_tokens: int,
        temperature: Floats = 0.0,
        top_k: Integers = 0,
        top_p: Floats = 1.0,
        min_p: Floats = 0.0,
        repetition_penalty: Floats = 1.0,
        seed: int = 0,
        eos_id: int | Sequence[int] | None = None,
    ) -> list[list[int]]:
        """Continues every row; arguments: see `LanguageModel.generate`. Returns the new tokens of each.

        A token that ended its row is the last of those returned, but not part of the session's context.
        """
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        generation = Generation(self, max_new_tokens, sampling, seed, eos_id, flow=False)
        for _ in generation:
            pass
        return generation.new

    def log_likelihood(self, continuation: Sequence[int]) -> float:
        """Log p of a continuation of the only row's context, nats, summed over its tokens; the context stays as it is.

        Raises UserError for an empty continuation, and as `extend` does.
        """
        assert len(self.tokens) == 1 and self.tokens[0], "a session of one row that has read something"
        new = np.asarray(continuation)
        if not len(new):
            raise UserError("a continuation is empty: give it at least one token.")
        check_tokens(self.prepared.config.vocab_size, new)
        needed = len(self.tokens[0]) + len(new)
        self.check_room(self.prepared, needed)
        self.make_room(needed)
        found = jax.nn.log_softmax(self.state.logits[0])[int(new[0])]
        if len(new) > 1:
            size = bucket(len(new) - 1)
            rows = np.zeros((2, 1, size), np.int32)
            rows[0, 0, size - len(new) + 1 :], rows[1, 0, size - len(new) + 1 :] = new[:-1], new[1:]
            real = np.arange(size)[None] >= size - len(new) + 1
            scored = self.timed(self.prepared.run, programs.score, self.state, rows[0], real, rows[1])
            found += jnp.where(real, scored, 0.0).sum()
        return float(found)

    def copy(self) -> "Session":
        """Another session with the same context; the two go on independently."""
        return self.take(range(len(self.tokens)))

    def take(self, rows: Sequence[int]) -> "Session":
        """A new session of the named rows, in that order, each as often as it is named; this one stays as it is."""
        if not rows or not all(0 <= row < len(self.tokens) for row in rows):
            raise UserError(f"rows {list(rows)} are not rows of a session of {len(self.tokens)}: count from 0.")
        other = object.__new__(Session)
        other.prepared, other.capacity, other.timing = self.prepared, self.capacity, Timing()
        other.tokens = [list(self.tokens[row]) for row in rows]
        other.state = other.timed(self.prepared.arrange, programs.choose, self.state, jnp.asarray(rows, jnp.int32))
        return other

    def _capacity_for(self, length: int) -> int:
        return min(bucket(length), self.prepared.config.max_positions)

    def make_room(self, length: int) -> None:
        """Widens the cache, where it must be, to hold `length` tokens a row."""
        if length > self.capacity:
            self.capacity = self._capacity_for(length)
            self.state = self.timed(self.prepared.arrange, programs.widen, self.state, self.capacity)

    def timed(self, how: Any, program: Any, *args: Any) -> Any:
        """`how(program, *args)`, a method of `prepared`, with what it took to compile counted."""
        result, seconds = how(program, *args)
        self.timing.compile_seconds += seconds
        return result


class Generation:
    """New tokens of the rows of `session`, piece by piece: an iterator over lists with each row's newest tokens.

    `new` are all so far, `finish_reasons` says of each row "eos" or "length", or None while it goes on. With `flow`
    pieces are short enough to be shown as they come; without, as long as the device can hold.
    """

    def __init__(
        self,
        session: Session,
        max_new_tokens: int,
        sampling: Sampling,
        seed: int = 0,
        eos_id: int | Sequence[int] | None = None,
        *,
        flow: bool = True,
        rows: int | None = None,
    ):
        """`rows`: how many rows to continue, the first ones; the others only fill the batch up.

        Raises UserError for a setting outside its range, a row without tokens, and more tokens than positions.
        """
        batch = len(session.tokens)
        rows = batch if rows is None else rows
        check_request(session, rows, max_new_tokens, sampling)
        seeds.checked(seed)
        self.session, self._limit, self._flow, self._step = session, max_new_tokens, flow, 0
        self._eos = eos_slots(eos_id)
        self._done = np.arange(batch) >= rows
        self._draws = None if sampling.greedy else _draws(session, sampling, seed, rows)
        self._piece = 1 if flow else ROOM
        self.new: list[list[int]] = [[] for _ in range(rows)]
        self.finish_reasons: list[str | None] = [None] * rows

    def __iter__(self) -> Iterator[list[list[int]]]:
        return self

    def __next__(self) -> list[list[int]]:
        """The newest tokens of each row, none for those that have ended."""
        if self._step >= self._limit or self._done.all():
            raise StopIteration
        session, going = self.session, ~self._done
        count = min(self._piece, ROOM, self._limit - self._step)
        longest = max(len(row) for row in session.tokens)
        if longest + count > session.capacity:
            session.make_room(longest + max(count, min(self._limit - self._step, max(longest, _ROOM_AHEAD))))
        compiling, started = session.timing.compile_seconds, time.perf_counter()
        batch = len(self._done)
        decoded = session.timed(
            session.prepared.run,
            programs.decode,
            session.state,
            self._done,
            np.full(batch, self._step, np.int32),
            np.full(batch, self._step + count, np.int32),
            np.int32(count),
            np.int32(batch),
            self._eos,
            self._draws,
        )
        session.state, self._draws = decoded.state, decoded.draws
        tokens, counts, done = jax.device_get((decoded.tokens, decoded.counts, decoded.done))
        seconds = time.perf_counter() - started - (session.timing.compile_seconds - compiling)
        self._step += count
        self._done = done | self._done
        newest = [tokens[row, : counts[row]].tolist() for row in range(len(self.new))]
        self._account(newest, going)
        session.timing.decode_seconds += seconds
        session.timing.decode_tokens += sum(map(len, newest))
        if self._flow:
            self._piece = max(1, min(2 * self._piece, ROOM, int(_FLOW * count / max(seconds, 1e-9))))
        return newest

    def end(self, row: int) -> None:
        """Lets a row generate no more: whoever reads it has seen enough. What was computed stays in its context."""
        self._done[row] = True

    def _account(self, newest: list[list[int]], going: np.ndarray) -> None:
        for row, tokens in enumerate(newest):
            self.new[row] += tokens
            ended = bool(going[row] and self._done[row])
            self.session.tokens[row] += tokens[:-1] if ended else tokens
            if going[row] and (ended or self._step >= self._limit):
                self.finish_reasons[row] = "eos" if ended else "length"


def check_tokens(vocab_size: int, tokens: np.ndarray) -> None:
    """Raises UserError where ids are no integers or leave the vocabulary."""
    if tokens.size and not np.issubdtype(tokens.dtype, np.integer):
        raise UserError(f"tokens must be integers, got {tokens.dtype}.")
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < vocab_size:
        raise UserError(
            f"tokens from {tokens.min()} to {tokens.max()} leave the vocabulary of {vocab_size}: use the model's own "
            f"tokenizer."
        )


def check_request(session: Session, rows: int, max_new_tokens: int, sampling: Sampling) -> None:
    """Raises UserError for a generation that cannot be."""
    sampling.check(rows)
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens must be at least 1, got {max_new_tokens}.")
    if not all(session.tokens[:rows]):
        raise UserError("a prompt is empty: give each at least one token.")
    session.check_room(session.prepared, max(map(len, session.tokens)) + max_new_tokens)


def bucket(length: int, smallest: int = _SMALLEST) -> int:
    """The least of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that holds `length`: what programs are compiled for."""
    power = 1 << (max(length, smallest) - 1).bit_length()
    between = power // 4 * 3
    return between if max(length, smallest) <= between else power


def _chunks(rows: list[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tokens (B, S) int32 and which are real, chunk by chunk; every row ends with the last chunk."""
    longest = max(map(len, rows))
    rest = longest % CHUNK
    sizes = ([bucket(rest)] if rest else []) + [CHUNK] * (longest // CHUNK)
    total, end = sum(sizes), 0
    tokens, real = np.zeros((len(rows), total), np.int32), np.zeros((len(rows), total), bool)
    for row, new in enumerate(rows):
        tokens[row, total - len(new) :] = new
        real[row, total - len(new) :] = True
    for size in sizes:
        begin, end = end, end + size
        yield tokens[:, begin:end], real[:, begin:end]


def eos_slots(eos_id: int | Sequence[int] | None) -> np.ndarray:
    """Ids in an array of a fixed length, so that their number is data too."""
    ids = [] if eos_id is None else [eos_id] if isinstance(eos_id, int | np.integer) else list(eos_id)
    slots = np.full(bucket(len(ids), _EOS_SLOTS), _NO_TOKEN, np.int32)
    slots[: len(ids)] = ids
    return slots


def _draws(session: Session, sampling: Sampling, seed: int, rows: int) -> Draws:
    batch = len(session.tokens)
    seen = np.zeros((batch, session.prepared.config.vocab_size), bool)
    for row, tokens in enumerate(session.tokens):
        seen[row, tokens] = True
    return Draws(jnp.asarray(seen), row_keys(seed, batch), sampling.controls(batch))
