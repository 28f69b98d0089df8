"""Weights & Biases as a tracker; needs the extra `m1jax[wandb]`."""

from typing import Any

from m1jax.config import RunConfig, to_dict
from m1jax.errors import UserError
from m1jax.train.hooks.hook import Hook
from m1jax.train.report import StepReport


class Wandb(Hook):
    """Logs every report under the run's name; WANDB_MODE and WANDB_PROJECT act as usual."""

    def __init__(self, config: RunConfig):
        """Raises UserError where the package wandb is not installed."""
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                "config key train.trackers: the package wandb is not installed: run `pip install 'm1jax[wandb]'`."
            ) from error
        self._wandb, self._config = wandb, config
        self._run: Any = None

    def begin(self, step: int) -> None:
        """Opens the run, or continues the one of the same folder."""
        name = self._config.name
        self._run = self._wandb.init(name=name, dir=self._config.folder, config=to_dict(self._config), resume="allow")

    def report(self, report: StepReport) -> None:
        """Logs the numbers of a step."""
        numbers = {name: value for name, value in report.flat().items() if isinstance(value, float | int)}
        self._run.log(numbers, step=report.step)

    def end(self) -> None:
        """Uploads what is left."""
        if self._run is not None:
            self._run.finish()
