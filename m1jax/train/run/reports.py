"""Reports of the steps: metrics are fetched from the devices after the next step is dispatched."""

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from m1jax.config import RunConfig
from m1jax.errors import UserError
from m1jax.optim.schedules import learning_rate
from m1jax.parallel import measure
from m1jax.parallel import mesh as meshes
from m1jax.train.hooks.journal import hbm_bytes
from m1jax.train.objective import Objective
from m1jax.train.report import StepReport

_OWN = ("loss", "denominator", "grad_norm", "norm_mean", "skipped", "skipped_total", "nonfinite_in_row")
"""Metrics of every step; the others are the objective's quantities and norms."""


@dataclasses.dataclass(frozen=True)
class Taken:
    """A step that was dispatched: its metrics are still on the devices."""

    step: int
    positions: np.ndarray
    metrics: Mapping[str, jax.Array]
    waited: float


class Reporter:
    """Turns the metrics of a step into a report after the next step is dispatched."""

    def __init__(
        self,
        config: RunConfig,
        objective: Objective,
        mesh: Mesh,
        first: int,
        emit: Callable[[StepReport], None],
    ):
        """The run starts after `first` steps; `emit` receives every report."""
        self._config, self._objective, self._emit = config, objective, emit
        self._parts = meshes.row_share(mesh)[1]
        self._rate = learning_rate(config)
        peak = measure.peak_flops(mesh.devices.flat[0], config.model.compute_dtype)
        self._peak = peak * mesh.size if peak else None
        self._tokens = config.timeline.tokens_before(first)
        self._total = config.timeline.tokens
        self._pending: Taken | None = None
        self._measured: dict[str, float] = {}
        self._paused = 0.0
        self._recent: deque[tuple[float, int, float]] = deque([(time.perf_counter(), 0, 0.0)], maxlen=20)

    def add(self, taken: Taken) -> None:
        """Takes a step that was dispatched, and reports the one before."""
        before, self._pending = self._pending, taken
        if before is not None:
            self._report(before)

    def flush(self) -> None:
        """Reports the last step too."""
        if self._pending is not None:
            self._report(self._pending)
            self._pending = None

    def measured(self, values: Mapping[str, float], seconds: float) -> None:
        """Adds what hooks measured after the newest step; its `seconds` are not counted as time of a step."""
        self._measured |= values
        self._paused += seconds

    def _report(self, taken: Taken) -> None:
        found = {name: float(value) for name, value in jax.device_get(dict(taken.metrics)).items()}
        timeline = self._config.timeline
        stage, rows = timeline.stage(taken.step), timeline.batch_of(taken.step)
        first_row = timeline.rows_before(taken.step)
        tokens = stage.row_length * rows
        flops = self._objective.flops(taken.positions) * self._parts
        # Time in which hooks read the state does not count.
        now = time.perf_counter() - self._paused
        seconds = now - self._recent[-1][0]
        self._recent.append((now, tokens, flops))
        span = now - self._recent[0][0]
        speed = sum(entry[1] for entry in list(self._recent)[1:]) / span
        self._tokens += tokens
        report = StepReport(
            step=taken.step + 1,
            total_steps=self._config.total_steps,
            stage=stage.name,
            loss=found["loss"],
            grad_norm=found["grad_norm"],
            norm_mean=found["norm_mean"],
            skipped=bool(found["skipped"]),
            skipped_total=int(found["skipped_total"]),
            learning_rate=float(self._rate(taken.step)),
            rows=(first_row, first_row + rows - 1),
            tokens=self._tokens,
            tokens_per_second=speed,
            mfu=sum(entry[2] for entry in list(self._recent)[1:]) / span / self._peak if self._peak else None,
            seconds=seconds,
            data_wait=taken.waited,
            hbm_bytes=hbm_bytes(),
            seconds_left=(self._total - self._tokens) / speed,
            values={name: value for name, value in found.items() if name not in _OWN} | self._measured,
        )
        self._measured = {}
        self._emit(report)
        if found["denominator"] == 0:
            raise UserError(
                f"step {report.step} (stage {stage.name!r}, global rows {report.rows[0]} to {report.rows[1]}) has "
                f"nothing to learn, so no loss: `m1 curriculum replay --step {report.step}` shows its rows; parameters "
                f"were left as they were before."
            )
        self._stop_where_nothing_is_finite(report, int(found["nonfinite_in_row"]))

    def _stop_where_nothing_is_finite(self, report: StepReport, in_row: int) -> None:
        if in_row < self._config.train.max_nonfinite:
            return
        first = self._config.timeline.rows_before(max(report.step - in_row, 0))
        raise UserError(
            f"loss or gradient was not finite in {in_row} steps in a row, up to step {report.step} (global rows "
            f"{first} to {report.rows[1]}): lower the learning rate, or look at the documents of these rows; "
            f"parameters were left as they were before."
        )
