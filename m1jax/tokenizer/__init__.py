"""Tokenizers: one trained here (byte-level BPE with the roles of the chat format), or any that exists; no JAX here."""

from m1jax.tokenizer.files import load, of_run, special_ids, vocab_size
from m1jax.tokenizer.interface import SpecialIds, Tokenizer
from m1jax.tokenizer.layout import FIRST_MERGE, NUM_SPECIAL, SPECIAL_TOKENS
from m1jax.tokenizer.trained import TrainedTokenizer
from m1jax.tokenizer.training import extend, train

__all__ = [
    "FIRST_MERGE", "NUM_SPECIAL", "SPECIAL_TOKENS",
    "SpecialIds", "Tokenizer", "TrainedTokenizer", "extend", "load", "of_run", "special_ids", "train", "vocab_size",
]  # fmt: skip
