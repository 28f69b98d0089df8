"""Checkpoints by Orbax: the state, and beside it what it belongs to.

A checkpoint folder holds `<step>/state` (arrays) and `<step>/meta` (JSON: `Meta`). A parameter stacked over layers is
written one layer a chunk, so that a conversion can read it layer by layer.
"""

import dataclasses
import json
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from m1jax import disk
from m1jax.config import RunConfig, to_dict
from m1jax.errors import UserError, first_line
from m1jax.model.layout import stacked
from m1jax.train.checkpoint.checksums import checksums, names
from m1jax.train.state import TrainState

_CHUNK_BYTES = 64 << 20


class DamagedError(UserError):
    """A checkpoint that cannot be read back as it was written; `what` says which and why."""

    def __init__(self, folder: Path, error: BaseException | str) -> None:
        self.what = f"checkpoint {folder} cannot be read ({first_line(error)})"
        super().__init__(f"{self.what}: remove that folder to go on from an earlier one, or give another.")


@dataclasses.dataclass(frozen=True)
class Meta:
    """What a checkpoint belongs to; `curriculum` is the record that `Curriculum.record()` gives."""

    run: dict[str, Any]
    """The whole config, the seed of the first parameters and of the data's order with it."""
    curriculum: dict[str, Any]
    versions: dict[str, str]
    row: int = 0
    """Number of the first global row that the state has not seen."""
    arrays: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """(shape, dtype, checksum) of every array of the state, by name."""
    after: list[int] = dataclasses.field(default_factory=list)
    """Of an emergency checkpoint: the newest of the run's folder, and the one being written (emergency.py)."""


