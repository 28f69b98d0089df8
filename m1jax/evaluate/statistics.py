"""Intervals of accuracies, and of differences of two models that answered the same items; all of 95%."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

Z = 1.959963984540054
"""Of the normal distribution, 95% is within ±Z standard deviations."""


def wilson(correct: float, total: float) -> tuple[float, float]:
    """The 95% interval of a share (Wilson, JASA 22, 1927): unlike ±1.96 s it holds for few items and shares near 0.

    The counts may be fractions: those of `effective_size`.
    """
    assert 0 <= correct <= total and total > 0
    share = correct / total
    centre = share + Z * Z / (2 * total)
    half = Z * math.sqrt(share * (1 - share) / total + Z * Z / (4 * total * total))
    scale = 1 + Z * Z / total
    # At the ends the formula gives 0 and 1, and its arithmetic 0.9999999999999999.
    low = (centre - half) / scale if correct else 0.0
    return low, (centre + half) / scale if correct < total else 1.0


def effective_size(values: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """How many independent items tell as much about the mean as these (N,), of which those of a cluster go together.

    N over the design effect, the variance of the mean with clusters over that without (Miller, arXiv 2411.00640,
    equations 2 and 4; the former times C / (C - 1) for C clusters); never more than N.
    """
    N = len(values)
    centred = np.asarray(values, float) - np.mean(values)
    order = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    sums = np.bincount([order[cluster] for cluster in clusters], weights=centred)
    C, alone = len(sums), float((centred**2).sum())
    if C == N or C < 2 or not alone:
        return float(N)
    return N / max(1.0, float((sums**2).sum()) * C / (C - 1) / alone)


@dataclass(frozen=True)
class Difference:
    """Accuracy of one model less that of another on the same items."""

    items: int
    difference: float
    interval: tuple[float, float]
    only_first: int
    """Items that only the first model answered rightly."""
    only_second: int


def paired(first: Sequence[bool], second: Sequence[bool], clusters: Sequence[Hashable]) -> Difference:
    """The difference of two shares of the same N items, and its 95% interval; at least one item.

    Newcombe, Statistics in Medicine 17 (1998), 2635-2650, method 10: the Wilson intervals of both shares, added as
    squares with the correlation of the pairs. For items in clusters the counts are scaled to the `effective_size` of
    the differences.
    """
    one, other = np.asarray(first, bool), np.asarray(second, bool)
    assert one.shape == other.shape and one.size
    only_first, only_second = int((one & ~other).sum()), int((~one & other).sum())
    differences = one.astype(float) - other
    scale = effective_size(differences.tolist(), clusters) / len(one)
    both, neither = float((one & other).sum()), float((~one & ~other).sum())
    interval = newcombe(both * scale, only_first * scale, only_second * scale, neither * scale)
    return Difference(len(one), float(differences.mean()), interval, only_first, only_second)


def newcombe(both: float, only_first: float, only_second: float, neither: float) -> tuple[float, float]:
    """The 95% interval of a difference of paired shares from the four counts of pairs: see `paired`."""
    total = both + only_first + only_second + neither
    first, second = both + only_first, both + only_second
    share_first, share_second = first / total, second / total
    low_first, high_first = wilson(first, total)
    low_second, high_second = wilson(second, total)
    product = math.sqrt(first * (total - first) * second * (total - second))
    excess = both * neither - only_first * only_second
    if excess > 0:
        excess = max(excess - total / 2, 0.0)  # the method's continuity correction
    correlation = excess / product if product else 0.0

    def added(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * correlation * a * b + b * b))

    difference = (only_first - only_second) / total
    low = difference - added(share_first - low_first, high_second - share_second)
    return low, difference + added(high_first - share_first, share_second - low_second)
