"""The scripts of a host one by one, with a small program in the place of `m1` that ends as it is told."""

import contextlib
import ctypes
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.launch.cloud import ROOT

REMOTE = ROOT / "launch" / "remote"
COMMIT = "0" * 40
PR_SET_CHILD_SUBREAPER = 36
"""Of Linux's prctl(2)."""


class Host:
    """A host after set-up: `endings` are the statuses with which the program ends, one attempt each."""

    def __init__(self, folder, name, bucket, endings=(), program=""):
        self.root, self.name, self.bucket = folder / name, name, bucket
        code = self.root / "code" / COMMIT
        code.mkdir(parents=True)
        (code / "launch").symlink_to(ROOT / "launch")
        (bucket / "life").mkdir(parents=True, exist_ok=True)
        m1 = self.root / f"bin-{COMMIT}" / "m1"
        m1.parent.mkdir()
        (self.root / "endings").write_text("".join(f"{status}\n" for status in endings))
        pop = 'status=$(head -n 1 "$M1_ROOT/endings"); sed -i 1d "$M1_ROOT/endings"; echo "step of $1"; exit "$status"'
        m1.write_text(f"#!/bin/bash\n{program or pop}\n")
        m1.chmod(0o755)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "M1_ROOT": str(self.root),
            "M1_HOST": name,
            "M1_NAME": "life",
            "M1_COMMIT": COMMIT,
            "M1_BUCKET": "b",
            "M1_BUCKET_DIR": str(bucket),
            "M1_CONFIG": "configs/quickstart.py",
            "M1_SET": "a=1 'b=two words'",
            "M1_PAUSE_SECONDS": "0.1",
            "M1_HEARTBEAT_SECONDS": "0.2",
        }

    def start(self, script, *words):
        command = ["bash", str(REMOTE / script), *words]
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def do(self, script, *words):
        process = self.start(script, *words)
        out, _ = process.communicate(timeout=60)
        return process.returncode, out

    def report(self):
        file = self.bucket / "life" / "launch" / "state" / self.name
        return dict(word.split("=", 1) for word in file.read_text().split()[1:]) if file.exists() else {}

    def log(self):
        return (self.bucket / "life" / "launch" / "logs" / f"{self.name}.log").read_text()


@pytest.fixture
def make_host(tmp_path):
    made = []

    def make(name="0-0", **rest):
        made.append(Host(tmp_path, name, tmp_path / "bucket", **rest))
        return made[-1]

    yield make
    roots = {str(host.root) for host in made}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("M1_ROOT") in roots:
                process.kill()


def until(what):
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_again_is_started_again_until_it_is_done(make_host):
    host = make_host(endings=(75, 75, 0))
    assert host.do("supervise.sh", "7")[0] == 0
    assert (host.report()["state"], host.report()["attempt"], host.report()["run"]) == ("finished", "3", "7")
    assert host.log().count("ended with status 75") == 2
    assert "m1 train --config configs/quickstart.py --set a=1 --set b=two words --set folder=" in host.log()
    assert "--amend" not in host.log()


def test_a_report_is_never_read_while_half_of_it_is_there(make_host):
    host = make_host()
    (host.bucket / "life").mkdir(parents=True, exist_ok=True)
    says = f"source {REMOTE}/common.sh; for n in $(seq 100); do report running 7 $n >/dev/null; done"
    talking = subprocess.Popen(["bash", "-c", says], env=host.environment)
    until(host.report)
    while talking.poll() is None:
        assert host.report()["run"] == "7"
    assert host.report()["attempt"] == "100"


def test_changed_settings_are_accepted_where_the_environment_file_says_so(make_host):
    host = make_host(program='echo "arguments: $*"')
    host.environment["M1_AMEND"] = "yes"
    assert host.do("supervise.sh", "7")[0] == 0
    assert re.search(r"^arguments: train --config .* --amend$", host.log(), re.MULTILINE)


def of_sft(host):
    host.environment |= {"M1_VERB": "sft", "M1_INITIAL": "initial", "M1_CONVERSATIONS": "my talks"}
    return host


