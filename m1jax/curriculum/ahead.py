"""Requests the rows of later steps early enough to hide the latency of slow storage."""

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from m1jax.rows.record import Row

Request = Callable[[int], Sequence["Future[tuple[Row, float]]"]]
"""The rows of a step, each with the time (time.perf_counter) at which it arrived."""
_SMOOTHING = 0.25
"""Share of the newest measurement in a running mean."""


class Ahead:
    """Rows of consecutive steps; those of the next `depth` steps are already requested.

    The depth follows what is measured: as many steps as are taken in the time that the rows of one need to arrive
    (Little's law), and one more; at least one, at most `limit`.
    """

    def __init__(self, request: Request, last_step: int, limit: int) -> None:
        """Steps below `last_step` are asked for, each once."""
        self.depth = 1
        self._request, self._last, self._limit = request, last_step, max(limit, 1)
        self._pending: dict[int, tuple[float, Sequence[Future[tuple[Row, float]]]]] = {}
        self._latency: float | None = None
        self._interval: float | None = None
        self._asked: float | None = None

    def rows(self, step: int) -> list[Row]:
        """The rows of a step, in order; raises what reading them raised."""
        now = time.perf_counter()
        if self._asked is not None:
            self._interval = _smoothed(self._interval, now - self._asked)
        self._asked = now
        for coming in range(step, min(step + 1 + self.depth, self._last)):
            if coming not in self._pending:
                self._pending[coming] = time.perf_counter(), self._request(coming)
        begun, futures = self._pending.pop(step)
        arrived = [future.result() for future in futures]
        self._latency = _smoothed(self._latency, max(moment for _, moment in arrived) - begun)
        if self._interval is not None:
            self.depth = min(math.ceil(self._latency / max(self._interval, 1e-6)) + 1, self._limit)
        return [row for row, _ in arrived]

    def close(self) -> None:
        """Cancels the requests that were not started."""
        for _, futures in self._pending.values():
            for future in futures:
                future.cancel()
        self._pending.clear()


def _smoothed(mean: float | None, new: float) -> float:
    return new if mean is None else mean + _SMOOTHING * (new - mean)
