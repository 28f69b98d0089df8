"""A run's progress for people: a live bar on a terminal, a plain line every few steps elsewhere."""

import datetime

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from m1jax.train.hooks.hook import Hook
from m1jax.train.hooks.validation import BITS, LOSS
from m1jax.train.report import StepReport


class ProgressBar(Hook):
    """Loss, tokens/s, MFU and time left on a live bar; a sentence for each skipped step and each validation.

    Where the output is not a terminal (a file, CI), a plain line is printed every `every` steps instead.
    """

    def __init__(self, console: Console, every: int):
        self._console, self._every = console, every
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._heldout = ""
        self._task = self._bar.add_task("start", total=None, numbers="compiling")

    def begin(self, step: int) -> None:
        """Shows the bar."""
        self._bar.start()

    def end(self) -> None:
        """Leaves the bar as it is."""
        self._bar.stop()

    def report(self, report: StepReport) -> None:
        """Moves the bar to the report's step."""
        left = datetime.timedelta(seconds=round(report.seconds_left))
        mfu = "n/a" if report.mfu is None else f"{report.mfu:.0%}"
        numbers = (
            f"loss {report.loss:.3f} · {report.tokens_per_second:,.0f} tokens/s · MFU {mfu} · "
            f"skipped {report.skipped_total} · {left} left"
        )
        if LOSS in report.values:
            self._heldout = f" · held-out {report.values[LOSS]:.3f}"
        numbers += self._heldout
        self._bar.update(
            self._task, completed=report.step, total=report.total_steps, description=report.stage, numbers=numbers
        )
        if report.skipped:
            self._console.print(skip_sentence(report), soft_wrap=True, highlight=False)
        if LOSS in report.values:
            self._console.print(validation_sentence(report), soft_wrap=True, highlight=False)
        last = report.step == report.total_steps
        if not self._console.is_terminal and (report.step == 1 or report.step % self._every == 0 or last):
            self._console.print(
                f"{report.stage:>10} {report.step:>6}/{report.total_steps} · {numbers}", soft_wrap=True, highlight=False
            )


_HELDOUT = "heldout_"


def skip_sentence(report: StepReport) -> str:
    """A skipped step in words: norm, mean of the accepted norms, step and rows."""
    first, last = report.rows
    return (
        f"step {report.step} skipped: gradient norm {report.grad_norm:.4g}, mean of accepted norms "
        f"{report.norm_mean:.4g}, global rows {first} to {last}"
    )


def validation_sentence(report: StepReport) -> str:
    """What was measured on held-out text after a step, in words."""
    values = report.values
    told = f"step {report.step} validated: held-out loss {values[LOSS]:.3f}"
    if BITS in values:
        return f"{told} nats a token, {values[BITS]:.3f} bits per byte"
    others = {name.removeprefix(_HELDOUT): value for name, value in values.items() if name.startswith(_HELDOUT)}
    # "/" is in the names of parts, such as the bins of a calibration: they are for plots.
    shown = {n.replace("_", " "): v for n, v in others.items() if n != "loss" and "/" not in n}
    return ", ".join([told, *(f"{name} {value:.3f}" for name, value in shown.items())])
