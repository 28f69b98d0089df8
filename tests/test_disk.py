"""What a disk refuses is one sentence, in whichever library's words it comes; room is asked for before."""

import errno
import os
import subprocess

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import tensorstore
from array_record.python.array_record_module import ArrayRecordWriter
from safetensors.numpy import save_file

from m1jax import disk
from m1jax.errors import UserError, first_line

VALUES = np.random.default_rng(0).random(1_000_000)


def by_tensorstore(folder):
    store = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/array{os.urandom(4).hex()}/"}}
    array = tensorstore.open(store, create=True, dtype=tensorstore.float64, shape=VALUES.shape).result()
    array.write(VALUES).result()


def by_array_record(folder):
    writer = ArrayRecordWriter(str(folder / "rows"), "group_size:1,uncompressed")
    writer.write(VALUES.tobytes())
    writer.close()


def by_safetensors(folder):
    save_file({"values": VALUES}, folder / "tensors")


def by_pyarrow(folder):
    pa.parquet.write_table(pa.table({"values": VALUES}), folder / "table")


def by_python(folder):
    (folder / "bytes").write_bytes(VALUES.tobytes())


WRITERS = (by_tensorstore, by_array_record, by_safetensors, by_pyarrow, by_python)


@pytest.fixture()
def small(tmp_path):
    """A disk of 200 kB, which only root may mount."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", folder], capture_output=True).returncode:
        pytest.skip("no right to mount a small disk here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("write", WRITERS)
def test_a_full_and_a_read_only_disk_are_one_sentence_each(small, write):
    with pytest.raises(UserError) as error, disk.refusals(small):
        write(small)
    assert str(error.value) == f"the disk that holds {small} is full: free some space and run the same command again."
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    with pytest.raises(UserError) as error, disk.refusals(small, ": it goes on"):
        write(small)
    assert str(error.value) == f"{small} is read-only: make it writable and run the same command again: it goes on."


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), errno.EDQUOT),
        (PermissionError(errno.EACCES, "Permission denied"), errno.EACCES),
        (RuntimeError("open() failed: Permission denied; opening /a; Failed to create the file header"), errno.EACCES),
        ("npm error nospc ENOSPC: no space left on device, write", errno.ENOSPC),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), None),
        (ValueError("shapes differ"), None),
    ],
)
def test_what_was_refused(error, number):
    assert disk.refused(error) == number
    if isinstance(error, Exception):
        assert (disk.refusal(error, "here") is None) == (number is None)


def test_other_errors_pass_as_they_are():
    for error in (ValueError("shapes differ"), UserError("a sentence about a disk with no space left on device.")):
        with pytest.raises(type(error)) as found, disk.refusals("here"):
            raise error
        assert found.value is error


def test_room_is_asked_for_where_a_folder_will_be(tmp_path):
    free = disk.free(tmp_path)
    assert disk.free(tmp_path / "not" / "there") == pytest.approx(free, rel=0.2) and free > 0
    disk.check_room(tmp_path / "new", 1000)
    assert disk.missing_room(tmp_path, 1) is None
    with pytest.raises(UserError, match=r"that holds \S*new is full: free some space \(1000000000000\.0 MB are"):
        disk.check_room(tmp_path / "new", 10**18)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one.\ntwo"), "one"),
        (ValueError("\n  two \n"), "two"),
        (ValueError(""), "ValueError"),
        (TimeoutError("\n"), "TimeoutError"),
        (ValueError("x" * 500), "x" * 200),
    ],
)
def test_the_first_line_of_an_error(error, line):
    assert first_line(error) == line
