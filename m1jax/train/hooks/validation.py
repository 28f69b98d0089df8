"""Measurements of the live parameters on held-out text."""

from collections.abc import Callable, Mapping
from typing import Any

from m1jax.config import RunConfig, StageConfig
from m1jax.train.hooks.hook import Hook
from m1jax.train.state import TrainState

Measure = Callable[[Any, StageConfig], Mapping[str, float]]
"""(all parameters, the stage of the step before) to values by name; called on all processes."""

LOSS, BITS = "heldout_loss", "heldout_bits_per_byte"
"""Names of what is measured over all sources; "/" and a source's name follow for one source."""


class Validation(Hook):
    """Calls `measure` every `train.validate_every` steps and after the last one.

    `measure` is built in verbs/, where tokenizers and held-out text are known.
    """

    def __init__(self, config: RunConfig, measure: Measure):
        self._config, self._measure = config, measure

    def reads(self, step: int) -> bool:
        """True every so many steps, and after the last one."""
        return step % self._config.train.validate_every == 0 or step == self._config.total_steps

    def read(self, step: int, state: TrainState) -> Mapping[str, float]:
        """The measured values, at the rotary base and row length of the stage that ends with this step."""
        return self._measure(state.all_params, self._config.timeline.stage(step - 1))
