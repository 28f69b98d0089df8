"""The engine in a thread of its own, and its answers in the event loop."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Sequence

from m1jax.errors import first_line
from m1jax.generate.online import Engine
from m1jax.generate.requests import Listener, Progress, Request, Ticket

_LOG = logging.getLogger(__name__)


class Worker:
    """Runs the rounds of an engine while there is something to do."""

    def __init__(self, engine: Engine):
        """The thread begins with `start`."""
        self.engine = engine
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._ended: list[float] = []

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Ends after the current round; requests that run get no further answer."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive() and not self._stopping

    def submit(self, requests: Sequence[Request], seconds: float) -> "Call":
        """Hands requests to the engine, all or none; raises UserError for one that can never be answered.

        Called in the event loop that reads the answers, which must have come after so many seconds.
        """
        for request in requests:
            self.engine.check(request)
        return Call(self, requests, seconds)

    def take(self, request: Request, listener: Listener) -> Ticket:
        """Hands one request to the engine."""
        ticket = self.engine.submit(request, listener)
        self._wake.set()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Nobody waits for it any more."""
        self.engine.cancel(ticket)
        self._wake.set()

    def seconds_of_queue(self) -> int:
        """In how many whole seconds a place will probably be free: as long as one took lately, at least 1."""
        now = time.monotonic()
        lately = [when for when in self._ended if now - when < 60]
        each = (now - lately[0]) / len(lately) if lately else 1.0
        return max(1, min(60, round(each * self.engine.waiting)))

    def ended(self) -> None:
        """Counts a request that has got its answer."""
        self._ended = [*self._ended[-63:], time.monotonic()]

    def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                busy = self.engine.step()
            except Exception as error:  # noqa: BLE001 (whatever a device says: clients are told, the server goes on)
                _LOG.error("a round failed: %s: %s", type(error).__name__, first_line(error))
                self.engine.fail("the server failed to compute this answer: try again.")
                busy = True
            if not busy:
                self._wake.wait()


class Call:
    """Requests that are answered together: an iterator over (number, Progress) until all have ended.

    It raises TimeoutError where they do not end in time.
    """

    def __init__(self, worker: Worker, requests: Sequence[Request], seconds: float):
        self._worker, self._loop = worker, asyncio.get_running_loop()
        self._deadline = self._loop.time() + seconds
        self._told: asyncio.Queue[tuple[int, Progress]] = asyncio.Queue()
        self._going = set(range(len(requests)))
        self.tickets = [worker.take(request, self._listener(number)) for number, request in enumerate(requests)]

    def _listener(self, number: int) -> Listener:
        def listen(progress: Progress) -> None:
            try:
                self._loop.call_soon_threadsafe(self._told.put_nowait, (number, progress))
            except RuntimeError:  # the loop is closed: the server has ended
                _LOG.debug("an answer came after the end")

        return listen

    async def __aiter__(self) -> AsyncIterator[tuple[int, Progress]]:
        while self._going:
            async with asyncio.timeout_at(self._deadline):
                number, progress = await self._told.get()
            if number not in self._going:
                continue
            if progress.finish_reason is not None:
                self._going.discard(number)
                self._worker.ended()
            yield number, progress

    def end(self, number: int) -> None:
        """Nothing more of one of them is wanted."""
        if number in self._going:
            self._going.discard(number)
            self._worker.cancel(self.tickets[number])
            self._worker.ended()

    def cancel(self) -> None:
        """Nothing more of any of them is wanted: whoever asked is gone."""
        for number in self._going:
            self._worker.cancel(self.tickets[number])
        self._going.clear()
