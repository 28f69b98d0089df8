"""The report of one step."""

import dataclasses
from collections.abc import Mapping
from typing import Any

NORMS = ("grad_norm/", "update_norm/", "param_norm/")
"""How the names of norms of one kind of parameters begin; the kind follows (train/norms.py)."""


@dataclasses.dataclass(frozen=True)
class StepReport:
    """One step as hooks see it; `step` counts from 1."""

    step: int
    total_steps: int
    stage: str
    loss: float
    """The objective's loss over the global batch; nats a target for next-token training."""
    grad_norm: float
    norm_mean: float
    """Mean of the accepted gradient norms before this step, 0 where there are none."""
    skipped: bool
    skipped_total: int
    learning_rate: float
    rows: tuple[int, int]
    """Numbers of the step's first and last global row."""
    tokens: int
    """Tokens of the run so far, padding included."""
    tokens_per_second: float
    mfu: float | None
    """Model FLOPs (the objective's) a second over the peak of all devices; None where the peak is not known."""
    seconds: float
    """From the report before (or the start) to this one, without the time in which hooks read the state."""
    data_wait: float
    """Seconds this step waited for its batch."""
    hbm_bytes: int | None
    """Most device memory in use so far, over this process's devices; None where devices do not count it."""
    seconds_left: float
    values: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """What else is known of the step by name: the quantities that the objective reports, norms by kind of parameters
    such as "grad_norm/window", and what hooks measured on the state after it."""

    def flat(self) -> dict[str, Any]:
        """Everything that changes from step to step under one name each, without what is not known."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("step", "stage", "total_steps", "values"):
            fields.pop(name)
        fields |= {"skipped": int(self.skipped), "rows": list(self.rows), **self.values}
        return {name: value for name, value in fields.items() if value is not None}