def _save_args(state: TrainState) -> Any:
    """One chunk a layer for arrays stacked over layers (model/layout.py), rows of 64 MiB for others."""

    def args(path: tuple[Any, ...], leaf: jax.Array) -> ocp.SaveArgs:
        if stacked(path) and leaf.ndim > 1:
            return ocp.SaveArgs(chunk_byte_size=max(leaf.nbytes // leaf.shape[0], 1), shard_axes=(0,))
        # No shard_axes here: Orbax would cut such an axis down to single rows before it looks at the bytes.
        return ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES) if leaf.ndim else ocp.SaveArgs()

    return jax.tree_util.tree_map_with_path(args, state)


def described(state: TrainState) -> dict[str, Any]:
    """`Meta.arrays` of a state; all processes take part."""
    leaves, sums = jax.tree.leaves(state), checksums(state)
    return {
        name: [list(leaf.shape), str(leaf.dtype), sums[name]] for name, leaf in zip(names(state), leaves, strict=True)
    }


class Checkpoints:
    """The checkpoints of one run, newest last; a partial one is never listed."""

    def __init__(self, folder: Path, keep: int = 1, keep_every: int = 0, read_only: bool = False):
        """The newest `keep` are kept, and beside them those of every `keep_every` steps (0: none)."""
        if read_only and not folder.is_dir():
            raise UserError(f"{folder} holds no checkpoints: run `m1 train` first, or give the right folder.")
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep,
            keep_period=keep_every or None,
            cleanup_tmp_directories=not read_only,
            enable_async_checkpointing=not read_only,
            read_only=read_only,
        )
        self._open(folder, options, ocp.PyTreeCheckpointHandler(use_zarr3=True), ocp.JsonCheckpointHandler())

    def _open(self, folder: Path, options: ocp.CheckpointManagerOptions, state: Any, meta: Any) -> None:
        """Opens `folder`; `state` and `meta` are Orbax's handlers of the two parts."""
        self.folder = folder.absolute()
        self.saving: int | None = None
        """Step of the newest checkpoint that was begun by `save`."""
        with self._writing():
            self._manager = ocp.CheckpointManager(
                self.folder, options=options, item_handlers={"state": state, "meta": meta}
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

        Raises UserError where the disk has no room for it, found out before a byte is written, and where writing the
        checkpoint before failed; what was saved earlier stays whole.
        """
        step = int(state.step)
        if step in self.steps():
            return
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        disk.check_room(self.folder, needed)
        self._write(state, dataclasses.replace(meta, arrays=described(state)))

    def _write(self, state: TrainState, meta: Meta) -> None:
        text = json.dumps(dataclasses.asdict(meta))
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state, save_args=_save_args(state)),
            # JSON has no checksum of its own: the text is kept as it is, with one.
            meta=ocp.args.JsonSave({"text": text, "crc32": zlib.crc32(text.encode())}),
        )
        with self._writing():
            self._manager.save(int(state.step), args=items)
        self.saving = int(state.step)

    def meta(self, step: int | None = None) -> Meta:
        """What the checkpoint of `step` (default: the newest) belongs to; raises DamagedError."""
        step = self._newest() if step is None else step
        with self._reading(step):
            restored = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
            if zlib.crc32(restored["text"].encode()) != restored["crc32"]:
                raise ValueError("its description has another checksum than it was written with")
            return Meta(**json.loads(restored["text"]))

    def restore(self, target: TrainState, step: int | None = None) -> TrainState:
        """The state of `step` (default: the newest) in the shapes, dtypes and shardings of the abstract `target`.

        Raises UserError where the target has other arrays, and DamagedError where the arrays are not those saved.
        """
        step = self._newest() if step is None else step
        saved = self.meta(step).arrays
        self._check_arrays(step, saved, target)
        restore_args = ocp.checkpoint_utils.construct_restore_args(target)
        arguments = ocp.args.PyTreeRestore(target, restore_args=restore_args)
        state, damage = None, None
        try:
            with self._reading(step):
                state = self._manager.restore(step, args=ocp.args.Composite(state=arguments))["state"]
        except DamagedError as error:
            damage = error
        if not _all_processes(damage is None):
            raise damage or DamagedError(self.folder / str(step), "another process could not read it")
        assert state is not None
        for name, found in checksums(state).items():
            if found != saved[name][2]:
                raise DamagedError(self.folder / str(step), f"{name} has another checksum than it was saved with")
        return state

    def restore_newest(
        self, target: TrainState, check: Callable[[Meta], None], say: Callable[[str], None]
    ) -> tuple[TrainState, Meta] | None:
        """The newest checkpoint that can be read, and what it belongs to; None where there is no checkpoint at all.

        A damaged one is told of and put aside as `<step>.damaged`, and the one before is taken; every process decides
        alike. `check` raises UserError where a checkpoint does not belong to this run. Raises DamagedError where none
        can be read.
        """
        damaged: dict[int, DamagedError] = {}
        for step in reversed(self.steps()):
            try:
                meta = self.meta(step)
                check(meta)
                state = self.restore(target, step)
            except DamagedError as error:
                damaged[step] = error
                continue
            for bad, reason in damaged.items():
                say(f"{reason.what}: it is now {self._put_aside(bad).name}, and the run goes on after step {step}.")
            return state, meta
        if damaged:
            raise next(iter(damaged.values()))
        return None

    def restore_params(self, target: Any, step: int | None = None) -> Any:
        """Only the parameters of a checkpoint, in the shapes and shardings of the abstract `target`."""
        step = self._newest() if step is None else step
        tree = {"params": target}
        arguments = ocp.args.PyTreeRestore(
            tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree), partial_restore=True
        )
        with self._reading(step):
            return self._manager.restore(step, args=ocp.args.Composite(state=arguments))["state"]["params"]

    def wait(self) -> None:
        """Returns when everything that `save` started is on disk; raises UserError where that failed."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then lets the manager's threads go."""
        with self._writing():
            self._manager.close()

    def _put_aside(self, step: int) -> Path:
        aside = self.folder / f"{step}.damaged"
        if jax.process_index() == 0:
            shutil.rmtree(aside, ignore_errors=True)
            (self.folder / str(step)).rename(aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"damaged checkpoint {step}")
        self._manager.reload()
        return aside

    def _check_arrays(self, step: int, saved: Mapping[str, Any], target: TrainState) -> None:
        """Raises UserError naming the first array that the target has otherwise than the checkpoint."""
        asked = {
            name: (list(leaf.shape), str(leaf.dtype))
            for name, leaf in zip(names(target), jax.tree.leaves(target), strict=True)
        }
        for name in sorted(asked.keys() | saved.keys()):
            held, wanted = tuple(saved.get(name, ())[:2]), asked.get(name, ())
            if held != wanted:
                raise UserError(
                    f"checkpoint {self.folder / str(step)} holds {_words(name, held)}, the config makes "
                    f"{_words(name, wanted)}: give the config that the checkpoint was made with, or another folder."
                )

    @contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Turns what Orbax and tensorstore raise over damaged files into DamagedError."""
        try:
            yield
        except (jax.errors.JaxRuntimeError, MemoryError):  # no fault of the files
            raise
        except Exception as error:  # among theirs are bare Exceptions
            raise DamagedError(self.folder / str(step), error) from error

    def _writing(self) -> AbstractContextManager[None]:
        """Raises UserError for what a disk refuses inside the block, now or behind the steps."""
        return disk.refusals(self.folder, ": training continues from the newest complete checkpoint")

    def _newest(self) -> int:
        step = self.latest_step()
        if step is None:
            raise UserError(f"{self.folder} holds no checkpoints: run `m1 train` first, or give the right folder.")
        return step


def _words(name: str, array: tuple[Any, ...]) -> str:
    return f"{name} of shape {tuple(array[0])} and {array[1]}" if array else f"no {name}"


def _all_processes(value: bool) -> bool:
    """Whether `value` holds on every process."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.process_allgather(value).all())


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
