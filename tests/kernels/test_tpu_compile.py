"""The TPU kernels through the real TPU compiler, for chips that are not there, at the 14B's shapes."""

import os

import jax
import jax.numpy as jnp
import pytest

from m1jax.kernels import AttentionLayer, Rows
from m1jax.kernels.tpu import attention as tpu

pytest.importorskip("libtpu", reason="libtpu, which holds the TPU compiler, is not installed")

TOPOLOGIES = {"v5e": "v5e:1x1", "v5p": "v5p:2x2x1", "v6e": "v6e:1x1", "tpu7x": "tpu7x:2x2x1"}
GLOBAL, WINDOW = (20, 2, 256, None), (40, 8, 128, 8192)
HALF_GLOBAL = (10, 1, 256, None)
"""One KV head: on v5p both cores share it."""
MEBIBYTE = 2**20


@pytest.fixture(scope="module", autouse=True)
def _compiler():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "TPU_SKIP_MDS_QUERY", "1")
        patch.setitem(os.environ, "ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
        patch.setitem(os.environ, "TPU_LOG_DIR", "disabled")
        patch.delitem(os.environ, "XLA_FLAGS")  # libtpu does not know all of them
        yield


def compiled(fn, arguments, chip):
    from jax.experimental import topologies

    device = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip]).devices[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), arguments)
    return jax.jit(fn).lower(*shapes).compile()


def shapes(kind, S, chip):
    """The static part of a call and its operands' shapes."""
    H, K, D, window = kind
    narrow = jnp.bfloat16
    x = [jax.ShapeDtypeStruct((1, S, heads, D), narrow) for heads in (H, K, K)]
    conv, ids = jax.ShapeDtypeStruct((K, 2), jnp.float32), jax.ShapeDtypeStruct((1, S), jnp.int32)
    inv_freq = jax.ShapeDtypeStruct((D // 2,), jnp.float32)
    layer = AttentionLayer(conv_k=conv, conv_v=conv, inv_freq=inv_freq, window=window, scale=D**-0.5)
    static = []

    def run(*arguments):
        one, arrays = tpu.operands(*arguments, chip=chip)
        static.append(one)
        return arrays

    arrays = jax.eval_shape(run, *x, layer, Rows(positions=ids, segment_ids=ids))
    return static[0], arrays


CASES = [
    ("v5p", GLOBAL, 8192),
    ("v5p", GLOBAL, 32768),
    ("v5p", WINDOW, 32768),
    ("v5p", HALF_GLOBAL, 4096),
    ("v5p", HALF_GLOBAL, 8192),
    ("v5p", HALF_GLOBAL, 32768),
    ("v5e", WINDOW, 4096),
    ("v6e", GLOBAL, 8192),
    ("v6e", WINDOW, 32768),
    ("tpu7x", GLOBAL, 8192),
    ("tpu7x", WINDOW, 32768),
]


@pytest.mark.slow
@pytest.mark.parametrize(("chip", "kind", "S"), CASES)
def test_forward_and_backward_compile_within_memory(chip, kind, S):
    static, arrays = shapes(kind, S, chip)
    forward = compiled(lambda *x: tpu.run_forward(static, x, save=True), arrays, chip)
    assert forward.memory_analysis().temp_size_in_bytes <= MEBIBYTE
    saved = jax.eval_shape(lambda *x: tpu.run_forward(static, x, save=True), *arrays)
    run = compiled(
        lambda arrays, saved, gradients: tpu.run_backward(static, arrays, *saved, gradients),
        (arrays, saved, (saved[0], saved[1])),
        chip,
    )
    temporaries = run.memory_analysis().temp_size_in_bytes
    if static.tiling.chunks == 1:
        assert temporaries <= 64 * MEBIBYTE
    else:
        # One float32 dq beside the gradients of single chunks, which are joined; nothing grows with S / block.
        assert temporaries <= 4 * arrays[0].size + 3 * 2 * arrays[1].size * 2 + 64 * MEBIBYTE
