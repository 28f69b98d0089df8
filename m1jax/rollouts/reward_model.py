"""A reward model as a reward: the number that a run of the objective `reward` gives a prompt with its response.

Legend: B rows of a batch, S tokens of a row.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from m1jax import tokenizer as tokenizers
from m1jax.config import RunConfig
from m1jax.config import file as config_file
from m1jax.errors import UserError
from m1jax.objectives.reward import Reward
from m1jax.parallel import rules
from m1jax.parallel.mesh import BATCH_AXES
from m1jax.rollouts import sequences
from m1jax.rollouts.rewards import Case
from m1jax.tokenizer import Tokenizer
from m1jax.train import program
from m1jax.train.checkpoint.folder import existing

_BATCH = 8
"""Texts that are read at once, or as many as a mesh has places for rows."""
_STEP = 64
"""Rows are as long as a multiple of this, so that few lengths are compiled."""


def opened(folder: Path, tokenizer: Tokenizer, mesh: Mesh, dtype: str = "") -> Callable[[Sequence[Case]], list[float]]:
    """The newest checkpoint of a run of `m1 prefer --objective reward`, as a function of cases to numbers.

    Its parameters are divided over `mesh`, as the trainer's are, and held in `dtype` where it is given. Raises
    UserError where the folder holds no such run, or one of another tokenizer.
    """
    checkpoints = existing(folder / "checkpoints")
    try:
        step = checkpoints.latest_step()
        config = config_file.from_dict(checkpoints.meta(step).run)
        if config.objective != "reward":
            raise UserError(
                f"{folder} was trained with the objective {config.objective!r}, so it gives no reward: train one with "
                f"`m1 prefer --objective reward`."
            )
        inside = folder / "tokenizer"
        own = tokenizers.load(inside) if inside.is_dir() else tokenizers.of_run(config)
        if own.fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"the reward model in {folder} has another tokenizer ({own.fingerprint}) than this run "
                f"({tokenizer.fingerprint}): train it from the same model."
            )
        objective = Reward(config, mesh)
        params = checkpoints.restore_params(abstract_parameters(objective, mesh, dtype), step)
    finally:
        checkpoints.close()
    return _Scorer(config, objective, params, tokenizer.eos_id, mesh)


def abstract_parameters(objective: Reward, mesh: Mesh, dtype: str) -> dict[str, Any]:
    """Shapes, dtypes and shardings of a reward model's parameters; the head stays float32."""
    shapes = {
        name: tree
        if name in objective.heads
        else jax.tree.map(lambda leaf: leaf.update(dtype=dtype or leaf.dtype), tree)
        for name, tree in objective.shapes.items()
    }
    shardings = rules.parameter_shardings(mesh, objective.shapes, objective.axes)
    return jax.tree.map(lambda leaf, sharding: leaf.update(sharding=sharding), shapes, shardings)


def rows_at_once(mesh: Mesh) -> int:
    """Texts that are read in one call."""
    devices = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    return -(-_BATCH // devices) * devices


def padded(length: int, most: int) -> int:
    """The row length that texts of `length` tokens are read in."""
    return min(-(-length // _STEP) * _STEP, most)


class _Scorer:
    def __init__(self, config: RunConfig, objective: Reward, params: Any, eos_id: int, mesh: Mesh):
        self._params, self._eos, self._mesh = params, eos_id, mesh
        self._batch = rows_at_once(mesh)
        self._positions = config.model.max_positions
        self._scalars = program.stage_scalars(config.stages[-1])
        self._scores = jax.jit(objective.scores)

    def __call__(self, cases: Sequence[Case]) -> list[float]:
        found: list[float] = []
        for first in range(0, len(cases), self._batch):
            some = cases[first : first + self._batch]
            texts = [self._text(case) for case in some]
            longest = max(len(text) for text in texts)
            if longest > self._positions:
                raise UserError(
                    f"the reward model reads at most {self._positions} tokens, a prompt with its response has "
                    f"{longest}: lower policy.max_new_tokens."
                )
            full = [*texts, *[texts[-1]] * (self._batch - len(texts))]
            length = padded(longest, self._positions)
            made = sequences.rows([sequences.Continuation(text, ()) for text in full], self._batch, length)
            columns = jax.device_put(dict(made.columns), rules.batch_sharding(self._mesh))
            scores = np.asarray(self._scores(self._params, columns, self._scalars))
            found += [float(scores[row, len(text) - 1]) for row, text in enumerate(texts)]
        return found

    def _text(self, case: Case) -> list[int]:
        """Prompt, response and EOS, which is where a text of the reward model's training ends."""
        ids = [*case.prompt_ids, *case.response_ids]
        return ids if ids[-1] == self._eos else [*ids, self._eos]
