"""From checkpoint tensors to parameters, one layer of one leaf at a time."""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from m1jax.config import ModelConfig
from m1jax.convert import config_json, parameters, table
from m1jax.convert.parameters import Stream
from m1jax.convert.peft_reading import Adapted
from m1jax.convert.source import BLOCK, Checkpoint, some
from m1jax.convert.table import Leaf, Part
from m1jax.convert.tensor_files import DTYPES, Array

Advance = Callable[[int], None]
_CACHE_LINE = 64
# Rows of a large parameter that is not stacked come in chunks of about so many bytes.
_CHUNK_BYTES = 64 << 20


def open_checkpoint(
    folder: Path, dtype: str | None = None, adapter: Path | None = None
) -> tuple[Checkpoint, ModelConfig, float]:
    """(tensors, ModelConfig, RoPE base) of a Hugging Face checkpoint that m1jax can read in `dtype` (default: its own).

    `param_dtype` and `compute_dtype` are `dtype`, or that of the embedding. A LoRA in the folder `adapter` is merged.
    Raises UserError naming the file and the key or tensor that is missing, too many, of another shape or dtype.
    """
    config, rope_base = config_json.read(folder)
    checkpoint = Checkpoint(folder) if adapter is None else Adapted(folder, adapter)
    checkpoint.check(config, rope_base, dtype)
    own = dtype or checkpoint.dtype(table.EMBEDDING.name)
    return checkpoint, replace(config, param_dtype=own, compute_dtype=own), rope_base


def said(checkpoint: Checkpoint) -> list[str]:
    """What people should know of a checkpoint that is read: sentences."""
    skipped = checkpoint.skipped
    if not skipped:
        return []
    what = (
        f"{len(skipped)} tensors that m1jax computes itself were"
        if len(skipped) > 1
        else "One tensor that m1jax computes itself was"
    )
    return [f"{what} left out: {some(skipped)}."]


def leaf_dtype(checkpoint: Checkpoint, leaf: Leaf, dtype: str | None) -> str:
    """The dtype of a leaf: `dtype`, or the narrowest that holds all its layers exactly."""
    found = {checkpoint.dtype(part.name) for part in leaf.parts}
    return dtype or ("float32" if "float32" in found else "bfloat16")


def layer(checkpoint: Checkpoint, leaf: Leaf, part: Part, dtype: str, advance: Advance = lambda _: None) -> Array:
    """One part of a leaf in the leaf's shape; `advance` is told of bytes read."""
    size = math.prod(leaf.layer_shape)
    width = parameters.itemsize(checkpoint.dtype(part.name))
    if not part.columns:
        found = checkpoint.elements(part.name, part.start, part.start + size, dtype)
        advance(size * width)
        return found.reshape(leaf.layer_shape)
    rows = size // part.columns
    out = np.empty((part.columns, rows), DTYPES[dtype])
    # Strips of rows that fill whole cache lines of the transpose: several times the speed of one large transpose.
    strip = _CACHE_LINE // out.itemsize
    for row in range(0, rows, strip):
        end = min(row + strip, rows)
        start, stop = (part.start + number * part.columns for number in (row, end))
        out[:, row:end] = checkpoint.elements(part.name, start, stop, dtype).reshape(-1, part.columns).T
        advance((stop - start) * width)
    return out.reshape(leaf.layer_shape)


def stream(checkpoint: Checkpoint, leaf: Leaf, dtype: str, advance: Advance) -> Stream:
    """A leaf as Orbax is to write it: a layer a chunk, or rows of about 64 MiB."""

    def layers() -> Iterator[Array]:
        for part in leaf.parts:
            found = layer(checkpoint, leaf, part, dtype, advance)
            yield found[None] if leaf.stacked else found

    if leaf.stacked or leaf.parts[0].columns:
        return Stream(leaf.shape, dtype, (1, *leaf.layer_shape) if leaf.stacked else leaf.shape, layers)
    (part,) = leaf.parts
    row = math.prod(leaf.shape[1:])
    rows = min(max(1, _CHUNK_BYTES // (row * parameters.itemsize(dtype))), leaf.shape[0])

    def blocks() -> Iterator[Array]:
        for first in range(0, leaf.shape[0], rows):
            last = min(first + rows, leaf.shape[0])
            found = checkpoint.elements(part.name, part.start + first * row, part.start + last * row, dtype)
            advance(found.size * parameters.itemsize(checkpoint.dtype(part.name)))
            yield found.reshape(last - first, *leaf.shape[1:])

    return Stream(leaf.shape, dtype, (rows, *leaf.shape[1:]), blocks)


def whole(checkpoint: Checkpoint, leaf: Leaf, dtype: str) -> Array:
    """A whole leaf."""
    out = np.empty(leaf.shape, DTYPES[dtype])
    layers = out if leaf.stacked else out[None]
    for number, part in enumerate(leaf.parts):
        if part.columns:
            layers[number] = layer(checkpoint, leaf, part, dtype)
        else:
            flat = layers[number].reshape(-1)
            for start in range(0, flat.size, BLOCK):
                stop = min(start + BLOCK, flat.size)
                flat[start:stop] = checkpoint.elements(part.name, part.start + start, part.start + stop, dtype)
    return out


def tree(
    folder: Path,
    dtype: str | None = None,
    place: Callable[[str, Array], object] = lambda path, leaf: leaf,
    adapter: Path | None = None,
) -> tuple[ModelConfig, float, table.Tree]:
    """(ModelConfig, RoPE base, parameters) of a Hugging Face checkpoint, leaf by leaf.

    `place` takes each leaf (path, numpy array) to where it belongs before the next one is read. `dtype` and `adapter`
    as in `open_checkpoint`, with the same errors; also raises UserError for a NaN or an infinity.
    """
    checkpoint, config, rope_base = open_checkpoint(folder, dtype, adapter)
    for sentence in said(checkpoint):
        logging.getLogger(__name__).warning("%s", sentence)
    leaves = {
        leaf.path: place(leaf.path, whole(checkpoint, leaf, leaf_dtype(checkpoint, leaf, dtype)))
        for leaf in table.leaves(config)
    }
    return config, rope_base, table.nested(leaves)
