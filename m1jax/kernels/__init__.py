"""Attention with the short convolution, rotary positions and windows of Baichuan-M1, one function a device."""

from m1jax.kernels.api import PLATFORMS, AttentionFunction, attention, decode_attention
from m1jax.kernels.arguments import AttentionLayer, NewTokens, Rows
from m1jax.kernels.decode import LayerCache

__all__ = [
    "PLATFORMS",
    "AttentionFunction",
    "AttentionLayer",
    "LayerCache",
    "NewTokens",
    "Rows",
    "attention",
    "decode_attention",
]
