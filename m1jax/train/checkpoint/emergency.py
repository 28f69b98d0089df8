"""Emergency checkpoints: every process keeps its own share of the state on its own machine, far more often than the
run's folder is written.

They survive a killed process, but not a lost machine: where a machine was replaced, the run continues from its folder.
They are a best effort: a failure to write one never ends the run.
"""

import contextlib
import dataclasses
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import type_handlers
from orbax.checkpoint.type_handlers import create_type_handler_registry

from m1jax import disk
from m1jax.errors import UserError, first_line
from m1jax.train.checkpoint.checkpoints import Checkpoints
from m1jax.train.checkpoint.folder import CheckpointFolder, DamagedError, Meta, described
from m1jax.train.state import TrainState

IDENTITY = "run_id"
"""File beside a run's checkpoints that identifies it, so that emergency checkpoints of an earlier run are not used."""
KEPT = 2
"""A process begins a save when its last one is done, so processes are at most one apart: of two, one is common."""


class EmergencyCheckpoints:
    """The newest emergency checkpoints of a run, below `folder` on every machine; `shared` are those of its folder."""

    def __init__(self, folder: Path, shared: Checkpoints, say: Callable[[str], None]):
        """Raises UserError where the folder cannot be made."""
        self._shared, self._say, self._broken = shared, say, False
        index = jax.process_index()
        own = folder / _identity(shared.folder) / f"process-{index}-of-{jax.process_count()}"
        # A group of one process: it waits for no other while it writes.
        group = ocp.options.MultiprocessingOptions(
            primary_host=None, active_processes={index}, barrier_sync_key_prefix=f"emergency-{index}"
        )
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT,
            create=False,
            multiprocessing_options=group,
            save_root_metadata=False,
            enable_per_process_directory_creation=True,
        )
        arrays = type_handlers.ArrayHandler(primary_host=None, replica_id=None, use_replica_parallel=False)
        handler = ocp.PyTreeCheckpointHandler(
            use_zarr3=True,
            multiprocessing_options=group,
            type_handler_registry=create_type_handler_registry((jax.Array, arrays)),
        )
        try:
            own.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"train.emergency_folder = {folder} cannot be written to ({error.strerror}): choose a folder on"
                f" each machine's own disk or in its memory, or set train.emergency_every = 0."
            ) from error
        # Left half written by a process that was killed.
        for left in own.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(left, ignore_errors=True)
        self._files = CheckpointFolder(own, options, handler, ocp.JsonCheckpointHandler(multiprocessing_options=group))

    def save(self, state: TrainState, meta: Meta) -> None:
        """Starts to save this process's share; where that fails, says so once and saves no more."""
        arrays = described(state)  # of all processes, so also of one that cannot save any more
        if self._broken:
            return
        after = sorted({self._shared.latest_step() or 0, self._shared.saving or 0})
        try:
            needed = sum(_own_bytes(leaf) for leaf in jax.tree.leaves(state))
            if missing := disk.missing_room(self._files.path, needed):
                raise OSError(missing)
            self._files.save(state, dataclasses.replace(meta, arrays=arrays, after=after))
        except Exception as error:  # noqa: BLE001 (any error: the run continues)
            self._stop(error)

    def restore_newest(
        self, target: TrainState, check: Callable[[Meta, int], None], say: Callable[[str], None]
    ) -> tuple[TrainState, Meta] | None:
        """The newest one that all processes hold and that is newer than those of the run's folder; else None.

        What cannot be used is removed. Arguments: see `Checkpoints.restore_newest`.
        """
        newest = self._shared.latest_step() or 0
        usable = [step for step in self._files.steps() if self._follows(step, newest)]
        for step in reversed(_held_by_all(usable)):
            meta = self._files.meta(step)
            check(meta, step)
            try:
                state = self._files.restore(target, step)
            except DamagedError as error:
                say(f"{error.what}: the one before it is tried.")
                continue
            say(f"Training continues from the emergency checkpoint of step {step}: the run's folder has none as new.")
            return state, meta
        self._clear()
        return None

    def wait(self) -> None:
        """Returns when everything that `save` started is on disk; raises UserError where that failed."""
        self._files.wait()

    def close(self) -> None:
        """Waits, then lets the threads end."""
        try:
            self._files.close()
        except Exception as error:  # noqa: BLE001
            self._stop(error)

    def remove(self) -> None:
        """Closes, and frees the machine of what was kept: the run is at its end."""
        self.close()
        shutil.rmtree(self._files.path, ignore_errors=True)
        with contextlib.suppress(OSError):  # another process of the machine is not done yet
            self._files.path.parent.rmdir()

    def _follows(self, step: int, newest: int) -> bool:
        """True where a checkpoint was made after the one that is now the newest of the run's folder.

        A user who removes that one, to go back to an earlier one, does not want what came after it.
        """
        try:
            return newest in self._files.meta(step).after
        except DamagedError:
            return False

    def _clear(self) -> None:
        for step in self._files.steps():
            shutil.rmtree(self._files.path / str(step), ignore_errors=True)
        self._files.reload()

    def _stop(self, error: Exception) -> None:
        if self._broken:  # one failed save can raise twice: at the next one, and on closing
            return
        self._broken = True
        reason = first_line(error.__cause__ or error)
        self._say(
            f"Emergency checkpoints have stopped, training continues without them ({self._files.path}: {reason})."
        )


def _own_bytes(array: jax.Array) -> int:
    """Bytes of an array's parts on this process's devices, each part once."""
    return sum({str(shard.index): shard.data.nbytes for shard in array.addressable_shards}.values())


def _identity(shared: Path) -> str:
    """The run's name for itself, made at its first start; the same on all processes."""
    file = shared / IDENTITY
    if jax.process_index() == 0 and not file.is_file():
        begun = file.with_suffix(".begun")
        begun.write_text(secrets.token_hex(8))
        begun.rename(file)  # a process that is killed in between leaves no empty name
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("identity of the run")
    return file.read_text()


def _held_by_all(steps: list[int]) -> list[int]:
    """The steps that are in the list of every process, ascending."""
    if jax.process_count() == 1:
        return steps
    own = np.full(KEPT + 1, -1, np.int32)
    newest = steps[-KEPT - 1 :]
    own[: len(newest)] = newest
    lists = multihost_utils.process_allgather(own)
    return sorted(set.intersection(*(set(row.tolist()) for row in lists)) - {-1})
