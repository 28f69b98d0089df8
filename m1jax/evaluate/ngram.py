"""A unigram and an interpolated bigram, counted on exactly the tokens that a model was trained on.

They say what a model must beat before its attention can be said to do anything. The bigram is interpolated
Kneser-Ney (Chen & Goodman, Computer Speech and Language 13, 1999) with a discount for each of seven classes of counts
where they have three, because text that was read several times has few counts of 1. The discounts are fitted by EM on
pieces of the training text held aside, never on what is then measured; all the text is counted afterwards.

Chosen by measuring (7.3M tokens of ontologies and a dictionary, BPE of 8,192, nats a held-out token of each of three
sources; ontologies read once, and three times): unigram 7.46 7.03 6.63, and 7.25 6.83 6.88; Jelinek-Mercer with 15
weights by context count 4.52 3.83 4.20, and 4.35 3.67 4.41; Kneser-Ney with one estimated discount 4.46 3.77 4.15, and
4.31 3.63 4.37; with three fitted 4.45 3.77 4.15, and 4.29 3.61 4.36; this one 4.45 3.77 4.15, and 4.29 3.61 4.36.

B rows of a batch, S tokens of a row, V vocabulary, C classes of counts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from m1jax.errors import UserError

# Lower bounds of the classes of counts that share a discount.
CLASSES = np.array([1, 2, 3, 4, 6, 9, 17])
# One piece in this many is held aside while the discounts are fitted.
ASIDE = 16
# Tokens at the beginning of a piece that decide whether it is held aside: the same text read again is held aside again.
FINGERPRINT = 8
# Pairs that wait in memory before they are counted into the sorted table.
PENDING = 1 << 22
EM_ROUNDS = 60


@dataclass
class _Pairs:
    """Counts of (token, target) pairs: keys token · V + target ascending, int64, and their counts."""

    keys: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    counts: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    _waiting: list[np.ndarray] = field(default_factory=list)
    _num_waiting: int = 0

    def add(self, keys: np.ndarray) -> None:
        self._waiting.append(keys)
        self._num_waiting += len(keys)
        if self._num_waiting >= PENDING:
            self.settle()

    def settle(self) -> None:
        """Counts what is waiting."""
        self._merge(*np.unique(np.concatenate([*self._waiting, self.keys[:0]]), return_counts=True))
        self._waiting, self._num_waiting = [], 0

    def _merge(self, keys: np.ndarray, counts: np.ndarray) -> None:
        merged, inverse = np.unique(np.concatenate([self.keys, keys]), return_inverse=True)
        both = np.concatenate([self.counts, counts])
        self.keys, self.counts = merged, np.bincount(inverse, both, len(merged)).astype(np.int64)

    def __add__(self, other: "_Pairs") -> "_Pairs":
        total = _Pairs(self.keys, self.counts)
        total._merge(other.keys, other.counts)
        return total


def _held_aside(tokens_BS: np.ndarray, positions_BS: np.ndarray) -> np.ndarray:
    """Whether each token belongs to a piece that is held aside, bool (B, S)."""
    tokens = tokens_BS.astype(np.uint64).ravel()
    starts = np.flatnonzero(positions_BS.ravel() == 0)
    assert starts.size and starts[0] == 0, "a row begins with a piece"
    ends = np.append(starts[1:], tokens.size)
    hashed = np.zeros(len(starts), np.uint64)
    for offset in range(FINGERPRINT):
        at = starts + offset
        inside = at < ends
        hashed[inside] = (hashed[inside] ^ (tokens[at[inside]] + np.uint64(1))) * np.uint64(0x9E3779B97F4A7C15)
    aside = (hashed >> np.uint64(32)) % np.uint64(ASIDE) == 0
    return np.repeat(aside, ends - starts).reshape(tokens_BS.shape)


@dataclass(frozen=True)
class Unigram:
    """p(w) = (c(w) + 1) / (N + V), its logarithms float64 (V,)."""

    logprobs: np.ndarray

    def target_logprobs(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """The `TargetLogprobs` of this model: float32 (B, S), nats."""
        return self.logprobs[batch["targets"]].astype(np.float32)


@dataclass(frozen=True)
class Bigram:
    """p(w | h) = max(c(h, w) − d, 0) / c(h) + Σ_v d(h, v) / c(h) · p_1(w), with p_1 over the numbers of contexts.

    `keys` (n,) int64 ascending: h · V + w of the pairs seen; `direct` (n,) their first term; `freed` (V,) the factor
    of p_1, 1 for a token that nothing followed; `lower` (V,) p_1; `discounts` (C,) d by class of counts. All float64.
    """

    keys: np.ndarray
    direct: np.ndarray
    freed: np.ndarray
    lower: np.ndarray
    discounts: np.ndarray

    def probabilities(self, contexts: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """p(target | context), float64 of the shape of both."""
        wanted = contexts.astype(np.int64) * len(self.lower) + targets
        return _look_up(self.keys, self.direct, wanted) + self.freed[contexts] * self.lower[targets]

    def target_logprobs(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """The `TargetLogprobs` of this model: float32 (B, S), nats."""
        return np.log(self.probabilities(batch["tokens"], batch["targets"])).astype(np.float32)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each wanted key; 0 where there is none."""
    if not len(keys):
        return np.zeros(wanted.shape, values.dtype)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


