"""Parameters with logical axes, and the layers around attention: projections, RMSNorm, SwiGLU, rotary frequencies.

Legend: B batch, S sequence, E hidden, F FFN, D head_dim.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from m1jax.kernels.matmul import linear
from m1jax.model.remat import PROJECTION

Array = jax.Array


@dataclass(frozen=True)
class Initializer:
    """Draws the parameters of one module, or of several layers stacked on a leading axis named "layers".

    A parameter's values depend on the key, the layer's number and the parameter's name alone, so cutting the layers
    into periods another way changes nothing.
    """

    key: Array
    dtype: Any
    stack: tuple[int, ...] | None = None

    def layer(self, number: int) -> "Initializer":
        """For the block of one unrolled layer."""
        return Initializer(jax.random.fold_in(self.key, number), self.dtype)

    def layers(self, numbers: Sequence[int]) -> "Initializer":
        """For the blocks of several layers, stacked."""
        return Initializer(self.key, self.dtype, tuple(numbers))

    def normal(self, name: str, shape: tuple[int, ...], axes: tuple[str, ...], std: float) -> nnx.Param:
        """Normal with mean 0 and standard deviation `std`."""
        return self._param(name, axes, lambda key: std * jax.random.normal(key, shape, jnp.float32))

    def convolution(self, name: str, num_heads: int) -> nnx.Param:
        """(num_heads, 2): a softmax of two standard normals for each head (reference code)."""
        return self._param(
            name, ("kv_heads", "conv"), lambda key: jax.nn.softmax(jax.random.normal(key, (num_heads, 2), jnp.float32))
        )

    def ones(self, name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> nnx.Param:
        """Ones."""
        return self._param(name, axes, lambda key: jnp.ones(shape, jnp.float32))

    def _param(self, name: str, axes: tuple[str, ...], draw: Any) -> nnx.Param:
        tag = zlib.crc32(name.encode())
        if self.stack is None:
            value = draw(jax.random.fold_in(self.key, tag))
            return nnx.Param(value.astype(self.dtype), out_sharding=axes)
        numbers = jnp.asarray(self.stack, jnp.uint32)
        # One vectorised program for all layers: unrolled, the keys of many layers took most of its compilation.
        value = jax.vmap(lambda number: draw(jax.random.fold_in(jax.random.fold_in(self.key, number), tag)))(numbers)
        return nnx.Param(value.astype(self.dtype), out_sharding=("layers", *axes))


def project(subscripts: str, x: Array, weight: nnx.Param) -> Array:
    """The product of activations with a weight, in x's dtype; `m1jax.model.remat` knows its result by name."""
    return checkpoint_name(linear(subscripts, x, weight[...]), PROJECTION)


def rope_frequencies(head_dim: int, base: float | Array) -> Array:
    """base^(-2i/D) for i below D/2, float32, in radians per position (RoPE, arXiv 2104.09864)."""
    exponents = -np.arange(0, head_dim, 2) / head_dim
    if isinstance(base, int | float):
        return jnp.asarray(float(base) ** exponents, jnp.float32)
    return jnp.power(base, jnp.asarray(exponents, jnp.float32))


class RMSNorm(nnx.Module):
    """Root-mean-square norm (arXiv 1910.07467): variance in float32, cast to the weight's dtype, times the weight."""

    def __init__(self, name: str, hidden: int, eps: float, init: Initializer):
        self.weight = init.ones(name, (hidden,), ("embed",))
        self.eps = eps

    def __call__(self, x_BSE: Array) -> Array:
        """Same shape and dtype as the input."""
        wide = x_BSE.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        weight = self.weight[...]
        return (normed.astype(weight.dtype) * weight).astype(x_BSE.dtype)


class MLP(nnx.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) * up(x)), no bias."""

    def __init__(self, hidden: int, ffn: int, std: float, residual_std: float, init: Initializer):
        self.gate_proj = init.normal("gate_proj", (hidden, ffn), ("embed", "ffn"), std)
        self.up_proj = init.normal("up_proj", (hidden, ffn), ("embed", "ffn"), std)
        self.down_proj = init.normal("down_proj", (ffn, hidden), ("ffn", "embed"), residual_std)

    def __call__(self, x_BSE: Array) -> Array:
        """Same shape and dtype as the input."""
        gate_BSF = project("bse,ef->bsf", x_BSE, self.gate_proj)
        up_BSF = project("bse,ef->bsf", x_BSE, self.up_proj)
        return project("bsf,fe->bse", jax.nn.silu(gate_BSF) * up_BSF, self.down_proj)
