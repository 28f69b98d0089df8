"""Checkpoints in the layout that Baichuan published: written for PyTorch users, read back bit by bit."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m1jax.config import ModelConfig
from m1jax.convert import config_json, reading, table, tokenizer_files, torch_model, writing
from m1jax.convert.parameters import InMemory, Parameters
from m1jax.convert.table import Tree


def export(
    parameters: Mapping[str, Any] | Parameters,
    config: ModelConfig,
    rope_base: float,
    tokenizer_folder: Path | None,
    folder: Path,
    token_ids: Mapping[str, Any] | None = None,
    *,
    generation: Mapping[str, Any] | None = None,
    dtypes: Mapping[str, str] | None = None,
    form: str = "hf",
    shard_bytes: int = writing.SHARD_BYTES,
    advance: writing.Advance = lambda _: None,
) -> list[str]:
    """Writes a checkpoint into an existing folder: weights, configs, the tokenizer's files and the PyTorch model's.

    Returns the names of the weights' files. NormHead is stored unnormalised. The caller makes the folder whole or
    absent (`artefact.building`); a folder that was not finished has no config.json and loads nowhere.

    Args:
        parameters: the tree of `m1jax.model.create`, or parameters read in parts.
        config: the model.
        rope_base: base of the rotary positions.
        tokenizer_folder: where the tokenizer's files lie; None for none.
        folder: where to write.
        token_ids: bos_token_id, eos_token_id, pad_token_id, for both config files.
        generation: content of generation_config.json, by default the token ids.
        dtypes: dtype of each tensor (`tensor_dtypes`), by default that of its parameter.
        form: "hf" for safetensors, "torch" for torch.save.
        shard_bytes: most bytes of a file of weights.
        advance: is told of bytes written.
    """
    ids = dict(token_ids or {})
    source: Parameters = InMemory(parameters) if isinstance(parameters, Mapping) else parameters
    dtypes = dtypes or tensor_dtypes(source, config)
    files = writing.write(folder, source, config, dtypes, form, shard_bytes, advance)
    torch_model.write(folder)
    tokenizer_files.write(tokenizer_folder, folder, config_json.single(ids), config.max_positions)
    write_json(folder / config_json.GENERATION, generation or {"_from_model_config": True, **ids})
    dtype = dtypes[table.EMBEDDING.name]
    write_json(folder / config_json.FILE, config_json.to_json(config, rope_base, dtype, ids))
    return files


def tensor_dtypes(parameters: Parameters, config: ModelConfig) -> dict[str, str]:
    """The dtype of every checkpoint tensor that holds its parameters exactly."""
    found = {}
    for entry in table.entries(config):
        kinds = {parameters.dtype(path) for path in entry.paths}
        found[entry.name] = "float32" if "float32" in kinds else "bfloat16"
    return found


def read(folder: Path) -> tuple[ModelConfig, float, Tree]:
    """(ModelConfig, RoPE base, parameters as numpy arrays at the file's dtype) of a checkpoint's folder.

    Computing happens in the dtype of the weights unless the caller replaces `compute_dtype`. Raises UserError naming
    the file and the key or tensor that is missing, too many, of another shape or of a dtype m1jax does not train.
    """
    return reading.tree(folder)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a file as transformers do."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
