import itertools
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.errors import UserError
from m1jax.evaluate import ngram
from m1jax.evaluate.bits import Learned, bits_per_byte

LEAST = (1, 2, 3, 4, 6, 9, 17)


def batch_of(rows, S):
    """A batch of rows, each a list of pieces (token lists), as training packs them."""
    batch = {key: np.zeros((len(rows), S), np.int32) for key in ("tokens", "targets", "segment_ids", "positions")}
    batch["weights"] = np.zeros((len(rows), S), np.float32)
    for row, pieces in enumerate(rows):
        column = 0
        for segment, piece in enumerate(pieces, 1):
            for i, token in enumerate(piece):
                batch["tokens"][row, column] = token
                batch["segment_ids"][row, column] = segment
                batch["positions"][row, column] = i
                if i + 1 < len(piece):
                    batch["targets"][row, column] = piece[i + 1]
                    batch["weights"][row, column] = 1
                column += 1
    return batch


def naive_bigram(pairs, discounts, V):
    """p(w | h) as a function over dictionaries, straight from the formula of interpolated Kneser-Ney."""
    counts = Counter(pairs)
    following = defaultdict(list)
    contexts = Counter(w for _, w in counts)
    for (h, _), count in counts.items():
        following[h].append(count)

    def discount(count):
        return discounts[max(k for k, least in enumerate(LEAST) if least <= count)]

    def lower(w):
        freed = 0.75 * len(contexts) / len(counts)
        return max(contexts[w] - 0.75, 0) / len(counts) + freed / V

    def probability(h, w):
        if h not in following:
            return lower(w)
        total = sum(following[h])
        freed = sum(discount(count) for count in following[h]) / total
        direct = (counts[h, w] - discount(counts[h, w])) / total if counts[h, w] else 0.0
        return direct + freed * lower(w)

    return probability


PIECES = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=8), min_size=1, max_size=8)


@settings(max_examples=50, deadline=None)
@given(st.lists(PIECES, min_size=1, max_size=3))
def test_bigram_and_unigram_are_those_of_dictionaries(rows):
    V, S = 9, 64
    pairs = [pair for pieces in rows for piece in pieces for pair in itertools.pairwise(piece)]
    batches = [batch_of([pieces], S) for pieces in rows]
    if not pairs:
        with pytest.raises(UserError, match="no target"):
            ngram.fit(batches, V)
        return
    unigram, bigram = ngram.fit(batches, V)
    expected = naive_bigram(pairs, bigram.discounts, V)
    targets = Counter(w for _, w in pairs)
    h, w = (grid.astype(np.int32) for grid in np.meshgrid(range(V), range(V), indexing="ij"))
    found = bigram.probabilities(h, w)
    assert found == pytest.approx(np.array([[expected(a, b) for b in range(V)] for a in range(V)]))
    assert found.sum(axis=1) == pytest.approx(1)
    assert (found > 0).all()
    logprobs = unigram.target_logprobs({"targets": np.arange(V, dtype=np.int32)[None]})[0]
    assert np.exp(logprobs) == pytest.approx([(targets[b] + 1) / (len(pairs) + V) for b in range(V)], rel=1e-5)
    assert bigram.target_logprobs({"tokens": h, "targets": w}) == pytest.approx(np.log(found), rel=1e-5)


def markov_rows(seed, num_rows, V=40, S=128):
    """Pieces of a Markov chain in which four tokens may follow each token."""
    chain = np.random.default_rng(0).integers(0, V, (V, 4))
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num_rows):
        pieces, left = [], S
        while left > 2:
            piece = [int(rng.integers(V))]
            for _ in range(min(left, int(rng.integers(3, 40))) - 1):
                piece.append(int(chain[piece[-1], rng.choice(4, p=[0.4, 0.3, 0.2, 0.1])]))
            pieces.append(piece)
            left -= len(piece)
        rows.append(pieces)
    return rows


