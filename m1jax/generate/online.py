"""Continuous batching for requests that come at any time: each has its own settings, and leaves when it is done.

A round reads at most two chunks of waiting prompts and then generates a few tokens for all that have a slot, so that a
long prompt holds the others up for no longer than two chunks take. Requests are taken in the order in which they
came, as far as the cache's bytes allow: every request's longest possible answer is reserved when it is taken, while
the cache itself grows with what there is.

Legend: B slots, V vocabulary, E end tokens.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m1jax.errors import UserError
from m1jax.generate.prefixes import Prefixes
from m1jax.generate.programs import ROOM, Prepared, State
from m1jax.generate.reading import Reading, stops, told
from m1jax.generate.requests import END_IDS, Listener, Progress, Request, Ticket, empty_draws, finite
from m1jax.generate.room import Extent, Limits, Occupant, Room
from m1jax.generate.serving_programs import choose_draws, fitted, place_draws
from m1jax.generate.slots import BatchTiming, Burst, Slots
from m1jax.generate.steering import ANY, words

_FLOW = 0.1
"""Seconds of generating after which the engine looks up: new requests wait no longer, and text seems to flow."""
_BETWEEN = 1
"""New tokens of a round in which prompts are still waiting to be read: slots that are free would only idle longer."""
_CHUNKS = 2
"""Of prompts a round reads at most so many chunks: two short prompts are read in one round."""
_WORTH = 16
"""Tokens that a state must save to be worth a stop on the way."""


@dataclass
class Counts:
    """What an engine has done so far."""

    requests: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompts' tokens those that were not read, because a kept state holds them."""
    new_tokens: int = 0
    timing: BatchTiming = field(default_factory=BatchTiming)


