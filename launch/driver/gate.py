"""Before anything is rented: the commit that will run, and whether `m1 plan` says that it fits."""

import json
import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from driver.settings import CloudError, LaunchError, Settings
from driver.shell import Shell

ROOT = Path(__file__).parents[2]


def commit(shell: Shell) -> str:
    """The commit that is checked out; uncommitted changes do not travel, and are said. Raises LaunchError."""
    head = shell.look(["git", "-C", str(ROOT), "rev-parse", "HEAD"])
    if head.status:
        raise LaunchError(f"{ROOT} is no git repository with a commit: what runs is the repository at a commit.")
    changed = shell.look(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"])
    if changed.out.strip():
        lines = changed.out.strip().splitlines()
        shell.say(f"{len(lines)} changed file(s) are not committed and will not be on the hosts: {lines[0].strip()} …")
    return head.out.strip()


def plan(settings: Settings, shell: Shell, even_if_it_does_not_fit: bool) -> None:
    """Asks `m1 plan`; says what the run costs. Raises LaunchError where it does not fit, unless told otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        sets = [word for override in settings.overrides for word in ("--set", override)]
        slices = ["--slices", str(settings.slices)] if settings.slices > 1 else []
        target = ["--config", settings.config, *sets, "--topology", settings.topology, *slices]
        shown = file.name if shell.dry_run else str(file)
        program = ["m1"] if shell.dry_run else m1()
        shell.say(f"Asking m1 plan whether {settings.config} fits {settings.slices} x {settings.topology}: minutes.")
        result = shell.local([*program, "plan", *target, "--json", shown], env={"PYTHONPATH": _search()})
        if shell.dry_run:
            return
        if result.status or not file.exists():
            raise CloudError(f"m1 plan failed: {result.reason}; --skip-plan rents without asking it.")
        programs = json.loads(file.read_text(encoding="utf-8"))
    if all(program["fits"] for program in programs):
        # Stages that share a program are one entry; each stage's hours are at the roofline, so at least these.
        hours = sum(stage["chip_hours"] for program in programs for stage in program["stages"])
        shell.say(
            f"m1 plan: {settings.config} fits, and takes at least {hours:,.0f} chip-hours; multiply by your price."
        )
    elif even_if_it_does_not_fit:
        shell.say(f"m1 plan: {settings.config} does not fit {settings.topology}; going on all the same.")
    else:
        raise LaunchError(
            f"m1 plan says that {settings.config} does not fit {settings.slices} x {settings.topology}: run it for "
            f"the numbers, `m1 plan --search` for what fits, or give --even-if-it-does-not-fit."
        )


def m1() -> list[str]:
    """The `m1` command: that of M1, of the path, or of this Python."""
    given = os.environ.get("M1")
    return given.split() if given else ["m1"] if shutil.which("m1") else [sys.executable, "-c", _DOOR]


_DOOR = "import sys; from m1jax.verbs import main; sys.exit(main())"


def _search() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def upload(settings: Settings, shell: Shell, revision: str) -> None:
    """Puts the repository at a commit into the bucket, once. Raises CloudError."""
    address = f"{settings.folder}/launch/code/{revision}.tar.gz"
    with tempfile.TemporaryDirectory() as folder:
        archive = f"{revision}.tar.gz" if shell.dry_run else f"{folder}/{revision}.tar.gz"
        make = ["git", "-C", os.path.relpath(ROOT), "archive", "--format=tar.gz", f"--output={archive}", revision]
        done = shell.local(make)
        if done.status:
            raise CloudError(f"git archive of {revision} failed: {done.reason}.")
        copy = ["gcloud", "storage", "cp", archive, address, "--no-clobber", f"--project={settings.project}"]
        shell.must(copy, f"copying the repository to {address}")


def export(shell: Shell, revision: str, folder: str) -> str:
    """Writes the repository at a commit into a folder, which it returns. Raises CloudError."""
    if shell.dry_run:
        folder = f"./{revision}"
    archive = f"{folder}.tar"
    try:
        make = ["git", "-C", os.path.relpath(ROOT), "archive", "--format=tar", f"--output={archive}", revision]
        unpack = [["mkdir", "-p", folder], ["tar", "-xf", archive, "-C", folder]]
        done = [shell.local(command) for command in (make, *unpack)]
    finally:
        Path(archive).unlink(missing_ok=True)
    if any(result.status for result in done):
        raise CloudError(f"git archive of {revision} failed: {' '.join(result.reason for result in done)}.")
    return folder


def quoted(words: tuple[str, ...]) -> str:
    """Words as one text with shell quoting, as M1_SET holds them."""
    return shlex.join(words)
