"""Checkpoints in the layout that Baichuan published: written for PyTorch users, read back bit by bit."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from m1jax import artefact
from m1jax import model as models
from m1jax.config import DTYPES, ModelConfig
from m1jax.convert import config_json
from m1jax.convert.table import Entry, Tree, entries, find
from m1jax.errors import UserError

WEIGHTS = "model.safetensors"


def export(
    parameters: Mapping[str, Any],
    config: ModelConfig,
    rope_base: float,
    tokenizer_folder: Path | None,
    folder: Path,
    token_ids: Mapping[str, int] | None = None,
) -> None:
    """Writes config.json, generation_config.json, model.safetensors and the tokenizer's files into an existing folder.

    `parameters` is the tree of `m1jax.model.create`; tensors keep its dtype, NormHead is stored unnormalised.
    `token_ids` (bos_token_id, eos_token_id, pad_token_id) go into both config files. The caller makes the folder whole
    or absent (`artefact.building`).
    """
    ids = dict(token_ids or {})
    dtype = str(find(parameters, "embed/weight").dtype)
    _write_json(folder / config_json.FILE, config_json.to_json(config, rope_base, dtype, ids))
    _write_json(folder / "generation_config.json", {"_from_model_config": True, **ids})
    if tokenizer_folder is not None:
        for file in sorted(tokenizer_folder.iterdir()):
            if file.is_file() and file.name != artefact.STAMP:
                shutil.copyfile(file, folder / file.name)
    tensors = {entry.name: _tensor(parameters, entry) for entry in entries(models.layout(config))}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def read(folder: Path) -> tuple[ModelConfig, float, Tree]:
    """(ModelConfig, RoPE base, parameters as numpy arrays at the file's dtype) of a checkpoint's folder.

    Computing happens in the dtype of the weights unless the caller replaces `compute_dtype`. Raises UserError naming
    the file and the key or tensor that is missing, too many, of another shape or of a dtype m1jax does not train.
    """
    config, rope_base = config_json.read(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"{path} is missing: give the folder of a checkpoint in one {WEIGHTS} file.")
    shapes = models.abstract(config).shapes
    layout = models.layout(config)
    try:
        with safe_open(path, framework="np") as file:
            _check_names({entry.name for entry in entries(layout)}, set(file.keys()), path)
            stacked: dict[str, list[np.ndarray]] = {}
            for entry in entries(layout):
                _read_entry(file, entry, shapes, path, stacked)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): fetch or export it again.") from error
    parameters = jax.tree_util.tree_map_with_path(lambda at, _: _assembled(at, stacked), shapes)
    dtype = str(find(parameters, "embed/weight").dtype)
    return replace(config, param_dtype=dtype, compute_dtype=dtype), rope_base, parameters


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _tensor(parameters: Mapping[str, Any], entry: Entry) -> np.ndarray:
    leaves = [find(parameters, path) for path in entry.paths]
    if entry.stack_index is not None:
        leaves = [leaf[entry.stack_index] for leaf in leaves]
    return entry.tensor.join([np.asarray(leaf) for leaf in leaves])


def _check_names(wanted: set[str], found: set[str], path: Path) -> None:
    for names, fault in ((wanted - found, "lacks"), (found - wanted, "has more than config.json describes:")):
        if names:
            shown = ", ".join(sorted(names)[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            raise UserError(f"{path} {fault} {shown}: check that weights and config.json belong together.")


def _read_entry(file: Any, entry: Entry, shapes: Tree, path: Path, stacked: dict[str, list[np.ndarray]]) -> None:
    """Adds the leaves of one tensor to `stacked`; layers come in order, so stacked leaves do too."""
    leaf_shapes = entry.shapes(shapes)
    wanted, found = entry.tensor.shape(leaf_shapes), tuple(file.get_slice(entry.name).get_shape())
    if wanted != found:
        raise UserError(f"{path}: {entry.name} has the shape {found}, config.json asks for {wanted}.")
    tensor = file.get_tensor(entry.name)
    if str(tensor.dtype) not in DTYPES:
        raise UserError(f"{path}: {entry.name} is {tensor.dtype}, m1jax reads {' and '.join(DTYPES)}.")
    for leaf_path, leaf in zip(entry.paths, entry.tensor.split(tensor, leaf_shapes), strict=True):
        stacked.setdefault(leaf_path, []).append(leaf)


def _assembled(at: tuple[Any, ...], stacked: dict[str, list[np.ndarray]]) -> np.ndarray:
    """The leaf at a path of the tree, its layers stacked where it lies in the periods; frees what it takes."""
    leaves = stacked.pop("/".join(key.key for key in at))
    return np.stack(leaves) if at[0].key == "periods" else leaves[0]
