"""Stand-ins for gcloud, xpk, curl and gcsfuse: a cloud in a folder ($STANDIN) and in processes of this machine.

State is kept over calls in cloud.json; a bucket is a folder; a host is a folder, and its programs are processes that
carry the host's folder in $STANDIN_VM, so that deleting or preempting a slice really kills them. A command or flag
that documented.json does not hold is refused. Faults are asked for by tests (cloud.py): a call can fail, hang, or be
carried out while its answer is lost; hosts can be unreachable; slices can be left out of an ssh call.
"""

import contextlib
import fcntl
import glob
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
ROOT = pathlib.Path(os.environ.get("STANDIN", "/nonexistent"))
ORDER = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]


class RefusedError(Exception):
    """What the tool says on standard error, and its exit status."""

    def __init__(self, message, status=1):
        super().__init__(message)
        self.status = status


@contextlib.contextmanager
def cloud():
    """The state, read and written under a lock."""
    with open(ROOT / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        file = ROOT / "cloud.json"
        state = (
            json.loads(file.read_text()) if file.exists() else {"queued": {}, "clusters": {}, "jobs": {}, "faults": []}
        )
        try:
            yield state
        finally:  # a refusal may come with a change
            new = file.with_suffix(".new")
            new.write_text(json.dumps(state, indent=1))
            new.replace(file)


def parse(tool, argv):
    """(command, flags, positionals); RefusedError where documented.json does not hold a word of it."""
    told = json.loads((HERE / "documented.json").read_text())[tool]
    bare = [word for word in argv if not word.startswith("-")]
    command = next(
        (" ".join(bare[:n]) for n in range(len(bare), 0, -1) if " ".join(bare[:n]) in told["commands"]), None
    )
    if command is None:
        raise RefusedError(f"ERROR: ({tool}) Invalid choice: {' '.join(bare[:5])!r} is not documented.", 2)
    entry = told["commands"][command]
    known = {**told["wide"], **entry["flags"]}
    rest = list(argv)
    for word in command.split():
        rest.remove(word)
    flags, positionals = {}, []
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            positionals.append(word)
            continue
        name, equals, value = word.partition("=")
        if name not in known:
            raise RefusedError(f"ERROR: ({tool}.{command.replace(' ', '.')}) unrecognized arguments: {name}", 2)
        if known[name]["value"] and not equals:
            if not rest:
                raise RefusedError(f"ERROR: argument {name}: expected one argument", 2)
            value = rest.pop(0)
        elif equals and not known[name]["value"]:
            raise RefusedError(f"ERROR: argument {name}: ignored explicit argument {value!r}", 2)
        flags.setdefault(name, []).append(value)
    for name, what in known.items():
        if what["required"] and name not in flags and not (name == "--command" and tool == "gcloud"):
            raise RefusedError(f"ERROR: argument {name}: Must be specified.", 2)
    for group in entry["exactly_one"]:
        if not any(name in flags for name in group):
            raise RefusedError(f"ERROR: Exactly one of {' | '.join(group)} must be specified.", 2)
    if {"--node-id", "--node-count"} <= set(flags):
        raise RefusedError("ERROR: --node-id and --node-count exclude each other.", 2)
    if len(positionals) > len(entry["positionals"]) and not {"SOURCE", "SERVICE"} & set(entry["positionals"]):
        raise RefusedError(f"ERROR: unrecognized arguments: {positionals[-1]}", 2)
    return command, flags, positionals


def fault(command):
    """The fault that a test asked for at this call, if any; each strikes as often as it says."""
    with cloud() as state:
        for wanted in state["faults"]:
            if command.startswith(wanted["command"]) and wanted["times"] > 0:
                if wanted.get("after", 0) > 0:
                    wanted["after"] -= 1
                    continue
                wanted["times"] -= 1
                return wanted
    return None


def main(tool, argv):
    with open(ROOT / "calls.jsonl", "a") as log:
        log.write(json.dumps({"tool": tool, "argv": argv, "vm": os.environ.get("STANDIN_VM", "")}) + "\n")
    if tool == "curl":
        return curl(argv)
    if tool == "gcsfuse":
        return gcsfuse(argv)
    command, flags, positionals = parse(tool, argv)
    struck = fault(f"{tool} {command}") or {}
    if struck.get("do") == "refuse":
        raise RefusedError(struck["says"])
    if struck.get("do") == "hang":
        time.sleep(3600)
    from tests.launch import services

    status = services.COMMANDS[f"{tool} {command}"](flags, positionals, struck)
    if struck.get("do") == "lose":  # carried out, but the answer never comes
        raise RefusedError("ERROR: (gcloud) UNAVAILABLE: the connection was reset")
    return status


def curl(argv):
    """The metadata server of a VM."""
    url = argv[-1]
    prefix = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
    if not url.startswith(prefix) or "Metadata-Flavor: Google" not in argv:
        return 6
    file = pathlib.Path(os.environ["STANDIN_VM"]) / "metadata" / url.removeprefix(prefix)
    if not file.is_file():
        return 22
    sys.stdout.write(file.read_text())
    return 0


def gcsfuse(argv):
    """Mounts by a link: BUCKET FOLDER (cloud.google.com/storage/docs/cloud-storage-fuse/cli-options)."""
    options, (bucket, folder) = argv[:-2], argv[-2:]
    if not set(options) <= {"--implicit-dirs"}:
        raise RefusedError(f"gcsfuse: {options} is not documented here", 2)
    source = ROOT / "buckets" / bucket
    if not source.is_dir():
        raise RefusedError(f"gcsfuse: bucket {bucket} does not exist")
    pathlib.Path(folder).rmdir()
    pathlib.Path(folder).symlink_to(source)
    return 0


# What services.py builds on.


def kill_vm(folder):
    """Ends every process of a host, as the loss of its machine does."""
    import psutil

    mine = {os.getpid()}
    for _ in range(3):
        found = False
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                vm = process.environ().get("STANDIN_VM", "")
                if process.pid not in mine and vm and (vm == str(folder) or vm.startswith(f"{folder}/")):
                    process.send_signal(signal.SIGKILL)
                    found = True
        if not found:
            return
        time.sleep(0.05)


def host_environment(folder):
    """What a login on a host sees: nothing of the operator's environment but what the image holds."""
    image = json.loads((ROOT / "image.json").read_text())
    own = json.loads((folder / "environment.json").read_text()) if (folder / "environment.json").exists() else {}
    return {**image, **own, "HOME": str(folder / "home"), "STANDIN": str(ROOT), "STANDIN_VM": str(folder)}


def start_on(folder, command, output):
    """Starts a program on a host and leaves it alone."""
    with open(output, "ab") as file:
        return subprocess.Popen(
            command,
            env=host_environment(folder),
            cwd=folder / "home",
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def bucket_path(url):
    """The file of gs://bucket/path."""
    bucket, _, path = url.removeprefix("gs://").partition("/")
    if not (ROOT / "buckets" / bucket).is_dir():
        raise RefusedError(f"ERROR: (gcloud.storage) gs://{bucket} not found: 404.")
    return ROOT / "buckets" / bucket / path


def matching(url):
    """Files of an address with wildcards; RefusedError as gcloud says it where there is none."""
    found = sorted(glob.glob(str(bucket_path(url)))) if url.startswith("gs://") else [url]
    if not found:
        raise RefusedError("ERROR: (gcloud.storage) The following URLs matched no objects or files:\n" + url)
    return [pathlib.Path(file) for file in found]


def copy(source, target):
    """Copies a file as one object: whole or absent."""
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(source, new)
    new.replace(target)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[1]))
    from tests.launch import standin  # one module, whichever way it is reached

    try:
        sys.exit(standin.main(sys.argv[1], sys.argv[2:]))
    except standin.RefusedError as error:
        print(error, file=sys.stderr)
        sys.exit(error.status)
