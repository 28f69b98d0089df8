"""One folder of checkpoints, written and read with Orbax.

A checkpoint is `<step>/state` (arrays) and `<step>/meta` (JSON: `Meta`). A parameter stacked over layers is written one
layer a chunk, so that a conversion can read it layer by layer.
"""

import dataclasses
import json
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from m1jax import disk
from m1jax.errors import UserError, first_line
from m1jax.model.layout import stacked
from m1jax.optim import masks
from m1jax.train.checkpoint.checksums import checksums, names
from m1jax.train.state import TrainState

FORMAT = 2
"""Format of a checkpoint: 2 since frozen parameters and hooks' states are parts of the state."""
_CHUNK_BYTES = 64 << 20


class DamagedError(UserError):
    """A checkpoint that cannot be read back as it was written; `what` says which and why."""

    def __init__(self, folder: Path, error: BaseException | str) -> None:
        self.what = f"checkpoint {folder} cannot be read ({first_line(error)})"
        super().__init__(f"{self.what}: remove that folder to continue from an earlier one, or choose another.")


@dataclasses.dataclass(frozen=True)
class Meta:
    """The run that a checkpoint belongs to; `curriculum` is the record that `Curriculum.record()` gives."""

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
    format: int = FORMAT


def described(state: TrainState) -> dict[str, Any]:
    """`Meta.arrays` of a state; all processes take part."""
    leaves, sums = jax.tree.leaves(state), checksums(state)
    return {
        name: [list(leaf.shape), str(leaf.dtype), sums[name]] for name, leaf in zip(names(state), leaves, strict=True)
    }


def existing(path: Path) -> "CheckpointFolder":
    """The checkpoints in a folder, for reading only; raises UserError where there is no such folder."""
    if not path.is_dir():
        raise UserError(f"{path} has no checkpoints: run `m1 train` first, or choose the right folder.")
    options = ocp.CheckpointManagerOptions(
        cleanup_tmp_directories=False, enable_async_checkpointing=False, read_only=True
    )
    return CheckpointFolder(path, options)


