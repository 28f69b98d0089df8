"""A trace of some steps for XProf."""

from collections.abc import Mapping
from pathlib import Path

import jax

from m1jax.train.hooks.hook import Hook
from m1jax.train.state import TrainState


class Profile(Hook):
    """Traces steps `first` to `last` (from 1) into `folder`; waits for the devices at the end of the last one."""

    def __init__(self, first: int, last: int, folder: Path):
        self._first, self._last, self._folder = first, last, folder
        self._tracing = False

    def before(self, step: int) -> None:
        """Starts the trace before its first step."""
        if step == self._first:
            jax.profiler.start_trace(self._folder)
            self._tracing = True

    def reads(self, step: int) -> bool:
        """Waits after the trace's last step."""
        return self._tracing and step >= self._last

    def read(self, step: int, state: TrainState) -> Mapping[str, float]:
        """Ends the trace once the last step is complete."""
        jax.block_until_ready(state)
        self.end()
        return {}

    def end(self) -> None:
        """Ends a trace that the end of the run cuts short."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
