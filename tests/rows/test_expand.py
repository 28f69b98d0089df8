import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.errors import UserError
from m1jax.rows.expand import expand
from m1jax.rows.spans import Spans
from m1jax.text.documents import BATCH_ARRAYS
from tests.rows.made_rows import WEIGHTS, make_row, rows, spans_of


def expand_one(row):
    """What a row means, token by token."""
    blank = dict.fromkeys(BATCH_ARRAYS, 0)
    out = [dict(blank) for _ in range(row.row_length)]
    weight_of = [1.0] * len(row.tokens)
    for start, length, weight in zip(row.spans.starts, row.spans.lengths, row.spans.weights, strict=True):
        for token in range(start, start + length):
            weight_of[token] = float(weight)
    at = 0
    for segment, length in enumerate(row.lengths.tolist(), 1):
        for position in range(length):
            has_target = position + 1 < length
            out[at] = {
                "tokens": int(row.tokens[at]),
                "targets": int(row.tokens[at + 1]) if has_target else 0,
                "weights": weight_of[at + 1] if has_target else 0.0,
                "segment_ids": segment,
                "positions": position,
            }
            at += 1
    return {name: [place[name] for place in out] for name in blank}


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_expand_against_the_definition(data):
    row_length = data.draw(st.integers(2, 24))
    batch = data.draw(st.lists(rows(row_length), min_size=1, max_size=4))
    arrays = expand(batch)
    assert tuple(arrays) == BATCH_ARRAYS
    for name, array in arrays.items():
        assert array.shape == (len(batch), row_length)
        assert array.dtype == (np.float32 if name == "weights" else np.int32)
        assert array.tolist() == [expand_one(row)[name] for row in batch]


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_column_is_its_pieces_value_at_each_of_its_tokens(data):
    row_length = data.draw(st.integers(2, 24))
    some = data.draw(st.lists(rows(row_length), min_size=1, max_size=4))
    dtype = data.draw(st.sampled_from([np.int32, np.float32]))
    batch = [
        make_row(row_length, row.lengths.tolist(), columns={"pair": np.arange(7, 7 + len(row.lengths)).astype(dtype)})
        for row in some
    ]
    arrays = expand(batch, ["pair"])
    assert set(arrays) == {*BATCH_ARRAYS, "pair"} and arrays["pair"].dtype == dtype
    for line, ids in zip(arrays["pair"], arrays["segment_ids"], strict=True):
        assert line.tolist() == [segment + 6 if segment else 0 for segment in ids.tolist()]
    for name, array in expand(batch).items():
        np.testing.assert_array_equal(array, arrays[name])


def test_a_column_that_rows_lack():
    with_pair = make_row(8, [3], columns={"pair": np.array([1], np.int32)})
    with pytest.raises(UserError, match=r"no column 'side' \(they have: pair\): .* run `m1 pack` again"):
        expand([with_pair], ["side"])
    with pytest.raises(UserError, match=r"no column 'pair' \(they have: none\)"):
        expand([with_pair, make_row(8, [3])], ["pair"])
    with pytest.raises(UserError, match="int32 in some packed rows and float32 in others"):
        expand([with_pair, make_row(8, [3], columns={"pair": np.array([1], np.float32)})], ["pair"])


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_runs_are_cut_at_the_borders_of_pieces(data):
    weights = data.draw(st.lists(st.sampled_from((1.0, 1.0, *WEIGHTS)), min_size=1, max_size=40))
    borders = data.draw(st.lists(st.integers(0, len(weights)), min_size=2, max_size=12).map(sorted))
    begins, ends = np.array(borders[:-1]), np.array(borders[1:])
    keep = data.draw(st.lists(st.booleans(), min_size=len(begins), max_size=len(begins)))
    pairs = [
        pair for pair, kept in zip(zip(begins, ends, strict=True), keep, strict=True) if kept and pair[0] < pair[1]
    ]
    chosen = data.draw(st.permutations(pairs))
    begins, ends = (np.array([pair[i] for pair in chosen], np.int64) for i in range(2))
    which, parts = spans_of(weights).cut(begins, ends)
    found = [[1.0] * int(end - begin) for begin, end in zip(begins, ends, strict=True)]
    for piece, start, length, weight in zip(which, parts.starts, parts.lengths, parts.weights, strict=True):
        assert length > 0
        for at in range(start, start + length):
            found[piece][at] = float(weight)
    assert found == [weights[begin:end] for begin, end in zip(begins, ends, strict=True)]


def test_spans_of_several_rows():
    row = make_row(4, [2, 2], spans=Spans(*(np.array([x]) for x in (3, 1, np.float32(0.5)))))
    weights = expand([row, make_row(4, [4]), row])["weights"]
    assert weights.tolist() == [[1, 0, 0.5, 0], [1, 1, 1, 0], [1, 0, 0.5, 0]]
