"""HBM of a training step by formula: what each part takes, on one device, before anything is compiled.

State, gradients and kept activations follow from shapes and the layout. What else lives at the peak was read from
libtpu 0.0.51's buffer assignment of the 12 programs of `FITTED` in tests/plan/memory_cases.py, the 14B and a contract;
the counts `BLOCK_FFN`, `BLOCK_HIDDEN` and `WEIGHT_GRADIENTS` are their least-squares fit, rounded: the compiler keeps
from 3 to 7 values of the feed-forward width at the peak, more of them the more HBM is free.

Legend: E hidden, F FFN, H heads, K KV heads, D head_dim, V vocabulary, L layers.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from m1jax import objectives
from m1jax.config import ModelConfig, RunConfig, StageConfig, tuning
from m1jax.objectives.reference import Referenced

BF16, FP32 = 2, 4
BLOCK_FFN = 8.0
"""Values of width F a token that a block's backward pass holds."""
BLOCK_HIDDEN = 4.0
"""Values of width E a token, where the block is computed again."""
WEIGHT_GRADIENTS = 7.0
"""Gradients of whole E x F matrices in float32 on their way to their shards."""
VMEM = 64 * 2**20
"""Bytes of a block's values that wait in VMEM instead: v5p has that much, v5e twice (less of it is free)."""
CODE = 90e6
"""Bytes of machine code: 66 to 131 MB in the programs compiled."""
PADDING = 1024
"""Tokens by which queries that start inside a row are padded to whole blocks of the attention kernel."""


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
    frozen, trained = state_bytes(config, mesh)
    parameters = frozen + trained + reference_bytes(config, mesh)
    # Of what AdamW moves; the rest is small beside the layers' matrices and the tables.
    muon = config.optimizer.name == "muon" and not tuned(config)
    second = table_share(model) if muon else 1.0
    second = second if config.optimizer.second_moment == "full" else 0.0
    rows = mesh["replica"] * mesh["data"] * mesh["fsdp"] * train.accumulation
    tokens = stage.global_batch / rows * stage.row_length / mesh["context"]
    kept = sum(kept_per_token(model, kind, train.remat, mesh) for kind in model.layer_kinds) * tokens
    gradients = trained * (2.0 if train.accumulation > 1 else 1.0)
    width = _itemsize(model.compute_dtype)
    stored = _itemsize(train.frozen_dtype or model.param_dtype) if tuned(config) else _itemsize(model.param_dtype)
    tables = parameter_bytes(model, mesh) * table_share(model)
    narrow = (parameter_bytes(model, mesh) - tables) * width / FP32 if width < stored else 0.0
    block = block_working(config, stage, mesh, tokens)
    # While the head works, no gradient of this micro-batch is there yet.
    head = head_working(config, mesh, tokens) - trained
    return Memory(
        parameters=parameters,
        optimizer=trained * (1.0 + second) * (1.0 if train.lora.rank else FP32 / _itemsize(model.param_dtype)),
        gradients=gradients,
        activations=kept,
        working=narrow + max(block, head) + CODE,
    )


def tuned(config: RunConfig) -> bool:
    """Whether some parameters are frozen."""
    return bool(config.train.lora.rank or config.train.trained)


def state_bytes(config: RunConfig, mesh: Mapping[str, int]) -> tuple[float, float]:
    """Bytes of the frozen and of the trained parameters of one device.

    One factor of a matrix is split as the matrix is along its inputs, the other along its outputs.
    """
    model, train = config.model, config.train
    own = scalars(model, mesh["fsdp"], mesh["tensor"])
    if not tuned(config):
        return 0.0, sum(own.values()) * _itemsize(model.param_dtype)
    moved = sum(own[name] for name in tuning.matched(model, train.trained))
    factors = 0.0
    for name, size in tuning.factor_sizes(model, train.lora).items():
        along_hidden = train.lora.rank * model.hidden
        factors += along_hidden / mesh["fsdp"] + (size - along_hidden) / _tensor(model, name, mesh["tensor"])
    frozen = (sum(own.values()) - moved) * _itemsize(train.frozen_dtype or model.param_dtype)
    return frozen, moved * _itemsize(model.param_dtype) + factors * FP32


def reference_bytes(config: RunConfig, mesh: Mapping[str, int]) -> float:
    """Bytes of a reference beside the model (m1jax.objectives.reference), of one device."""
    objective, train = objectives.OBJECTIVES[config.objective], config.train
    if not (isinstance(objective, type) and issubclass(objective, Referenced)) or (
        train.lora.rank and not train.trained
    ):
        return 0.0
    return sum(scalars(config.model, mesh["fsdp"], mesh["tensor"]).values()) * _itemsize(
        train.frozen_dtype or config.model.param_dtype
    )


def parameter_bytes(model: ModelConfig, mesh: Mapping[str, int]) -> float:
    """Parameters of one device."""
    return sum(scalars(model, mesh["fsdp"], mesh["tensor"]).values()) * _itemsize(model.param_dtype)


@functools.lru_cache(maxsize=256)
def scalars(model: ModelConfig, fsdp: int, tensor: int) -> Mapping[str, float]:
    """Scalars of every parameter on one device by the parameter's name (m1jax.config.tuning)."""
    return {
        name: size / _tensor(model, name, tensor) / (1 if "conv" in name else fsdp)
        for name, size in tuning.sizes(model).items()
    }


