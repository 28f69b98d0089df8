"""Attention with the short convolution, rotary positions and windows of Baichuan-M1, one function a device."""

from m1jax.kernels.api import AttentionFunction, attention

__all__ = ["AttentionFunction", "attention"]
