"""Products of activations with weights, at the precision their dtype promises."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def matmul_precision(dtype: Any) -> jax.lax.Precision:
    """HIGHEST for float32, whose products TPUs and GPUs would otherwise round to fewer bits; else DEFAULT."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


def einsum(subscripts: str, x: Array, weight: Array, *, dtype: Any) -> Array:
    """`jnp.einsum(subscripts, x, weight)` summed in float32, in `dtype`; x and weight share theirs.

    Sums over x's last axes, which are the weight's first or last ones; the result has those that x keeps, then those
    that the weight keeps. Operands and contracted axes stay in the order given (jnp.einsum swaps them as it sees fit,
    and the CPU backend then transposes whole weights). In bfloat16 that backend has a fast path for float32 results of
    two vectors or more, and 2 to 25 times slower code for everything else: there the result is rounded afterwards, and
    a lone vector (a decoding step) gets a companion.
    """
    inputs, out = subscripts.split("->")
    of_x, of_weight = inputs.split(",")
    shared = [axis for axis in of_x if axis in of_weight]
    assert out == "".join(axis for axis in of_x + of_weight if axis not in shared), f"{subscripts} reorders its result"
    assert of_x.endswith("".join(shared)), f"{subscripts} sums over other axes than x's last ones"
    contracted = tuple(map(of_x.index, shared)), tuple(map(of_weight.index, shared))

    def plain(x: Array, weight: Array) -> Array:
        return jax.lax.dot_general(
            x, weight, (contracted, ((), ())), precision=matmul_precision(x.dtype), preferred_element_type=dtype
        )

    def as_matrices(x: Array, weight: Array) -> Array:
        kept = x.shape[: x.ndim - len(shared)]
        columns = tuple(size for i, size in enumerate(weight.shape) if i not in contracted[1])
        sum_first = contracted[1][0] == 0
        matrix = weight.reshape((-1, math.prod(columns)) if sum_first else (math.prod(columns), -1))
        vectors = x.reshape(math.prod(kept), -1)
        padded = jnp.pad(vectors, ((0, 1), (0, 0))) if len(vectors) == 1 else vectors
        dims = ((1,), (0 if sum_first else 1,)), ((), ())
        out = jax.lax.dot_general(padded, matrix, dims, preferred_element_type=jnp.float32)
        return out[: len(vectors)].astype(dtype).reshape(*kept, *columns)

    if x.dtype != jnp.bfloat16:
        return plain(x, weight)
    return jax.lax.platform_dependent(x, weight, cpu=as_matrices, default=plain)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def linear(subscripts: str, x: Array, weight: Array) -> Array:
    """`einsum(subscripts, x, weight)` in x's dtype, for a weight of any dtype, with a gradient that CPUs compute fast.

    The gradient is the usual one; its own rule says how it is computed. The automatic rule makes the weight's gradient
    with its axes in another order and transposes it: on two CPU cores the gradient of a SwiGLU layer (hidden 384, FFN
    1024, 2048 tokens, float32) then takes 1.4 times as long. And it rounds that gradient to x's dtype, where this rule
    keeps the float32 sum until it is cast to the weight's dtype. x's gradient is an `einsum` too.
    """
    return einsum(subscripts, x, weight.astype(x.dtype), dtype=x.dtype)


def _linear_forward(subscripts: str, x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return linear(subscripts, x, weight), (x, weight)


def _linear_backward(subscripts: str, saved: tuple[Array, Array], d_out: Array) -> tuple[Array, Array]:
    x, weight = saved
    inputs, out = subscripts.split("->")
    x_axes, weight_axes = inputs.split(",")
    precision = matmul_precision(x.dtype)
    d_x = einsum(f"{out},{weight_axes}->{x_axes}", d_out, weight.astype(x.dtype), dtype=x.dtype)
    d_weight = jnp.einsum(
        f"{x_axes},{out}->{weight_axes}", x, d_out, precision=precision, preferred_element_type=jnp.float32
    )
    return d_x, d_weight.astype(weight.dtype)


linear.defvjp(_linear_forward, _linear_backward)