class Engine:
    """Answers requests with a prepared model. `submit` and `cancel` may be called from any thread, the rest from one.

    Made by `LanguageModel.online`.
    """

    def __init__(self, prepared: Prepared, limits: Limits):
        """Nothing is reserved before a request comes; raises UserError for limits that hold no request."""
        self._prepared, self.limits, self.counts = prepared, limits, Counts()
        self.room = Room(prepared.config, limits)
        self._inbox: deque[Ticket] = deque()
        self._queue: deque[Ticket] = deque()
        self._reading: Reading | None = None
        self._seating = self._constrained = False
        self._stops: list[int] = []
        self._cuts: set[int] = set()
        self._running: dict[int, Ticket] = {}
        self._slots: Slots | None = None
        self._draws: Any = None
        self._step_seconds = 0.0
        self.prefixes = Prefixes(limits.cache_bytes if limits.reuse else 0)

    @property
    def waiting(self) -> int:
        """Requests that have no slot yet and whose prompt is not being read."""
        return len(self._inbox) + len(self._queue)

    @property
    def running(self) -> int:
        """Requests that generate, or whose prompt is being read."""
        return len(self._running) + (self._reading is not None or self._seating)

    @property
    def vocab_size(self) -> int:
        """Tokens that the model knows."""
        return self._prepared.config.vocab_size

    @property
    def slot_bytes(self) -> int:
        """Bytes of the cache that requests which run have now."""
        return 0 if self._slots is None else self.room.bytes(self._slots.extent)

    def check(self, request: Request) -> None:
        """Raises UserError for a request that can never be answered (`Request.check`)."""
        request.check(self._prepared.config, self.room.context)

    def submit(self, request: Request, listener: Listener) -> Ticket:
        """Takes a request; `listener` is called by the thread of `step` whenever there is something new.

        Raises UserError as `check` does.
        """
        self.check(request)
        ticket = Ticket(request, listener)
        self._inbox.append(ticket)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Nobody waits for the answer any more: its place is free after the current round."""
        ticket.cancelled = True

    def step(self) -> bool:
        """One round; False where there is nothing to do."""
        self._take_in()
        left = _CHUNKS * self.limits.chunk
        while (self._reading or self._begin()) and self._next_piece() <= left:
            left -= self._read()
        if self._running:
            self._generate()
        return bool(self._running or self._reading or self._inbox or self._queue)

    def warm(self) -> None:
        """Compiles what most requests need, before one comes: pieces of prompts of every length, and the slots."""
        for length in self.room.usual_lengths():  # the longest first: none is then a beginning that is known already
            self._try(1, length)
        self.counts, self._slots = Counts(), None
        for extent in self.room.usual():
            self._slots = Slots(self._prepared, *extent, self.counts.timing)
            self._draws = self._prepared.placed(empty_draws(extent.size, self.vocab_size))
            zeros, eos = np.zeros(extent.size, np.int32), np.full((extent.size, END_IDS), -1, np.int32)
            self._slots.decode(zeros, zeros, 1, extent.size + 1, eos, self._draws)
            self._try(min(2, extent.size), 1)
        self.counts, self._slots = Counts(), None
        self.prefixes.drop(0)

    def _try(self, count: int, length: int) -> None:
        """Answers so many prompts of a length, which begin differently."""
        length = min(length, max(1, self.room.context - 2))
        for number in range(count):
            token = (count + number) % self._prepared.config.vocab_size
            self.submit(Request([token] * length, min(2, self.room.context - length)), _nobody)
        while self.step():
            pass

    def fail(self, sentence: str) -> None:
        """Ends every request with an error and starts from nothing: after a failure of the device."""
        tickets = [*self._running.values(), *self._queue]
        if self._reading:
            tickets.append(self._reading.ticket)
        while self._inbox:  # others may put something in meanwhile
            tickets.append(self._inbox.popleft())
        self._queue.clear()
        self._running, self._reading, self._slots, self._draws, self._seating = {}, None, None, None, False
        self.prefixes.drop(0)
        self.counts.failed += len(tickets)
        for ticket in tickets:
            ticket.fail(sentence)

    def _take_in(self) -> None:
        """New requests into the queue; cancelled ones out of it and out of their places."""
        while self._inbox:
            self._queue.append(self._inbox.popleft())
        gone = sum(ticket.cancelled for ticket in self._queue)
        if gone:
            self._queue = deque(ticket for ticket in self._queue if not ticket.cancelled)
        if self._reading and self._reading.ticket.cancelled:
            self._reading, gone = None, gone + 1
        for ticket in [ticket for ticket in self._running.values() if ticket.cancelled]:
            self._release(ticket)
            gone += 1
        self.counts.cancelled += gone

    def _release(self, ticket: Ticket) -> int:
        """Frees the slot of a request; returns it."""
        assert self._slots is not None
        del self._running[ticket.number]
        (slot,) = np.flatnonzero(self._slots.held == ticket.number)
        self._slots.held[slot] = -1
        return int(slot)

    def _arrange(self, most: int, *new: Ticket) -> Slots:
        """Slots for those that have one and for new ones, with room for `most` new tokens; kept states give way."""
        occupants = self._occupants(*new)
        now = None if self._slots is None else self._slots.extent
        reading = self._reading.capacity if self._reading else 0
        extent = self.room.arranged(now, occupants, most, len(self._queue), reading)
        self.prefixes.drop(self._left(self.room.bytes(extent)))
        if self._slots is None:
            self._slots = Slots(self._prepared, *extent, self.counts.timing)
            self._draws = self._prepared.placed(empty_draws(extent.size, self._prepared.config.vocab_size))
        elif extent != self._slots.extent:
            rows = self._slots.fit(*extent)
            self._draws = self._timed(self._prepared.arrange, choose_draws, self._draws, rows)
        return self._slots

    def _occupants(self, *new: Ticket) -> list[Occupant]:
        return [Occupant(one.length, one.request.need) for one in (*self._running.values(), *new)]

    def _left(self, taken: int) -> int:
        """Bytes for kept states beside slots of so many."""
        reading = self.room.row(self._reading.capacity) if self._reading else 0
        return max(0, self.limits.cache_bytes - taken - reading) if self.limits.reuse else 0

    # Prompts.

    def _begin(self) -> bool:
        """Begins to read the next prompt, if it fits."""
        if not self._queue or not self.room.fits(self._occupants(self._queue[0]), self._queue[0].length):
            return False
        ticket = self._queue.popleft()
        tokens, chunk, whole = ticket.request.tokens, self.limits.chunk, self.limits.batch_invariant
        match = self.prefixes.match(tokens, chunk if whole else 1)
        if ticket.request.score_prompt:  # each of its tokens must be read
            match = match._replace(length=0, state=None)
        cuts = {match.shared // chunk * chunk, len(tokens) // chunk * chunk} if whole else {match.shared}
        self._cuts = {cut for cut in cuts if cut >= match.length + _WORTH}
        self._stops = stops(match.length, list(self._cuts), len(tokens), chunk, whole)
        first = self._stops[0] if self._stops else len(tokens)
        self._reading = Reading(self._prepared, self._timed, ticket, match, first, self.room.reading)
        self.counts.requests += 1
        self.counts.prompt_tokens += len(tokens)
        self.counts.cached_tokens += match.length
        return True

    def _timed(self, how: Any, program: Any, *args: Any) -> Any:
        result, seconds = how(program, *args)
        self.counts.timing.compile_seconds += seconds
        return result

    def _next_piece(self) -> int:
        """Tokens of the next piece of the prompt, at most `chunk`; 0 where a kept state holds all of it."""
        assert self._reading is not None
        return self._stops[0] - self._reading.at if self._stops else 0

    def _read(self) -> int:
        """Reads one piece of the prompt; returns the tokens read. At its end the request gets a slot."""
        reading, count = self._reading, self._next_piece()
        assert reading is not None
        if count:
            stop = self._stops.pop(0)
            reading.read(stop, self.limits.chunk if self.limits.batch_invariant else None)
            self.counts.timing.prefill_tokens += count
            if stop in self._cuts and not reading.done:
                tokens = reading.ticket.request.tokens[:stop]
                if tokens not in self.prefixes:
                    self.prefixes.put(tokens, reading.kept(self.room.capacity(stop)))
        if reading.done:
            self._reading, self._seating = None, True  # which may take as long as a program takes to compile
            self._seat(reading)
            self._seating = False
        return count

    def _seat(self, reading: Reading) -> None:
        """Gives a slot to the request whose prompt was read, and to those behind it that ask for the same prompt."""
        ticket = reading.ticket
        tickets = [ticket]
        if not bool(jnp.isfinite(reading.state.logits).all()):
            self.counts.failed += 1
            ticket.fail("the model gives logits that are no numbers: serve an earlier checkpoint.")
            return
        whole = not self.limits.batch_invariant or len(ticket.request.tokens) % self.limits.chunk == 0
        if whole and self.limits.reuse:
            capacity = self.room.capacity(len(ticket.request.tokens))
            tight = capacity == reading.capacity_now
            self.prefixes.put(ticket.request.tokens, reading.state if tight else reading.kept(capacity))
        while ticket.request.max_new_tokens and self._queue and self._same(self._queue[0], tickets):
            other = self._queue.popleft()
            other.cached_tokens = len(other.request.tokens)
            self.counts.requests += 1
            self.counts.prompt_tokens += other.cached_tokens
            self.counts.cached_tokens += other.cached_tokens
            tickets.append(other)
        for one in tickets:
            if one.request.max_new_tokens == 0:
                one.tell(Progress([], [], [], "length"))
            else:
                self._place(one, reading.state)

    def _same(self, other: Ticket, tickets: list[Ticket]) -> bool:
        first = tickets[0].request
        if other.request.tokens is not first.tokens or other.request.score_prompt or not other.request.max_new_tokens:
            return False
        return self.room.fits(self._occupants(*tickets, other), len(first.tokens))

    def _place(self, ticket: Ticket, state: State) -> None:
        slots = self._arrange(1, ticket)
        (slot,) = slots.place(state, [(0, ticket.number)])
        self._running[ticket.number] = ticket
        one = ticket.request.draws(self._prepared.config.vocab_size)
        self._draws = self._timed(self._prepared.arrange, place_draws, self._draws, one, np.int32(slot))

    # Answers.

    def _generate(self) -> None:
        """A few new tokens for every request that has a slot; one where a constraint must see each."""
        constrained = any(ticket.request.constraint is not None for ticket in self._running.values())
        most = 1 if constrained else self._most()
        slots = self._arrange(most)
        if constrained or self._constrained:
            self._constrain(slots)
            self._constrained = constrained
        B = len(slots.held)
        step, limit = np.zeros(B, np.int32), np.zeros(B, np.int32)
        eos = np.full((B, END_IDS), -1, np.int32)
        for slot, ticket in self._placed():
            step[slot], limit[slot] = len(ticket.new), ticket.request.max_new_tokens
            eos[slot, : len(ticket.request.end_ids)] = ticket.request.end_ids
        leaving = 1 if self._queue else B + 1
        burst = slots.decode(step, limit, most, leaving, eos, self._draws)
        self._draws = burst.draws
        self._step_seconds = burst.seconds / max(1, burst.steps)
        self.counts.new_tokens += int(burst.counts.sum())
        beside = None
        if any(ticket.request.alternatives for ticket in self._running.values()):
            beside = jax.device_get(burst.alternatives)
        for slot, ticket in list(self._placed()):
            self._tell(slot, ticket, burst, beside)

    def _constrain(self, slots: Slots) -> None:
        """What each row may say next; a request whose constraint allows nothing ends with its sentence."""
        allowed = np.full((len(slots.held), words(self.vocab_size)), ANY)
        for slot, ticket in self._placed():
            if ticket.request.constraint is not None:
                try:
                    allowed[slot] = ticket.request.constraint.allowed()
                except UserError as error:
                    self._release(ticket)
                    self.counts.failed += 1
                    ticket.fail(str(error))
        steering = self._draws.steering._replace(allowed=self._prepared.placed(jnp.asarray(allowed)))
        self._draws = self._draws._replace(steering=steering)

    def _placed(self) -> list[tuple[int, Ticket]]:
        assert self._slots is not None
        return [(slot, self._running[number]) for slot, number in enumerate(self._slots.held.tolist()) if number >= 0]

    def _most(self) -> int:
        """New tokens of a round; one where somebody waits for the first."""
        if self._reading or any(not ticket.new for ticket in self._running.values()):
            return _BETWEEN
        return max(1, min(ROOM, int(_FLOW / self._step_seconds))) if self._step_seconds else 1

    def _tell(self, slot: int, ticket: Ticket, burst: Burst, beside: Any) -> None:
        """Hands out a request's new tokens; ends it where it is done."""
        count = int(burst.counts[slot])
        tokens, log_p = burst.tokens[slot, :count].tolist(), burst.log_p[slot, :count].tolist()
        asked = ticket.request.alternatives
        alternatives = told([part[slot] for part in beside], asked, 0, count) if asked else [[] for _ in tokens]
        if not finite(log_p):
            self._release(ticket)
            self.counts.failed += 1
            ticket.fail("the model gives logits that are no numbers: serve an earlier checkpoint.")
            return
        reason = "eos" if burst.ended[slot] or _completed(ticket.request, tokens) else None
        if reason is None and len(ticket.new) + count >= ticket.request.max_new_tokens:
            reason = "length"
        ticket.tell(Progress(tokens, log_p, alternatives, reason))
        if reason:
            self._release(ticket)
            self._keep(slot, ticket, ended=bool(burst.ended[slot]))

    def _keep(self, slot: int, ticket: Ticket, ended: bool) -> None:
        """Keeps the state at the end of an answer; an end token is not in it."""
        if not self.limits.reuse or self.limits.batch_invariant or ticket.cancelled:
            return
        assert self._slots is not None
        tokens = [*ticket.request.tokens, *(ticket.new[:-1] if ended else ticket.new)]
        capacity = self.room.capacity(len(tokens))
        if self.room.bytes(Extent(1, capacity)) <= self.prefixes.limit and tokens not in self.prefixes:
            rows = np.array([slot], np.int32)
            state = self._timed(self._prepared.arrange, fitted, self._slots.state, rows, capacity)
            self.prefixes.put(tokens, state)


def _completed(request: Request, tokens: list[int]) -> bool:
    """Whether new tokens make an answer whole of which a constraint says what it may be."""
    if request.constraint is None:
        return False
    for token in tokens:
        if token not in request.end_ids:
            request.constraint.take(token)
    return request.constraint.complete


def _nobody(_: Progress) -> None:
    """Listens to the requests of `Engine.warm`."""
