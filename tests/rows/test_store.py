from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax import artefact
from m1jax.errors import UserError
from m1jax.rows.store import Row, RowStore, RowWriter, decode_row, encode_row, expand, token_dtype

FIELDS = ("tokens", "lengths", "documents", "offsets")


def make_row(row_length, lengths, first=0, dtype=np.uint16):
    """A row whose tokens count upwards from `first`."""
    numbers = np.arange(len(lengths), dtype=np.uint32)
    tokens = np.arange(first, first + sum(lengths)).astype(dtype)
    return Row(row_length, tokens, np.array(lengths, np.uint32), numbers + 70_000, numbers * 5)


@st.composite
def rows(draw, row_length=None):
    row_length = row_length or draw(st.integers(2, 40))
    lengths, room = [], row_length
    while room and draw(st.booleans()):
        lengths.append(draw(st.integers(1, room)))
        room -= lengths[-1]
    return make_row(row_length, lengths, draw(st.integers(1, 1000)), draw(st.sampled_from([np.uint16, np.uint32])))


@given(rows())
@settings(max_examples=60, deadline=None)
def test_record_round_trip(row):
    back = decode_row(encode_row(row))
    assert back.row_length == row.row_length and back.tokens.dtype == row.tokens.dtype
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(back, field), getattr(row, field))


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


@given(st.binary(max_size=80))
@settings(max_examples=100, deadline=None)
def test_garbage_is_a_row_or_a_value_error(record):
    try:
        row = decode_row(record)
    except ValueError:
        return
    assert encode_row(row)[4:] == record[4:]


def test_pieces_that_do_not_make_up_the_tokens_are_refused():
    row = make_row(8, [3, 2])
    for wrong in ([3, 3], [5, 2**32 - 5 + 5 - 1]):
        record = bytearray(encode_row(row))
        record[16 + 10 : 16 + 18] = np.array(wrong, "<u4").tobytes()
        with pytest.raises(ValueError, match="pieces"):
            decode_row(bytes(record))


def expand_one(row):
    """What a row means, token by token."""
    blank = dict.fromkeys(("tokens", "targets", "weights", "segment_ids", "positions"), 0)
    out = [dict(blank) for _ in range(row.row_length)]
    at = 0
    for segment, length in enumerate(row.lengths.tolist(), 1):
        for position in range(length):
            has_target = position + 1 < length
            out[at] = {
                "tokens": int(row.tokens[at]),
                "targets": int(row.tokens[at + 1]) if has_target else 0,
                "weights": float(has_target),
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
    for name, array in arrays.items():
        assert array.shape == (len(batch), row_length)
        assert array.dtype == (np.float32 if name == "weights" else np.int32)
        assert array.tolist() == [expand_one(row)[name] for row in batch]


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "x.array_record"
    rows_written = [make_row(256, [100, 100, 50], i) for i in range(300)]
    with RowWriter(path) as writer:
        for row in rows_written:
            writer.write(row)
    return path, rows_written


def test_random_access(written):
    path, rows_written = written
    store = RowStore(path, 300)
    assert len(store) == 300
    for i in (299, 0, 17, 17, 150):
        for field in FIELDS:
            np.testing.assert_array_equal(getattr(store[i], field), getattr(rows_written[i], field))
    for outside in (-1, 300):
        with pytest.raises(IndexError):
            store[outside]
    store.verify(artefact.checksum(path))
    store.close()
    assert store[3].tokens[0] == 3


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"gone\.array_record is missing"):
        RowStore(tmp_path / "gone.array_record", 3).check()
    with pytest.raises(UserError, match="missing"):
        RowStore(tmp_path, 3)[0]


@pytest.mark.parametrize("damage", ["empty", "half", "last byte", "garbage", "zeros", "text"])
def test_a_broken_file(written, damage):
    path, _ = written
    whole = path.read_bytes()
    contents = {
        "empty": b"",
        "half": whole[: len(whole) // 2],
        "last byte": whole[:-1],
        "garbage": np.random.default_rng(0).bytes(len(whole)),
        "zeros": bytes(len(whole)),
        "text": b"hello\n",
    }
    path.write_bytes(contents[damage])
    with pytest.raises(UserError, match=r"x\.array_record holds no whole ArrayRecord where 300 rows"):
        RowStore(path, 300).check()
    with pytest.raises(UserError, match="no whole ArrayRecord"):
        RowStore(path, 300)[0]


def test_another_number_of_rows(written):
    with pytest.raises(UserError, match="holds 300 rows where 299 rows are expected"):
        RowStore(written[0], 299).check()


def test_a_hole_in_the_middle_is_found_when_read(written):
    path, _ = written
    whole = path.read_bytes()
    sha256 = artefact.checksum(path)
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes(100) + whole[middle + 100 :])
    store = RowStore(path, 300)
    store.check()
    refused = 0
    for i in range(300):
        try:
            store[i]
        except UserError as error:
            assert f"row {i} of {path} is damaged" in str(error)
            refused += 1
    assert 1 <= refused <= 2
    with pytest.raises(UserError, match=r"row \d+ of .*x\.array_record is damaged"):
        store.verify(sha256)
    path.write_bytes(whole[:-1] + b"?")
    with pytest.raises(UserError, match=r"damaged|not the file that its manifest describes|no whole"):
        RowStore(path, 300).verify(sha256)
    path.write_bytes(whole)
    RowStore(path, 300).check(len(whole))
    with pytest.raises(UserError, match="bytes where its manifest says"):
        RowStore(path, 300).check(len(whole) + 1)


def test_records_of_something_else(tmp_path):
    writer = ArrayRecordWriter(str(tmp_path / "x"), "group_size:1")
    writer.write(b"not a row")
    writer.close()
    with pytest.raises(UserError, match=r"row 0 of .* is damaged"):
        RowStore(tmp_path / "x", 1)[0]


def test_a_full_disk_and_a_missing_folder(tmp_path):
    def fill(path):
        with RowWriter(path) as writer:
            for i in range(300):
                writer.write(make_row(256, [256], i))

    with pytest.raises(UserError, match="cannot be written"):
        fill(tmp_path / "no" / "x")
    if Path("/dev/full").exists():
        with pytest.raises(UserError, match=r"/dev/full cannot be written .*space"):
            fill(Path("/dev/full"))


def test_an_error_of_the_caller_is_not_hidden(tmp_path):
    with pytest.raises(KeyError), RowWriter(tmp_path / "x") as writer:
        writer.write(make_row(4, [2]))
        raise KeyError
