"""A model small enough to compile in seconds, with every part of the architecture."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from m1jax.config import ModelConfig

BASE = 1e4


def config(**changes):
    fields = {
        "vocab_size": 260, "hidden": 16, "ffn": 24, "num_layers": 4, "num_heads": 2, "num_kv_heads": 1,
        "window_num_heads": 4, "window_num_kv_heads": 2, "window": 5, "norm_eps": 1e-6, "init_std": 0.3,
        "max_positions": 256,
    }  # fmt: skip
    return ModelConfig(**(fields | changes))


def tokens(seed, *shape):
    return jax.random.randint(jax.random.key(seed), shape, 0, 260)


@functools.partial(jax.jit, static_argnums=0, static_argnames="remat")
def hidden(graphdef, params, *rows, base=BASE, remat="none"):
    return nnx.merge(graphdef, params).hidden(*rows, rope_base=base, remat=remat)


@functools.partial(jax.jit, static_argnums=0)
def logits(graphdef, params, *rows, base=BASE):
    return nnx.merge(graphdef, params)(*rows, rope_base=base)


def loss(graphdef, params, rows, targets, weights, chunk=16):
    decoder = nnx.merge(graphdef, params)
    states = decoder.hidden(*rows, rope_base=BASE)
    return decoder.cross_entropy(states, targets, weights, chunk=chunk).loss


def largest_difference(a, b):
    return max(float(jnp.max(jnp.abs(x - y))) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
