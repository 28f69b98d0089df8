"""How much an engine may take, and how many slots of which length that is: arithmetic, no arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from m1jax.config import ModelConfig
from m1jax.errors import UserError
from m1jax.generate.session import CHUNK, bucket
from m1jax.model.cache import row_bytes

_SMALLEST = 256
"""Tokens that a row has room for at least; more by a third or a half, since each room is a program."""
COARSE = 1024
"""Tokens that a row of few has room for, and up to which programs are compiled before there are requests."""
_AHEAD = 128
"""Tokens that room is made for at once where a row's limit allows."""


@dataclass(frozen=True)
class Limits:
    """How much an engine may take."""

    max_batch: int = 16
    """Requests that generate at once."""
    cache_bytes: int = 2 << 30
    """Keys and values of the requests that run and, in what is left, of prompts that were read before."""
    context: int | None = None
    """Tokens of a prompt and its answer; None for all of the model's positions, as far as the bytes allow."""
    chunk: int = CHUNK // 2
    """Tokens of prompts that are read in one go."""
    reuse: bool = True
    """Whether the states of prompts and answers are kept for later ones that begin alike."""
    batch_invariant: bool = False
    """Always the same programs: a request's log p are the same bits, whatever else runs or was read before."""


class Occupant(NamedTuple):
    """A request that has a slot, or is to get one: its tokens so far, and the most that it may come to."""

    length: int
    need: int


class Extent(NamedTuple):
    """A number of slots, and the tokens that each has room for."""

    size: int
    capacity: int


class Room:
    """What fits into the limits; raises UserError for limits that hold no request."""

    def __init__(self, config: ModelConfig, limits: Limits):
        """`context` is the limits', or the model's positions."""
        most = config.max_positions
        if limits.context is not None and not 1 <= limits.context <= most:
            raise UserError(f"the context must be from 1 to the model's {most} positions, got {limits.context}.")
        if limits.max_batch < 1 or limits.chunk < 1:
            raise UserError(f"max_batch and chunk must be at least 1, got {limits.max_batch} and {limits.chunk}.")
        self._config, self._limits = config, limits
        self.context = most if limits.context is None else limits.context
        while limits.context is None and self.context > _SMALLEST and self._least() > limits.cache_bytes:
            self.context = max(_SMALLEST, _doubled(self.context) // 2)
        least = self._least()
        if least > limits.cache_bytes:
            raise UserError(
                f"the cache of {limits.cache_bytes} bytes holds no request: it takes at least {least} bytes; give "
                f"more, or allow fewer requests at once or a shorter context."
            )

    def _least(self) -> int:
        """Bytes of a request that takes the whole context."""
        return self.bytes(Extent(self.least(1), self.capacity(self.context))) + self.row(self.context)

    def capacity(self, length: int) -> int:
        """The room that a row of so many tokens gets."""
        if self._limits.batch_invariant:
            return self.context
        return min(bucket(length, _SMALLEST), self.context)

    def reading(self, length: int) -> int:
        """The room of a row while a prompt of so many tokens is read: coarser, since every piece is a program too."""
        if self._limits.batch_invariant:
            return self.context
        return min(max(_SMALLEST, _doubled(length)), self.context)

    def least(self, count: int) -> int:
        """The fewest slots for so many requests."""
        return self._limits.max_batch if self._limits.batch_invariant else count

    def row(self, length: int) -> int:
        """Bytes of the row in which a prompt of so many tokens is read."""
        return row_bytes(self._config, self.reading(length))

    def bytes(self, extent: Extent) -> int:
        """Bytes of slots."""
        return extent.size * row_bytes(self._config, extent.capacity)

    def fits(self, occupants: Sequence[Occupant], reading: int) -> bool:
        """Whether these requests can all run to their ends, beside a prompt of so many tokens that is being read."""
        if len(occupants) > self._limits.max_batch:
            return False
        reserved = Extent(self.least(len(occupants)), self.capacity(max(one.need for one in occupants)))
        return self.bytes(reserved) + self.row(reading) <= self._limits.cache_bytes

    def arranged(
        self, now: Extent | None, occupants: Sequence[Occupant], most: int, waiting: int, reading: int
    ) -> Extent:
        """The slots for these requests, which fit, and `most` new tokens of each, while `waiting` others want one.

        `reading` are the tokens of a prompt that is being read. Every change is a copy, and may be a program to
        compile: their number is that of `Limits.max_batch`, a quarter of it and so on, as far as the bytes allow;
        their room grows by a third or a half where they are many. Both shrink when few are left and nobody waits, or no
        request can use the room.
        """
        count, limits = len(occupants), self._limits
        longest = max(min(one.length + most, one.need) for one in occupants)
        upper = self.capacity(max(one.need for one in occupants))
        capacity = min(now.capacity, upper) if now else 0
        if capacity < longest:
            capacity = min(self.capacity(longest + _AHEAD), upper)
        size = now.size if now else 0
        if size < count or (not waiting and 8 * count <= size):
            size = _quarters(limits.max_batch, min(count + waiting, limits.max_batch) if size < count else count)
        beside = max(self.row(reading), self.row(upper)) if reading else self.row(upper)
        affordable = (limits.cache_bytes - beside) // row_bytes(self._config, upper)
        size = max(self.least(count), min(size, limits.max_batch, affordable))
        # Few rows read little whatever their room is: one size for them, as far as it fits, is fewer programs.
        coarse = Extent(size, min(max(_doubled(capacity), COARSE), self.context))
        if size < limits.max_batch and self.bytes(coarse) + beside <= limits.cache_bytes:
            return coarse
        return Extent(size, capacity)

    def usual_lengths(self) -> list[int]:
        """Lengths of prompts that need every program for reading those of at most `COARSE` tokens, longest first."""
        chunk, found = self._limits.chunk, []
        rooms = sorted({self.reading(length) for length in range(1, min(COARSE, self.context) + 1)}, reverse=True)
        for room in rooms:
            before = 0 if room == rooms[-1] else (room // 2) // chunk * chunk
            piece = chunk
            while piece >= 16:
                found.append(before + piece)
                piece //= 2
        return [length for length in dict.fromkeys(found) if length <= self.context - 2]

    def usual(self) -> list[Extent]:
        """The slots that requests of at most `COARSE` tokens come to, largest first."""
        sizes = [self._limits.max_batch]
        while sizes[-1] > self.least(1):
            sizes.append(max(1, sizes[-1] // 4))
        lengths = range(min(COARSE, self.context), 0, -128)
        rooms = sorted({self.capacity(length) for length in lengths}, reverse=True)
        found = [Extent(sizes[0], room) for room in rooms] + [Extent(size, rooms[0]) for size in sizes[1:]]
        return [
            extent for extent in found if self.bytes(extent) + self.row(extent.capacity) <= self._limits.cache_bytes
        ]


def _quarters(most: int, count: int) -> int:
    """The least of `most`, a quarter of it, a sixteenth, …, and 1 that is not below `count`."""
    size = most
    while size > 1 and max(1, size // 4) >= count:
        size = max(1, size // 4)
    return size


def _doubled(length: int) -> int:
    """The least power of 2 that is not below."""
    return 1 << (length - 1).bit_length()
