"""The scripts as text and as commands: shellcheck, --help, --dry-run against what the real tools document."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.launch import record_documented, standin
from tests.launch.cloud import ENVIRONMENT, ROOT

LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.rglob("*.sh"))
VERBS = ("up", "run", "status", "logs", "resume", "down")


def environment_file(folder, **changes):
    file = folder / "env"
    values = {**ENVIRONMENT, "M1_SET": "mesh.fsdp=64 data.rows='gs://b/a b'", "M1_PYTHON": "", **changes}
    file.write_text("".join(f"{key}={shlex.quote(value)}\n" for key, value in values.items()))
    return file


def launched(*words, path=None):
    """m1launch on a machine whose path holds nothing but Python and git."""
    command = [sys.executable, str(LAUNCH / "m1launch"), *words]
    return subprocess.run(command, env={"PATH": path or "/nonexistent"}, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def only_git(tmp_path_factory):
    folder = tmp_path_factory.mktemp("path")
    (folder / "git").symlink_to(shutil.which("git"))
    return str(folder)


def commands(text):
    """The command lines of a dry run, without comments."""
    joined = text.replace(" \\\n", " ")
    return [shlex.split(line) for line in joined.splitlines() if line and not line.startswith("#")]


def test_shellcheck_has_nothing_to_say():
    beside = pathlib.Path(sys.executable).with_name("shellcheck")
    program = str(beside) if beside.exists() else shutil.which("shellcheck")
    if program is None:
        pytest.skip("no shellcheck: it comes with the extra `lint`")
    done = subprocess.run([program, "-x", *map(str, SCRIPTS)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s.name != "common.sh"], ids=lambda script: script.name)
def test_every_script_explains_itself(script):
    done = subprocess.run(["bash", str(script), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) >= 2, done.stdout
    assert not re.search(r"^#|^set |^$", done.stdout.strip(), re.MULTILINE), done.stdout


def test_the_command_and_every_verb_explain_themselves():
    assert all(verb in launched("--help").stdout for verb in VERBS)
    for verb in VERBS:
        told = launched(verb, "--help")
        assert told.returncode == 0
        assert "--dry-run" in told.stdout


@pytest.mark.parametrize("platform", ["tpu-vm", "gke"])
@pytest.mark.parametrize("verb", [*VERBS, "run --watch --then-down", "resume --watch"])
def test_a_dry_run_prints_documented_commands_and_needs_no_tool(verb, platform, tmp_path, only_git):
    file = environment_file(tmp_path, M1_PLATFORM=platform, M1_SLICES="2", M1_TOPOLOGY="v5p:4x4x4")
    done = launched(*verb.split(), "--env", str(file), "--dry-run", path=only_git)
    assert done.returncode == 0, done.stderr
    found = commands(done.stdout)
    clouds = [words for words in found if words[0] in ("gcloud", "xpk")]
    assert clouds
    for tool, *words in clouds:
        standin.parse(tool, words)
    assert {words[0] for words in found} <= {"gcloud", "xpk", "m1", "git", "mkdir", "tar"}
    assert not list(tmp_path.glob("*.tar*"))


def test_a_dry_run_of_up_holds_the_whole_of_it_in_order(tmp_path, only_git):
    file = environment_file(
        tmp_path,
        M1_TOPOLOGY="v6e:16x16",
        M1_CAPACITY="reserved",
        M1_INTERNAL_IPS="yes",
        M1_AMEND="yes",
        M1_VERB="sft",
        M1_INITIAL="initial",
        M1_CONVERSATIONS="my/talks",
    )
    done = launched("up", "--env", str(file), "--dry-run", "--max-hours", "3", path=only_git)
    found = commands(done.stdout)
    heads = [" ".join(words[:6]) for words in found if words[0] != "git" and "describe" not in words]
    address = f"gs://stand-in-bucket/life/launch/code/{revision()}.tar.gz"
    resource = "gcloud compute tpus queued-resources"
    assert heads[0].startswith(f"m1 plan --config {ENVIRONMENT['M1_CONFIG']}")
    assert heads[1] == f"gcloud storage cp {revision()}.tar.gz {address} --no-clobber"
    assert heads[2:] == [f"{resource} create life", f"{resource} ssh life", f"{resource} ssh life"]
    create = next(words for words in found if "create" in words)
    for flag in ("--accelerator-type=v6e-256", "--runtime-version=v2-alpha-tpuv6e", "--reserved", "--internal-ips"):
        assert flag in create
    assert f"--metadata-from-file=startup-script={os.path.relpath(LAUNCH / 'remote' / 'guard.sh')}" in create
    setup = next(words[-1] for words in found if "ssh" in words)
    assigned = shlex.split(setup.partition("export ")[2].partition(";")[0])
    assert "M1_SET=mesh.fsdp=64 'data.rows=gs://b/a b'" in assigned
    assert {"M1_AMEND=yes", "M1_VERB=sft", "M1_INITIAL=initial", "M1_CONVERSATIONS=my/talks"} <= set(assigned)


def revision():
    return subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"M1_TOPOLOGY": "v5q:2x2"}, "must be one of v5e, v5p, v6e, tpu7x"),
        ({"M1_TOPOLOGY": "v4:2x2x2"}, "v4 is not rented by m1launch, which supports v5e and v6e (such as v5e:4x4) and"),
        ({"M1_TOPOLOGY": "v4-32"}, "v5p and tpu7x (such as v5p:4x4x4): on v4 hosts run `m1 train` yourself"),
        ({"M1_TOPOLOGY": "v5p-128"}, "v5p and a shape of 3 numbers, such as v5p:4x8x8"),
        ({"M1_TOPOLOGY": "v5litepod-16"}, "v5e and a shape of 2 numbers, such as v5e:4x4"),
        ({"M1_TOPOLOGY": "v5p:4x4"}, "3 numbers joined by x"),
        ({"M1_TOPOLOGY": "tpu7x:2x2x1"}, "offered on GKE only"),
        ({"M1_NAME": "My_Run"}, "lower-case letters"),
        ({"M1_BUCKET": "gs://bucket/folder"}, "a whole bucket"),
        ({"M1_SLICES": "none"}, "a number"),
        ({"M1_SLICES": "0"}, "at least 1"),
        ({"M1_CAPACITY": "cheap"}, "on-demand or spot or reserved"),
        ({"M1_SET": "mesh.fsdp"}, "KEY=VALUE words"),
        ({"M1_AMEND": "true"}, "yes or no"),
        ({"M1_VERB": "tune"}, "train or sft or prefer"),
        ({"M1_INITIAL": "gs://b/model"}, "the name of a folder inside gs://BUCKET/life"),
        ({"M1_VERB": "sft", "M1_CONVERSATIONS": "../talks"}, "the name of a folder inside gs://BUCKET/life"),
        ({"M1_CONVERSATIONS": "talks"}, "set M1_VERB=sft"),
        ({"M1_PROJECT": ""}, "M1_PROJECT is missing"),
        ({"M1_WRONG": "1"}, "no KEY=VALUE of launch/env.example"),
        ({"M1_PLATFORM": "gke", "M1_CAPACITY": "reserved"}, "M1_RESERVATION must name"),
    ],
)
def test_a_mistake_in_the_environment_file_is_one_sentence(changes, said, tmp_path):
    done = launched("up", "--env", str(environment_file(tmp_path, **changes)))
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_gcloud_it_says_so(tmp_path, only_git):
    done = launched("status", "--env", str(environment_file(tmp_path)), path=only_git)
    assert done.returncode == 2
    assert "gcloud is not on this machine" in done.stderr
    assert launched("status", "--env", str(tmp_path / "none")).returncode == 2


@pytest.mark.parametrize(
    "line",
    [
        "compute tpus queued-resources create a --nonsense=1",
        "compute tpus queued-resources create a --zone=z --runtime-version=r --accelerator-type=v5p-8",
        "compute tpus queued-resources destroy a",
        "compute tpus queued-resources delete a --zone=z --force=yes",
        "compute tpus queued-resources describe a b --zone=z",
        "compute tpus queued-resources create a --zone=z --accelerator-type=v5p-8 --node-id=a",
        "compute tpus queued-resources create a --max-run-duration=3h",
    ],
)
def test_the_stand_in_refuses_what_gcloud_does_not_document(line):
    with pytest.raises(standin.RefusedError):
        standin.parse("gcloud", line.split())


def printed(tmp_path, only_git):
    """Every gcloud command that the scripts print."""
    for platform in ("tpu-vm", "gke"):
        file = environment_file(tmp_path, M1_PLATFORM=platform, M1_SLICES="2", M1_TOPOLOGY="v5p:4x4x4")
        for verb in ("up", "run --watch --then-down", "logs"):
            yield from commands(launched(*verb.split(), "--env", str(file), "--dry-run", path=only_git).stdout)
        project = ["bash", str(LAUNCH / "project.sh"), "--dry-run", str(file)]
        yield from commands(subprocess.run(project, capture_output=True, text=True, check=True).stdout)


def test_the_project_script_prints_documented_commands(tmp_path, only_git):
    seen = set()
    for tool, *words in printed(tmp_path, only_git):
        if tool == "gcloud":
            seen.add(standin.parse(tool, words)[0])
    assert {"storage buckets create", "iam service-accounts create", "services enable"} <= seen


@pytest.mark.slow
def test_the_real_gcloud_accepts_every_command(tmp_path, only_git):
    if shutil.which("gcloud") is None:
        pytest.skip("no gcloud on this machine")
    seen = {}
    for words in printed(tmp_path, only_git):
        if words[0] == "gcloud":
            # Its linter cuts a line at shell operators inside quotes: what hosts run is not gcloud's to judge.
            short = ["--command=true" if word.startswith("--command=") else word for word in words]
            seen.setdefault(tuple(word.partition("=")[0] for word in short if word.startswith("--")), short)
    for words in seen.values():
        assert record_documented.check(shlex.join(words)) is None, words


@pytest.mark.slow
def test_the_record_is_what_this_machines_gcloud_documents():
    recorded = json.loads(record_documented.FILE.read_text())["gcloud"]
    if shutil.which("gcloud") is None or record_documented.gcloud_version() != recorded["version"]:
        pytest.skip(f"no gcloud {recorded['version']} on this machine")
    for command in (
        "compute tpus queued-resources create",
        "compute tpus queued-resources ssh",
        "scheduler jobs create http",
    ):
        assert record_documented.of_gcloud(command) == recorded["commands"][command]


def test_nothing_secret_is_asked_for_or_written():
    words = re.compile(
        r"(key-file|private_key|access-token|password|GOOGLE_APPLICATION_CREDENTIALS|allUsers)", re.IGNORECASE
    )
    for file in [*SCRIPTS, *LAUNCH.rglob("*.py"), LAUNCH / "env.example"]:
        assert not words.search(file.read_text()), file
    assert os.access(LAUNCH / "m1launch", os.X_OK)
