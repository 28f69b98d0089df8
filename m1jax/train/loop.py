"""The training loop: steps a state through the stages of a run, whatever the loss.

The next step is dispatched before the metrics of the one before are fetched, so that reporting never holds up the
device.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from m1jax.config import RunConfig
from m1jax.errors import InterruptedRunError
from m1jax.train import program as programs
from m1jax.train.checkpoint.checkpoints import Checkpoints, Meta, check_model
from m1jax.train.checkpoint.emergency import EmergencyCheckpoints
from m1jax.train.feed import Feed, HostBatch
from m1jax.train.run.faults import StopRequest
from m1jax.train.run.reports import Callback, Reporter, Taken, first_row, stage_of
from m1jax.train.state import TrainState
from m1jax.train.step import LossFn

OnStart = Callable[[int, Meta | None], Sequence[Callback]]
"""Steps taken, and what the checkpoint says that a run goes on from (None: there is none), to the run's callbacks."""


@dataclasses.dataclass(frozen=True)
class Profile:
    """The steps `first` to `last` (from 1) that are traced for XProf, and the folder of the trace."""

    first: int
    last: int
    folder: Path


def fit(
    config: RunConfig,
    *,
    mesh: Mesh,
    init_params: Callable[[], Any],
    params_axes: Any,
    loss_fn: LossFn,
    batches: Callable[[int], Iterator[HostBatch]],
    checkpoints: Checkpoints,
    emergency: EmergencyCheckpoints | None = None,
    meta: Meta,
    on_start: OnStart = lambda step, saved: (),
    say: Callable[[str], None] = lambda sentence: None,
    initial: Callable[[Any], Any] | None = None,
    profile: Profile | None = None,
) -> TrainState:
    """Runs a config from its newest whole checkpoint, or from `init_params()`, to its last step.

    `emergency`, where given, holds checkpoints of every `train.emergency_every` steps until the run is at its end; the
    newest of both is taken.
    `initial`, where given, makes the first parameters instead, from their shapes, dtypes and shardings (a tree).
    `batches(step)` yields this process's share of every batch from `step` on; `say` takes what a person should know.
    Raises InterruptedRunError after saving when a signal asked the run to stop, and UserError where the loss stays
    non-finite, or the checkpoint is another model's or cannot be written.
    """
    program = programs.build(config, mesh, loss_fn=loss_fn, params=jax.eval_shape(init_params), params_axes=params_axes)

    def check(saved: Meta) -> None:
        check_model(config, saved, checkpoints.folder)

    restored = emergency.restore_newest(program.state, check, say) if emergency else None
    restored = restored or checkpoints.restore_newest(program.state, check, say)
    if restored is not None:
        state = restored[0]
    elif initial is not None:
        state = program.begin(initial(program.state.params))
    else:
        state = program.create(init_params)
    first = int(state.step)
    reporter = Reporter(config, mesh, first, on_start(first, restored[1] if restored else None))
    tracer = _Tracer(profile)
    with StopRequest() as stop:
        feed = Feed(batches(first), mesh)
        for step in range(first, config.total_steps):
            tracer.before(step)
            stage, batch = stage_of(config, step), feed.take()
            state, metrics = program.step(state, batch.device, *programs.stage_scalars(stage))
            done = step + 1
            if done < config.total_steps:
                feed.prepare()  # while the devices compute
            reporter.add(Taken(step, batch.host["positions"], metrics, batch.waited))
            tracer.after(done, metrics)
            reason = stop.reached(done)
            if done % config.train.checkpoint_every == 0 or done == config.total_steps or reason:
                reporter.flush()  # what is reported never lags behind what is saved
                checkpoints.save(state, dataclasses.replace(meta, row=first_row(config, done)))
            elif emergency and done % config.train.emergency_every == 0:
                reporter.flush()
                emergency.save(state, dataclasses.replace(meta, row=first_row(config, done)))
            if reason and done < config.total_steps:
                checkpoints.wait()
                raise InterruptedRunError(
                    f"{reason} after step {done} of {config.total_steps}: saved in {checkpoints.folder}; "
                    f"the same command continues."
                )
        checkpoints.wait()
        if emergency:
            emergency.remove()
    return state


class _Tracer:
    """Turns jax's profiler on before a step and off once a later one is done."""

    def __init__(self, profile: Profile | None) -> None:
        self._profile, self._tracing = profile, False

    def before(self, step: int) -> None:
        """Called before step `step` (from 0) is dispatched."""
        if self._profile is not None and step + 1 == self._profile.first:
            jax.profiler.start_trace(self._profile.folder)
            self._tracing = True

    def after(self, done: int, metrics: Any) -> None:
        """Called once `done` steps are dispatched."""
        if self._tracing and self._profile is not None and done >= self._profile.last:
            jax.block_until_ready(metrics)
            jax.profiler.stop_trace()
            self._tracing = False
