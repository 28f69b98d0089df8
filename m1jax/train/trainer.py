"""A trainer: the compiled step of a run, its state's beginning, and its checkpoints."""

import dataclasses
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from m1jax import __version__
from m1jax.config import RunConfig, to_dict
from m1jax.train import program as programs
from m1jax.train.checkpoint.checkpoints import Checkpoints, check_model
from m1jax.train.checkpoint.emergency import EmergencyCheckpoints
from m1jax.train.checkpoint.folder import Meta
from m1jax.train.hooks.hook import Hook, StateHook
from m1jax.train.objective import Batch, Objective
from m1jax.train.state import TrainState

_VERSIONS = ("jax", "flax", "optax", "orbax-checkpoint", "grain")


def silent(sentence: str) -> None:
    """Says nothing."""


class Trainer:
    """Restores, steps and saves the state of a run; a context manager that closes its checkpoints.

    `restored` describes the checkpoint that `restore` read; None where the run begins.
    """

    def __init__(
        self,
        config: RunConfig,
        objective: Objective,
        mesh: Mesh,
        *,
        hooks: Sequence[Hook] = (),
        curriculum: Mapping[str, Any] | None = None,
        initial: Callable[[Any], Any] | None = None,
        say: Callable[[str], None] = silent,
    ):
        """Compiles nothing yet.

        Args:
            config: the run.
            objective: what is minimised.
            mesh: the devices; all processes of the run make the same one.
            hooks: code that runs between the steps; the state of those that have one is part of the checkpoints.
            curriculum: `Curriculum.record()`, kept in every checkpoint.
            initial: makes the first parameters from their shapes, dtypes and shardings (a tree); by default the
                objective makes them.
            say: receives sentences for a person.

        Raises:
            UserError: a parameter does not divide over the mesh, or a folder for checkpoints cannot be written.
        """
        self.config, self.mesh, self.hooks, self.say = config, mesh, tuple(hooks), say
        self.objective = objective
        self.program = programs.build(
            config, objective, mesh, [hook for hook in self.hooks if isinstance(hook, StateHook)]
        )
        self.checkpoints = Checkpoints(config.checkpoints, config.train.keep_checkpoints, config.train.keep_every)
        self.restored: Meta | None = None
        self._initial = initial
        self._meta = Meta(run=to_dict(config), curriculum=dict(curriculum or {}), versions=_versions())
        self.emergency: EmergencyCheckpoints | None = None
        if config.train.emergency_every:
            self.emergency = EmergencyCheckpoints(Path(config.train.emergency_folder), self.checkpoints, say)

    def restore(self, check: Callable[[Meta, int], None] | None = None) -> TrainState:
        """The state of the newest checkpoint of the run, or the one that it begins with.

        Emergency checkpoints count where they are newer than the folder's. `check` gets the checkpoint's Meta and step
        before its arrays are read, and raises UserError where this run may not continue it. Raises UserError where the
        newest belongs to another model, and DamagedError where none can be read.
        """

        def allowed(saved: Meta, step: int) -> None:
            check_model(self.config, saved, self.checkpoints.folder)
            if check is not None:
                check(saved, step)

        target = self.program.state
        found = self.emergency.restore_newest(target, allowed, self.say) if self.emergency else None
        found = found or self.checkpoints.restore_newest(target, allowed, self.say)
        if found is not None:
            state, self.restored = found
            return state
        if self._initial is not None:
            return self.program.begin(self._initial(self.program.params))
        return self.program.create()

    def step(self, state: TrainState, batch: Batch, step: int) -> tuple[TrainState, dict[str, jax.Array]]:
        """Dispatches step `step` (from 0); returns the new state and its metrics, see `train_step`.

        The state given is donated: it must not be used again.
        """
        return self.program.step(state, batch, programs.stage_scalars(self.config.timeline.stage(step)))

    def save(self, state: TrainState, done: int, emergency: bool = False) -> None:
        """Starts to save the state after `done` steps, in the run's folder or as an emergency checkpoint.

        Arrays are copied before it returns, and written behind the next steps. Raises UserError where the disk of the
        run's folder has no room.
        """
        meta = dataclasses.replace(self._meta, row=self.config.timeline.rows_before(done))
        if not emergency:
            self.checkpoints.save(state, meta)
        elif self.emergency is not None:
            self.emergency.save(state, meta)

    def wait(self) -> None:
        """Returns when everything that `save` started is on disk."""
        self.checkpoints.wait()

    def finish(self) -> None:
        """Waits for the last checkpoint and frees the machines of emergency ones: the run is at its end."""
        self.wait()
        if self.emergency is not None:
            self.emergency.remove()

    def close(self) -> None:
        """Lets the threads of the checkpoints end."""
        if self.emergency is not None:
            self.emergency.close()
        self.checkpoints.close()

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _versions() -> dict[str, str]:
    return {"m1jax": __version__, **{name: importlib.metadata.version(name) for name in _VERSIONS}}
