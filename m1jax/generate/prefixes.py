"""States of prompts and answers that were read before, kept for prompts that begin alike.

A state is of one point of a text: rings of window layers and the last raw K and V cannot be cut back. States are
therefore kept where reuse is likely: at the end of a prompt, at the end of an answer (the next turn of a chat
continues it), and where a prompt leaves another one, so that the third prompt with a system message finds it read (the
policy of Marconi, arXiv 2411.19379, for models with recurrent layers).
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from m1jax.generate.programs import State

_MOST = 512
"""States at most: every prompt is compared with all of them, which takes about a millisecond."""


class _Kept(NamedTuple):
    tokens: np.ndarray
    state: State
    size: int


class Match(NamedTuple):
    """What is known of a prompt."""

    length: int
    """Tokens of the longest kept state that begins the prompt; 0 without one."""
    state: State | None
    """It; not to be donated."""
    shared: int
    """Most tokens that the prompt has in common with any text that was read."""


class Prefixes:
    """States of one row by their tokens; the least recently used are dropped beyond `limit` bytes."""

    def __init__(self, limit: int):
        self.limit, self.bytes = limit, 0
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def match(self, tokens: Sequence[int], whole_chunks: int = 1) -> Match:
        """The longest state that begins the prompt, its length divisible by `whole_chunks`."""
        prompt = np.asarray(tokens, np.int32)
        best, shared = None, 0
        for name, kept in self._kept.items():
            common = _common(kept.tokens, prompt)
            shared = max(shared, common)
            whole = common == len(kept.tokens) and common % whole_chunks == 0
            if whole and (best is None or common > len(self._kept[best].tokens)):
                best = name
        if best is None:
            return Match(0, None, shared)
        self._kept.move_to_end(best)
        found = self._kept[best]
        return Match(len(found.tokens), found.state, shared)

    def put(self, tokens: Sequence[int], state: State) -> None:
        """Keeps the state of one row, which holds these tokens, where it fits."""
        own = np.asarray(tokens, np.int32)
        name, size = own.tobytes(), sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        if name in self._kept:
            self._kept.move_to_end(name)
        elif size <= self.limit:
            self._kept[name] = _Kept(own, state, size)
            self.bytes += size
            self.drop()

    def __contains__(self, tokens: Sequence[int]) -> bool:
        return np.asarray(tokens, np.int32).tobytes() in self._kept

    def drop(self, limit: int | None = None) -> None:
        """Drops what is beyond the limit, which may change."""
        self.limit = self.limit if limit is None else limit
        while self._kept and (self.bytes > self.limit or len(self._kept) > _MOST):
            self.bytes -= self._kept.popitem(last=False)[1].size


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """Tokens with which both begin."""
    least = min(len(one), len(other))
    differ = one[:least] != other[:least]
    return int(differ.argmax()) if differ.any() else least