def _tensor(model: ModelConfig, name: str, tensor: int) -> int:
    """Parts that the axis `tensor` cuts a parameter into: KV heads are whole where it does not divide them."""
    if "norm" in name:
        return 1
    if any(part in name for part in ("k_proj", "v_proj", "conv")):
        kv_heads = model.heads(model.layer_kinds[int(name.split("/")[1])])[1]
        return 1 if kv_heads % tensor else tensor
    return tensor


def table_share(model: ModelConfig) -> float:
    """Share of the parameters that are in the embedding and the head."""
    return (1 if model.tie_embeddings else 2) * model.vocab_size * model.hidden / model.num_parameters


def kept_per_token(model: ModelConfig, kind: str, remat: str, mesh: Mapping[str, int]) -> float:
    """Bytes that the backward pass keeps of a layer for each token of a device.

    block: the input. dots: the residual stream before and after attention; the projections q, gate and up; q and the
    output of attention as the kernel takes and leaves them; k and v twice, the kernel's copies of every token of the
    row. none: six values of width F instead of two, and both norms' input and output in float32.
    """
    width, tensor = _itemsize(model.compute_dtype), mesh["tensor"]
    heads, kv_heads, head_dim = model.heads(kind)
    kv = kv_heads if kv_heads % tensor else kv_heads / tensor
    if remat == "offload":
        return 0.0
    if remat == "block":
        return width * model.hidden
    attention = (3 * heads / tensor + 4 * kv * mesh["context"]) * head_dim
    if remat == "dots":
        return width * (2 * model.hidden + attention + 2 * model.ffn / tensor)
    return width * (2 * model.hidden + attention + 6 * model.ffn / tensor) + FP32 * 4 * model.hidden


def block_working(config: RunConfig, stage: StageConfig, mesh: Mapping[str, int], tokens: float) -> float:
    """What one block's backward pass holds: activations, gradients of whole matrices, K and V of other shards."""
    model = config.model
    width, tensor = _itemsize(model.compute_dtype), mesh["tensor"]
    again = config.train.remat in ("block", "offload")
    values = BLOCK_FFN * model.ffn / tensor + (BLOCK_HIDDEN * model.hidden if again else 0.0)
    trains = not tuned(config) or any(name.endswith("_proj") for name in tuning.matched(model, config.train.trained))
    matrices = WEIGHT_GRADIENTS * model.hidden * model.ffn / tensor * FP32 if mesh["fsdp"] > 1 and trains else 0.0
    gathered = max(_gathered(model, kind, stage.row_length, mesh) for kind in set(model.layer_kinds))
    gathered *= tokens / (stage.row_length / mesh["context"])
    return max(width * (values * tokens + gathered) + matrices - VMEM, 0.0)


def _gathered(model: ModelConfig, kind: str, row_length: int, mesh: Mapping[str, int]) -> float:
    """Elements a row that context parallelism adds: keys and values of the other shards, and padded queries."""
    if mesh["context"] == 1:
        return 0.0
    heads, kv_heads, head_dim = model.heads(kind)
    own = row_length // mesh["context"]
    halo = kind == "window" and model.window <= row_length - own
    seen = own + model.window if halo else row_length
    tensor = mesh["tensor"]
    kv = kv_heads if kv_heads % tensor else kv_heads / tensor
    return head_dim * (8 * kv * seen + 6 * heads / tensor * PADDING)


def head_working(config: RunConfig, mesh: Mapping[str, int], tokens: float) -> float:
    """What the head holds: its whole table, whose gradient is float32; logits of a chunk, and their gradient."""
    model = config.model
    width, tensor = _itemsize(model.compute_dtype), mesh["tensor"]
    chunk = min(config.train.loss_chunk / (mesh["replica"] * mesh["data"] * mesh["fsdp"]), tokens)
    return (model.hidden + chunk) * model.vocab_size / tensor * (FP32 + width)


def _itemsize(dtype: str) -> int:
    return BF16 if dtype == "bfloat16" else FP32


def by_part(state: Any, facts: Any, config: RunConfig, stage: StageConfig, mesh: Mapping[str, int]) -> dict[str, float]:
    """The compiler's total, split: parts of the state exactly, gradients and kept activations by formula, the rest.

    `state` has the abstract leaves of each part by name; "parameters" are the trained ones.
    """
    sizes = {name: device_bytes(leaves) for name, leaves in state.items()}
    estimated = estimate(config, stage, mesh)
    temporaries = facts.temporaries
    gradients = min(sizes["parameters"] * (2.0 if config.train.accumulation > 1 else 1.0), temporaries)
    activations = min(estimated.activations, temporaries - gradients)
    return {
        **sizes,
        "batch and outputs": facts.arguments + facts.outputs - facts.aliased - sum(sizes.values()),
        "gradients (formula)": gradients,
        "activations kept (formula)": activations,
        "temporaries": temporaries - gradients - activations,
        "code": facts.code,
    }


def device_bytes(tree: Any) -> int:
    """Bytes of abstract arrays (ShapeDtypeStructs with shardings) on one device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
