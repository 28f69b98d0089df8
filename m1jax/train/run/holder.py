"""The process that trains in a run's folder, as `running.json` names it. Loads no JAX."""

import dataclasses
import datetime
import json
import os
import secrets
import socket
import time
from pathlib import Path

from m1jax.errors import UserError

FILE = "running.json"
SILENCE_SECONDS = 90.0
"""A process whose beat does not change for so long is dead. A bucket mounted by gcsfuse shows files up to 60 s late."""
_RECORD_BYTES = 512


@dataclasses.dataclass(frozen=True)
class Holder:
    """The process that holds a folder, as written in running.json."""

    token: str
    host: str
    pid: int
    machine: str
    """This boot of the machine and the container's process namespace; empty where the system does not say."""
    born: int
    """When the process started, in the kernel's ticks: a later process may get the same pid."""
    since: str
    beat: int = 0

    @classmethod
    def here(cls) -> "Holder":
        """This process."""
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        pid = os.getpid()
        return cls(secrets.token_hex(8), socket.gethostname(), pid, _machine(), _born(pid) or 0, since)

    @property
    def name(self) -> str:
        """For sentences."""
        return f"process {self.pid} on {self.host}"

    def encoded(self) -> bytes:
        """A line of JSON, always of the same length, so that it can be overwritten in place."""
        return json.dumps(dataclasses.asdict(self)).encode().ljust(_RECORD_BYTES - 1) + b"\n"

    @classmethod
    def decoded(cls, data: bytes) -> "Holder":
        """The process of a record; an unknown process where the record cannot be read."""
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError):
            return cls(data.hex(), "an unknown machine", 0, "", 0, "an unknown time")

    @property
    def legible(self) -> bool:
        """Whether the record names a process: one that is read while a network's disk writes it may be cut short."""
        return self.pid > 0

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, a process of this machine that can be looked up."""
        return bool(self.machine) and self.machine == _machine()

    @property
    def alive(self) -> bool:
        """Whether the process is alive; only for a process of this machine."""
        born = _born(self.pid)
        return _hidden(self.pid) if born is None else born == self.born


def check_free(folder: Path, target: Path) -> None:
    """Raises UserError where a run trains in `folder`: what it reads, `target`, must not be replaced under it."""
    try:
        found, age = Holder.decoded((folder / FILE).read_bytes()), time.time() - (folder / FILE).stat().st_mtime
    except FileNotFoundError:
        return
    if target.exists() and (found.alive if found.is_here else age < SILENCE_SECONDS):
        raise UserError(
            f"{found.name} has trained in {folder} since {found.since} and reads {target}, which would be replaced: "
            f"let it end first, or choose another folder."
        )


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _born(pid: int) -> int | None:
    """When a process of this machine started, in the kernel's ticks; -1: it has ended, None: it is not visible."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *rest = text.rpartition(")")[2].split()  # the name before it may hold anything
    return -1 if state in "ZX" else int(rest[18])


def _hidden(pid: int) -> bool:
    """Whether a process exists that /proc hides, as some machines hide those of other users."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return False