def _classes(counts: np.ndarray) -> np.ndarray:
    return np.searchsorted(CLASSES, counts, side="right") - 1


def _lower(pairs: _Pairs, V: int) -> np.ndarray:
    """Share of the kinds of pairs that end in each token, discounted by 3/4 in favour of the uniform distribution."""
    contexts_V = np.bincount(pairs.keys % V, minlength=V)
    if not len(pairs.keys):
        return np.full(V, 1 / V)
    freed = 0.75 * np.count_nonzero(contexts_V)
    return (np.maximum(contexts_V - 0.75, 0) + freed / V) / len(pairs.keys)


def _bigram(pairs: _Pairs, shares_C: np.ndarray, V: int) -> Bigram:
    """The bigram of these counts; a class's discount is its share of the class's least count."""
    discounts_C = shares_C * CLASSES
    contexts, discounts = pairs.keys // V, discounts_C[_classes(pairs.counts)]
    totals_V = np.maximum(np.bincount(contexts, pairs.counts, V), 1)
    freed_V = np.bincount(contexts, discounts, V) / totals_V
    freed_V[np.bincount(contexts, minlength=V) == 0] = 1
    direct = (pairs.counts - discounts) / totals_V[contexts]
    return Bigram(pairs.keys, direct, freed_V, _lower(pairs, V), discounts_C)


def _fit_shares(pairs: _Pairs, aside: _Pairs, V: int) -> np.ndarray:
    """The share (C,) of each class's least count that is taken off, by EM for the likelihood of the pairs aside.

    Of a pair's count everything above its class's least count stays with the pair; the rest goes to the pair with
    probability 1 − share and else to the lower order, which makes the shares the weights of a mixture.
    """
    shares_C = np.full(len(CLASSES), 0.7)
    contexts, targets = aside.keys // V, aside.keys % V
    counts = _look_up(pairs.keys, pairs.counts, aside.keys)
    classes = np.maximum(_classes(counts), 0)
    least = np.where(counts > 0, CLASSES[classes], 0)
    totals = np.bincount(pairs.keys // V, pairs.counts, V)[contexts]
    known = totals > 0  # nothing can be learnt where the context is new
    contexts, targets, counts, classes, least, totals, weights = (
        array[known] for array in (contexts, targets, counts, classes, least, totals, aside.counts)
    )
    kinds_VC = np.zeros((V, len(CLASSES)))
    np.add.at(kinds_VC, (pairs.keys // V, _classes(pairs.counts)), 1)
    freed_nC = kinds_VC[contexts] * CLASSES * (_lower(pairs, V)[targets] / totals)[:, None]
    for _ in range(EM_ROUNDS):
        kept = least * (1 - shares_C[classes]) / totals
        total = (counts - least) / totals + kept + freed_nC @ shares_C
        away_C = shares_C * (freed_nC.T @ (weights / total))
        kept_C = np.bincount(classes, kept * weights / total, len(CLASSES))
        evidence_C = away_C + kept_C
        shares_C = np.where(evidence_C > 0, away_C / np.where(evidence_C > 0, evidence_C, 1), shares_C)
        shares_C = np.maximum(shares_C, 1e-3)  # a token that never followed keeps some probability
    return shares_C


def fit(batches: Iterable[Mapping[str, np.ndarray]], vocab_size: int) -> tuple[Unigram, Bigram]:
    """Counts the targets of weight above 0 of every batch, in one pass, as often as they occur.

    A batch holds (B, S) arrays tokens, targets, positions (int) and weights, as the model trains on them; a pair
    never reaches over the boundary of a piece because its target has weight 0. Memory grows with the kinds of pairs:
    16 bytes each, thrice while the last tables are merged, and 32 MiB for pairs that wait. Raises UserError where
    there is no target at all.
    """
    counted, aside = _Pairs(), _Pairs()
    for batch in batches:
        weighed = batch["weights"] > 0
        keys = batch["tokens"].astype(np.int64) * vocab_size + batch["targets"]
        held = _held_aside(batch["tokens"], batch["positions"])
        counted.add(keys[weighed & ~held])
        aside.add(keys[weighed & held])
    counted.settle()
    aside.settle()
    every = counted + aside
    if not len(every.keys):
        raise UserError("the training rows hold no target to count: pack a corpus with longer documents.")
    shares_C = _fit_shares(counted, aside, vocab_size)
    targets_V = np.bincount(every.keys % vocab_size, every.counts, vocab_size)
    unigram = Unigram(np.log((targets_V + 1) / (targets_V.sum() + vocab_size)))
    return unigram, _bigram(every, shares_C, vocab_size)
