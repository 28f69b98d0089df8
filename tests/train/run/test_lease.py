"""One run trains in a folder at a time: a second is refused, and one that died frees the folder."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from m1jax.errors import UserError
from m1jax.train.run import lease as leases
from m1jax.train.run.holder import Holder, check_free
from m1jax.train.run.lease import Lease

HOLDING = """
import pathlib, sys, time
from m1jax.train.run.lease import Lease
with Lease(pathlib.Path(sys.argv[1]), beat=0.05):
    print("held", flush=True)
    time.sleep(600)
"""


def lease(folder, silence=0.5, **rest):
    return Lease(folder, silence=silence, beat=rest.pop("beat", 0.05), **rest)


@pytest.fixture
def other(tmp_path):
    """A process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDING, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def written(folder, **changes):
    """Leaves the record of another process in the folder."""
    holder = dataclasses.replace(Holder.here(), token="another", **changes)
    (folder / leases.FILE).write_bytes(holder.encoded())
    return holder


def beating(folder, holder, every=0.05):
    """A thread that counts a record's beat up, as its process elsewhere would; returns what ends it."""
    ended = threading.Event()

    def beat(count=0):
        while not ended.wait(every):
            count += 1
            with open(folder / leases.FILE, "r+b", buffering=0) as file:
                file.write(dataclasses.replace(holder, beat=count).encoded())

    threading.Thread(target=beat, daemon=True).start()
    return ended.set


def test_a_second_run_is_refused_with_host_and_pid_and_the_first_goes_on(tmp_path, other):
    with pytest.raises(UserError) as refused, lease(tmp_path):
        pass
    assert f"process {other.pid} on {os.uname().nodename}" in str(refused.value) and "\n" not in str(refused.value)
    assert other.poll() is None
    assert json.loads((tmp_path / leases.FILE).read_bytes())["pid"] == other.pid


def test_a_killed_run_frees_the_folder_at_once(tmp_path, other):
    other.kill()
    other.wait()
    begun = time.monotonic()
    with lease(tmp_path, silence=600):
        assert json.loads((tmp_path / leases.FILE).read_bytes())["pid"] == os.getpid()
    assert time.monotonic() - begun < 60
    assert not list(tmp_path.iterdir())


def test_a_stopped_process_still_holds_it(tmp_path, other):
    other.send_signal(signal.SIGSTOP)
    with pytest.raises(UserError, match=str(other.pid)), lease(tmp_path):
        pass


def test_a_pid_that_was_given_to_another_process_holds_nothing(tmp_path):
    written(tmp_path, pid=os.getppid(), born=1)
    with lease(tmp_path, silence=600):
        pass


def test_a_zombie_holds_nothing(tmp_path, other):
    other.kill()  # not waited for: its pid is there, and the process is gone
    while "State:\tZ" not in Path(f"/proc/{other.pid}/status").read_text():
        time.sleep(0.01)
    with lease(tmp_path, silence=600):
        pass


def test_elsewhere_a_beat_that_moves_refuses_and_one_that_rests_is_taken_over(tmp_path):
    holder = written(tmp_path, machine="another", host="host-7", pid=4711)
    said = []
    with lease(tmp_path, say=said.append) as held:
        held.before(1)
    assert len(said) == 1 and "process 4711 on host-7" in said[0]
    written(tmp_path, machine="another", host="host-7", pid=4711)
    stop = beating(tmp_path, holder)
    try:
        with pytest.raises(UserError, match="process 4711 on host-7"), lease(tmp_path, silence=60):
            pass
    finally:
        stop()


def test_elsewhere_one_that_ends_well_meanwhile_is_followed_at_once(tmp_path):
    written(tmp_path, machine="another")
    threading.Timer(0.3, (tmp_path / leases.FILE).unlink).start()
    with lease(tmp_path, silence=600):
        pass


def test_a_damaged_record_counts_as_one_elsewhere(tmp_path):
    (tmp_path / leases.FILE).write_bytes(b"\0garbled")
    said = []
    with lease(tmp_path, say=said.append):
        pass
    assert said


def test_a_record_that_is_read_half_written_is_read_again(tmp_path):
    holder = written(tmp_path, machine="another", host="host-7", pid=4711)
    path = tmp_path / leases.FILE
    threading.Timer(0.3, path.write_bytes, [b""]).start()
    threading.Timer(2.5, path.write_bytes, [dataclasses.replace(holder, beat=1).encoded()]).start()
    with pytest.raises(UserError, match="process 4711 on host-7"), lease(tmp_path, silence=60):
        pass


def test_a_run_that_was_taken_over_stops_before_its_next_step(tmp_path):
    with pytest.raises(UserError, match="process 4711 on host-7 took over"), lease(tmp_path, beat=600) as held:
        held.before(1)
        written(tmp_path, machine="another", host="host-7", pid=4711)
        time.sleep(0.3)  # silent for half of what makes it count as dead: it looks again
        held.before(2)
    assert json.loads((tmp_path / leases.FILE).read_bytes())["pid"] == 4711, "it removes no record but its own"


def test_a_record_that_a_user_removed_comes_back(tmp_path):
    with lease(tmp_path) as held:
        (tmp_path / leases.FILE).unlink()
        while not (tmp_path / leases.FILE).exists():
            time.sleep(0.01)
        held.before(1)
    assert not (tmp_path / leases.FILE).exists()


def test_of_several_processes_the_first_decides_for_all(tmp_path, monkeypatch):
    """What process 0 found reaches process 1 through one array, whatever it is."""
    sent = []

    def broadcast(array):
        if jax.process_index() == 0:
            sent.append(np.asarray(array))
        return sent[-1]

    monkeypatch.setattr(leases.multihost_utils, "broadcast_one_to_all", broadcast)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with lease(tmp_path):
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        with lease(tmp_path) as second:
            second.before(1)
        assert (tmp_path / leases.FILE).exists(), "only process 0 writes and removes it"
        monkeypatch.setattr(jax, "process_index", lambda: 0)
        with pytest.raises(UserError) as first, lease(tmp_path):
            pass
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        with pytest.raises(UserError) as second, lease(tmp_path):
            pass
        assert str(first.value) == str(second.value)
        monkeypatch.setattr(jax, "process_index", lambda: 0)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"), lease(tmp_path / "file" / "run"):
        pass


def test_folders_that_nothing_was_written_to_are_gone_again(tmp_path):
    with lease(tmp_path / "run" / "train"):
        assert (tmp_path / "run" / "train" / leases.FILE).exists()
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    with lease(tmp_path / "run" / "train"):
        (tmp_path / "run" / "train" / "metrics.jsonl").touch()
    assert (tmp_path / "run" / "train" / "metrics.jsonl").exists()


def test_what_a_live_run_reads_is_not_replaced_and_what_a_dead_one_read_is(tmp_path, other):
    (tmp_path / "rows").mkdir()
    with pytest.raises(UserError, match=rf"process {other.pid} on .* reads .*rows, which would be replaced"):
        check_free(tmp_path, tmp_path / "rows")
    check_free(tmp_path, tmp_path / "other rows")  # nothing is replaced
    other.kill()
    other.wait()
    check_free(tmp_path, tmp_path / "rows")
    written(tmp_path, machine="another", host="host-7")
    with pytest.raises(UserError, match="host-7"):
        check_free(tmp_path, tmp_path / "rows")
    os.utime(tmp_path / leases.FILE, (0, time.time() - 600))
    check_free(tmp_path, tmp_path / "rows")
