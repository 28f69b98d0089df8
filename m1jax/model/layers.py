"""Parameters with logical axes, and the layers around attention: projections, RMSNorm, SwiGLU, rotary frequencies.

Legend: B batch, S sequence, E hidden, F FFN, D head_dim, R rank.
"""

import dataclasses
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from m1jax.config import LoraConfig
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

    def uniform(self, name: str, shape: tuple[int, ...], axes: tuple[str, ...], bound: float) -> nnx.Param:
        """Uniform between -bound and bound."""
        return self._param(name, axes, lambda key: jax.random.uniform(key, shape, jnp.float32, -bound, bound))

    def zeros(self, name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> nnx.Param:
        """Zeros."""
        return self._param(name, axes, lambda key: jnp.zeros(shape, jnp.float32))

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


class LowRank(nnx.Module):
    """Factors A and B beside a matrix W, float32: x W + (x A) B (Hu et al., arXiv 2106.09685).

    B is expected with the scale alpha / rank in it: see `m1jax.model.adapters`. A begins uniform within
    1 / sqrt(inputs), as in PEFT (Kaiming's with a = sqrt(5)), and B as zeros.
    """

    def __init__(self, name: str, weight: nnx.Param, inputs: int, rank: int, init: Initializer):
        """Beside `weight`, which is called `name` and sums over its first `inputs` axes (those of a stack apart)."""
        stack = 0 if init.stack is None else 1
        shape, axes = weight.shape[stack:], weight.get_metadata("out_sharding")[stack:]
        wide = dataclasses.replace(init, dtype=jnp.float32)
        bound = math.prod(shape[:inputs]) ** -0.5
        self.a = wide.uniform(f"{name}/a", (*shape[:inputs], rank), (*axes[:inputs], "rank"), bound)
        self.b = wide.zeros(f"{name}/b", (rank, *shape[inputs:]), ("rank", *axes[inputs:]))


def low_rank(module: nnx.Module, inputs: dict[str, int], lora: LoraConfig | None, init: Initializer) -> nnx.Dict:
    """The factors of a module's matrices by their names; `inputs` has the axes that each matrix sums over."""
    chosen = () if lora is None else [name for name in inputs if name.removesuffix("_proj") in lora.targets]
    rank = 0 if lora is None else lora.rank
    return nnx.Dict({name: LowRank(name, getattr(module, name), inputs[name], rank, init) for name in chosen})


def project(subscripts: str, x: Array, weight: nnx.Param, factors: LowRank | None = None) -> Array:
    """The product of activations with a weight, in x's dtype; `m1jax.model.remat` knows its result by name.

    Low-rank factors are multiplied one after the other: their product, as large as the weight, is never made.
    """
    out = linear(subscripts, x, weight[...])
    if factors is not None:
        into, onto = _through_rank(subscripts)
        out += linear(onto, linear(into, x, factors.a[...]), factors.b[...])
    return checkpoint_name(out, PROJECTION)


def _through_rank(subscripts: str) -> tuple[str, str]:
    """The products with A and with B that take the place of one with their product; r is the rank."""
    inputs, out = subscripts.split("->")
    of_x, of_weight = inputs.split(",")
    summed = "".join(axis for axis in of_weight if axis in of_x)
    kept, made = of_x.removesuffix(summed), of_weight.removeprefix(summed)
    return f"{of_x},{summed}r->{kept}r", f"{kept}r,r{made}->{out}"


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
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) * up(x)), no bias; `lora` says which matrices have factors."""

    def __init__(
        self,
        hidden: int,
        ffn: int,
        std: float,
        residual_std: float,
        init: Initializer,
        lora: LoraConfig | None = None,
    ):
        self.gate_proj = init.normal("gate_proj", (hidden, ffn), ("embed", "ffn"), std)
        self.up_proj = init.normal("up_proj", (hidden, ffn), ("embed", "ffn"), std)
        self.down_proj = init.normal("down_proj", (ffn, hidden), ("ffn", "embed"), residual_std)
        self.lora = low_rank(self, {"gate_proj": 1, "up_proj": 1, "down_proj": 1}, lora, init)

    def __call__(self, x_BSE: Array) -> Array:
        """Same shape and dtype as the input."""
        gate_BSF = project("bse,ef->bsf", x_BSE, self.gate_proj, self.lora.get("gate_proj"))
        up_BSF = project("bse,ef->bsf", x_BSE, self.up_proj, self.lora.get("up_proj"))
        return project("bsf,fe->bse", jax.nn.silu(gate_BSF) * up_BSF, self.down_proj, self.lora.get("down_proj"))
