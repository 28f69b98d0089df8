"""Checkpoints by Orbax: the state, and beside it what it belongs to.

A checkpoint folder holds `<step>/state` (arrays) and `<step>/meta` (JSON: model, stages, the curriculum's
fingerprint). A parameter stacked over layers is written one layer a chunk, so that a conversion can read it layer by
layer.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from m1jax.config import RunConfig, to_dict
from m1jax.errors import UserError
from m1jax.train.state import TrainState

# What a damaged checkpoint raises inside Orbax and tensorstore.
DAMAGE = (ValueError, KeyError, OSError, json.JSONDecodeError)
_CHUNK_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class Meta:
    """What a checkpoint belongs to; `curriculum` is the record that `Curriculum.record()` gives."""

    run: dict[str, Any]
    curriculum: dict[str, Any]
    versions: dict[str, str]


def _save_args(state: TrainState) -> Any:
    """One chunk a layer for arrays stacked over layers (any path through `periods`), rows of 64 MiB for others."""

    def args(path: tuple[Any, ...], leaf: jax.Array) -> ocp.SaveArgs:
        if "periods" in jax.tree_util.keystr(path) and leaf.ndim > 1:
            return ocp.SaveArgs(chunk_byte_size=max(leaf.nbytes // leaf.shape[0], 1), shard_axes=(0,))
        # No shard_axes here: Orbax would cut such an axis down to single rows before it looks at the bytes.
        return ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES) if leaf.ndim else ocp.SaveArgs()

    return jax.tree_util.tree_map_with_path(args, state)


class Checkpoints:
    """The checkpoints of one run, newest last; a partial one is never listed."""

    def __init__(self, folder: Path, keep: int = 1, read_only: bool = False):
        if read_only and not folder.is_dir():
            raise UserError(f"{folder} holds no checkpoints: run `m1 train` first, or give the right folder.")
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep,
            cleanup_tmp_directories=not read_only,
            enable_async_checkpointing=not read_only,
            read_only=read_only,
        )
        self.folder = folder.absolute()
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=options,
            item_handlers={"state": ocp.PyTreeCheckpointHandler(use_zarr3=True), "meta": ocp.JsonCheckpointHandler()},
        )

    def latest_step(self) -> int | None:
        """Steps taken by the newest whole checkpoint; None where there is none."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Steps of all whole checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def state_folder(self, step: int) -> Path:
        """The Orbax folder of a step's state, whose parameters lie under "params"."""
        return self.folder / str(step) / "state"

    def save(self, state: TrainState, meta: Meta) -> None:
        """Starts to save; arrays are copied before it returns, and written behind the next steps.

        Raises UserError where the disk has no room for it: found out before a byte is written.
        """
        step = int(state.step)
        if step in self.steps():
            return
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise UserError(
                f"the disk that holds {self.folder} is full: free some space (a checkpoint needs {needed / 1e6:.1f} MB,"
                f" {free / 1e6:.1f} MB are free) and run the same command again."
            )
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state, save_args=_save_args(state)),
            meta=ocp.args.JsonSave(dataclasses.asdict(meta)),
        )
        self._manager.save(step, args=items)

    def meta(self, step: int | None = None) -> Meta:
        """What the checkpoint of `step` (default: the newest) belongs to."""
        step = self._newest() if step is None else step
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
            return Meta(**restored["meta"])
        except (*DAMAGE, TypeError) as error:
            raise self._damaged(step, error) from error

    def restore(self, target: TrainState, step: int | None = None) -> TrainState:
        """The state of `step` (default: the newest) in the shapes, dtypes and shardings of the abstract `target`."""
        step = self._newest() if step is None else step
        restore_args = ocp.checkpoint_utils.construct_restore_args(target)
        arguments = ocp.args.PyTreeRestore(target, restore_args=restore_args)
        try:
            return self._manager.restore(step, args=ocp.args.Composite(state=arguments))["state"]
        except DAMAGE as error:
            raise self._damaged(step, error) from error

    def restore_params(self, target: Any, step: int | None = None) -> Any:
        """Only the parameters of a checkpoint, in the shapes and shardings of the abstract `target`."""
        step = self._newest() if step is None else step
        tree = {"params": target}
        arguments = ocp.args.PyTreeRestore(
            tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree), partial_restore=True
        )
        try:
            return self._manager.restore(step, args=ocp.args.Composite(state=arguments))["state"]["params"]
        except DAMAGE as error:
            raise self._damaged(step, error) from error

    def wait(self) -> None:
        """Returns when everything that `save` started is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then lets the manager's threads go."""
        self._manager.close()

    def _newest(self) -> int:
        step = self.latest_step()
        if step is None:
            raise UserError(f"{self.folder} holds no checkpoints: run `m1 train` first, or give the right folder.")
        return step

    def _damaged(self, step: int, error: BaseException) -> UserError:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        return UserError(
            f"checkpoint {self.folder / str(step)} cannot be read ({reason}): remove that folder to go on from an "
            f"earlier one, or give another."
        )


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
