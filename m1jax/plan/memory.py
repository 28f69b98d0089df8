"""HBM of a training step by formula: what each part takes, on one device, before anything is compiled.

State, gradients and kept activations follow from shapes and the layout alone. The rest (what one block's backward pass
holds, the head, gathered weights) is a sum of shapes that live together; the factors of `WORKING` were set by the 14B
compiled for v5e and v5p, and are not yet checked on programs that they were not set by (tests/plan/memory_cases.py).

Legend: E hidden, F FFN, H heads, K KV heads, D head_dim, V vocabulary, L layers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from m1jax.config import ModelConfig, RunConfig, StageConfig

BF16, FP32 = 2, 4


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    parameters: float
    optimizer: float
    gradients: float
    activations: float
    """What the backward pass keeps of every layer."""
    working: float
    """What one layer, or the head, holds while it computes; gathered weights; code."""

    @property
    def total(self) -> float:
        """All parts."""
        return self.parameters + self.optimizer + self.gradients + self.activations + self.working


def estimate(config: RunConfig, stage: StageConfig, mesh: Mapping[str, int]) -> Memory:
    """The memory of a stage's step on a mesh (sizes by axis)."""
    model, train = config.model, config.train
    parameters = parameter_bytes(model, mesh)
    second = 1.0 if config.optimizer.second_moment == "full" else 0.0
    rows = mesh["replica"] * mesh["data"] * mesh["fsdp"] * train.accumulation
    tokens = stage.global_batch / rows * stage.row_length / mesh["context"]
    kept = sum(kept_per_token(model, kind, train.remat, mesh["tensor"]) for kind in model.layer_kinds) * tokens
    return Memory(
        parameters=parameters,
        optimizer=parameters * FP32 / _itemsize(model.param_dtype) * (1.0 + second),
        gradients=parameters * (2.0 if train.accumulation > 1 else 1.0),
        activations=kept,
        working=working(config, mesh, tokens),
    )


def parameter_bytes(model: ModelConfig, mesh: Mapping[str, int]) -> float:
    """Parameters of one device: matrices over fsdp and tensor, KV heads whole where tensor does not divide them."""
    fsdp, tensor = mesh["fsdp"], mesh["tensor"]
    tables = (1 if model.tie_embeddings else 2) * model.vocab_size * model.hidden / tensor
    total = tables + model.hidden
    for kind in model.layer_kinds:
        heads, kv_heads, head_dim = model.heads(kind)
        kv = kv_heads if kv_heads % tensor else kv_heads / tensor
        total += model.hidden * (head_dim * (2 * heads / tensor + 2 * kv) + 3 * model.ffn / tensor + 2)
    return total / fsdp * _itemsize(model.param_dtype)


def kept_per_token(model: ModelConfig, kind: str, remat: str, tensor: int) -> float:
    """Bytes that the backward pass keeps of a layer for each token."""
    width = _itemsize(model.compute_dtype)
    heads, kv_heads, head_dim = model.heads(kind)
    kv = kv_heads if kv_heads % tensor else kv_heads / tensor
    projections = (heads / tensor + 2 * kv) * head_dim + 2 * model.hidden + 2 * model.ffn / tensor
    attention = heads / tensor * (head_dim + FP32 / width)
    if remat == "offload":
        return 0.0
    if remat == "block":
        return width * model.hidden
    if remat == "dots":
        return width * (model.hidden + projections + attention)
    # Norm outputs, rotated and convolved heads, both factors of the gate and their product stay too.
    return width * (4 * model.hidden + 2 * projections + attention + model.ffn / tensor)


def working(config: RunConfig, mesh: Mapping[str, int], tokens: float) -> float:
    """What lives beside state, gradients and kept activations: a block's backward pass, gathered weights, the head."""
    model = config.model
    width, tensor = _itemsize(model.compute_dtype), mesh["tensor"]
    block = max(_block_tokens(model, kind, tensor) for kind in set(model.layer_kinds)) * width * tokens
    weights = max(_block_weights(model, kind, tensor) for kind in set(model.layer_kinds))
    chunk = min(config.train.loss_chunk / (mesh["replica"] * mesh["data"] * mesh["fsdp"]), tokens)
    table = model.vocab_size * model.hidden / tensor
    head = chunk * model.vocab_size / tensor * (FP32 + width) + table * (width + FP32 / mesh["fsdp"])
    return WORKING["block"] * block + WORKING["weights"] * weights * width + WORKING["head"] * head + WORKING["fixed"]


WORKING = {"block": 1.2, "weights": 2.0, "head": 1.0, "fixed": 50e6}


def _block_tokens(model: ModelConfig, kind: str, tensor: int) -> float:
    heads, _, head_dim = model.heads(kind)
    return 4 * model.hidden + 4 * model.ffn / tensor + 4 * heads * head_dim / tensor


def _block_weights(model: ModelConfig, kind: str, tensor: int) -> float:
    heads, kv_heads, head_dim = model.heads(kind)
    return model.hidden * (head_dim * (2 * heads + 2 * kv_heads) + 3 * model.ffn) / tensor


def _itemsize(dtype: str) -> int:
    return BF16 if dtype == "bfloat16" else FP32


def by_part(state: Any, facts: Any, config: RunConfig, stage: StageConfig, mesh: Mapping[str, int]) -> dict[str, float]:
    """The compiler's total, split: what is given exactly, gradients and kept activations by formula, the rest."""
    sizes = {name: sum(map(_on_device, leaves)) for name, leaves in state.items()}
    estimated = estimate(config, stage, mesh)
    temporaries = facts.temporaries
    gradients = min(estimated.gradients, temporaries)
    activations = min(estimated.activations, temporaries - gradients)
    return {
        "parameters": sizes["parameters"],
        "optimiser": sizes["optimiser"],
        "batch and outputs": facts.arguments + facts.outputs - facts.aliased - sizes["parameters"] - sizes["optimiser"],
        "gradients (formula)": gradients,
        "activations kept (formula)": activations,
        "temporaries": temporaries - gradients - activations,
        "code": facts.code,
    }


def _on_device(leaf: Any) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
