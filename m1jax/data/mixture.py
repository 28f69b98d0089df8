"""Shares of sources as integer quotas of a period of rows, and the order of sources inside a period."""

import dataclasses
import functools
import heapq
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from m1jax.data.manifest import SourceRows
from m1jax.errors import UserError

MAX_PERIOD = 1 << 16
TOLERANCE = 1e-3
"""Largest relative error of a share that a period may have before a longer one is taken."""


def source_shares(stage: str, mixture: Mapping[str, float], sources: Mapping[str, SourceRows]) -> dict[str, float]:
    """Share of each source that a stage reads, summing to 1; "domain:NAME" is divided by its sources' tokens.

    Raises UserError for a weight that is negative or no number, a key that matches nothing, and where no weight is
    above 0.
    """
    shares = dict.fromkeys(sorted(sources), 0.0)
    for key, weight in mixture.items():
        if not 0 <= weight < float("inf"):
            raise UserError(f"stage {stage!r}: mixture key {key!r} has weight {weight}, which must be 0 or more.")
        domain = key.removeprefix("domain:")
        if domain != key:
            matching = [name for name, source in sources.items() if source.domain == domain]
        else:
            matching = [key] if key in sources else []
        if not matching:
            domains = sorted({f"domain:{source.domain}" for source in sources.values()})
            raise UserError(
                f"stage {stage!r}: mixture key {key!r} matches no source: there are {', '.join(sorted(sources))} "
                f"and {', '.join(domains)}."
            )
        tokens = sum(sources[name].tokens for name in matching)
        for name in matching:
            shares[name] += weight * sources[name].tokens / tokens
    total = sum(shares.values())
    if not total > 0:
        raise UserError(f"stage {stage!r}: mixture has no weight above 0: give at least one source a share.")
    return {name: share / total for name, share in shares.items() if share > 0}


@dataclasses.dataclass(frozen=True)
class Quotas:
    """Rows of each source in one period of rows; `error` is the largest relative error of a share."""

    rows: Mapping[str, int]
    error: float

    @property
    def period(self) -> int:
        """Rows of a period."""
        return sum(self.rows.values())


def quantise(stage: str, shares: Mapping[str, float]) -> Quotas:
    """Integer quotas over the shortest power-of-two period whose error is below TOLERANCE, at most MAX_PERIOD.

    Raises UserError where a share is too small to have a row in the longest period.
    """
    period = 1
    while True:
        rows = _largest_remainder(shares, period)
        error = max(abs(rows[name] / period - share) / share for name, share in shares.items())
        if error < TOLERANCE or period == MAX_PERIOD:
            break
        period *= 2
    for name, count in rows.items():
        if not count:
            raise UserError(
                f"stage {stage!r}: the share of source {name!r} is {shares[name]:.2g}, below one row in {MAX_PERIOD}: "
                f"raise its weight, or set it to 0."
            )
    return Quotas(rows, error)


def _largest_remainder(shares: Mapping[str, float], period: int) -> dict[str, int]:
    rows = {name: int(share * period) for name, share in shares.items()}
    missing = period - sum(rows.values())
    by_remainder = sorted(shares, key=lambda name: (rows[name] - shares[name] * period, name))
    for name in by_remainder[:missing]:
        rows[name] += 1
    return rows


@functools.lru_cache(maxsize=32)
def period_table(quotas: tuple[int, ...]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Which source each row of a period is of, and how many rows of that source come before it; int32 (period,).

    In every prefix of t rows a source with quota q of P rows has less than one row more or less than t q / P. Row j of
    it may come from slot floor(j P / q) on and must come before slot ceil((j + 1) P / q); the earliest deadline first
    meets all of these (Baruah et al. 1996, proportionate progress, on one processor).
    """
    period = sum(quotas)
    source = np.empty(period, np.int32)
    before = np.empty(period, np.int32)
    released = [[i for i, quota in enumerate(quotas) if quota], *([] for _ in range(period))]
    waiting: list[tuple[int, int]] = []
    served = [0] * len(quotas)
    for slot in range(period):
        for i in released[slot]:
            heapq.heappush(waiting, (-(-(served[i] + 1) * period // quotas[i]), i))
        deadline, i = heapq.heappop(waiting)
        assert slot < deadline, "the quotas fill the period exactly, so that no deadline is missed"
        source[slot], before[slot] = i, served[i]
        served[i] += 1
        if served[i] < quotas[i]:
            # Its next row may already be due for release, at the next slot at the earliest.
            released[max(served[i] * period // quotas[i], slot + 1)].append(i)
    return source, before
