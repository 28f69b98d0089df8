"""Parameters as Orbax keeps them: written layer by layer, read slice by slice, never whole.

The folder is an ordinary Orbax checkpoint of {"params": tree}, which any Orbax restores, onto any mesh; a run's
checkpoint has its frozen parameters under "frozen". One layer of a stacked parameter is one chunk; other parameters are
cut along their first axis. Orbax makes the folder; the arrays in it are written and read with tensorstore, as Orbax
does.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from jax.tree_util import keystr, tree_leaves_with_path

from m1jax.convert import table
from m1jax.convert.tensor_files import DTYPES, Array
from m1jax.errors import UserError, first_line
from m1jax.optim import masks

ROOT = "params"
FROZEN = "frozen"
"""Where a run that trains only some parameters keeps the others (m1jax.train.state)."""
# What a damaged checkpoint raises inside Orbax and tensorstore.
DAMAGE = (ValueError, KeyError, OSError)
# Bytes handed to tensorstore and not yet on disk; a larger block goes alone.
_UNDER_WAY = 64 << 20


class Parameters(Protocol):
    """The parameters of a model, read in parts."""

    place: str
    """Where they are, for error messages."""

    def dtype(self, path: str) -> str:
        """Dtype of the leaf at a path with slashes."""

    def rows(self, path: str) -> int:
        """How much of a leaf's first axis is best read at once."""

    def read(self, path: str, at: int | slice | None) -> Array:
        """A leaf, or its part at an index or a slice of the first axis. Raises UserError where it is damaged."""


class InMemory:
    """The tree of `m1jax.model.create`, or of a checkpoint restored whole."""

    place = "the parameters"

    def __init__(self, tree: Mapping[str, Any]):
        self._tree = tree

    def dtype(self, path: str) -> str:
        """See Parameters."""
        return str(table.find(self._tree, path).dtype)

    def rows(self, path: str) -> int:
        """See Parameters."""
        return int(table.find(self._tree, path).shape[0])

    def read(self, path: str, at: int | slice | None) -> Array:
        """See Parameters."""
        leaf = table.find(self._tree, path)
        return np.asarray(leaf if at is None else leaf[at])


