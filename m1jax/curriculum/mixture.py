"""Shares of sources as integer quotas of a period of rows, and the order of sources inside a period."""

import dataclasses
import functools
import heapq
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from m1jax.config.domains import KEY_PREFIX, nearest
from m1jax.errors import UserError
from m1jax.rows.manifest import SourceRows

MAX_PERIOD = 1 << 16
TOLERANCE = 1e-3
"""Largest relative error of a share that a period may have before a longer one is taken."""


def matches(key: str, name: str, source: SourceRows) -> bool:
    """Whether a key of a mixture means this source: by its name, that of what it is a bucket of, or its domain."""
    return key in (name, source.of, f"{KEY_PREFIX}{source.domain}") and bool(key)


def source_shares(
    stage: str,
    mixture: Mapping[str, float],
    sources: Mapping[str, SourceRows],
    difficulty: tuple[float, ...] = (0.0, 1.0),
) -> dict[str, float]:
    """Share of each source that a stage reads, summing to 1.

    A key is a source, one that was packed by difficulty, or "domain:NAME"; the latter two are divided by tokens. Of
    sources packed by difficulty only buckets with their middle in `difficulty` are read. Raises UserError for a weight
    that is negative or no number, a key that matches nothing, and where no weight is above 0.
    """
    shares = dict.fromkeys(sorted(sources), 0.0)
    for key, weight in mixture.items():
        if not 0 <= weight < float("inf"):
            raise UserError(f"stage {stage!r}: mixture key {key!r} has weight {weight}, which must be 0 or more.")
        every = [name for name, source in sources.items() if matches(key, name, source)]
        if not every:
            domains = sorted({f"{KEY_PREFIX}{source.domain}" for source in sources.values()})
            near = nearest(key, domains if key.startswith(KEY_PREFIX) else sources)
            raise UserError(
                f"stage {stage!r}: mixture key {key!r} matches no source: there are {', '.join(sorted(sources))} "
                f"and {', '.join(domains)}; did you mean {near!r}?"
            )
        matching = [name for name in every if _in_range(sources[name], difficulty)]
        if not matching and weight:
            raise UserError(
                f"stage {stage!r}: no difficulty bucket that mixture key {key!r} matches has its middle in "
                f"{difficulty[0]:g} to {difficulty[1]:g}: there are {', '.join(sorted(every))}; widen the range."
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


def check_epochs(
    caps: Mapping[str, float], sources: Mapping[str, SourceRows], uses: Iterable[tuple[str, str, float]]
) -> None:
    """Raises UserError where `uses` (stage, source, epochs) read a source more often than the caps allow.

    A source's cap is the first found by: its name, the source that it is a bucket of, its domain, "*".
    """
    for key in caps:
        if key != "*" and not any(matches(key, name, source) for name, source in sources.items()):
            raise UserError(
                f"config key data.max_epochs: {key!r} matches no source: there are {', '.join(sorted(sources))}."
            )
    total: dict[str, dict[str, float]] = {}
    for stage, name, epochs in uses:
        total.setdefault(name, {})[stage] = epochs
    for name, by_stage in total.items():
        source = sources[name]
        keys = [key for key in (name, source.of, f"{KEY_PREFIX}{source.domain}", "*") if key and key in caps]
        if keys and sum(by_stage.values()) > caps[key := keys[0]]:
            stages = ", ".join(f"{epochs:.2f} in stage {stage!r}" for stage, epochs in by_stage.items() if epochs)
            raise UserError(
                f"source {name!r} ({source.tokens:,} tokens) would be read {sum(by_stage.values()):.2f} times "
                f"({stages}), more than data.max_epochs[{key!r}] = {caps[key]:g} allows: lower its weight, shorten a "
                f"stage, or raise the cap."
            )


def _in_range(source: SourceRows, difficulty: tuple[float, ...]) -> bool:
    low, high = difficulty
    return source.buckets == 1 or low <= (source.bucket + 0.5) / source.buckets < high


@functools.lru_cache(maxsize=32)
def period_table(quotas: tuple[int, ...]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Which source each row of a period is of, and how many rows of that source come before it; int32 (period,).

    In every prefix of t rows a source with quota q of P rows has less than one row more or less than t q / P: row j of
    it comes from slot floor(j P / q) on and before slot ceil((j + 1) P / q). Inside these bounds the row is taken whose
    middle (j + 1/2) P / q is earliest, so that a rare source is neither early nor late. A row may be taken before one
    with an earlier deadline only where every deadline can still be met: that is where for every slot d before its own
    deadline fewer than d - t of the rows left have deadlines up to d (Hall's condition for unit jobs on one machine).
    """
    period = sum(quotas)
    source = np.empty(period, np.int32)
    before = np.empty(period, np.int32)
    # slack[d]: slots from now to d, less the rows still to be placed whose deadline is at most d.
    slack = np.arange(period + 1) - sum((_due(quota, period) for quota in quotas if quota), np.zeros(period + 1, int))
    released: list[list[int]] = [[i for i, quota in enumerate(quotas) if quota], *([] for _ in range(period))]
    waiting: list[tuple[float, int, int]] = []
    served = [0] * len(quotas)
    for slot in range(period):
        for i in released[slot]:
            deadline = -(-(served[i] + 1) * period // quotas[i])
            heapq.heappush(waiting, ((served[i] + 0.5) * period / quotas[i], i, deadline))
        passed = []
        while True:
            entry = heapq.heappop(waiting)
            _, i, deadline = entry
            between = slack[slot + 1 : deadline]
            if not between.size or between.min() > 0:
                break
            passed.append(entry)
        between -= 1
        for entry in passed:
            heapq.heappush(waiting, entry)
        source[slot], before[slot] = i, served[i]
        served[i] += 1
        if served[i] < quotas[i]:
            # Its next row may already be due for release, at the next slot at the earliest.
            released[max(served[i] * period // quotas[i], slot + 1)].append(i)
    return source, before


def _due(quota: int, period: int) -> npt.NDArray[np.int64]:
    """How many of a source's rows have their deadline at or before each slot 0 … period."""
    deadlines = -(-np.arange(1, quota + 1) * period // quota)
    return np.cumsum(np.bincount(deadlines, minlength=period + 1))
