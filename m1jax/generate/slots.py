"""The slots of continuous batching: a batch on the device whose rows come and go.

Legend: B slots, R room of a call, N alternatives.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from m1jax.generate import programs
from m1jax.generate.programs import Draws, Prepared, State
from m1jax.generate.room import Extent
from m1jax.generate.serving_programs import fitted
from m1jax.generate.session import Timing, bucket
from m1jax.generate.steering import Alternatives


@dataclass
class BatchTiming(Timing):
    """What continuous batching has done so far."""

    slot_steps: int = 0
    """Steps times slots: with `decode_tokens`, how full the slots were."""


class Burst(NamedTuple):
    """New tokens of the slots, on the host."""

    tokens: np.ndarray
    """(B, R) int32; of each slot the first `counts` are new."""
    log_p: np.ndarray
    """(B, R) float32."""
    counts: np.ndarray
    """(B,) int32."""
    ended: np.ndarray
    """(B,) bool: whether the newest token is one of the end tokens."""
    alternatives: Alternatives | None
    """(B, R, N) each, on the device."""
    draws: Draws | None
    seconds: float
    """Without compiling."""
    steps: int


class Slots:
    """B rows with room for `capacity` tokens; `held` (B,) int is the number of who holds each slot, -1 for nobody."""

    def __init__(self, prepared: Prepared, size: int, capacity: int, timing: BatchTiming):
        """Free slots; what is spent is added to `timing`."""
        self.prepared, self.capacity, self.timing = prepared, capacity, timing
        self.held = np.full(size, -1)
        self.state: State = prepared.placed(self.timed(prepared.arrange, programs.start, size, capacity))

    @property
    def extent(self) -> Extent:
        """How many there are, and the tokens that each has room for."""
        return Extent(len(self.held), self.capacity)

    @property
    def live(self) -> np.ndarray:
        """(B,) bool: the slots that somebody holds."""
        return self.held >= 0

    @property
    def free(self) -> np.ndarray:
        """The numbers of the slots that nobody holds."""
        return np.flatnonzero(self.held < 0)

    def place(self, source: State, pairs: Sequence[tuple[int, int]]) -> list[int]:
        """Copies rows of another state, each for its holder (row, number), into free slots; returns the slots.

        There are enough free slots, and the source has room for no more tokens than the slots.
        """
        slots = self.free[: len(pairs)]
        assert len(slots) == len(pairs), "a slot for each"
        N = bucket(len(pairs), 1)
        rows, places = np.zeros(N, np.int32), np.full(N, len(self.held), np.int32)
        for i, ((row, number), slot) in enumerate(zip(pairs, slots, strict=True)):
            rows[i], places[i], self.held[slot] = row, slot, number
        self.state = self.timed(self.prepared.arrange, programs.place, self.state, source, rows, places)
        return slots.tolist()

    def decode(
        self, step: np.ndarray, limit: np.ndarray, most: int, leaving: int, eos: np.ndarray, draws: Draws | None
    ) -> Burst:
        """New tokens of the slots that are held; arguments: see `programs.decode`."""
        begun, compiling = time.perf_counter(), self.timing.compile_seconds
        decoded = self.timed(
            self.prepared.run, programs.decode, self.state, ~self.live, step, limit,
            np.int32(most), np.int32(leaving), eos, draws,
        )  # fmt: skip
        self.state = decoded.state
        tokens, log_p, counts, ended = jax.device_get((decoded.tokens, decoded.log_p, decoded.counts, decoded.done))
        seconds = time.perf_counter() - begun - (self.timing.compile_seconds - compiling)
        self.timing.decode_seconds += seconds
        self.timing.decode_tokens += int(counts.sum())
        self.timing.slot_steps += int(counts.max()) * len(counts)
        ended = ended & self.live
        return Burst(tokens, log_p, counts, ended, decoded.alternatives, decoded.draws, seconds, int(counts.max()))

    def resize(self, size: int) -> np.ndarray:
        """Changes the number of slots, which holds all that are held; returns the former slot of each (size,)."""
        rows = self._rows(size)
        self.state = self.timed(self.prepared.arrange, programs.choose, self.state, jnp.asarray(rows))
        self._hold(rows, size)
        return rows

    def fit(self, size: int, capacity: int) -> np.ndarray:
        """`resize`, with room for `capacity` tokens, which no row that is held exceeds."""
        rows = self._rows(size)
        self.state = self.timed(self.prepared.arrange, fitted, self.state, jnp.asarray(rows), capacity)
        self.capacity = capacity
        self._hold(rows, size)
        return rows

    def _rows(self, size: int) -> np.ndarray:
        live = np.flatnonzero(self.live)
        assert len(live) <= size, "every slot that is held is kept"
        rows = np.zeros(size, np.int32)
        rows[: len(live)] = live
        return rows

    def _hold(self, rows: np.ndarray, size: int) -> None:
        count = int(self.live.sum())
        held = np.full(size, -1)
        held[:count] = self.held[rows[:count]]
        self.held = held

    def timed(self, how: Any, program: Any, *args: Any) -> Any:
        """`how(program, *args)`, a method of `prepared`, with what it took to compile counted."""
        result, seconds = how(program, *args)
        self.timing.compile_seconds += seconds
        return result
