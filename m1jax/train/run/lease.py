"""The lease on a run's folder: only one run trains in it at a time, and a dead run does not block it.

`running.json` names the process that trains (process 0 if there are several), its machine, and its beat: a counter that
it increases. A process of this machine holds the folder while it is alive. A process of another machine holds it while
its beat increases; this is observed, so that the clocks of two machines are never compared.
"""

import contextlib
import dataclasses
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import jax
import numpy as np
from jax.experimental import multihost_utils

from m1jax import disk
from m1jax.errors import UserError
from m1jax.train.hooks.hook import Hook
from m1jax.train.run.holder import FILE, SILENCE_SECONDS, Holder

BEAT_SECONDS = 15.0
_OURS, _WAIT = "", "wait"


class Lease(Hook):
    """A context around a run, and a hook of it; entered and left by all processes.

    Raises UserError on all of them where another run trains in the folder, naming its host and process, and before the
    next step where another run has taken the folder over.
    """

    def __init__(
        self,
        folder: Path,
        say: Callable[[str], None] = lambda sentence: None,
        silence: float = SILENCE_SECONDS,
        beat: float = BEAT_SECONDS,
    ) -> None:
        """Nothing is written before the context is entered; `silence` and `beat` are in seconds."""
        self._folder, self._say, self._silence, self._beat = folder, say, silence, beat
        self._path = folder / FILE
        self._own = Holder.here()
        self._watched: tuple[Holder, float] | None = None
        self._written = 0.0
        self._made: list[Path] = []
        self._thief: Holder | None = None
        self._ended = threading.Event()
        self._turn = threading.Lock()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Lease":
        while said := self._decided():
            if said != _WAIT:
                raise UserError(said)
            time.sleep(min(1.0, self._silence / 10))
        if jax.process_index() == 0:
            self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Frees the folder; also called by a process that ends without leaving the context."""
        if self._thread is None:
            return
        self._ended.set()
        if not self._turn.acquire(timeout=5):  # a beat is waiting for a disk or a network
            return
        with contextlib.suppress(OSError):
            if Holder.decoded(self._path.read_bytes()).token == self._own.token:
                self._path.unlink()
            for folder in self._made:
                folder.rmdir()  # only where the run wrote nothing
        self._turn.release()

    def before(self, step: int) -> None:
        """Stops the run if another one took the folder because this process was frozen or cut off for too long."""
        del step
        if self._thread is None:
            return
        if time.monotonic() - self._written > self._silence / 2:
            self._touch()
        if self._thief is not None:
            raise UserError(
                f"{self._thief.name} took over {self._folder} while this process did not respond: the run continues "
                f"there, and this process stops; its work since its last checkpoint is repeated."
            )

    def _decided(self) -> str:
        """The result of process 0, on every process: _OURS, _WAIT, or why the folder cannot be used."""
        said = _OURS
        if jax.process_index() == 0:
            try:
                with disk.refusals(self._folder):
                    said = self._ask()
            except (UserError, OSError) as error:
                said = str(error)
        if jax.process_count() == 1:
            return said
        # A short collective for each try, so that no collective waits for SILENCE_SECONDS.
        text = np.frombuffer(said.encode()[:1024].ljust(1024), np.uint8)
        return bytes(np.asarray(multihost_utils.broadcast_one_to_all(text)).tolist()).decode(errors="ignore").strip()

    def _ask(self) -> str:
        self._made = self._made or [f for f in (self._folder, *self._folder.parents) if not f.exists()]
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            try:
                found = Holder.decoded(self._path.read_bytes())
            except FileNotFoundError:
                return self._take(new=True)
            if found.is_here:
                return self._refusal(found) if found.alive else self._take()
            if self._watched is None:
                self._watched = found, time.monotonic()
                self._say(
                    f"{found.name} has trained in {self._folder} since {found.since} and has not recorded its end: "
                    f"waiting up to {self._silence:.0f} s for a sign of life."
                )
                return _WAIT
            if found.legible and found != self._watched[0]:
                return self._refusal(found)
            return _WAIT if time.monotonic() - self._watched[1] < self._silence else self._take()

    def _refusal(self, found: Holder) -> str:
        return (
            f"{self._folder} is in use: {found.name} has trained there since {found.since}. Let it end, stop it with "
            f"`kill {found.pid}` on {found.host} (it saves first), or train in another folder."
        )

    def _take(self, new: bool = False) -> str:
        if new:
            try:
                with open(self._path, "xb", buffering=0) as file:
                    file.write(self._own.encoded())
            except FileExistsError:  # another process was faster
                return _WAIT
        else:
            fresh = self._path.with_name(f".{FILE}.{self._own.token}")
            fresh.write_bytes(self._own.encoded())
            fresh.replace(self._path)
        self._written = time.monotonic()
        return _OURS

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Locks the folder while one start decides; without locks, the slower start notices later."""
        number = os.open(self._folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(number, fcntl.LOCK_EX)
            yield
        finally:
            os.close(number)

    def _keep(self) -> None:
        while not self._ended.wait(self._beat):
            self._touch()

    def _touch(self) -> None:
        """Increases the beat in place: this works on a full disk and never overwrites the record of another run."""
        with self._turn:
            if self._ended.is_set() or self._thief is not None:
                return
            self._own = dataclasses.replace(self._own, beat=self._own.beat + 1)
            try:
                with open(self._path, "r+b", buffering=0) as file:
                    found = Holder.decoded(file.read())
                    if found.token != self._own.token:
                        self._thief = found
                        return
                    file.seek(0)
                    file.write(self._own.encoded())
            except FileNotFoundError:  # removed by hand
                with contextlib.suppress(OSError):
                    self._take(new=True)
                return
            except OSError:  # the disk or the network does not answer: the next beat tries again
                return
            self._written = time.monotonic()
