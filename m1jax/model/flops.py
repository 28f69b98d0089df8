"""Floating-point operations of a model, by formula."""

import numpy as np

from m1jax.config import ModelConfig


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


def train_flops(model: ModelConfig, positions: np.ndarray) -> float:
    """FLOPs of forward and backward: three times the forward; recomputation is not counted (model FLOPs, for MFU)."""
    return 3.0 * forward_flops(model, positions)
