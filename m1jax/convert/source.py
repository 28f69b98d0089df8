"""A Hugging Face checkpoint's folder as one set of tensors, checked before anything is made of it."""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from m1jax.config import DTYPES, LAYER_KINDS, ModelConfig
from m1jax.convert import adapters, table
from m1jax.convert.tensor_files import DTYPES as READABLE
from m1jax.convert.tensor_files import OPENERS, Array, Stored, TensorFile, nbytes
from m1jax.errors import UserError

SAFETENSORS, SAFETENSORS_INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
BLOCK = 1 << 22
"""Elements that are read or compared at once where a tensor needs no turning."""
# Elements that stay in a core's cache between two passes over them.
_CACHED = 1 << 16
# The bits of a number's exponent, and integers of its width.
_EXPONENTS: dict[str, tuple[int, Any]] = {
    "float32": (0x7F800000, np.uint32),
    "bfloat16": (0x7F80, np.uint16),
    "float16": (0x7C00, np.uint16),
}

# Buffers that programs save beside the weights: rotary frequencies and their tables, positions, causal masks.
_DERIVED = re.compile(
    r"(^|\.)(rotary_emb\.(original_)?(inv_freq|cos_cached|sin_cached)|position_ids|masked_bias|causal_mask)$"
)
# What adapters call their matrices.
_ADAPTED = re.compile(r"(^|\.)(lora_|base_model\.model\.|base_layer\.)")
_LAYER = re.compile(r"\.layers\.(\d+)\.")
# Frequencies may be stored in 16 bits.
_FREQUENCY_TOLERANCE = 1e-2


class Checkpoint:
    """The tensors of a folder: model.safetensors, or those an index lists, or the same as pytorch_model.bin.

    Raises UserError where no file is there, one is damaged or lies outside the folder, or an index disagrees with its
    files.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.skipped: tuple[str, ...] = ()
        """Tensors that `check` left out, as they follow from the others or from config.json."""
        self._home: dict[str, TensorFile] = {}
        for single, index in ((SAFETENSORS, SAFETENSORS_INDEX), (TORCH, TORCH_INDEX)):
            _check_link(folder / single)
            _check_link(folder / index)
            if (folder / single).is_file():
                self.path = folder / single
                self._add(folder / single, None)
                break
            if (folder / index).is_file():
                self.path = folder / index
                listed = _by_file(self.path)
                places = {name: _inside(folder, name, self.path) for name in listed}
                for name, tensors in listed.items():
                    self._add(places[name], tensors)
                break
        else:
            raise UserError(
                f"{folder} holds neither {SAFETENSORS} nor {SAFETENSORS_INDEX} nor {TORCH} nor {TORCH_INDEX}: give the "
                f"folder of a Hugging Face checkpoint."
            )

    @property
    def tensors(self) -> dict[str, Stored]:
        """Every tensor by its name."""
        return {name: file.tensors[name] for name, file in self._home.items()}

    @property
    def files(self) -> list[Path]:
        """The files that hold the tensors, and the index where there is one."""
        return sorted({self.path, *(stored.file for stored in self.tensors.values())})

    def _add(self, path: Path, listed: set[str] | None) -> None:
        """Opens a file; `listed` are the tensors that the index expects there."""
        file = OPENERS[path.suffix](path)
        if listed is not None:
            for names, fault in ((listed - set(file.tensors), "lacks"), (set(file.tensors) - listed, "also holds")):
                if names:
                    raise UserError(
                        f"{path} {fault} {some(names)}, against {self.path}: fetch or export the folder again."
                    )
        self._home |= dict.fromkeys(file.tensors, file)

    def check(self, config: ModelConfig, rope_base: float, dtype: str | None) -> None:
        """Raises UserError where the tensors are not exactly those of a model, or cannot be had in `dtype`.

        Tensors that follow from the others or from config.json are left out (`skipped`). Reads no numbers but theirs: a
        head must equal the embedding it is tied to, and frequencies must be those of `rope_base`.
        """
        wanted = {entry.name: entry.shape for entry in table.entries(config)}
        for name in sorted(self._home):
            if config.tie_embeddings and name == table.HEAD.name:
                self._check_tied(self.tensors)
            elif not _DERIVED.search(name):
                continue
            elif name.endswith("inv_freq"):
                self._check_frequencies(name, config, rope_base)
            del self._home[name]
            self.skipped += (name,)
        tensors = self.tensors
        if added := [name for name in tensors if _ADAPTED.search(name)]:
            raise UserError(f"{tensors[min(added)].file} holds an adapter's weights ({some(added)}): {adapters.MERGE}.")
        if missing := wanted.keys() - tensors.keys():
            raise UserError(f"{self.path} lacks {some(missing)}: check that weights and config.json belong together.")
        for name, shape in wanted.items():
            found = tensors[name]
            if found.shape != shape:
                raise UserError(f"{found.file}: {name} has the shape {found.shape}, config.json asks for {shape}.")
            if found.dtype not in DTYPES and not (found.dtype in READABLE and dtype is not None):
                hint = " without --dtype" if found.dtype in READABLE else ""
                raise UserError(f"{found.file}: {name} is {found.dtype}, m1jax reads {' and '.join(DTYPES)}{hint}.")
        if extra := tensors.keys() - wanted.keys():
            raise UserError(
                f"{tensors[min(extra)].file} has more than config.json describes: {some(extra)}: check that weights "
                f"and config.json belong together."
            )

    def _check_tied(self, tensors: dict[str, Stored]) -> None:
        head, embedding = tensors[table.HEAD.name], tensors.get(table.EMBEDDING.name)
        same = embedding is not None and (head.shape, head.dtype) == (embedding.shape, embedding.dtype)
        same = same and head.dtype in READABLE
        if not same or not all(
            np.array_equal(bits(self._raw(table.HEAD.name, *part)), bits(self._raw(table.EMBEDDING.name, *part)))
            for part in blocks(math.prod(head.shape))
        ):
            raise UserError(
                f"{head.file}: {table.HEAD.name} differs from {table.EMBEDDING.name}, but config.json says "
                f"tie_word_embeddings = true: correct the one or the other."
            )

    def _check_frequencies(self, name: str, config: ModelConfig, rope_base: float) -> None:
        """A buffer of rotary frequencies must be the one that the config gives: another model kept its scaling here."""
        stored = self.tensors[name]
        layer = _LAYER.search(name)
        kinds = [config.layer_kinds[int(layer[1])]] if layer and int(layer[1]) < config.num_layers else LAYER_KINDS
        found = np.empty(0, np.float32)
        if stored.dtype in READABLE:
            found = self._raw(name, 0, math.prod(stored.shape)).astype(np.float32)
        for kind in kinds:
            head_dim = config.heads(kind)[2]
            expected = rope_base ** (-np.arange(0, head_dim, 2) / head_dim)
            if found.shape == expected.shape and np.allclose(found, expected, rtol=_FREQUENCY_TOLERANCE, atol=1e-7):
                return
        raise UserError(
            f"{stored.file}: {name} holds other rotary frequencies (the last is {found[-1] if found.size else None}) "
            f"than rope_theta = {rope_base} of config.json gives ({expected[-1]}): correct config.json, or take the "
            f"tensor out."
        )

    def _raw(self, name: str, start: int, stop: int) -> Array:
        return self._home[name].elements(name, start, stop)

    def elements(self, name: str, start: int, stop: int, dtype: str | None = None) -> Array:
        """Elements of a flat tensor, (stop - start,), in `dtype` (default: its own).

        Raises UserError where one is NaN or infinite, in the file or in `dtype`.
        """
        found = self._raw(name, start, stop)
        if not finite(found):
            raise UserError(f"{self.tensors_file(name)}: {name} holds NaN or infinity: fetch it again, or mend it.")
        if dtype is None or found.dtype == READABLE[dtype]:
            return found
        converted = converted_to(found, dtype)
        if not finite(converted):
            raise UserError(f"{self.tensors_file(name)}: {name} holds a number too large for {dtype}: keep its dtype.")
        return converted

    def tensors_file(self, name: str) -> Path:
        """The file that a tensor lies in."""
        return self._home[name].tensors[name].file

    def dtype(self, name: str) -> str:
        """A tensor's own dtype."""
        return self._home[name].tensors[name].dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(nbytes(stored.shape, stored.dtype) for stored in self.tensors.values())


