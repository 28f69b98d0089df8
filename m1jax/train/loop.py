"""The training loop: steps a state through the stages of a run, whatever the loss.

The next step is dispatched before the metrics of the one before are fetched, so that reporting never holds up the
device.
"""

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from m1jax.config import RunConfig, StageConfig
from m1jax.errors import InterruptedRunError, UserError
from m1jax.model.flops import train_flops
from m1jax.optim.schedules import learning_rate
from m1jax.parallel import mesh as meshes
from m1jax.train import program as programs
from m1jax.train.checkpoint import Checkpoints, Meta, check_model
from m1jax.train.faults import StopRequest
from m1jax.train.feed import Feed, HostBatch
from m1jax.train.metrics import peak_flops
from m1jax.train.state import TrainState
from m1jax.train.step import LossFn

MAX_NONFINITE = 10
"""Steps in a row without a finite gradient after which the run stops."""


@dataclasses.dataclass(frozen=True)
class StepReport:
    """One step as callbacks see it; `step` counts from 1."""

    step: int
    total_steps: int
    stage: str
    loss: float
    """Mean over the step's targets, nats."""
    grad_norm: float
    skipped: bool
    skipped_total: int
    learning_rate: float
    tokens: int
    """Tokens of the run so far, padding included."""
    tokens_per_second: float
    mfu: float
    """Model FLOPs (model/flops.py) a second over the peak of all devices."""
    data_wait: float
    """Seconds this step waited for its batch."""
    seconds_left: float


class Callback(Protocol):
    """Told of every step, in order, one step late."""

    def __call__(self, report: StepReport) -> None:
        """Takes the report of one step."""


def fit(
    config: RunConfig,
    *,
    mesh: Mesh,
    init_params: Callable[[], Any],
    params_axes: Any,
    loss_fn: LossFn,
    batches: Callable[[int], Iterator[HostBatch]],
    checkpoints: Checkpoints,
    meta: Meta,
    on_start: Callable[[int], Sequence[Callback]] = lambda step: (),
    initial: Callable[[Any], Any] | None = None,
) -> TrainState:
    """Runs a config from its newest checkpoint, or from `init_params()`, to its last step.

    `initial`, where given, makes the first parameters instead, from their shapes, dtypes and shardings (a tree).
    `batches(step)` yields this process's share of every batch from `step` on; `on_start(step)` makes the callbacks
    once it is known where the run goes on. Raises InterruptedRunError after saving when a signal asked the run to
    stop, and UserError where the loss stays non-finite or the checkpoint is another model's.
    """
    program = programs.build(config, mesh, loss_fn=loss_fn, params=jax.eval_shape(init_params), params_axes=params_axes)
    if checkpoints.latest_step() is None and initial is not None:
        state = program.begin(initial(program.state.params))
    elif checkpoints.latest_step() is None:
        state = program.create(init_params)
    else:
        check_model(config, checkpoints.meta(), checkpoints.folder)
        state = checkpoints.restore(program.state)
    first = int(state.step)
    callbacks = on_start(first)
    reporter = _Reporter(config, mesh, first, callbacks)
    with StopRequest() as stop:
        feed = Feed(batches(first), mesh)
        for step in range(first, config.total_steps):
            stage, batch = stage_of(config, step), feed.take()
            state, metrics = program.step(state, batch.device, *programs.stage_scalars(stage))
            done = step + 1
            if done < config.total_steps:
                feed.prepare()  # while the devices compute
            reporter.add(step, batch.host["positions"], metrics, batch.waited)
            if done % config.train.checkpoint_every == 0 or done == config.total_steps or stop.requested:
                reporter.flush()  # what is reported never lags behind what is saved
                checkpoints.save(state, meta)
            if stop.requested and done < config.total_steps:
                checkpoints.wait()
                raise InterruptedRunError(
                    f"{stop.requested} after step {done} of {config.total_steps}: saved in {checkpoints.folder}; "
                    f"the same command continues."
                )
        checkpoints.wait()
    return state


def stage_of(config: RunConfig, step: int) -> StageConfig:
    """The stage that global step `step` (from 0) belongs to."""
    return _stage_and_step(config, step)[0]


def _stage_and_step(config: RunConfig, step: int) -> tuple[StageConfig, int]:
    for stage in config.stages:
        if step < stage.steps:
            return stage, step
        step -= stage.steps
    raise IndexError(step)


class _Reporter:
    """Turns the metrics of a step into a report once the next step is on its way."""

    def __init__(self, config: RunConfig, mesh: Mesh, first: int, callbacks: Sequence[Callback]):
        self._config, self._callbacks = config, callbacks
        self._parts = meshes.row_share(mesh)[1]
        self._rate = learning_rate(config)
        self._peak = peak_flops(mesh.devices.flat[0], config.model.compute_dtype) * mesh.size
        self._tokens = _tokens_before(config, first)
        self._total = _tokens_before(config, config.total_steps)
        self._pending: tuple[int, np.ndarray, dict[str, jax.Array], float] | None = None
        self._recent: deque[tuple[float, int, float]] = deque([(time.perf_counter(), 0, 0.0)], maxlen=20)
        self._nonfinite = 0

    def add(self, step: int, positions: np.ndarray, metrics: dict[str, jax.Array], waited: float) -> None:
        before, self._pending = self._pending, (step, positions, metrics, waited)
        if before is not None:
            self._report(*before)

    def flush(self) -> None:
        if self._pending is not None:
            self._report(*self._pending)
            self._pending = None

    def _report(self, step: int, positions: np.ndarray, metrics: dict[str, jax.Array], waited: float) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        stage, step_of_stage = _stage_and_step(self._config, step)
        tokens = stage.row_length * stage.batch_of(step_of_stage)
        flops = train_flops(self._config.model, positions) * self._parts
        now = time.perf_counter()
        self._recent.append((now, tokens, flops))
        span = now - self._recent[0][0]
        speed = sum(entry[1] for entry in list(self._recent)[1:]) / span
        self._tokens += tokens
        report = StepReport(
            step=step + 1,
            total_steps=self._config.total_steps,
            stage=stage.name,
            loss=values["loss"],
            grad_norm=values["grad_norm"],
            skipped=bool(values["skipped"]),
            skipped_total=int(values["skipped_total"]),
            learning_rate=float(self._rate(step)),
            tokens=self._tokens,
            tokens_per_second=speed,
            mfu=sum(entry[2] for entry in list(self._recent)[1:]) / span / self._peak,
            data_wait=waited,
            seconds_left=(self._total - self._tokens) / speed,
        )
        for callback in self._callbacks:
            callback(report)
        self._nonfinite = 0 if np.isfinite(report.grad_norm) else self._nonfinite + 1
        if self._nonfinite >= MAX_NONFINITE:
            raise UserError(
                f"loss or gradient was not finite in {MAX_NONFINITE} steps in a row, up to step {report.step}: lower "
                f"the learning rate, or look at the documents of these steps; parameters were left as they were before."
            )


def _tokens_before(config: RunConfig, step: int) -> int:
    """Tokens of all steps before global step `step`."""
    tokens = 0
    for stage in config.stages:
        steps = min(stage.steps, step)
        tokens += stage.rows_before(steps) * stage.row_length
        step -= steps
    return tokens
