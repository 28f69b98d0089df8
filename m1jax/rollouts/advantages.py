"""Advantages from rewards, in float64 on the host.

Legend: N continuations of an iteration, K samples of a prompt, T sampled tokens of one continuation.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Array = np.ndarray


class Estimated(NamedTuple):
    """Of each continuation, arrays (T,): advantages, and what the critic should have said."""

    advantages: list[Array]
    returns: list[Array]


def gae(rewards: Sequence[Array], values: Sequence[Array], gamma: float, lam: float) -> Estimated:
    """Generalised advantage estimation (Schulman et al., arXiv 1506.02438, equation 16) over the sampled tokens.

    δ_t = r_t + γ V_{t+1} − V_t and A_t = δ_t + γ λ A_{t+1}, with V = 0 after the last token; returns are A + V.
    `rewards` and `values` have an array (T,) for each continuation: other tokens than the sampled ones are not in them,
    so nothing passes through a prompt or padding.
    """
    advantages: list[Array] = []
    for r, v in zip(rewards, values, strict=True):
        found, following = np.zeros(len(r)), 0.0
        after = np.append(np.asarray(v, np.float64)[1:], 0.0)
        for t in reversed(range(len(r))):
            following = r[t] + gamma * after[t] - v[t] + gamma * lam * following
            found[t] = following
        advantages.append(found)
    return Estimated(advantages, [a + np.asarray(v, np.float64) for a, v in zip(advantages, values, strict=True)])


def whitened(advantages: Sequence[Array]) -> list[Array]:
    """Advantages less their mean over all tokens, over their standard deviation."""
    every = np.concatenate(list(advantages))
    mean, deviation = every.mean(), every.std()
    return [(a - mean) / (deviation + 1e-8) for a in advantages]


def leave_one_out(rewards_N: Array, samples: int) -> Array:
    """Each reward less the mean of its prompt's other samples (N,): unbiased (Ahmadian et al., arXiv 2402.14740).

    Continuations are prompt by prompt, `samples` (2 or more) of each.
    """
    groups = np.asarray(rewards_N, np.float64).reshape(-1, samples)
    others = (groups.sum(axis=1, keepdims=True) - groups) / (samples - 1)
    return (groups - others).ravel()


def within_group(rewards_N: Array, samples: int) -> Array:
    """Each reward less its group's mean, over the group's standard deviation (N,): GRPO, arXiv 2402.03300.

    A group of equal rewards has advantages of 0.
    """
    groups = np.asarray(rewards_N, np.float64).reshape(-1, samples)
    return ((groups - groups.mean(axis=1, keepdims=True)) / (groups.std(axis=1, keepdims=True) + 1e-6)).ravel()