def finite(array: Array) -> bool:
    """Whether no element is NaN or infinite: whether none has all bits of its exponent set."""
    mask, kind = _EXPONENTS[array.dtype.name]
    flat = array.reshape(-1).view(kind)
    room = np.empty(min(flat.size, _CACHED), kind)
    for start in range(0, flat.size, _CACHED):
        part = flat[start : start + _CACHED]
        if np.bitwise_and(part, kind(mask), out=room[: part.size]).max() == mask:
            return False
    return True


def bits(array: Array) -> Array:
    """The array's bits, as integers: equal numbers of other bits (0 and -0) differ."""
    return array.view(f"u{array.itemsize}")


def converted_to(array: Array, dtype: str) -> Array:
    """The array in another dtype, rounded to nearest even; what is too large becomes infinite."""
    if array.dtype == READABLE[dtype]:
        return array
    with np.errstate(over="ignore"):
        return array.astype(READABLE[dtype])


def blocks(size: int) -> Iterable[tuple[int, int]]:
    """(start, stop) of the blocks of `size` elements."""
    return ((start, min(start + BLOCK, size)) for start in range(0, size, BLOCK))


def _by_file(index: Path) -> dict[str, set[str]]:
    """Tensor names by the file that an index says they lie in."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        places = content["weight_map"]
        names = {name: str(file) for name, file in places.items() if isinstance(file, str)}
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is damaged (no weight_map): fetch or export it again.") from error
    if not names or len(names) != len(places):
        raise UserError(f"{index} is damaged (weight_map must map tensors to files): fetch or export it again.")
    found: dict[str, set[str]] = {}
    for name, file in names.items():
        found.setdefault(file, set()).add(name)
    return found


def _inside(folder: Path, name: str, said_by: Path) -> Path:
    """The path of a file of the folder, which may be a link to anywhere, as in Hugging Face's own cache.

    Raises UserError where the name is not that of a file of the folder, or the file is missing or of another kind.
    """
    path = folder / name
    if Path(name).name != name or name in ("", ".."):
        raise UserError(f"{said_by} names {name!r}, which lies outside {folder}: it may hold plain file names only.")
    if path.suffix not in OPENERS:
        raise UserError(f"{said_by} names {name!r}: m1jax reads {' and '.join(OPENERS)} files.")
    _check_link(path)
    if not path.is_file():
        raise UserError(f"{path} is missing, which {said_by} names: fetch or export the folder again.")
    return path


def _check_link(path: Path) -> None:
    """Raises UserError where the path is a link to a file that is gone, as in a cache that was emptied."""
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a broken link: its target is missing, fetch the folder again.")


def some(names: Iterable[Any]) -> str:
    """The first names in order, and how many others there are."""
    found = sorted(names)
    return ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
