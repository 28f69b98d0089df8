"""Tokenizers: one trained here (byte-level BPE with the roles of the chat format), or any that exists; no JAX here."""

from m1jax.data.tokenizer.interface import SpecialIds, Tokenizer
from m1jax.data.tokenizer.layout import DEFAULT_SYSTEM, FIRST_MERGE, NUM_SPECIAL, ROLES, SPECIAL_TOKENS
from m1jax.data.tokenizer.trained import TrainedTokenizer
from m1jax.data.tokenizer.training import extend, train

__all__ = [
    "DEFAULT_SYSTEM", "FIRST_MERGE", "NUM_SPECIAL", "ROLES", "SPECIAL_TOKENS",
    "SpecialIds", "Tokenizer", "TrainedTokenizer", "extend", "train",
]  # fmt: skip
