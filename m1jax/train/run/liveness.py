"""Checks that the other processes of a run are alive, with datagrams that do not depend on jax's collectives.

If one is killed or frozen, the others wait in a collective that never ends (or that fails with an error which does not
say whose fault it was). Here each process sends a beat to a few successors on a ring and listens to as many
predecessors. Every process learns which one stopped responding, writes a report, and ends with status AGAIN.
"""

import contextlib
import ctypes
import datetime
import faulthandler
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from m1jax.errors import AGAIN, FAILURE, USER_ERROR, InterruptedRunError, UserError
from m1jax.train.hooks.hook import Hook
from m1jax.train.report import StepReport

SILENCE_SECONDS = 20.0
"""A process that sends nothing for this long is considered dead; jax's own service waits HEARTBEAT_SECONDS."""
_NEIGHBOURS = 4
_BEATS = 10
"""Beats in that time."""
_ADDRESS_BYTES = 64


class Liveness(Hook):
    """A context around a run, and a hook of it. Does nothing in a run of one process.

    When a process is lost, every other one writes `process-<i>.stopped.txt` into `folder` (which one, and after which
    step, its own last step, the stacks of its threads) and exits with AGAIN; when one ends by an error of its
    own, the others do the same and exit with its status. Entered and left by all processes.
    """

    def __init__(
        self, folder: Path, silence: float = SILENCE_SECONDS, leaving: Callable[[], None] = lambda: None
    ) -> None:
        """`leaving` is called when the process ends without leaving the contexts around it."""
        self._folder, self._silence, self._leaving = folder, silence, leaving
        self._index, self._count = jax.process_index(), jax.process_count()
        self._step = 0
        self._ended = threading.Event()
        self._over = threading.Lock()

    def report(self, report: StepReport) -> None:
        """Notes the last step, for the others to know."""
        self._step = report.step

    def __enter__(self) -> "Liveness":
        if self._count == 1:
            return self
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("", 0))
        self._socket.settimeout(self._silence / _BEATS)
        self._peers, self._token = self._introduce(self._socket.getsockname()[1])
        self._handler = _on_abort(self._aborted)
        self._thread = threading.Thread(target=self._watch, name="liveness", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._count == 1:
            return
        own = value is None or isinstance(value, UserError | InterruptedRunError | KeyboardInterrupt)
        if not own:
            # A collective that failed because another process is gone: the watch ends this process, naming which.
            self._ended.wait(self._silence * (1 + 3 / _BEATS))
        self._ended.set()
        self._thread.join()
        _on_abort(None)
        if value is None or isinstance(value, InterruptedRunError):
            self._tell_all({"kind": "bye"})
        else:
            status = USER_ERROR if isinstance(value, UserError) else FAILURE
            self._tell_all({"kind": "lost", "who": self._index, "after": self._step, "status": status})
        self._socket.close()

    def _introduce(self, port: int) -> tuple[list[tuple[str, int]], str]:
        """Every process's address, and a token that tells this run's datagrams from others'."""
        text = json.dumps([_own_address(), port, secrets.token_hex(8)]).encode()
        own = np.frombuffer(text.ljust(_ADDRESS_BYTES), np.uint8)
        found = [json.loads(row.tobytes().decode()) for row in multihost_utils.process_allgather(own)]
        return [(host, port) for host, port, _ in found], found[0][2]

    def _watch(self) -> None:
        around = [(self._index + i) % self._count for i in range(1, min(_NEIGHBOURS, self._count - 1) + 1)]
        watched = {(self._index - i) % self._count for i in range(1, len(around) + 1)}
        turn = time.monotonic()
        heard, steps = dict.fromkeys(watched, turn), dict.fromkeys(watched, 0)
        sent = 0.0
        while not self._ended.is_set():
            now = time.monotonic()
            if now - turn > self._silence / 2:
                # This process itself was stopped for a while: it may have missed the others' beats.
                heard = dict.fromkeys(heard, now)
            turn = now
            if now - sent >= self._silence / _BEATS:
                sent = now
                for peer in around:
                    self._send(peer, {"kind": "beat"})
            message = self._receive()
            if message is None:
                pass
            elif message["kind"] == "lost":
                self._end(message["who"], message["after"], message["status"])
            elif message["from"] in heard:
                heard[message["from"]], steps[message["from"]] = time.monotonic(), message["step"]
                if message["kind"] == "bye":
                    heard.pop(message["from"])
            for peer, last in heard.items():
                if now - last > self._silence:
                    self._tell_all({"kind": "lost", "who": peer, "after": steps[peer], "status": AGAIN})
                    self._end(peer, steps[peer], AGAIN)

    def _receive(self) -> dict[str, Any] | None:
        try:
            message = json.loads(self._socket.recv(1024))
        except (OSError, ValueError):  # nothing within a beat, or nothing of ours
            return None
        return message if isinstance(message, dict) and message.get("run") == self._token else None

    def _send(self, peer: int, message: dict[str, Any]) -> None:
        data = json.dumps({"run": self._token, "from": self._index, "step": self._step, **message}).encode()
        with contextlib.suppress(OSError):  # a peer whose machine is gone
            self._socket.sendto(data, self._peers[peer])

    def _tell_all(self, message: dict[str, Any]) -> None:
        for _ in range(3):  # datagrams may be lost
            for peer in range(self._count):
                if peer != self._index:
                    self._send(peer, message)

    def _aborted(self) -> None:
        """Called when jax aborts this process: its service (on process 0) is gone, or reported a dead process."""
        time.sleep(self._silence * (1 + 3 / _BEATS))  # the watch finds out which one, and ends the process
        self._end(None, 0, AGAIN)

    def _end(self, who: int | None, after: int, status: int) -> None:
        """Writes the report and ends the process at once: its main thread may be blocked in a collective."""
        self._over.acquire()  # never given back
        lost = "another process" if who is None else f"process {who}"
        why = "no longer responds" if status == AGAIN else f"ended by an error (exit status {status})"
        last = "" if who is None else f" after step {after}"
        path = self._folder / f"process-{self._index}.stopped.txt"
        advice = "the same command continues" if status == AGAIN else "see what that process said"
        sentence = (
            f"m1: {lost} of {self._count} {why}{last}; process {self._index} stops after step {self._step}: "
            f"{advice}, stacks are in {path}."
        )
        print(sentence, file=sys.stderr, flush=True)  # noqa: T201 (a process that ends here has no other way)
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
                print(f"{now} on {socket.gethostname()}\n{sentence}\n", file=file, flush=True)
                faulthandler.dump_traceback(file, all_threads=True)
        self._leaving()
        os._exit(status)


def _own_address() -> str:
    """This machine's address on the network that others are reached by."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # reserved for documentation; connecting a datagram socket sends nothing
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def _on_abort(call: Any) -> Any:
    """Runs `call()` when the process aborts (None: removes it); keep a reference to the result while it is installed.

    jax's client calls abort() from a thread of its own, in C++, as soon as process 0 is gone; Python's handlers would
    never run, and jaxlib's `missed_heartbeat_callback` dies of std::bad_cast. The C handler runs in the thread that
    aborts, which holds none of Python's locks.
    """
    signature = ctypes.CFUNCTYPE(None, ctypes.c_int)
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    if call is None:
        libc.signal(signal.SIGABRT, None)
        return None
    handler = signature(lambda number: call())
    libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    return handler
