"""A run's low-rank factors in the files of PEFT: adapter_config.json and adapter_model.safetensors.

The published layout has Q, K and V in one matrix, W_pack. Adapters of rank r beside n of them become one of rank n r:
their A one above the other, their B on the diagonal of one block matrix, so that every row of W_pack's change is that
of its own adapter. PEFT multiplies by alpha / rank, so n alpha over n r is the scale of each.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from m1jax.config import LoraConfig, ModelConfig
from m1jax.config.tuning import MATRICES
from m1jax.convert import adapters as folders
from m1jax.convert import table
from m1jax.convert.parameters import Parameters
from m1jax.convert.source import converted_to, finite
from m1jax.convert.tensor_files import Array
from m1jax.errors import UserError
from m1jax.model import adapters

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
"""Of every tensor: PEFT's model, and the model inside of it."""


def write(
    folder: Path, parameters: Parameters, config: ModelConfig, lora: LoraConfig, base: str, dtype: str = "float32"
) -> int:
    """Writes both files into an existing folder; returns the number of tensors.

    `base` is what the adapter's file calls its base model. Raises UserError where a factor is NaN or infinite.
    """
    tensors = dict(_tensors(parameters, config, lora))
    for name, value in tensors.items():
        tensors[name] = np.ascontiguousarray(converted_to(value, dtype))
        if not finite(tensors[name]):
            raise UserError(f"{parameters.place} holds NaN or infinity in {name}: take another step's checkpoint.")
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    content = json.dumps(to_json(lora, base), indent=2) + "\n"
    (folder / folders.CONFIG).write_text(content, encoding="utf-8")
    return len(tensors)


def to_json(lora: LoraConfig, base: str) -> dict[str, Any]:
    """The content of adapter_config.json."""
    parts = {_module(tensor): len(_chosen(tensor, lora)) for tensor in table.LAYER if _chosen(tensor, lora)}
    several = {name: count for name, count in parts.items() if count > 1}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": sorted(parts),
        "layers_to_transform": sorted(lora.layers) or None,
        "layers_pattern": "layers" if lora.layers else None,
        "rank_pattern": {name: count * lora.rank for name, count in several.items()},
        "alpha_pattern": {name: count * lora.alpha for name, count in several.items()},
        "modules_to_save": None,
    }


def _tensors(parameters: Parameters, config: ModelConfig, lora: LoraConfig) -> Iterator[tuple[str, Array]]:
    """Every tensor of the adapter by its name, float32: A as (rank, inputs), B as (outputs, rank)."""
    layer = -1
    for entry in table.entries(config):
        layer += entry.tensor == table.LAYER[0]
        chosen = _chosen(entry.tensor, lora)
        if not chosen or not lora.of_layer(layer):
            continue
        blocks: list[tuple[int, Array | None]] = []
        of_a = []
        for leaf, path, shape in zip(entry.tensor.leaves, entry.paths, entry.leaf_shapes, strict=True):
            b = None
            if leaf in chosen:
                a, b = (
                    parameters.read(f"{adapters.beside(path)}/{name}", entry.stack_index).astype(np.float32)
                    for name in ("a", "b")
                )
                of_a.append(a.reshape(-1, lora.rank).T)
            blocks.append((math.prod(shape[entry.tensor.inputs :]), b))
        name = _PREFIX + entry.name.removesuffix(".weight")
        yield f"{name}.lora_A.weight", np.concatenate(of_a)
        yield f"{name}.lora_B.weight", _on_diagonal(blocks, lora.rank)


def _on_diagonal(blocks: Sequence[tuple[int, Array | None]], rank: int) -> Array:
    """Each B in the rows of its matrix and the columns of its A, zeros elsewhere; `blocks` has rows and B."""
    rows, columns = sum(count for count, _ in blocks), rank * sum(b is not None for _, b in blocks)
    found = np.zeros((rows, columns), np.float32)
    row = column = 0
    for count, b in blocks:
        if b is not None:
            found[row : row + count, column : column + rank] = b.reshape(rank, -1).T
            column += rank
        row += count
    return found


def _chosen(tensor: table.Tensor, lora: LoraConfig) -> list[str]:
    """The leaves of a checkpoint tensor that have factors, in the order of its rows."""
    targets = {MATRICES[name] for name in lora.targets}
    return [leaf for leaf in tensor.leaves if leaf in targets]


def _module(tensor: table.Tensor) -> str:
    """What PEFT calls the module of a tensor: the last part of its name."""
    return tensor.name.removesuffix(".weight").rpartition(".")[2]
