from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from m1jax import artefact
from m1jax.errors import UserError
from m1jax.rows.store import RowStore, RowWriter
from tests.rows.made_rows import FIELDS, make_row


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
        with pytest.raises(UserError, match="the disk that holds /dev/full is full: free some space"):
            fill(Path("/dev/full"))


def test_an_error_of_the_caller_is_not_hidden(tmp_path):
    with pytest.raises(KeyError), RowWriter(tmp_path / "x") as writer:
        writer.write(make_row(4, [2]))
        raise KeyError
