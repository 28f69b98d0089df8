import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.evaluate.bits import NONE, Bits, Learned, bits_per_byte, by_domain, cut, take
from tests.evaluate.toy import Toy, alone


def text(tokens):
    return Learned(tokens, np.ones(len(tokens), np.float32))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 200), st.integers(2, 17))
def test_cutting_makes_every_token_but_the_first_a_target_once(length, row_length):
    document = list(range(length))
    pieces = [piece.tokens for piece in cut(text(document), row_length)]
    assert [token for piece in pieces for token in piece[1:]] == document[1:]
    assert all(2 <= len(piece) <= row_length for piece in pieces)
    assert all(a[-1] == b[0] for a, b in itertools.pairwise(pieces))


def naive(documents, row_length, token_bytes):
    """Sums piece by piece, each alone."""
    bits = size = targets = 0
    for document in documents:
        start = 0
        while start + 1 < len(document):
            piece = document[start : start + row_length]
            bits -= sum(alone(piece)) / math.log(2)
            size += sum(token_bytes[token] for token in piece[1:])
            targets += len(piece) - 1
            start += row_length - 1
    return bits, size, targets


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), max_size=30), min_size=1, max_size=6), st.integers(2, 12))
def test_bits_and_bytes_are_those_of_the_pieces_alone(texts, row_length):
    token_bytes = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]  # 0 is EOS: its bits count, it has no byte
    documents = {"a": [[*one, 0] for one in texts], "b": [[5, 5, 0]]}
    learned = {source: list(map(text, some)) for source, some in documents.items()}
    found = bits_per_byte(learned, Toy(), token_bytes, row_length=row_length, batch_rows=2, max_tokens=10**6)
    for source, texts_of_source in documents.items():
        bits, size, targets = naive(texts_of_source, row_length, token_bytes)
        assert found[source].bits == pytest.approx(bits)
        assert (found[source].bytes, found[source].targets) == (size, targets)
    assert found["b"].per_byte == pytest.approx(found["b"].bits / 5)


def test_a_uniform_model_needs_the_bits_of_its_vocabulary():
    def uniform(batch):
        return np.full(batch["tokens"].shape, -math.log(256), np.float32)

    document = np.frombuffer("Übelkeit 肺炎".encode(), np.uint8).astype(np.int32)
    found = bits_per_byte({"s": [text(document)]}, uniform, [1] * 256, row_length=8, batch_rows=3, max_tokens=99)["s"]
    assert found.per_byte == pytest.approx(8, abs=1e-6)
    assert found.bytes == len(document) - 1


def test_the_limit_takes_the_same_documents_every_time_and_not_only_the_first():
    documents = [[index] * 10 for index in range(100)]

    def taken_of(most, seed):
        return [document.tokens for document in take(list(map(text, documents)), most, seed)]

    taken = taken_of(55, 3)
    assert [len(document) for document in taken] == [10] * 5 + [5]
    assert taken == taken_of(55, 3)
    assert taken != taken_of(55, 4)
    assert sorted(document[0] for document in taken) != list(range(6))
    assert len({document[0] for document in taken}) == 6
    assert sorted(taken_of(10**6, 3)) == documents
    assert taken_of(0, 3) == []


def test_a_source_is_measured_on_the_same_documents_whatever_stands_beside_it():
    texts = [text([index % 7 + 1] * (index % 5 + 2)) for index in range(40)]
    settings = {"row_length": 9, "batch_rows": 2, "max_tokens": 50}
    beside = bits_per_byte({"x": [text([1, 2])], "s": texts}, Toy(), [1] * 10, **settings)
    assert beside["s"] == bits_per_byte({"s": texts}, Toy(), [1] * 10, **settings)["s"]


def test_a_source_without_targets_has_no_number():
    found = bits_per_byte({"s": [text([3])], "t": []}, Toy(), [1] * 10, row_length=4, batch_rows=1, max_tokens=9)
    assert found == {"s": NONE, "t": NONE}
    assert math.isnan(found["s"].loss())
    assert math.isnan(found["s"].per_byte)


def test_domains_add_up_bits_and_bytes_not_ratios():
    found = {"a": Bits(8.0, 2, 3), "b": Bits(2.0, 8, 5), "c": Bits(1.0, 1, 1)}
    totals = by_domain(found, {"a": "medical", "b": "medical", "c": "general"}, ("law", "general", "medical"))
    assert list(totals.items()) == [("general", Bits(1.0, 1, 1)), ("medical", Bits(10.0, 10, 8))]
    assert totals["medical"].per_byte == 1.0


WEIGHTED = st.lists(
    st.lists(st.tuples(st.integers(1, 9), st.sampled_from([0.0, 0.5, 1.0, 3.0])), min_size=2, max_size=12),
    min_size=1,
    max_size=6,
)


@settings(max_examples=30, deadline=None)
@given(WEIGHTED)
def test_a_target_counts_with_its_weight(talks):
    """Both in the bits and in the bytes; what has weight 0 is read and not counted."""
    nats = size = total = 0.0
    means = []
    for talk in talks:
        mine = of_mine = 0.0
        for logprob, (token, weight) in zip(alone([token for token, _ in talk]), talk[1:], strict=True):
            mine, size, of_mine = mine - weight * logprob, size + weight * token, of_mine + weight
        nats, total = nats + mine, total + of_mine
        means += [mine / of_mine] if of_mine else []
    documents = [Learned([t for t, _ in talk], np.array([w for _, w in talk], np.float32), True) for talk in talks]
    found = bits_per_byte({"s": documents}, Toy(), list(range(10)), row_length=12, batch_rows=2, max_tokens=10**6)["s"]
    assert (found.bytes, found.targets) == (size, total)
    assert found.documents == len(means)
    if total:
        assert found.loss() == pytest.approx(nats / total)
        assert found.loss("conversations") == pytest.approx(sum(means) / len(means))
        assert found.per_byte == pytest.approx(nats / math.log(2) / size)


def test_a_conversation_is_taken_whole():
    talks = [text([index] * 10)._replace(whole=True) for index in range(9)]
    assert [len(document.tokens) for document in take(talks, 25, seed=1)] == [10, 10, 10]
