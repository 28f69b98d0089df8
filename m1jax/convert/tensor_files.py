"""Files of tensors, read a few elements at a time: safetensors, and what torch.save wrote."""

import json
import math
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from m1jax.errors import UserError, first_line

Array = np.ndarray
DTYPES: dict[str, Any] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
"""Dtypes that can be read, as numpy has them."""
_SAFETENSORS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class Stored:
    """A tensor on disk; `dtype` is a name of DTYPES, or another that only an error message shows."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class TensorFile(Protocol):
    """An open file of tensors."""

    tensors: dict[str, Stored]

    def elements(self, name: str, start: int, stop: int) -> Array:
        """Elements `start` to `stop` of a tensor in C order, (stop - start,), in its own dtype."""


class SafetensorsFile:
    """A safetensors file; raises UserError where its header does not describe the file exactly."""

    def __init__(self, path: Path):
        try:
            # The library checks the header: its size, the bounds, gaps and overlaps of all tensors, the file's end.
            with safe_open(path, framework="np") as file:
                parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
                self.tensors = {
                    name: Stored(path, tuple(part.get_shape()), _SAFETENSORS.get(part.get_dtype(), part.get_dtype()))
                    for name, part in parts.items()
                }
        except (SafetensorError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error}): fetch or export it again.") from error
        # Its own reading maps the whole file into memory; reading at an offset leaves nothing behind.
        self._file = path.open("rb", buffering=0)
        size = int.from_bytes(self._file.read(8), "little")
        header = json.loads(self._file.read(size))
        self._starts = {name: 8 + size + header[name]["data_offsets"][0] for name in self.tensors}

    def elements(self, name: str, start: int, stop: int) -> Array:
        """See TensorFile; raises UserError where the file has become shorter."""
        out = np.empty(stop - start, DTYPES[self.tensors[name].dtype])
        rest = out.view(np.uint8).data
        offset = self._starts[name] + start * out.itemsize
        while rest:
            count = os.preadv(self._file.fileno(), [rest], offset)
            if not count:
                raise UserError(f"{self._file.name} ends inside {name}: fetch or export it again.")
            rest, offset = rest[count:], offset + count
        return out

    def mapped(self, name: str) -> Array:
        """A tensor as it lies in the file, its pages read when they are used; bfloat16 as int16."""
        stored = self.tensors[name]
        kind = np.int16 if stored.dtype == "bfloat16" else DTYPES[stored.dtype]
        # Copy on write, because torch wants memory that it may write to.
        return np.memmap(stored.file, kind, "c", self._starts[name], stored.shape)


class TorchFile:
    """A file of torch.save that holds a state dict: tensors by name, read with `weights_only`, mapped, never unpickled.

    Raises UserError where it holds anything else, is damaged, or torch is not installed.
    """

    def __init__(self, path: Path):
        try:
            import torch
        except ImportError as error:
            raise UserError(f"{path} needs PyTorch to be read: run `pip install torch`.") from error
        self._torch = torch
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{path} holds more than tensors, or is damaged, and was not unpickled: save model.state_dict() only."
            ) from error
        except (RuntimeError, OSError, ValueError, KeyError, TypeError, EOFError, IndexError, AttributeError) as error:
            raise UserError(f"{path} is damaged or of the old format ({first_line(error)}): save it again.") from error
        if not isinstance(state, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
            raise UserError(f"{path} holds no state dict (tensors by name): save model.state_dict() only.")
        self._state: Mapping[str, Any] = state
        self.tensors = {
            name: Stored(path, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            for name, tensor in state.items()
        }

    def elements(self, name: str, start: int, stop: int) -> Array:
        """See TensorFile."""
        part = self._state[name].detach().reshape(-1)[start:stop].contiguous()
        if part.dtype == self._torch.bfloat16:  # numpy has no such type of its own
            return part.view(self._torch.int16).numpy().view(ml_dtypes.bfloat16)
        return part.numpy()


class SafetensorsWriter:
    """A safetensors file written a piece at a time: tensors in the order of `shapes`, each from its first element on.

    Raises no error of its own where pieces are missing: `close` asserts that every byte came.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[tuple[int, ...], str]]):
        names = {dtype: name for name, dtype in _SAFETENSORS.items()}
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, (shape, dtype) in shapes.items():
            start, end = end, end + nbytes(shape, dtype)
            header[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._end = 8 + len(text) + end

    def write(self, piece: Array) -> None:
        """Appends elements."""
        self._file.write(np.ascontiguousarray(piece).view(np.uint8).data)

    def close(self) -> None:
        """Ends the file."""
        assert self._file.tell() == self._end, f"{self._file.name}: {self._file.tell()} of {self._end} bytes"
        self._file.close()


def save_torch(source: Path, path: Path) -> None:
    """A safetensors file as one of torch.save, its tensors mapped into memory, not read at once."""
    import torch

    file = SafetensorsFile(source)
    state = {name: torch.from_numpy(file.mapped(name)) for name in file.tensors}
    for name, tensor in state.items():
        if file.tensors[name].dtype == "bfloat16":
            state[name] = tensor.view(torch.bfloat16)
    torch.save(state, path)


def nbytes(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of a tensor."""
    return math.prod(shape) * DTYPES[dtype].itemsize


OPENERS: dict[str, Callable[[Path], TensorFile]] = {".safetensors": SafetensorsFile, ".bin": TorchFile}
"""What opens a file, by its suffix."""
