"""Generation with a KV cache: the engine and the sampling functions."""

from m1jax.generate.engine import LanguageModel
from m1jax.generate.sampling import Sampling, sample

__all__ = ["LanguageModel", "Sampling", "sample"]
