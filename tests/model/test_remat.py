"""What each policy computes again, read from the traced program."""

from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from m1jax import model
from m1jax.kernels.tpu import attention as tpu
from tests.model import programs, small


def on_v5p(q, k, v, layer, rows):
    return tpu.attention(q, k, v, layer, rows, chip="v5p")


@pytest.mark.parametrize(("remat", "forward"), [("none", 1), ("dots", 1), ("block", 2), ("offload", 2)])
def test_only_block_and_offload_run_the_attention_kernel_twice(remat, forward):
    config = small.config(num_layers=2, hidden=256)
    abstract = model.abstract(config, on_v5p)

    def loss(params, tokens):
        segments = jnp.ones(tokens.shape, jnp.int32)
        return nnx.merge(abstract.graphdef, params).hidden(tokens, segments, rope_base=small.BASE, remat=remat).sum()

    traced = jax.make_jaxpr(jax.grad(loss))(abstract.shapes, jax.ShapeDtypeStruct((1, 128), jnp.int32))
    names = Counter(equation.params["name"] for equation in live(traced.jaxpr, "pallas_call"))
    assert names["m1_attention_forward"] == forward * config.num_layers
    assert names["m1_attention_backward"] == config.num_layers


def live(jaxpr, primitive):
    """Equations whose results are read; the compiler drops the others."""
    read = {id(v) for v in jaxpr.outvars} | {id(v) for equation in jaxpr.eqns for v in equation.invars}
    for equation in jaxpr.eqns:
        if equation.primitive.name == primitive and any(id(v) in read for v in equation.outvars):
            yield equation
        for leaf in jax.tree.leaves(list(equation.params.values()), is_leaf=programs.is_program):
            if programs.is_program(leaf):
                yield from live(getattr(leaf, "jaxpr", leaf), primitive)
