"""The scripts of a host one by one."""

import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.launch.cloud import ROOT
from tests.launch.host import COMMIT, REMOTE, until


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
