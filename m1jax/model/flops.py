"""Floating-point operations of a model, by formula."""

import dataclasses

import numpy as np

from m1jax.config import ModelConfig, TrainConfig, tuning


def matmul_parameters(model: ModelConfig) -> int:
    """Parameters that multiply every token: projections, MLPs and head; not the embedding, norms or convolutions."""
    total = model.vocab_size * model.hidden
    for kind in model.layer_kinds:
        heads, kv_heads, head_dim = model.heads(kind)
        total += model.hidden * head_dim * (2 * heads + 2 * kv_heads) + 3 * model.hidden * model.ffn
    return total


def forward_flops(model: ModelConfig, positions: np.ndarray) -> float:
    """FLOPs of one forward pass over tokens at `positions` (int, any shape; each counts from its document's start).

    2 a matrix parameter and token, plus attention as it is masked: a query at position p sees p + 1 keys on a global
    layer and min(p + 1, W) on a window layer, at 4 · heads · head_dim each (scores and values). PaLM
    (arXiv 2204.02311, appendix B) counts alike, but the full square of the sequence.
    """
    visible = positions.astype(np.float64) + 1
    total = 2.0 * matmul_parameters(model) * positions.size
    for kind in model.layer_kinds:
        heads, _, head_dim = model.heads(kind)
        keys = np.minimum(visible, model.window) if kind == "window" else visible
        total += 4.0 * heads * head_dim * keys.sum()
    return total


def train_flops(model: ModelConfig, positions: np.ndarray, train: TrainConfig | None = None) -> float:
    """FLOPs of forward and backward; recomputation is not counted (model FLOPs, for MFU).

    Three times the forward where every parameter is trained. A frozen matrix has no gradient of its own (4 FLOPs a
    scalar and token instead of 6); layers below the first that is trained, and the embedding, have no backward pass.
    The factors of an adapter count 6 a scalar and token.
    """
    everything = 3.0 * forward_flops(model, positions)
    if train is None or not (train.lora.rank or train.trained):
        return everything
    tuned = tuning.matched(model, train.trained)
    factors = tuning.factor_sizes(model, train.lora)
    moved = {int(name.split("/")[1]) for name in {*tuned, *factors} if name.startswith("layers/")}
    first = 0 if "embed/weight" in tuned else min(moved, default=model.num_layers)
    below = dataclasses.replace(model, num_layers=first, pattern=model.layer_kinds) if first else None
    spared = 0.0
    for name, size in tuning.sizes(model).items():
        is_head = name == ("embed/weight" if model.tie_embeddings else "head/weight")
        if (is_head or name.endswith("_proj")) and name not in tuned:
            spared += 2.0 * size * positions.size
    if below is not None:
        head = 2.0 * model.vocab_size * model.hidden * positions.size
        matrices = 2.0 * (matmul_parameters(below) - model.vocab_size * model.hidden) * positions.size
        # The gradients of their matrices are among those spared already.
        spared += 2.0 * (forward_flops(below, positions) - head) - matrices
    return everything - spared + 6.0 * sum(factors.values()) * positions.size
