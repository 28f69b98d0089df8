"""Floating-point operations a token, by formula: those of the model, and those that the hardware does with remat.

Model FLOPs are `model.flops` of whole documents: 2 a matrix parameter and token forward, 4 backward, and 4 · H · D a
visible key forward (scores and values), 8 backward. The hardware does more: a flash kernel's backward pass computes
the scores again (10 instead of 8; Dao, arXiv 2307.08691, section 3.1), and a block that is not kept runs forward twice
(2 more a parameter, 4 more a key). The head's gradient is made beside its loss and is not computed again.
"""

import functools
from dataclasses import dataclass

import numpy as np

from m1jax.config import ModelConfig, TrainConfig
from m1jax.model import flops

RECOMPUTED = {"none": 0.0, "dots": 0.0, "block": 1.0, "offload": 1.0}
"""Forward passes over the blocks' matrices that the backward pass does again, by `train.remat`."""


@dataclass(frozen=True)
class TokenFlops:
    """FLOPs of training on one token, mean over a row."""

    matrices: float
    """Forward and backward through every matrix, the head included."""
    attention: float
    """Scores and values, forward and backward, under the causal and window masks."""
    recomputed: float
    """What remat and the attention kernel compute again."""

    @property
    def model(self) -> float:
        """What the model asks for: the numerator of MFU."""
        return self.matrices + self.attention

    @property
    def hardware(self) -> float:
        """What the chips compute."""
        return self.model + self.recomputed


@functools.lru_cache
def per_token(model: ModelConfig, row_length: int, train: TrainConfig) -> TokenFlops:
    """FLOPs a token of rows that are one document each; shorter documents need less attention.

    What is computed again is that of a backward pass through every layer; layers below the first that is trained have
    none.
    """
    parameters, positions = flops.matmul_parameters(model), np.arange(row_length)
    # A forward pass costs 4 a key, of which the backward pass repeats 2.
    attention = flops.forward_flops(model, positions) / row_length - 2.0 * parameters
    found = flops.train_flops(model, positions, train) / row_length
    blocks = parameters - model.vocab_size * model.hidden
    again = RECOMPUTED[train.remat]
    own = min(3 * attention, found)
    return TokenFlops(found - own, own, again * 2.0 * blocks + attention * (again + 0.5))


def decode_per_token(model: ModelConfig, context: int) -> float:
    """FLOPs of generating one token behind `context` others."""
    return flops.forward_flops(model, np.array([context]))