class CheckpointFolder:
    """The checkpoints in one folder, listed by the steps that they were taken after; a partial one is never listed."""

    def __init__(self, path: Path, options: ocp.CheckpointManagerOptions, state: Any = None, meta: Any = None) -> None:
        """Opens the folder; `state` and `meta` are Orbax's handlers of the two parts, by default of all processes.

        Raises UserError where the disk refuses.
        """
        self.path = path.absolute()
        self.saving: int | None = None
        """Step of the newest checkpoint that `save` began."""
        handlers = {
            "state": state or ocp.PyTreeCheckpointHandler(use_zarr3=True),
            "meta": meta or ocp.JsonCheckpointHandler(),
        }
        with self._writing():
            self._manager = ocp.CheckpointManager(self.path, options=options, item_handlers=handlers)

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint; None where there is none."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def state_folder(self, step: int) -> Path:
        """Orbax's folder of a step's state; its parameters are under "params"."""
        return self.path / str(step) / "state"

    def save(self, state: TrainState, meta: Meta) -> None:
        """Starts to save; arrays are copied before it returns, and written behind the next steps.

        Raises UserError where the disk refuses this write or refused the one before.
        """
        # Fails here at once: Orbax would notice in threads that then block the process for minutes.
        with self._writing(), tempfile.TemporaryFile(dir=self.path):
            pass
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
        """The run that the checkpoint of `step` (default: the newest) belongs to.

        Raises UserError where an earlier m1jax wrote it in another format, and DamagedError.
        """
        step = self._newest() if step is None else step
        with self._reading(step):
            restored = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
            if zlib.crc32(restored["text"].encode()) != restored["crc32"]:
                raise ValueError("its description has another checksum than it was written with")
            saved = json.loads(restored["text"])
        if (found := saved.get("format", 1)) != FORMAT:
            raise UserError(
                f"checkpoint {self.path / str(step)} has format {found}, this m1jax reads {FORMAT}: export it with the "
                f"m1jax that made it and set train.initial to the export, or train in another folder."
            )
        return Meta(**saved)

    def restore(self, target: TrainState, step: int) -> TrainState:
        """The state of `step` in the shapes, dtypes and shardings of the abstract `target`.

        Raises UserError where the target has other arrays, and DamagedError where the arrays are not those saved.
        """
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
            raise damage or DamagedError(self.path / str(step), "another process could not read it")
        assert state is not None
        for name, found in checksums(state).items():
            if found != saved[name][2]:
                raise DamagedError(self.path / str(step), f"{name} has another checksum than it was saved with")
        return state

    def restore_params(self, target: Any, step: int | None = None) -> Any:
        """Only the parameters of a checkpoint, trained or frozen, as the abstract `target` has them.

        Each comes in the shape, dtype and sharding of its leaf in `target`, a tree of nested dicts.
        """
        step = self._newest() if step is None else step
        saved = self.meta(step).arrays
        trained, frozen = masks.split(target, lambda path: f"frozen.{path.replace('/', '.')}" not in saved)
        tree = {name: part for name, part in (("params", trained), ("frozen", frozen)) if part}
        arguments = ocp.args.PyTreeRestore(
            tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree), partial_restore=True
        )
        with self._reading(step):
            state = self._manager.restore(step, args=ocp.args.Composite(state=arguments))["state"]
        return masks.merge(state.get("params", {}), state.get("frozen", {}))

    def reload(self) -> None:
        """Lists the folder again, after something else changed it."""
        self._manager.reload()

    def wait(self) -> None:
        """Returns when everything that `save` started is on disk; raises UserError where that failed."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then lets the manager's threads end."""
        with self._writing():
            self._manager.close()

    def _check_arrays(self, step: int, saved: Mapping[str, Any], target: TrainState) -> None:
        """Raises UserError that names the first array in which the target differs from the checkpoint."""
        asked = {
            name: (list(leaf.shape), str(leaf.dtype))
            for name, leaf in zip(names(target), jax.tree.leaves(target), strict=True)
        }
        for name in sorted(asked.keys() | saved.keys()):
            held, wanted = tuple(saved.get(name, ())[:2]), asked.get(name, ())
            if held != wanted:
                raise UserError(
                    f"checkpoint {self.path / str(step)} has {_words(name, held)}, but the config needs "
                    f"{_words(name, wanted)}: use the config that the checkpoint was made with, or another folder."
                )

    @contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Turns what Orbax and tensorstore raise over damaged files into DamagedError."""
        try:
            yield
        except (jax.errors.JaxRuntimeError, MemoryError):  # no fault of the files
            raise
        except Exception as error:  # among theirs are bare Exceptions
            raise DamagedError(self.path / str(step), error) from error

    def _writing(self) -> AbstractContextManager[None]:
        """Raises UserError for what a disk refuses inside the block, now or behind the steps."""
        return disk.refusals(self.path, ": training continues from the newest complete checkpoint")

    def _newest(self) -> int:
        step = self.latest_step()
        if step is None:
            raise UserError(f"{self.path} has no checkpoints: run `m1 train` first, or choose the right folder.")
        return step


def _save_args(state: TrainState) -> Any:
    """One chunk a layer for arrays stacked over layers (model/layout.py), rows of 64 MiB for others."""

    def args(path: tuple[Any, ...], leaf: jax.Array) -> ocp.SaveArgs:
        if stacked(path) and leaf.ndim > 1:
            return ocp.SaveArgs(chunk_byte_size=max(leaf.nbytes // leaf.shape[0], 1), shard_axes=(0,))
        # No shard_axes here: Orbax would cut such an axis down to single rows before it looks at the bytes.
        return ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES) if leaf.ndim else ocp.SaveArgs()

    return jax.tree_util.tree_map_with_path(args, state)


def _words(name: str, array: tuple[Any, ...]) -> str:
    return f"{name} of shape {tuple(array[0])} and {array[1]}" if array else f"no {name}"


def _all_processes(value: bool) -> bool:
    """True where `value` is true on every process."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.process_allgather(value).all())