def test_a_markov_chain_is_learnt_to_its_entropy_and_the_unigram_is_not():
    unigram, bigram = ngram.fit([batch_of(markov_rows(1, 200), 128)], 40)
    pieces = [piece for some in markov_rows(2, 40) for piece in some]
    held_out = {"s": [Learned(piece, np.ones(len(piece), np.float32)) for piece in pieces]}
    nats = {}
    for name, model in (("unigram", unigram), ("bigram", bigram)):
        found = bits_per_byte(held_out, model.target_logprobs, [1] * 40, row_length=32, batch_rows=4, max_tokens=10**6)
        nats[name] = found["s"].loss()
    entropy = -sum(p * math.log(p) for p in (0.4, 0.3, 0.2, 0.1))
    assert entropy - 0.05 < nats["bigram"] < entropy + 0.05
    assert nats["unigram"] > nats["bigram"] + 1


def test_text_read_again_weighs_again_and_its_discounts_grow():
    once = batch_of(markov_rows(1, 20), 128)
    _, single = ngram.fit([once], 40)
    unigram, fourfold = ngram.fit([once] * 4, 40)
    # Read four times a pair that was seen once has the count 4, and is to be believed no more than before.
    assert single.discounts[0] > 0.3
    assert fourfold.discounts[3] > 2 * single.discounts[0]
    targets = np.bincount(once["targets"][once["weights"] > 0], minlength=40)
    assert unigram.logprobs == pytest.approx(np.log((4 * targets + 1) / (4 * targets.sum() + 40)))


def test_fitted_discounts_are_as_likely_as_any_on_what_was_held_aside():
    rows = markov_rows(5, 120)
    batch = batch_of(rows, 128)
    held = ngram._held_aside(batch["tokens"], batch["positions"])
    assert 0 < held.mean() < 0.2
    _, bigram = ngram.fit([batch], 40)
    use = batch["weights"] > 0
    pair = batch["tokens"].astype(np.int64) * 40 + batch["targets"]

    def likelihood(discounts):
        table = ngram._Pairs()
        table.add(pair[use & ~held])
        table.settle()
        model = ngram._bigram(table, discounts / ngram.CLASSES, 40)
        return np.log(model.probabilities(batch["tokens"][use & held], batch["targets"][use & held])).sum()

    best = likelihood(bigram.discounts)
    for index in range(len(LEAST)):
        for factor in (0.8, 1.2):
            other = bigram.discounts.copy()
            # No share falls below its floor of 0.001, which keeps some probability for every token.
            other[index] = np.clip(other[index] * factor, 1e-3 * LEAST[index], LEAST[index])
            assert likelihood(other) <= best + 0.02
    assert best > likelihood(0.7 * ngram.CLASSES) + 1


def test_the_same_piece_is_held_aside_wherever_it_lies():
    pieces = markov_rows(7, 40)
    first = batch_of(pieces, 128)
    second = batch_of([[piece] for row in pieces for piece in row], 64)
    kept = [ngram._held_aside(batch["tokens"], batch["positions"]) for batch in (first, second)]
    by_piece = []
    for batch, held in zip((first, second), kept, strict=True):
        starts = (batch["positions"] == 0) & (batch["segment_ids"] > 0)
        by_piece.append(held[starts].tolist())
        assert (held == np.maximum.accumulate(np.where(starts, held, 0), axis=1))[batch["segment_ids"] > 0].sum() > 0
    assert by_piece[0] == by_piece[1]
    assert any(by_piece[0]) and not all(by_piece[0])


def test_pairs_that_no_longer_wait_are_counted_the_same(monkeypatch):
    batches = [batch_of(markov_rows(seed, 3), 128) for seed in range(6)]
    _, expected = ngram.fit(batches, 40)
    monkeypatch.setattr(ngram, "PENDING", 100)
    _, found = ngram.fit(batches, 40)
    for name in ("keys", "direct", "freed", "lower", "discounts"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))


def test_no_training_rows_is_the_users_mistake():
    with pytest.raises(UserError, match="no target"):
        ngram.fit([], 40)
