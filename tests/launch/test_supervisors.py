"""A host's supervisors: killed, started twice or followed by another, they never leave two trainings side by side."""

import ctypes
import os
import pathlib
import signal
import time

import pytest

from tests.launch.host import until

PR_SET_CHILD_SUBREAPER = 36
"""Of Linux's prctl(2)."""
WAITS = "trap 'echo saved; exit 75' TERM; echo began; while :; do sleep 0.1; done"


def log_of(host):
    file = host.root / "logs" / f"{host.name}.log"
    return file.read_text() if file.exists() else ""


def pid_of(host, what):
    return int((host.root / "state" / what).read_text().split()[0])


def gone(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def orphaned(host, run="7"):
    """Starts training and kills its supervisor; the process that goes on alone."""
    assert f"run={run}" in host.do("host.sh", "start", run)[1]
    until(lambda: "began" in log_of(host))
    supervisor, child = pid_of(host, "supervisor"), pid_of(host, "child")
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: gone(supervisor))
    assert not gone(child)
    return child


def test_stop_stops_a_training_that_lost_its_supervisor(make_host):
    host = make_host(program=WAITS)
    child = orphaned(host)
    status, said = host.do("host.sh", "stop")
    assert status == 0 and gone(child)
    assert "state=stopped run=7" in said and host.report()["state"] == "stopped"
    assert "saved" in log_of(host)


@pytest.fixture
def unreaped():
    """Orphans become this process's children, which nobody reaps: as under process 1 of many containers."""
    adopts = ctypes.CDLL(None, use_errno=True).prctl
    assert adopts(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    yield
    assert adopts(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) == 0


def test_a_killed_supervisor_that_nobody_reaps_says_nothing_more(make_host, unreaped):
    host = make_host(program=WAITS)
    orphaned(host)
    time.sleep(0.5)  # what was being said ends
    before = host.report()["at"]
    time.sleep(1)  # five beats
    assert host.report()["at"] == before
    assert host.do("host.sh", "stop")[0] == 0


def test_a_supervisor_starts_nothing_beside_a_training_that_lost_its_own(make_host):
    host = make_host(program=WAITS)
    child = orphaned(host)
    host.do("host.sh", "start", "8")
    until(lambda: log_of(host).count("began") == 2)
    assert gone(child) and log_of(host).index("saved") < log_of(host).rindex("began")
    assert host.report()["run"] == "8"
    assert host.do("host.sh", "stop")[0] == 0


def test_a_training_that_does_not_listen_is_killed_in_the_end(make_host):
    host = make_host(program="trap '' TERM; echo began; while :; do sleep 0.1; done")
    host.environment["M1_STOP_SECONDS"] = "1"
    child = orphaned(host)
    assert "state=stopped" in host.do("host.sh", "stop")[1]
    assert gone(child)


def test_a_pid_that_another_process_was_given_is_no_supervisor(make_host):
    """After a reboot the numbers in the state folder belong to anybody."""
    host = make_host(endings=(0,))
    (host.root / "state").mkdir()
    for name in ("supervisor", "child"):
        (host.root / "state" / name).write_text(f"{os.getpid()} 1\n")
    assert "state=running run=7" in host.do("host.sh", "start", "7")[1]
    until(lambda: host.report().get("state") == "finished")
    (host.root / "state" / "supervisor").write_text(f"{os.getpid()} 1\n")
    assert "state=finished" in host.do("host.sh", "stop")[1]


def test_stop_between_two_attempts_starts_no_third(make_host):
    host = make_host(endings=(75, 0))
    host.environment["M1_PAUSE_SECONDS"] = "2"
    host.do("host.sh", "start", "7")
    until(lambda: "ended with status 75" in log_of(host))
    assert "state=stopped" in host.do("host.sh", "stop")[1]
    assert log_of(host).count("m1 train") == 1


def test_two_starts_at_once_make_one_supervisor(make_host):
    host = make_host(program=WAITS)
    both = [host.start("host.sh", "start", str(run)) for run in (7, 8)]
    said = [process.communicate(timeout=60)[0] for process in both]
    until(lambda: "began" in log_of(host))
    host.do("host.sh", "stop")
    assert len({line.split("run=")[1].split()[0] for line in said}) == 1, said
    assert log_of(host).count("began") == 1


def test_a_second_supervisor_ends_at_once(make_host):
    host = make_host(program=WAITS)
    host.do("host.sh", "start", "7")
    until(lambda: "began" in log_of(host))
    status, said = host.do("supervise.sh", "8")
    assert status == 2 and f"process {pid_of(host, 'supervisor')}" in said
    host.do("host.sh", "stop")
    assert log_of(host).count("began") == 1
