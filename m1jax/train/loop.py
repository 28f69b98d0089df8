"""The training loop: steps a state through the stages of a run.

The next step is dispatched before the metrics of the one before are fetched, so that reporting never holds up the
devices.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

from m1jax.errors import InterruptedRunError
from m1jax.train.feed import Feed, HostBatch
from m1jax.train.report import StepReport
from m1jax.train.run.faults import StopRequest
from m1jax.train.run.reports import Reporter, Taken
from m1jax.train.state import TrainState
from m1jax.train.trainer import Trainer


def fit(trainer: Trainer, state: TrainState, batches: Callable[[int], Iterator[HostBatch]]) -> TrainState:
    """Steps a restored state to the last step of the run, saves it and returns it.

    `batches(step)` yields this process's share of every batch from `step` (from 0) on. Raises InterruptedRunError after
    saving when a signal asked the run to stop, and UserError where the loss stays non-finite or a checkpoint cannot be
    written.
    """
    config, first = trainer.config, int(state.step)
    total, train = config.total_steps, config.train
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        for hook in trainer.hooks:
            stack.callback(hook.end)
            hook.begin(first)
        reporter = Reporter(config, trainer.objective, trainer.mesh, first, _emitter(trainer))
        feed = Feed(batches(first), trainer.mesh, trainer.objective.columns)
        for step in range(first, total):
            done = step + 1
            for hook in trainer.hooks:
                hook.before(done)
            batch = feed.take()
            state, metrics = trainer.step(state, batch.device, step)
            if done < total:
                feed.prepare()  # while the devices compute
            reporter.add(Taken(step, batch.host["positions"], metrics, batch.waited))
            _let_hooks_read(trainer, state, done, reporter)
            reason = stop.reached(done)
            if done % train.checkpoint_every == 0 or done == total or reason:
                reporter.flush()  # what is reported never lags behind what is saved
                trainer.save(state, done)
            elif train.emergency_every and done % train.emergency_every == 0:
                reporter.flush()
                trainer.save(state, done, emergency=True)
            if reason and done < total:
                trainer.wait()
                raise InterruptedRunError(
                    f"{reason} after step {done} of {total}: saved in {config.checkpoints}; the same command continues."
                )
        trainer.finish()
    return state


def _emitter(trainer: Trainer) -> Callable[[StepReport], None]:
    def emit(report: StepReport) -> None:
        for hook in trainer.hooks:
            hook.report(report)

    return emit


def _let_hooks_read(trainer: Trainer, state: TrainState, done: int, reporter: Reporter) -> None:
    """Calls the hooks that named this step; the only place where the loop waits for the devices."""
    reading = [hook for hook in trainer.hooks if hook.reads(done)]
    if reading:
        state.step.block_until_ready()  # else the step's own time would count as the hooks'
        begun = time.perf_counter()
        values = {name: value for hook in reading for name, value in hook.read(done, state).items()}
        reporter.measured(values, time.perf_counter() - begun)
