"""Generation with a KV cache: the engine, its sessions, sampling, text as it comes, and chats."""

from m1jax.generate.engine import LanguageModel
from m1jax.generate.sampling import Sampling
from m1jax.generate.session import Session

__all__ = ["LanguageModel", "Sampling", "Session"]
