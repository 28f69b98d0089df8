"""configs/m1_14b.py makes the model of the report's and the reference code's table, item by item."""

import functools
import math

import jax
import pytest

from m1jax import model
from m1jax.config import file as config_file

KINDS = {"global": (20, 2, 256), "window": (40, 8, 128)}


@functools.cache
def run():
    return config_file.load("configs/m1_14b.py")


@functools.cache
def shapes():
    return model.abstract(run().model).shapes


def test_sizes():
    config = run().model
    assert (config.num_layers, config.hidden, config.ffn) == (40, 5120, 17_408)
    assert (config.vocab_size, config.max_positions, config.window) == (133_120, 32_768, 8192)
    assert config.normalize_head and not config.tie_embeddings
    assert {kind: config.heads(kind) for kind in KINDS} == KINDS
    assert [stage.rope_base for stage in run().stages] == [1e5, 1e5, 1e6]


def test_even_layers_are_global_and_odd_ones_windows():
    assert run().model.layer_kinds == ("global", "window") * 20
    cut = model.layout(run().model)
    assert (cut.prefix, cut.period, cut.repeats, cut.suffix) == ((), ("global", "window"), 20, ())


def test_parameters_are_14_470_764_320():
    """14,470,763,520 and 800 scalars of the convolution; not one more, so no bias, no QK-norm and no post-norm."""
    leaves = jax.tree_util.tree_leaves_with_path(shapes())
    counts = {jax.tree_util.keystr(path): math.prod(leaf.shape) for path, leaf in leaves}
    assert sum(counts.values()) == run().model.num_parameters == 14_470_764_320
    assert sum(count for name, count in counts.items() if "conv" in name) == 800
    assert counts["['embed']['weight']"] == counts["['head']['weight']"] == 133_120 * 5120


@pytest.mark.parametrize(("slot", "kind"), [("0", "global"), ("1", "window")])
def test_shapes_of_a_layer(slot, kind):
    heads, kv_heads, head_dim = KINDS[kind]
    found = jax.tree.map(lambda leaf: leaf.shape[1:], shapes()["periods"][slot])
    assert found == {
        "input_norm": {"weight": (5120,)},
        "attention": {
            "q_proj": (5120, heads, head_dim),
            "k_proj": (5120, kv_heads, head_dim),
            "v_proj": (5120, kv_heads, head_dim),
            "o_proj": (heads, head_dim, 5120),
            "conv_k": (kv_heads, 2),
            "conv_v": (kv_heads, 2),
        },
        "post_attention_norm": {"weight": (5120,)},
        "mlp": {"gate_proj": (5120, 17_408), "up_proj": (5120, 17_408), "down_proj": (17_408, 5120)},
    }
    # Rows of the published W_pack.
    assert (heads + 2 * kv_heads) * head_dim == {"global": 6144, "window": 7168}[kind]


@pytest.mark.parametrize("length", [100, 8192, 32_768])
@pytest.mark.parametrize("batch", [1, 3])
def test_cache_has_the_published_bytes(batch, length):
    cache = jax.eval_shape(lambda: model.empty_cache(run().model, batch, length))
    states = [(layer.k, layer.v) for layer in cache.layers]
    ends = [(layer.last_k, layer.last_v) for layer in cache.layers]
    assert held(states[::2]) == batch * 40_960 * length
    assert held(states[1::2]) == batch * 81_920 * min(length, 8192)
    assert held(ends) == batch * 122_880
    # Beside them nothing but the number of tokens of each row.
    assert held(cache) == held([states, ends]) + 4 * batch


def test_a_cache_of_32k_tokens_is_1_875_gib():
    cache = jax.eval_shape(lambda: model.empty_cache(run().model, 1, 32_768))
    assert held(cache.layers) - 122_880 == 1.875 * 2**30


def held(tree):
    """Bytes of all arrays."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
