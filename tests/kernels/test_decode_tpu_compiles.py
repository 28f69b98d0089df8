"""The decoding kernels through the real TPU compiler at the 14B's shapes."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from m1jax import kernels
from tests import tpu


@pytest.mark.parametrize("chip", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
@pytest.mark.parametrize(
    ("S", "H", "K", "T", "D", "window"),
    [
        (1, 20, 2, 32768, 256, None),
        (8, 20, 2, 32768, 256, None),
        (8, 40, 8, 8192, 128, 8192),
        (100, 20, 2, 32768, 256, None),
    ],
)
def test_compiles_and_never_copies_the_cache(chip, S, H, K, T, D, window):
    sharding = SingleDeviceSharding(tpu.devices(chip)[0])

    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    B = 2
    new = array(B, S, H, D), array(B, S, K, D), array(B, S, K, D)
    cache = kernels.LayerCache(array(B, K, T, D), array(B, K, T, D), array(B, K, D), array(B, K, D))
    conv, inv_freq = array(K, 2, dtype=jnp.float32), array(D // 2, dtype=jnp.float32)
    settings = {"window": window, "scale": D**-0.5, "impl": "pallas_tpu"}
    layer = kernels.AttentionLayer(conv_k=conv, conv_v=conv, inv_freq=inv_freq, **settings)
    tokens = kernels.NewTokens(lengths=array(B, dtype=jnp.int32), real=array(B, S, dtype=bool))

    def extend(cache, new, layer, tokens):
        return kernels.decode_attention(*new, cache, layer, tokens)

    compiled = jax.jit(extend, donate_argnums=0).lower(cache, new, layer, tokens).compile()
    assert len(re.findall(r"custom-call\(.*tpu_custom_call", compiled.as_text())) == 2
    # A donated cache is written in place: less scratch than half of one of its arrays.
    assert compiled.memory_analysis().temp_size_in_bytes < B * K * T * D
