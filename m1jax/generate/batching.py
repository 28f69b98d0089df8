"""Continuous batching: many continuations in few slots; a slot whose continuation has ended takes the next one.

Prompts wait in order. A prompt is read once, whatever the number of its samples: its keys and values are copied into
the slots. Limits, end tokens and keys are data, so a change of slots compiles nothing; when fewer continuations are
left than half of the slots, the batch is halved, which compiles the loop once a size.

What a continuation draws depends on the seed and its number alone, not on its slot nor on its neighbours.

Legend: B slots, R room of a call.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from m1jax.errors import UserError
from m1jax.generate.programs import ROOM, Draws, Prepared, State
from m1jax.generate.sampling import Sampling
from m1jax.generate.session import CHUNK, Session, bucket, check_tokens, eos_slots
from m1jax.generate.slots import BatchTiming, Slots
from m1jax.model import seeds

PROMPTS = 4
"""Prompts that are read at once, at most."""


@dataclass
class Sampled:
    """One continuation of a prompt: the new tokens and, of each, log p in nats at the sampling temperature.

    The filters (top-k, top-p, min-p) are not in `log_p`: it is of the whole distribution.
    """

    tokens: list[int] = field(default_factory=list)
    log_p: list[float] = field(default_factory=list)
    finish_reason: str = ""
    """"eos" where the last token is one of the end tokens, else "length"."""


class Batcher:
    """Continues prompts in at most `slots` slots of a prepared model; `timing` is what was spent so far."""

    def __init__(self, prepared: Prepared, slots: int = 16):
        """Nothing is reserved before `run`."""
        if slots < 1:
            raise UserError(f"slots must be at least 1, got {slots}.")
        self._prepared, self._slots = prepared, bucket(slots, 1)
        self.timing = BatchTiming()

    def swap(self, prepared: Prepared) -> None:
        """Goes on with other parameters of the same model (`programs.prepare`); what was compiled stays."""
        self._prepared = prepared.like(self._prepared)

    def release(self) -> None:
        """Lets the parameters go, so that their memory is free until the next `swap`."""
        self._prepared = dataclasses.replace(self._prepared, parameters={})

    def run(
        self,
        prompts: Sequence[Sequence[int]],
        samples: int = 1,
        *,
        max_new_tokens: int | Sequence[int],
        sampling: Sampling | None = None,
        seed: int = 0,
        eos_id: int | Sequence[int] | None = None,
    ) -> list[list[Sampled]]:
        """`samples` continuations of each prompt (ids), in the prompts' order.

        `max_new_tokens` is one number or one for each continuation, prompt by prompt. `sampling` has one value for all
        (default: temperature 1). Raises UserError for an empty prompt, a token outside the vocabulary, settings outside
        their range, and more tokens than the model has positions.
        """
        sampling = Sampling(temperature=1.0) if sampling is None else sampling
        limits = np.broadcast_to(np.asarray(max_new_tokens, np.int32), (len(prompts) * samples,))
        self._check(prompts, samples, limits, sampling)
        run = _Run(self, prompts, samples, limits, sampling, seed, eos_slots(eos_id))
        while run.step():
            pass
        return [run.found[i * samples : (i + 1) * samples] for i in range(len(prompts))]

    def _check(self, prompts: Sequence[Sequence[int]], samples: int, limits: np.ndarray, sampling: Sampling) -> None:
        sampling.check(1)
        if samples < 1:
            raise UserError(f"samples must be at least 1, got {samples}.")
        if not len(prompts) or not all(map(len, prompts)):
            raise UserError("a prompt is empty: give each at least one token.")
        if limits.min() < 1:
            raise UserError(f"max_new_tokens must be at least 1, got {limits.min()}.")
        for prompt in prompts:
            check_tokens(self._prepared.config.vocab_size, np.asarray(prompt))
        needed = np.repeat([len(prompt) for prompt in prompts], samples) + limits
        Session.check_room(self._prepared, int(needed.max()))


@dataclass
class _Ready:
    """Prompts that have been read and wait for slots: their state, and (row, continuation) still to be placed."""

    state: State
    waiting: list[tuple[int, int]]


class _Run:
    """One call of `Batcher.run`; `found` are the continuations so far, prompt by prompt."""

    def __init__(
        self,
        batcher: Batcher,
        prompts: Sequence[Sequence[int]],
        samples: int,
        limits: np.ndarray,
        sampling: Sampling,
        seed: int,
        eos: np.ndarray,
    ):
        total = len(prompts) * samples
        self._prepared, self.timing = batcher._prepared, batcher.timing
        self._prompts, self._samples, self._limits, self._eos = prompts, samples, limits, eos
        self._sampling, self._key = sampling, seeds.key(seed)
        self.found = [Sampled() for _ in range(total)]
        self._order = list(range(len(prompts)))
        self._ready: _Ready | None = None
        size = min(batcher._slots, bucket(total, 1))
        longest = max(len(prompt) for prompt in prompts)
        capacity = min(bucket(longest + int(limits.max())), self._prepared.config.max_positions)
        self._slots = Slots(self._prepared, size, capacity, self.timing)

    def step(self) -> bool:
        """Fills free slots, and generates until some are free again; False when all is done."""
        self._fill()
        self._shrink()
        slots = self._slots
        live = slots.live
        if not live.any():
            return False
        step = np.array([len(self.found[i].tokens) if i >= 0 else 0 for i in slots.held], np.int32)
        limit = np.where(live, self._limits[slots.held], 0).astype(np.int32)
        waits = bool(self._order or (self._ready and self._ready.waiting))
        # An exchange costs about as much as a step: with others waiting, an eighth of the slots is worth one.
        leaving = max(1, len(live) // 8) if waits else max(1, int(live.sum()) - len(live) // 2)
        burst = slots.decode(step, limit, ROOM, leaving, self._eos, self._draws())
        for slot in np.flatnonzero(live):
            one, count, ended = self.found[slots.held[slot]], int(burst.counts[slot]), burst.ended[slot]
            one.tokens += burst.tokens[slot, :count].tolist()
            one.log_p += burst.log_p[slot, :count].tolist()
            if ended or len(one.tokens) >= limit[slot]:
                one.finish_reason = "eos" if ended else "length"
                slots.held[slot] = -1
        return True

    def _draws(self) -> Draws | None:
        if self._sampling.greedy:
            return None
        held = self._slots.held
        size = len(held)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(self._key, jnp.asarray(np.maximum(held, 0)))
        seen = np.zeros((size, self._prepared.config.vocab_size), bool)
        if np.any(np.asarray(self._sampling.repetition_penalty) != 1):
            for slot, number in enumerate(held):
                if number >= 0:
                    seen[slot, [*self._prompts[number // self._samples], *self.found[number].tokens]] = True
        return Draws(jnp.asarray(seen), keys, self._sampling.controls(size))

    def _fill(self) -> None:
        """Places waiting continuations into free slots, reading prompts as they are needed."""
        while (free := len(self._slots.free)) and (self._order or self._ready):
            if self._ready is None:
                self._ready = self._read(free)
            placed = self._ready.waiting[:free]
            self._slots.place(self._ready.state, placed)
            del self._ready.waiting[: len(placed)]
            if not self._ready.waiting:
                self._ready = None

    def _read(self, free: int) -> _Ready:
        """The next prompts, read: as many as fill the free slots, at most a few."""
        count = min(len(self._order), PROMPTS, max(1, -(-free // self._samples)))
        numbers, self._order = self._order[:count], self._order[count:]
        prompts = [self._prompts[i] for i in numbers]
        session = Session(self._prepared, bucket(count, 1), min(max(map(len, prompts)), CHUNK))
        session.extend([*prompts, *[[]] * (len(session.tokens) - count)])
        timing = session.timing
        self.timing.prefill_tokens += timing.prefill_tokens
        self.timing.prefill_seconds += timing.prefill_seconds
        self.timing.compile_seconds += timing.compile_seconds
        waiting = [(row, i * self._samples + k) for row, i in enumerate(numbers) for k in range(self._samples)]
        return _Ready(session.state, waiting)

    def _shrink(self) -> None:
        """Halves the batch while what is left fits into half of it and nothing waits."""
        live, size = int(self._slots.live.sum()), len(self._slots.held)
        while size > 1 and live <= bucket(size // 2, 1) < size:
            size = bucket(size // 2, 1)
        if live and size < len(self._slots.held):
            self._slots.resize(size)