class OnDisk:
    """The parameters in an Orbax folder; raises UserError where one cannot be read."""

    def __init__(self, folder: Path):
        self.place = str(folder)
        self._folder = folder.absolute()
        self._context = ts.Context()
        self._arrays: dict[str, ts.TensorStore] = {}
        self._frozen = _frozen(folder)

    def dtype(self, path: str) -> str:
        """See Parameters."""
        return str(self._array(path).dtype.numpy_dtype)

    def rows(self, path: str) -> int:
        """See Parameters: those of a chunk, which is read whole in any case, or of many small ones."""
        array = self._array(path)
        chunk = array.chunk_layout.read_chunk.shape
        assert chunk and chunk[0]
        row_bytes = math.prod(array.shape[1:]) * array.dtype.numpy_dtype.itemsize
        return chunk[0] * max(1, _UNDER_WAY // (chunk[0] * row_bytes))

    def read(self, path: str, at: int | slice | None) -> Array:
        """See Parameters."""
        array = self._array(path)
        try:
            return (array if at is None else array[at]).read().result()
        except DAMAGE as error:
            raise _damaged(self.place, error) from error

    def _array(self, path: str) -> ts.TensorStore:
        if path not in self._arrays:
            root = FROZEN if path in self._frozen else ROOT
            store = {
                "driver": "ocdbt",
                "base": {"driver": "file", "path": f"{self._folder}/"},
                "path": f"{root}/{path}".replace("/", "."),
            }
            spec = {"driver": "zarr3", "kvstore": store, "fill_missing_data_reads": False}
            try:
                self._arrays[path] = ts.open(spec, read=True, context=self._context).result()
            except DAMAGE as error:
                raise _damaged(self.place, error) from error
        return self._arrays[path]


@dataclass(frozen=True)
class Stream:
    """A leaf to be written: its blocks follow each other along the first axis, each `chunk` long there."""

    shape: tuple[int, ...]
    dtype: str
    chunk: tuple[int, ...]
    blocks: Callable[[], Iterator[Array]]


class _Writing:
    """The future that Orbax waits for: leaves are written one after the other, a block while the next one is made."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: list[tuple[Stream, Any]] = []
        self._under_way: deque[tuple[Any, int]] = deque()

    def add(self, stream: Stream, info: Any) -> None:
        """Notes a leaf, to be written when the result is asked for."""
        self._asked.append((stream, info))

    def result(self, timeout: int | None = None) -> None:
        """Returns when everything is on disk; the first to ask does the work."""
        del timeout
        with self._lock:
            asked, self._asked = self._asked, []
            # Made durable together, as are the small blocks below.
            opening = [ts.open(_spec(*leaf), create=True, open=True, context=leaf[1].ts_context) for leaf in asked]
            arrays = [future.result() for future in opening]
            try:
                for (stream, _), array in zip(asked, arrays, strict=True):
                    self._write(stream, array)
            finally:  # whoever removes the folder of a failed import must not meet a late write
                self._wait(0)

    def _write(self, stream: Stream, array: ts.TensorStore) -> None:
        start = 0
        for block in stream.blocks():
            self._wait(max(0, _UNDER_WAY - block.nbytes))
            stop = start + len(block)
            written = array[start:stop].write(block, can_reference_source_data_indefinitely=True)
            self._under_way.append((written, block.nbytes))
            start = stop
        assert start == stream.shape[0], f"{start} of {stream.shape[0]}"

    def _wait(self, nbytes: int) -> None:
        """Until so few bytes are under way."""
        while self._under_way and sum(size for _, size in self._under_way) > nbytes:
            self._under_way.popleft()[0].result()


class _StreamHandler(ocp.type_handlers.TypeHandler):
    """Teaches Orbax to save a Stream; what it saves is an array like any other."""

    def __init__(self) -> None:
        self._writing = _Writing()

    def typestr(self) -> str:
        return "np.ndarray"

    async def metadata(self, infos: Sequence[Any]) -> Sequence[Any]:
        raise NotImplementedError("a Stream is only saved: what is on disk is restored as an array")

    async def deserialize(self, infos: Sequence[Any], args: Sequence[Any] | None = None) -> Sequence[Any]:
        raise NotImplementedError("a Stream is only saved: what is on disk is restored as an array")

    async def serialize(
        self, values: Sequence[Stream], infos: Sequence[Any], args: Sequence[Any] | None = None
    ) -> Sequence[Any]:
        for stream, info in zip(values, infos, strict=True):
            await info.await_path_creation()
            self._writing.add(stream, info)
        return [self._writing]


def _spec(stream: Stream, info: Any) -> dict[str, Any]:
    """Tensorstore's spec of a new array in an Orbax folder: the part of process 0, which Orbax merges at the end."""
    return {
        "driver": "zarr3",
        "kvstore": {
            "driver": "ocdbt",
            "base": {"driver": "file", "path": f"{info.parent_dir}/ocdbt.process_0/"},
            "path": info.name,
            "config": {
                "max_inline_value_bytes": 1024,
                "max_decoded_node_bytes": 100_000_000,
                "manifest_kind": "single",
            },
            "assume_config": True,
        },
        "metadata": {
            "shape": stream.shape,
            "data_type": stream.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": stream.chunk}},
            # Weights hardly shrink: a compressed file would take longer than it saves.
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        },
        # As Orbax does: a chunk that is missing is then known to be lost, not taken for zeros.
        "store_data_equal_to_fill_value": True,
    }


def write(folder: Path, streams: Mapping[str, Stream]) -> None:
    """Saves leaves (by path with slashes) as an Orbax checkpoint in the new folder `folder`."""
    registry = ocp.type_handlers.create_type_handler_registry((Stream, _StreamHandler()))
    handler = ocp.PyTreeCheckpointHandler(use_zarr3=True, type_handler_registry=registry)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder.absolute(), args=ocp.args.PyTreeSave({ROOT: table.nested(streams)}))


def restore(folder: Path, target: Any) -> Any:
    """The parameters, trained and frozen, in the shapes, dtypes and shardings of the abstract tree `target`.

    Each process reads the chunks that its devices hold. Raises UserError where the folder is damaged.
    """
    kept = _frozen(folder)
    trained, frozen = masks.split(target, lambda path: path not in kept)
    tree = {root: part for root, part in ((ROOT, trained), (FROZEN, frozen)) if part}
    arguments = ocp.args.PyTreeRestore(
        tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree), partial_restore=True
    )
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_zarr3=True, restore_concurrent_gb=1)) as checkpointer:
            found = checkpointer.restore(folder.absolute(), args=arguments)
    except DAMAGE as error:
        raise _damaged(folder, error) from error
    return masks.merge(found.get(ROOT, {}), found.get(FROZEN, {}))


def _frozen(folder: Path) -> frozenset[str]:
    """Paths of a checkpoint's frozen parameters; raises UserError where the folder is damaged."""
    try:
        found = ocp.PyTreeCheckpointHandler(use_zarr3=True).metadata(folder.absolute())
    except DAMAGE as error:
        raise _damaged(folder, error) from error
    tree = found.tree.get(FROZEN, {})
    return frozenset(keystr(path, simple=True, separator="/") for path, _ in tree_leaves_with_path(tree))


def _damaged(folder: Path | str, error: BaseException) -> UserError:
    return UserError(f"the parameters in {folder} cannot be read ({first_line(error)}): make or copy the folder again.")


def itemsize(dtype: str) -> int:
    """Bytes of an element."""
    return int(DTYPES[dtype].itemsize)
