"""The interface of a hook: code that runs between the steps of a run.

A hook that reads the state names the steps at which it does, and the loop waits only there. Every other one receives
the report of a step while the devices compute the next step, so that reporting never blocks them.
"""

from collections.abc import Mapping
from typing import Any

from m1jax.train.report import StepReport
from m1jax.train.state import TrainState


class Hook:
    """A hook that does nothing: override what is needed. See hooks/ for examples."""

    def begin(self, step: int) -> None:
        """Called once, before the first step of this start: `step` steps were taken before."""

    def before(self, step: int) -> None:
        """Called before step `step` (from 1) is dispatched; must not wait for the devices."""

    def report(self, report: StepReport) -> None:
        """Receives every step's report in order, one step late."""

    def reads(self, step: int) -> bool:
        """True where `read` is to see the state after `step` steps."""
        del step
        return False

    def read(self, step: int, state: TrainState) -> Mapping[str, float]:
        """Reads the state after `step` steps; what it returns joins the values of that step's report.

        It runs on all processes of a run. The state must not be kept: the next step takes its memory.
        """
        del step, state
        return {}

    def end(self) -> None:
        """Called once, however the run ends."""


class StateHook(Hook):
    """A hook with a state of its own on the devices, which is sharded, saved, restored and counted by `m1 plan`."""

    name: str
    """The key of its state in `TrainState.hooks`."""

    def init(self, params: Any) -> Any:
        """The state before the first step, from the trained parameters; a pure function.

        A leaf that has a parameter's shape, and whose path ends in that parameter's path, is sharded as the parameter
        is; every other leaf is replicated.
        """
        raise NotImplementedError

    def update(self, state: Any, params: Any) -> Any:
        """The state after a step that left the trained parameters at `params`; a pure function inside the step."""
        raise NotImplementedError