def test_one_host_prepares_the_conversations_before_all_train(make_host):
    first, second = (of_sft(make_host(name, program='echo "$1 $*"')) for name in ("0-0", "0-1"))
    waiting = second.start("supervise.sh", "7")
    until(lambda: second.report())
    assert waiting.poll() is None and not (second.root / "logs" / "0-1.log").exists()
    assert first.do("supervise.sh", "7")[0] == 0 and waiting.wait(timeout=60) == 0
    lines = [line for line in first.log().splitlines() if not line.startswith("==")]
    assert [line.split()[0] for line in lines] == ["sft", "train"]
    folder = first.bucket / "life"
    assert lines[0].endswith(
        f"folder={folder} --set train.initial={folder}/initial --prepare --conversations {folder}/my talks"
    )
    assert lines[1].endswith(f"train.initial={folder}/initial")
    assert "train train" in second.log() and "sft" not in second.log()
    # A start that finds no conversations to read anew prepares again, which m1 sft recognises.
    of_sft(first).environment.pop("M1_CONVERSATIONS")
    assert first.do("supervise.sh", "8")[0] == 0 and first.log().count("--prepare\n") == 2


def test_preferences_are_prepared_as_conversations_are(make_host):
    host = of_sft(make_host(program='echo "$1 $*"'))
    host.environment["M1_VERB"] = "prefer"
    assert host.do("supervise.sh", "7")[0] == 0
    lines = [line for line in host.log().splitlines() if not line.startswith("==")]
    assert [line.split()[0] for line in lines] == ["prefer", "train"]
    assert lines[0].endswith(f"--prepare --preferences {host.bucket / 'life'}/my talks")


def test_conversations_that_cannot_be_used_end_the_run_everywhere(make_host):
    first, second = of_sft(make_host("0-0", endings=(2,))), of_sft(make_host("0-1", endings=(0,)))
    waiting = second.start("supervise.sh", "7")
    assert first.do("supervise.sh", "7")[0] == 2
    assert waiting.wait(timeout=60) == 75
    assert (first.report()["state"], second.report()["state"]) == ("failed", "stopped")


@pytest.mark.parametrize("status", [1, 2, 137])
def test_another_status_ends_it(make_host, status):
    host = make_host(endings=(75, status, 0))
    assert host.do("supervise.sh", "7")[0] == status
    found = host.report()
    assert (found["state"], found["attempt"], found["status"]) == ("failed", "2", str(status))
    assert abs(float(found["ended"]) - time.time()) < 60


def test_a_host_goes_on_no_longer_when_another_failed_in_the_same_run(make_host):
    bad, old, good = make_host("0-1", endings=(1,)), make_host("0-2", endings=(1,)), make_host("0-0", endings=(75, 0))
    old.do("supervise.sh", "6")  # a failure of an earlier run does not count
    assert make_host("0-3", endings=(75, 0)).do("supervise.sh", "7")[0] == 0
    bad.do("supervise.sh", "7")
    assert good.do("supervise.sh", "7")[0] == 75
    assert good.report()["state"] == "stopped"


def test_start_is_idempotent_and_stop_lets_training_save(make_host):
    waits = "trap 'echo saved; exit 75' TERM; echo began; while :; do sleep 0.1; done"
    host = make_host(program=waits)
    assert "state=running run=7" in host.do("host.sh", "start", "7")[1]
    until(
        lambda: (
            "began" in (host.root / "logs" / "0-0.log").read_text()
            if (host.root / "logs" / "0-0.log").exists()
            else False
        )
    )
    first = host.report()["at"]
    until(lambda: host.report().get("at") != first)  # its heart beats
    assert "run=7" in host.do("host.sh", "start", "8")[1]
    status, said = host.do("host.sh", "stop")
    assert status == 0
    assert "state=stopped run=7" in said
    assert host.log().count("attempt 1: m1 train") == 1
    assert "saved" in host.log()
    assert host.do("host.sh", "frobnicate")[0] == 2


