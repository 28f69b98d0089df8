import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.rows.record import decode_row, encode_row, token_dtype
from m1jax.rows.spans import Spans
from tests.rows.made_rows import FIELDS, make_row, rows, spans_of


@given(rows())
@settings(max_examples=60, deadline=None)
def test_record_round_trip(row):
    back = decode_row(encode_row(row))
    assert back.row_length == row.row_length and back.tokens.dtype == row.tokens.dtype
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(back, field), getattr(row, field))
    for field in ("starts", "lengths", "weights"):
        np.testing.assert_array_equal(getattr(back.spans, field), getattr(row.spans, field))
    assert list(back.columns) == sorted(row.columns)
    for name, values in row.columns.items():
        assert back.columns[name].dtype == values.dtype
        np.testing.assert_array_equal(back.columns[name], values)


def test_text_that_is_learned_as_a_whole_costs_no_byte_for_it():
    plain = make_row(64, [30, 20])
    assert len(encode_row(plain)) == 16 + 2 * 50 + 12 * 2
    prompt = dataclasses.replace(plain, spans=spans_of([0.0] * 10 + [1.0] * 40))
    assert len(encode_row(prompt)) == len(encode_row(plain)) + 4 + 12
    paired = dataclasses.replace(plain, columns={"pair": np.array([1, 2], np.int32)})
    assert len(encode_row(paired)) == len(encode_row(plain)) + 2 + 4 + 8


def test_token_width():
    assert token_dtype(1 << 16) is np.uint16 and token_dtype((1 << 16) + 1) is np.uint32
    row = make_row(4, [3], 133_000, np.uint32)
    assert decode_row(encode_row(row)).tokens.tolist() == [133_000, 133_001, 133_002]


@given(rows(), st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_records_are_refused(row, data):
    record = encode_row(row)
    cut = data.draw(st.integers(0, len(record) - 1))
    with pytest.raises(ValueError, match=r"record|format|bytes"):
        decode_row(record[:cut])
    with pytest.raises(ValueError, match=r"bytes"):
        decode_row(record + b"x")


@given(rows(), st.data())
@settings(max_examples=200, deadline=None)
def test_a_changed_byte_is_a_row_or_a_value_error(row, data):
    record = bytearray(encode_row(row))
    record[data.draw(st.integers(0, len(record) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        back = decode_row(bytes(record))
    except ValueError:
        return
    assert encode_row(back) == record


@given(st.binary(max_size=80))
@settings(max_examples=100, deadline=None)
def test_garbage_is_a_row_or_a_value_error(record):
    try:
        row = decode_row(record)
    except ValueError:
        return
    assert encode_row(row) == record


def test_records_of_the_format_before():
    record = bytearray(encode_row(make_row(8, [3, 2])))
    record[0] = 1
    with pytest.raises(ValueError, match="format 1 with 2 bytes a token is not format 2"):
        decode_row(bytes(record))


def test_pieces_that_do_not_make_up_the_tokens_are_refused():
    row = make_row(8, [3, 2])
    for wrong in ([3, 3], [5, 2**32 - 5 + 5 - 1]):
        record = bytearray(encode_row(row))
        record[16 + 10 : 16 + 18] = np.array(wrong, "<u4").tobytes()
        with pytest.raises(ValueError, match="pieces"):
            decode_row(bytes(record))


@pytest.mark.parametrize(
    "runs",
    [
        [(3, 1, 0.0), (1, 1, 0.0)],
        [(0, 3, 0.0), (2, 1, 0.0)],
        [(4, 2, 0.0)],
        [(0, 0, 0.0)],
        [(2**32 - 1, 2, 0.0)],
        [(0, 1, -0.5)],
        [(0, 1, float("nan"))],
        [(0, 1, float("inf"))],
    ],
)
def test_spans_that_are_no_runs_of_the_tokens_are_refused(runs):
    starts, lengths, weights = zip(*runs, strict=True)
    spans = Spans(np.array(starts, np.uint32), np.array(lengths, np.uint32), np.array(weights, np.float32))
    with pytest.raises(ValueError, match="spans are not runs of 5 tokens"):
        decode_row(encode_row(make_row(8, [5], spans=spans)))
