"""From parameters to checkpoint files, one tensor at a time."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from m1jax.config import ModelConfig
from m1jax.convert import source, table
from m1jax.convert.parameters import Parameters
from m1jax.convert.source import converted_to, finite
from m1jax.convert.table import Entry
from m1jax.convert.tensor_files import DTYPES, OPENERS, Array, SafetensorsWriter, nbytes, save_torch
from m1jax.errors import UserError

Advance = Callable[[int], None]
FORMATS = ("hf", "torch")
SHARD_BYTES = 5_000_000_000
_CACHE_LINE = 64


def blocks(parameters: Parameters, entry: Entry, dtype: str | None = None) -> Iterator[Array]:
    """The elements of a checkpoint tensor in order, flat, in `dtype` (default: that of the parameter).

    Raises UserError where one is NaN or infinite, in the parameter or in `dtype`.
    """
    for path, shape in zip(entry.paths, entry.leaf_shapes, strict=True):
        target = dtype or parameters.dtype(path)
        if entry.tensor.inputs:
            columns = math.prod(shape[: entry.tensor.inputs])
            leaf = parameters.read(path, entry.stack_index).reshape(columns, -1)
            yield _turned(leaf, target, entry.name, parameters.place)
        elif entry.stack_index is not None:
            yield _checked(parameters.read(path, entry.stack_index).reshape(-1), target, entry.name, parameters.place)
        else:
            rows = parameters.rows(path)
            for first in range(0, shape[0], rows):
                part = parameters.read(path, slice(first, min(first + rows, shape[0])))
                yield _checked(part.reshape(-1), target, entry.name, parameters.place)


def _turned(leaf: Array, dtype: str, name: str, place: str) -> Array:
    """The transpose of a matrix, flat."""
    out = np.empty(leaf.shape[::-1], DTYPES[dtype])
    # Strips whose transposes fill whole cache lines, as in reading.
    strip = _CACHE_LINE // out.itemsize
    for row in range(0, len(leaf), strip):
        out[:, row : row + strip] = _checked(leaf[row : row + strip], dtype, name, place).T
    return out.reshape(-1)


def _checked(part: Array, dtype: str, name: str, place: str) -> Array:
    converted = converted_to(part, dtype)
    if not finite(converted):
        what = f"a number too large for {dtype}" if finite(part) else "NaN or infinity"
        raise UserError(f"{place} holds {what} in {name}: a checkpoint of it would be of no use, take another step's.")
    return converted


def write(
    folder: Path,
    parameters: Parameters,
    config: ModelConfig,
    dtypes: Mapping[str, str],
    form: str,
    shard_bytes: int,
    advance: Advance = lambda _: None,
) -> list[str]:
    """Writes the tensors into files of at most `shard_bytes` (but one tensor at least); returns the files' names.

    `dtypes` holds the dtype of every tensor, `form` is "hf" (safetensors) or "torch" (torch.save, which needs torch);
    `advance` is told of bytes written. One file needs no index, several get one.
    """
    shards = _shards(table.entries(config), dtypes, shard_bytes)
    stem, suffix, index = {
        "hf": ("model", ".safetensors", source.SAFETENSORS_INDEX),
        "torch": ("pytorch_model", ".bin", source.TORCH_INDEX),
    }[form]
    many = len(shards) > 1
    names = [f"{stem}-{i:05}-of-{len(shards):05}{suffix}" if many else f"{stem}{suffix}" for i in _from_1(shards)]
    for name, shard in zip(names, shards, strict=True):
        path = folder / (name if form == "hf" else f"{name}.safetensors")
        writer = SafetensorsWriter(path, {entry.name: (entry.shape, dtypes[entry.name]) for entry in shard})
        for entry in shard:
            for block in blocks(parameters, entry, dtypes[entry.name]):
                writer.write(block)
                advance(block.nbytes)
        writer.close()
        if form == "torch":
            save_torch(path, folder / name)
            path.unlink()
        _check(folder / name, shard, dtypes)
    if many:
        weight_map = {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard}
        total = sum(nbytes(entry.shape, dtypes[entry.name]) for shard in shards for entry in shard)
        content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / index).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        names.append(index)
    return names


def _shards(entries: Sequence[Entry], dtypes: Mapping[str, str], limit: int) -> list[list[Entry]]:
    """The tensors of each file, in the model's order over the files."""
    shards: list[list[Entry]] = [[]]
    room = limit
    for entry in entries:
        size = nbytes(entry.shape, dtypes[entry.name])
        if shards[-1] and size > room:
            shards.append([])
            room = limit
        shards[-1].append(entry)
        room -= size
    # Wider types first, so that every tensor of a file begins at a multiple of its width.
    return [sorted(shard, key=lambda entry: -DTYPES[dtypes[entry.name]].itemsize) for shard in shards]


def _from_1(shards: list[list[Entry]]) -> range:
    return range(1, len(shards) + 1)


def _check(path: Path, shard: list[Entry], dtypes: Mapping[str, str]) -> None:
    """The library that everybody reads the file with finds in it what was meant."""
    found = {name: (stored.shape, stored.dtype) for name, stored in OPENERS[path.suffix](path).tensors.items()}
    assert found == {entry.name: (entry.shape, dtypes[entry.name]) for entry in shard}, path


def compare(
    checkpoint: source.Checkpoint,
    parameters: Parameters,
    config: ModelConfig,
    into_files: bool,
    advance: Advance = lambda _: None,
) -> int:
    """Compares every tensor of a checkpoint with the parameters, bit by bit; returns their number.

    What was converted is converted again before: the parameters to the files' dtypes where `into_files`, else the
    files' tensors to those of the parameters. Raises UserError naming the first tensor that differs.
    """
    entries = table.entries(config)
    for entry in entries:
        start = 0
        for block in blocks(parameters, entry):
            for first, last in source.blocks(block.size):
                theirs, ours = checkpoint.elements(entry.name, start + first, start + last), block[first:last]
                advance(theirs.nbytes)
                if into_files:
                    ours = converted_to(ours, theirs.dtype.name)
                else:
                    theirs = converted_to(theirs, ours.dtype.name)
                if not np.array_equal(source.bits(ours), source.bits(theirs)):
                    raise UserError(
                        f"{entry.name} in {checkpoint.tensors_file(entry.name)} differs from {parameters.place}: "
                        f"nothing was written; please report this as a fault of m1jax."
                    )
            start += block.size
        assert start == math.prod(entry.shape)
    return len(entries)