def test_a_supervisor_that_is_told_to_end_waits_until_training_has_saved(make_host):
    host = make_host(program="trap 'sleep 1; echo saved; exit 75' TERM; echo began; while :; do sleep 0.1; done")
    process = host.start("supervise.sh", "7")
    until(lambda: (host.root / "logs" / "0-0.log").exists() and "began" in (host.root / "logs" / "0-0.log").read_text())
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    assert "saved" in host.log()


def test_the_doctors_word_decides(make_host):
    assert "state=ready" in make_host("0-0", program='echo "$@"; exit 0').do("host.sh", "doctor")[1]
    said = make_host("0-1", program='echo "$@ is ill"; exit 1').do("host.sh", "doctor")[1]
    assert "state=broken" in said
    assert "0-1: doctor --config configs/quickstart.py" in said


def test_an_interpreter_of_other_versions_is_refused(tmp_path):
    (tmp_path / "constraints").mkdir()
    name = f"{sys.version_info.major}.{sys.version_info.minor}.txt"
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["jax>=0.1", "no-such-thing"]\n')
    (tmp_path / "constraints" / name).write_text("jax==0.0.1\nno-such-thing==2\n")
    told = subprocess.run(
        [sys.executable, REMOTE / "versions.py", tmp_path], capture_output=True, text=True, check=False
    )
    assert told.returncode == 1
    assert "tested is 0.0.1" in told.stderr and "no-such-thing 2 is missing" in told.stderr
    assert subprocess.run([sys.executable, REMOTE / "versions.py", ROOT], check=False).returncode == 0


@pytest.mark.slow
def test_set_up_makes_a_virtual_environment_with_the_constraints(make_host, tmp_path):
    """The road that no image takes: a fresh environment, filled by pip from the commit's own files, once."""
    host = make_host()
    code = host.root / "code" / COMMIT
    (code / "launch").unlink()
    code.rmdir()
    (tmp_path / "code" / "constraints").mkdir(parents=True)
    code.symlink_to(tmp_path / "code")
    package = tmp_path / "code"
    (package / "launch").symlink_to(ROOT / "launch")
    (package / "m1jax" / "verbs").mkdir(parents=True)
    (package / "m1jax" / "__init__.py").write_text("")
    (package / "m1jax" / "verbs" / "__init__.py").write_text("def main():\n    print('it is here')\n    return 0\n")
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "m1jax"\nversion = "1"\n[project.optional-dependencies]\ntpu = []\n'
    )
    (package / "backend.py").write_text(BACKEND)
    for version in ("3.12", "3.13"):
        (package / "constraints" / f"{version}.txt").write_text("")
    (package / "constraints" / "newest_python").symlink_to(ROOT / "constraints" / "newest_python")
    m1 = host.root / f"bin-{COMMIT}" / "m1"
    m1.unlink()
    # The interpreter of these tests is the image's: what else this machine has (shims of pyenv) is not a host's.
    host.environment["PATH"] = f"{sys.base_prefix}/bin:{host.environment['PATH']}"
    status, said = host.do("setup.sh")
    assert status == 0, said
    assert "state=ready" in said
    assert subprocess.run([m1], capture_output=True, text=True, check=True).stdout == "it is here\n"
    stamp = pathlib.Path(m1).stat().st_mtime_ns
    assert host.do("setup.sh")[0] == 0
    assert pathlib.Path(m1).stat().st_mtime_ns == stamp


BACKEND = """
import base64, hashlib, pathlib, zipfile

def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "m1jax-1-py3-none-any.whl"
    files = {str(p): p.read_bytes() for p in pathlib.Path("m1jax").rglob("*.py")}
    files["m1jax-1.dist-info/METADATA"] = b"Metadata-Version: 2.1\\nName: m1jax\\nVersion: 1\\nProvides-Extra: tpu\\n"
    files["m1jax-1.dist-info/WHEEL"] = b"Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
    record = "".join(
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\\n"
        for name, data in files.items()
    )
    files["m1jax-1.dist-info/RECORD"] = (record + "m1jax-1.dist-info/RECORD,,\\n").encode()
    with zipfile.ZipFile(pathlib.Path(folder) / name, "w") as wheel:
        for path, data in files.items():
            wheel.writestr(path, data)
    return name
"""


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
