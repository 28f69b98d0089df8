"""Stopping a run from outside: after a signal or a notice it saves and stops between two steps."""

import os
import signal
import threading
import urllib.error
import urllib.request
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils

_NOTICES = {"maintenance-event": ("TERMINATE_ON_HOST_MAINTENANCE",), "preempted": ("TRUE",)}
"""Compute Engine's metadata of an instance, and the values that announce its end."""
_POLL_SECONDS = 5.0


class StopRequest:
    """While entered, SIGTERM and the first SIGINT ask the run to stop; a second SIGINT interrupts at once.

    In a run of several processes a signal to one stops all after the same step: jax's preemption service takes SIGTERM
    and agrees on it. A notice of maintenance or preemption that Compute Engine gives counts as SIGTERM.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._previous: dict[int, object] = {}
        self._notices = MaintenanceNotices()

    def __enter__(self) -> "StopRequest":
        # jax's service has a handler of its own for SIGTERM.
        numbers = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            self._previous[number] = signal.signal(number, self._note)
        self._notices.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._notices.stop()
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def reached(self, step: int) -> str | None:
        """Why the run must stop after `step` steps, or None; every process calls this after every step."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.requested = self.requested or "SIGTERM (to one of the processes)"
            return self.requested
        return None if jax.process_count() > 1 else self.requested

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)


class MaintenanceNotices:
    """Polls Compute Engine's metadata server (only on its machines); a notice becomes SIGTERM.

    Where $GCE_METADATA_HOST is set, that host is asked, as Google's own libraries do.
    """

    def __init__(self) -> None:
        self._host = os.environ.get("GCE_METADATA_HOST")
        if self._host is None and jax.devices()[0].platform == "tpu":
            self._host = "metadata.google.internal"
        self._stop = threading.Event()

    def start(self) -> None:
        """Starts polling, in a thread of its own."""
        if self._host is not None:
            threading.Thread(target=self._watch, name="maintenance-notices", daemon=True).start()

    def stop(self) -> None:
        """Ends the thread after the current request."""
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.is_set():
            if any(self._value(name) in values for name, values in _NOTICES.items()):
                os.kill(os.getpid(), signal.SIGTERM)
                return
            self._stop.wait(_POLL_SECONDS)

    def _value(self, name: str) -> str | None:
        request = urllib.request.Request(
            f"http://{self._host}/computeMetadata/v1/instance/{name}", headers={"Metadata-Flavor": "Google"}
        )
        try:
            with urllib.request.urlopen(request, timeout=_POLL_SECONDS) as answer:
                return answer.read().decode().strip()
        except (urllib.error.URLError, OSError):
            return None
