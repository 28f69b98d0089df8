"""Muon for the matrices of the layers, AdamW for everything else."""

import math
from typing import Any

import jax
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from m1jax.config import OptimizerConfig
from m1jax.optim.adamw import adamw, decay_mask

RMS = 0.2
"""Root mean square of an update's entries, about AdamW's (Liu et al., arXiv 2502.16982, equation 4)."""

_MATRICES = {
    "q_proj": MuonDimensionNumbers(-3, (-2, -1)),  # (…, hidden, heads, head_dim)
    "k_proj": MuonDimensionNumbers(-3, (-2, -1)),
    "v_proj": MuonDimensionNumbers(-3, (-2, -1)),
    "o_proj": MuonDimensionNumbers((-3, -2), -1),  # (…, heads, head_dim, hidden)
    "gate_proj": MuonDimensionNumbers(-2, -1),
    "up_proj": MuonDimensionNumbers(-2, -1),
    "down_proj": MuonDimensionNumbers(-2, -1),
}
"""Which axes of a parameter are its matrix's input and output; an axis before them counts layers."""


def muon(settings: OptimizerConfig) -> optax.GradientTransformation:
    """Momentum made orthogonal by five Newton-Schulz steps (Jordan et al., 2024, "Muon"), then decoupled weight decay.

    Each layer's matrix is orthogonalised by itself, and Q, K and V apart. An update of a matrix with n inputs and m
    outputs is scaled by 0.2 sqrt(max(n, m)), so that learning rate and weight decay are AdamW's (Liu et al.,
    arXiv 2502.16982). Embedding, head, norms and convolutions are left to AdamW, with the same learning rate.
    """
    matrices = optax.chain(
        scale_by_muon(beta=settings.muon_momentum, eps=settings.eps, weight_dimension_numbers=_dimensions),
        optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(_scaled, updates)),
        optax.add_decayed_weights(settings.weight_decay, mask=lambda params: decay_mask(settings, params)),
    )
    return optax.partition({"muon": matrices, "adamw": adamw(settings)}, _rules)


def _matrix(path: tuple[Any, ...]) -> MuonDimensionNumbers | None:
    return _MATRICES.get(jax.tree_util.keystr(path[-1:], simple=True))


def _rules(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: "muon" if _matrix(path) else "adamw", params)


def _dimensions(updates: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: _matrix(path), updates)


def _scaled(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
    axes = _matrix(path)
    assert axes is not None, "partition gives this rule matrices only"
    inputs, outputs = (math.prod(update.shape[axis] for axis in np.atleast_1d(side)) for side in axes)
    return RMS * math.sqrt(max(inputs, outputs)) * update
