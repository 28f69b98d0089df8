"""Tokenizers: one trained here (byte-level BPE with the roles of the chat format), or any that exists; no JAX here."""

from m1jax.tokenizer.files import load, of_run
from m1jax.tokenizer.interface import SpecialIds, Tokenizer
from m1jax.tokenizer.layout import DEFAULT_SYSTEM, FIRST_MERGE, NUM_SPECIAL, ROLES, SPECIAL_TOKENS
from m1jax.tokenizer.trained import TrainedTokenizer
from m1jax.tokenizer.training import extend, train

__all__ = [
    "DEFAULT_SYSTEM", "FIRST_MERGE", "NUM_SPECIAL", "ROLES", "SPECIAL_TOKENS",
    "SpecialIds", "Tokenizer", "TrainedTokenizer", "extend", "load", "of_run", "train",
]  # fmt: skip
