"""The steps, global rows and tokens of a run's stages: which stage a step belongs to, and what came before it."""

import bisect
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from m1jax.config.stages import StageConfig
from m1jax.errors import UserError


class _Part(NamedTuple):
    """Steps of one size that follow each other, and what came before the first of them."""

    step: int
    row: int
    token: int
    stage: int
    batch: int
    tokens_a_step: int


class Timeline:
    """The stages of a run as arithmetic: steps and global rows count from 0, over all stages.

    Every lookup takes O(log(sizes of the global batch)) and raises UserError for a step or row that the run lacks.
    """

    def __init__(self, stages: Sequence[StageConfig]) -> None:
        self.stages = tuple(stages)
        self._parts: list[_Part] = []
        step = row = token = 0
        for index, stage in enumerate(self.stages):
            for batch, steps in stage.batches:
                if steps:
                    tokens = batch * stage.row_length
                    self._parts.append(_Part(step, row, token, index, batch, tokens))
                    step, row, token = step + steps, row + steps * batch, token + steps * tokens
        self.steps, self.rows, self.tokens = step, row, token
        self.first_steps = tuple(itertools.accumulate((stage.steps for stage in self.stages), initial=0))
        """The first step of each stage, and last the number of all steps."""

    def stage_index(self, step: int) -> int:
        """Index of the stage of a step."""
        return self._part(step).stage

    def stage(self, step: int) -> StageConfig:
        """The stage of a step."""
        return self.stages[self.stage_index(step)]

    def batch_of(self, step: int) -> int:
        """Rows of a step, over all hosts."""
        return self._part(step).batch

    def rows_before(self, step: int) -> int:
        """Rows of all steps before a step: the number of its first row. After the last step, rows in all."""
        if step == self.steps:
            return self.rows
        part = self._part(step)
        return part.row + (step - part.step) * part.batch

    def tokens_before(self, step: int) -> int:
        """Tokens of all steps before a step, padding included. After the last step, tokens in all."""
        if step == self.steps:
            return self.tokens
        part = self._part(step)
        return part.token + (step - part.step) * part.tokens_a_step

    def step_of_row(self, row: int) -> int:
        """The step that reads a global row."""
        if not 0 <= row < self.rows:
            raise UserError(f"row {row} is not in the curriculum, which has {self.rows} rows.")
        part = self._parts[bisect.bisect_right(self._parts, row, key=lambda part: part.row) - 1]
        return part.step + (row - part.row) // part.batch

    def _part(self, step: int) -> _Part:
        if not 0 <= step < self.steps:
            raise UserError(f"step {step} is not in the curriculum, which has steps 0 to {self.steps - 1}.")
        return self._parts[bisect.bisect_right(self._parts, step, key=lambda part: part.step) - 1]
