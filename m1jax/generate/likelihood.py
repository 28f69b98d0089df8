"""How likely a model finds several ends of each prompt: a prompt is read once for all of its ends.

Legend: G prompts of a batch, P tokens of a prompt, R ends of a batch, A tokens of an end.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from m1jax.errors import UserError
from m1jax.generate import programs
from m1jax.generate.programs import Prepared, State
from m1jax.generate.session import CHUNK, bucket, check_tokens

Prompted = tuple[Sequence[int], Sequence[Sequence[int]]]
"""Ids of a prompt, and of each text that may follow it; none is empty."""

# Tokens of prompts that are read at once.
_READ = 2048
# Tokens of caches, and ends, that are scored at once.
_HELD, _ENDS = 8192, 32
_SHORTEST_PROMPT, _SHORTEST_END = 32, 4
# Padded lengths with fewer tokens than this join the next longer one: compiling the programs of a length takes as long
# as reading some ten thousand tokens (135M parameters, two cores).
_WORTH_COMPILING = 32768


class Likelihoods(NamedTuple):
    """Log p(end | prompt), the sum over the end's tokens in nats, of each end of each prompt."""

    of_ends: list[list[float]]
    compile_seconds: float


class _Timed:
    """A model whose programs are timed while they are compiled."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared, self.seconds = prepared, 0.0

    def __call__(self, how: Any, program: Any, *args: Any) -> Any:
        result, seconds = how(program, *args)
        self.seconds += seconds
        return result


def end_likelihoods(
    prepared: Prepared, asked: Sequence[Prompted], advance: Callable[[int], None] = lambda _: None
) -> Likelihoods:
    """How likely each end is behind its prompt.

    `advance` is called with the number of prompts that were finished. Raises UserError for a token outside the
    vocabulary, an end beyond the model's positions, and where the model answers with something that is no number.
    """
    for prompt, ends in asked:
        assert prompt and ends and all(ends), "neither a prompt nor an end is empty"
        check_tokens(prepared.config.vocab_size, np.concatenate([prompt, *ends]))
        if (longest := len(prompt) + max(map(len, ends))) > prepared.config.max_positions:
            raise UserError(
                f"a prompt and its longest end have {longest} tokens, the model has {prepared.config.max_positions} "
                f"positions: shorten them."
            )
    found, timed = [[0.0] * len(ends) for _, ends in asked], _Timed(prepared)
    # The last token of a prompt is read with each end: the first token of the end is its target.
    sizes = _sizes([len(prompt) - 1 for prompt, _ in asked], _SHORTEST_PROMPT)
    for P, members in sizes.items():
        G = max(1, _READ // P)
        longest = max(len(end) for number in members for end in asked[number][1])
        capacity = bucket(P + longest)
        lengths = _lengths(members, asked)
        for first in range(0, len(members), G):
            some = members[first : first + G]
            state = _read(timed, [asked[number][0][:-1] for number in some], G, P, capacity)
            rows = [(row, number, end) for row, number in enumerate(some) for end in range(len(asked[number][1]))]
            for A in sorted(set(lengths.values())):
                _score(timed, state, A, capacity, [row for row in rows if lengths[row[1:]] == A], asked, found)
            advance(len(some))
    if not np.isfinite(np.concatenate(found or [[0.0]])).all():
        raise UserError("the model gives probabilities that are no numbers: evaluate an earlier checkpoint.")
    return Likelihoods(found, timed.seconds)


def _sizes(lengths: Sequence[int], smallest: int) -> dict[int, list[int]]:
    """Indices by padded length, which is that of few programs: see _WORTH_COMPILING."""
    members: dict[int, list[int]] = defaultdict(list)
    for index, length in enumerate(lengths):
        members[bucket(length, smallest)].append(index)
    found: dict[int, list[int]] = {}
    waiting: list[int] = []
    for size in sorted(members):
        waiting += members[size]
        if len(waiting) * size >= _WORTH_COMPILING or size == max(members):
            found[size], waiting = waiting, []
    return found


def _lengths(members: Sequence[int], asked: Sequence[Prompted]) -> dict[tuple[int, int], int]:
    """The padded length of each end (prompt, number) of some prompts."""
    ends = [(number, end) for number in members for end in range(len(asked[number][1]))]
    sizes = _sizes([len(asked[number][1][end]) for number, end in ends], _SHORTEST_END)
    return {ends[index]: A for A, indices in sizes.items() for index in indices}


def _read(timed: _Timed, contexts: Sequence[Sequence[int]], G: int, P: int, capacity: int) -> State:
    """The cache of G rows that hold these contexts, each of at most P tokens; rows without one are empty."""
    tokens, real = np.zeros((G, P), np.int32), np.zeros((G, P), bool)
    for row, context in enumerate(contexts):
        tokens[row, P - len(context) :], real[row, P - len(context) :] = context, True
    prepared = timed.prepared
    state: State = prepared.placed(timed(prepared.arrange, programs.start, G, capacity))
    for size in ([P % CHUNK] if P % CHUNK else []) + [CHUNK] * (P // CHUNK):
        state = timed(prepared.run, programs.prefill, state, tokens[:, :size], real[:, :size])
        tokens, real = tokens[:, size:], real[:, size:]
    return state


def _score(
    timed: _Timed,
    state: State,
    A: int,
    capacity: int,
    rows: Sequence[tuple[int, int, int]],
    asked: Sequence[Prompted],
    found: list[list[float]],
) -> None:
    """Puts the likelihood of each (row of the cache, prompt, end) into its place in `found`."""
    R = max(1, min(_ENDS, _HELD // capacity))
    for first in range(0, len(rows), R):
        some = rows[first : first + R]
        tokens, targets = np.zeros((R, A), np.int32), np.zeros((R, A), np.int32)
        real, of_rows = np.zeros((R, A), bool), np.zeros(R, np.int32)
        for place, (row, number, end) in enumerate(some):
            prompt, ids = asked[number][0], asked[number][1][end]
            tokens[place, : len(ids)] = [prompt[-1], *ids[:-1]]
            targets[place, : len(ids)], real[place, : len(ids)], of_rows[place] = ids, True, row
        scored = timed(
            timed.prepared.run, programs.score_ends, state.cache, jnp.asarray(of_rows), tokens, targets, real
        )
        sums = np.where(real, np.asarray(scored), 0).sum(axis=1, dtype=np.float64)
        for place, (_, number, end) in enumerate(some):
            found[number][end] = float(sums[place])
