"""Where the numbers of each step go: metrics.jsonl with TensorBoard, and the trackers that the config names."""

from m1jax.config import RunConfig
from m1jax.train.hooks.hook import Hook
from m1jax.train.hooks.journal import Journal
from m1jax.train.hooks.wandb import Wandb

TRACKERS = {"wandb": Wandb}
"""By the names of `train.trackers` (config/schema.py: TRACKERS)."""


def of_run(config: RunConfig) -> list[Hook]:
    """The hooks of a run; raises UserError where the package of a tracker is not installed."""
    return [Journal(config.journal), *(TRACKERS[name](config) for name in config.train.trackers)]
