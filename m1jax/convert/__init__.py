"""Checkpoints of other programs: export to and import from the reference layout, and its proof."""

from m1jax.convert.hf import export, read
from m1jax.convert.verify import Agreement, verify_with_mlx, verify_with_torch

__all__ = ["Agreement", "export", "read", "verify_with_mlx", "verify_with_torch"]
