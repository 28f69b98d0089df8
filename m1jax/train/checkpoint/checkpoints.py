"""The checkpoints of a run in its folder: which are kept, room for the next, and the newest that can be read."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from m1jax import disk
from m1jax.config import RunConfig, to_dict
from m1jax.errors import UserError
from m1jax.train.checkpoint.folder import CheckpointFolder, DamagedError, Meta, described
from m1jax.train.state import TrainState


class Checkpoints:
    """The checkpoints that a run writes into its folder and continues from."""

    def __init__(self, folder: Path, keep: int = 1, keep_every: int = 0):
        """Keeps the newest `keep`, and those of every `keep_every` steps (0: none)."""
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every or None, cleanup_tmp_directories=True
        )
        self._files = CheckpointFolder(folder, options)

    @property
    def folder(self) -> Path:
        """The absolute path of the folder."""
        return self._files.path

    @property
    def saving(self) -> int | None:
        """Step of the newest checkpoint that `save` started."""
        return self._files.saving

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint; None where there is none."""
        return self._files.latest_step()

    def save(self, state: TrainState, meta: Meta) -> None:
        """Starts to save; arrays are copied before it returns, and written behind the next steps.

        Raises UserError where the disk has no room for it, found out before a byte is written, and where writing the
        checkpoint before failed; what was saved earlier stays complete.
        """
        if int(state.step) in self._files.steps():
            return
        disk.check_room(self.folder, sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        self._files.save(state, dataclasses.replace(meta, arrays=described(state)))

    def restore_newest(
        self, target: TrainState, check: Callable[[Meta, int], None], say: Callable[[str], None]
    ) -> tuple[TrainState, Meta] | None:
        """The newest checkpoint that can be read, and the run that it belongs to; None where there is no checkpoint.

        A damaged one is named by `say` and renamed to `<step>.damaged`, and the one before is taken; all processes
        decide the same. `check` gets a checkpoint's Meta and step before its arrays are read, and raises UserError
        where it does not belong to this run. Raises DamagedError where none can be read.
        """
        damaged: dict[int, DamagedError] = {}
        for step in reversed(self._files.steps()):
            try:
                meta = self._files.meta(step)
                check(meta, step)
                state = self._files.restore(target, step)
            except DamagedError as error:
                damaged[step] = error
                continue
            for bad, reason in damaged.items():
                aside = self._put_aside(bad).name
                say(f"{reason.what}: it is now called {aside}, and training continues after step {step}.")
            return state, meta
        if damaged:
            raise next(iter(damaged.values()))
        return None

    def wait(self) -> None:
        """Returns when everything that `save` started is on disk; raises UserError where that failed."""
        self._files.wait()

    def close(self) -> None:
        """Waits, then lets the threads end."""
        self._files.close()

    def _put_aside(self, step: int) -> Path:
        aside = self.folder / f"{step}.damaged"
        if jax.process_index() == 0:
            shutil.rmtree(aside, ignore_errors=True)
            (self.folder / str(step)).rename(aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"damaged checkpoint {step}")
        self._files.reload()
        return aside


def check_model(config: RunConfig, meta: Meta, folder: Path) -> None:
    """Raises UserError naming the first difference where a checkpoint holds another model than `config`."""
    saved, asked = meta.run["model"], to_dict(config.model)
    for name in asked:
        # How a model is computed may change between runs; what it is may not.
        if name in ("attention", "compute_dtype", "max_positions"):
            continue
        if saved.get(name) != asked[name]:
            raise UserError(
                f"checkpoint folder {folder} holds a model with {name} = {saved.get(name)}, the config says "
                f"{asked[name]}: give another folder, or the config that the checkpoint was made with."
            )
