"""What a run minimises: one file an objective. A new one is a file here and a line in OBJECTIVES."""

import difflib
from collections.abc import Callable

from jax.sharding import Mesh

from m1jax.config import RunConfig
from m1jax.errors import UserError
from m1jax.objectives.next_token import NextToken
from m1jax.objectives.policy import Policy
from m1jax.objectives.preference import Preference
from m1jax.objectives.reward import Reward
from m1jax.train.objective import Objective

OBJECTIVES: dict[str, Callable[[RunConfig, Mesh], Objective]] = {
    "next_token": NextToken,
    "preference": Preference,
    "reward": Reward,
    "policy": Policy,
}
"""The objective of a run and a mesh, by the name that the config key `objective` gives."""


def make(config: RunConfig, mesh: Mesh) -> Objective:
    """The objective that the config names; raises UserError for an unknown name."""
    if config.objective not in OBJECTIVES:
        near = difflib.get_close_matches(config.objective, OBJECTIVES, n=1, cutoff=0.0)[0]
        raise UserError(f"config key objective = {config.objective!r} is unknown: did you mean {near!r}?")
    return OBJECTIVES[config.objective](config, mesh)


def on_pairs(config: RunConfig) -> bool:
    """Whether the config's objective learns from pairs of answers."""
    return bool(getattr(OBJECTIVES.get(config.objective), "piece_columns", ()))
