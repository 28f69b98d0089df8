"""The reading of one prompt, piece by piece, so that others can go on in between."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from m1jax.generate import programs
from m1jax.generate.prefixes import Match
from m1jax.generate.programs import Prepared, State
from m1jax.generate.requests import PromptScores, Ticket
from m1jax.generate.serving_programs import fitted, prefill_scored
from m1jax.generate.steering import ALTERNATIVES

_SMALLEST = 16
_PADDING = 64
"""Tokens of padding that one piece may have before it is cut into several: a piece costs its padding too."""

Timed = Callable[..., Any]
"""`Slots.timed`: calls a method of `Prepared` with a program and its arguments."""


class Reading:
    """A prompt of which the first `at` tokens are in `state`, one row, which grows: attention reads all its room."""

    def __init__(
        self, prepared: Prepared, timed: Timed, ticket: Ticket, match: Match, first: int, room: Callable[[int], int]
    ):
        """`match` is what is kept of the prompt, `first` where the first piece ends; `room` see `Room.reading`."""
        self._prepared, self._timed, self.ticket, self._room = prepared, timed, ticket, room
        self.at = ticket.cached_tokens = match.length
        self._has = room(first)
        self.state: State
        if match.state is None:
            self.state = prepared.placed(timed(prepared.arrange, programs.start, 1, self._has))
        else:
            self.state = timed(prepared.arrange, fitted, match.state, np.zeros(1, np.int32), self._has)
        self._log_p: list[float] = []
        self._alternatives: list[Any] = []

    @property
    def capacity(self) -> int:
        """Tokens that the row has room for in the end."""
        return self._room(len(self.ticket.request.tokens))

    @property
    def capacity_now(self) -> int:
        """Tokens that the row has room for so far."""
        return self._has

    @property
    def done(self) -> bool:
        """Whether all of the prompt is in the state."""
        return self.at == len(self.ticket.request.tokens)

    def read(self, end: int, padded: int | None = None) -> None:
        """Reads the tokens up to `end`; the program is of `padded` tokens, by default the next length that has one."""
        request, begin = self.ticket.request, self.at
        count, capacity = end - begin, self._room(end)
        if capacity > self._has:
            self.state, self._has = self.kept(capacity), capacity
        size = _padded(count) if padded is None else padded
        tokens, real = np.zeros((1, size), np.int32), np.zeros((1, size), bool)
        tokens[0, size - count :], real[0, size - count :] = request.tokens[begin:end], True
        if request.score_prompt:
            self._score(tokens, real, count, end)
        else:
            self.state = self._timed(self._prepared.run, programs.prefill, self.state, tokens, real)
        self.at = end
        if request.score_prompt and self.done:
            self.ticket.prompt = PromptScores(self._log_p, self._alternatives)

    def _score(self, tokens: np.ndarray, real: np.ndarray, count: int, end: int) -> None:
        request, size = self.ticket.request, tokens.shape[1]
        targets = np.zeros_like(tokens)
        following = request.tokens[end - count + 1 : end + 1]
        targets[0, size - count : size - count + len(following)] = following
        most = 1 if request.alternatives <= 1 else ALTERNATIVES  # each number of them is a program
        scored = self._timed(self._prepared.run, prefill_scored, self.state, tokens, real, targets, most)
        self.state = scored.state
        first, last = size - count, size - count + len(following)
        self._log_p += np.asarray(scored.log_p)[first:last].tolist()
        self._alternatives += told(scored.alternatives, request.alternatives, first, last)

    def kept(self, capacity: int) -> State:
        """A copy of the state with room for `capacity` tokens."""
        state: State = self._timed(self._prepared.arrange, fitted, self.state, np.zeros(1, np.int32), capacity)
        return state


def pieces(begin: int, end: int, chunk: int) -> Iterator[int]:
    """Where to stop on the way from `begin` to `end`: after `chunk` tokens each, then after what is left over.

    What is left over is read in one piece, or, where much of it would be padding, in several. It comes last, because a
    piece costs the room of all that was read before it too.
    """
    yield from range(begin + chunk, end + 1, chunk)
    rest = (end - begin) % chunk
    while _padded(rest) - rest > _PADDING:
        half = _padded(rest) // 2
        yield end - rest + half
        rest -= half
    if rest:
        yield end


def _padded(count: int) -> int:
    """The least power of 2, from 16 on, that is not below: the lengths that programs are compiled for."""
    return 1 << (max(count, _SMALLEST) - 1).bit_length()


def told(alternatives: Any, asked: int, first: int, last: int) -> list[list[tuple[int, float]]]:
    """The `asked` likeliest tokens at the places from `first` to before `last` of arrays (S, N)."""
    if not asked:
        return [[] for _ in range(first, last)]
    ids, log_p = (np.asarray(part)[first:last, :asked].tolist() for part in alternatives)
    return [list(zip(*pair, strict=True)) for pair in zip(ids, log_p, strict=True)]


def stops(begin: int, cuts: Sequence[int], end: int, chunk: int, whole_chunks: bool) -> list[int]:
    """Where the reading of a prompt from `begin` to `end` stops; it stops at every cut on the way.

    With `whole_chunks` it stops at multiples of `chunk` only, and at the end: the same pieces whatever was read before.
    """
    if whole_chunks:
        return [*range((begin // chunk + 1) * chunk, end, chunk), end] if begin < end else []
    found: list[int] = []
    for stop in [*sorted(cut for cut in set(cuts) if begin < cut < end), end]:
        if stop > begin:
            found += pieces(begin, stop, chunk)
            begin = stop
    return found
