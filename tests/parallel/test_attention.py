"""Attention over eight virtual devices: output, log-sum and every gradient are those of one device."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax import kernels
from m1jax.config import MeshConfig
from m1jax.errors import UserError
from m1jax.parallel import mesh as meshes
from m1jax.parallel.attention import partitioned
from tests.kernels.rows import arguments

INV_FREQ = np.array([1.0, 0.2], np.float32)
AXES = ("replica", "data", "fsdp", "tensor", "context")


def mesh_of(**sizes):
    sizes = {"data": 1, **sizes}
    return meshes.make(MeshConfig(**sizes), jax.devices()[: math.prod(sizes.values())])


def drawn(B, S, H, K, T=None, D=4, seed=0):
    rng = np.random.default_rng(seed)
    T = T or S
    shapes = {"q": (B, S, H, D), "k": (B, T, K, D), "v": (B, T, K, D), "conv_k": (K, 2), "conv_v": (K, 2)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def packed(B, S, borders, padding=0):
    """(segment ids, positions) of rows cut at `borders`, the last `padding` tokens of every row padding."""
    index = np.arange(S)
    segments = 1 + np.isin(index, list(borders)).cumsum()
    starts = np.maximum.accumulate(np.where(np.diff(segments, prepend=0) != 0, index, 0))
    segments = np.where(index < S - padding, segments, 0)
    return (np.tile(x.astype(np.int32), (B, 1)) for x in (segments, index - starts))


call = functools.partial(arguments, inv_freq=INV_FREQ, scale=0.5)


def judged(attention, windows, x, segments, positions, **more):
    """Outputs and log-sums of several windows, and the gradients of a fixed mix of them all."""

    def mixed(x):
        found = [attention(*call(x, segments, positions, window, **more), return_lse=True) for window in windows]
        total = 0.0
        for n, (out, lse) in enumerate(found):
            mix = jnp.sin(jnp.arange(out.size, dtype=jnp.float32) * (n + 1)).reshape(out.shape)
            total += jnp.sum(out * mix) + jnp.sum(jnp.where(lse > -1e29, lse, 0) * mix[..., 0])
        return total, found

    (_, found), gradients = jax.value_and_grad(mixed, has_aux=True)(x)
    return found, gradients


@functools.cache
def program(sizes, windows):
    return jax.jit(functools.partial(judged, partitioned(mesh_of(**dict(sizes))), windows))


@functools.cache
def alone(windows):
    return jax.jit(functools.partial(judged, kernels.attention, windows))


def check(sizes, windows, x, segments, positions):
    found = program(tuple(sizes.items()), windows)(x, segments, positions)
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, atol=3e-5, rtol=3e-5),
        found,
        alone(windows)(x, segments, positions),
    )


MESHES = [
    *({axis: 8} for axis in AXES),
    *({one: 2, two: 4} for one, two in itertools.combinations(AXES, 2)),
    *(dict.fromkeys(three, 2) for three in itertools.combinations(AXES, 3)),
]


@pytest.mark.parametrize("sizes", MESHES, ids=lambda sizes: "-".join(f"{axis}{n}" for axis, n in sizes.items()))
def test_every_combination_of_axes_gives_what_one_device_gives(sizes):
    # Windows within a shard, over several, and without end, on rows with borders and padding.
    segments, positions = packed(8, 32, (9, 16, 17), padding=3)
    check(sizes, (3, 13, None), drawn(8, 32, 8, 2), segments, positions)


@pytest.mark.parametrize("sizes", [{"tensor": 2}, {"data": 2, "context": 4}], ids=["tensor", "context"])
def test_rows_of_one_document_need_no_ids(sizes):
    (_, positions), x = packed(8, 32, ()), drawn(8, 32, 8, 2)
    ones = np.ones((8, 32), np.int32)
    found = program(tuple(sizes.items()), (3, 13, None))(x, None, positions)
    want = alone((3, 13, None))(x, ones, positions)
    jax.tree.map(lambda got, want: np.testing.assert_allclose(got, want, atol=3e-5, rtol=3e-5), found, want)


EDGES = [edge + near for edge in (4, 8, 12) for near in (-1, 0, 1)]


@settings(max_examples=30, deadline=None)
@given(borders=st.sets(st.sampled_from(EDGES)), padding=st.integers(0, 16), seed=st.integers(0, 99))
def test_documents_may_begin_and_end_at_the_edges_of_shards(borders, padding, seed):
    segments, positions = packed(1, 16, borders, padding)
    check({"context": 4}, (2, 4, 5, 6, None), drawn(1, 16, 2, 1, seed=seed), segments, positions)


@settings(max_examples=4, deadline=None)
@given(
    context=st.sampled_from([2, 3, 5, 8]),
    shard=st.integers(1, 6),
    window=st.integers(1, 50),
    borders=st.sets(st.integers(1, 47), max_size=3),
)
def test_windows_and_shards_of_any_length(context, shard, window, borders):
    segments, positions = packed(1, context * shard, borders)
    check({"context": context}, (window, None), drawn(1, context * shard, 2, 1), segments, positions)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "tensor"),
    [(20, 2, 4), (40, 8, 4), (40, 8, 8), (20, 2, 2), (12, 3, 2), (12, 4, 6), (6, 1, 3)],
)
def test_every_device_reads_the_kv_heads_of_its_query_heads(heads, kv_heads, tensor):
    segments, positions = packed(1, 8, (3,))
    check({"tensor": tensor}, (3, None), drawn(1, 8, heads, kv_heads), segments, positions)


def test_a_leak_over_a_border_would_show_in_the_gradient():
    """Exactly 0, not small: nothing of one document reaches another through halo, gathered keys or convolution."""
    segments, positions = packed(1, 16, (4, 8, 12))
    attend = partitioned(mesh_of(context=4))

    def of_third(x, window):
        return jnp.sum(attend(*call(x, segments, positions, window))[:, 8:12] ** 2)

    for window in (2, 7, None):
        gradients = jax.jit(jax.grad(functools.partial(of_third, window=window)))(drawn(1, 16, 2, 1))
        for name in ("q", "k", "v"):
            assert np.all(np.asarray(gradients[name])[:, [*range(8), *range(12, 16)]] == 0)
            assert np.any(np.asarray(gradients[name])[:, 8:12] != 0)


def test_rows_that_go_on_are_cut_by_heads_and_rows():
    x = drawn(2, 5, 4, 2, T=9)
    segments, positions = packed(2, 9, ())
    prev = x["k"][:, 3] + 1, x["v"][:, 4]
    want, got = (
        jax.jit(functools.partial(judged, attend, (3, None)))(x, segments, positions, prev_kv=prev, q_offset=offset)
        for attend, offset in ((kernels.attention, 4), (partitioned(mesh_of(fsdp=2, tensor=4)), jnp.int32(4)))
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=3e-5, rtol=3e-5), got, want)


def collectives(attend, window, S=64):
    """Kinds of collective in the compiled forward pass, and in that with its gradient."""
    x = drawn(1, S, 4, 2)
    segments, positions = packed(1, S, (20,))

    def loss(x):
        return jnp.sum(attend(*call(x, segments, positions, window)) ** 2)

    kinds = ("all-gather", "reduce-scatter", "collective-permute", "all-to-all")
    texts = (jax.jit(f).lower(x).compile().as_text() for f in (loss, jax.grad(loss)))
    return [{kind for kind in kinds if f" {kind}(" in text or f" {kind}-start(" in text} for text in texts]


def test_global_layers_gather_and_scatter_and_window_layers_only_pass_on():
    attend = partitioned(mesh_of(context=8))
    forward, backward = collectives(attend, None)
    assert forward == {"all-gather", "collective-permute"}
    assert backward == {"all-gather", "reduce-scatter", "collective-permute"}
    assert collectives(attend, 20) == [{"collective-permute"}] * 2


def test_mirrored_queries_cost_every_shard_the_same():
    """Pairs of query and key under the causal mask, by shard, from the offsets that the local calls are given."""
    s, context, calls = 6, 4, []

    def counting(q, k, v, layer, rows, **settings):
        jax.debug.callback(lambda offset: calls.append((int(offset), q.shape[1])), rows.q_offset)
        return kernels.attention(q, k, v, layer, rows, **settings)

    segments, positions = packed(1, s * context, ())
    attend = partitioned(mesh_of(context=context), counting)
    x = drawn(1, s * context, 2, 1)
    jax.jit(lambda *ids: attend(*call(x, *ids, None)))(segments, positions)
    jax.effects_barrier()
    pairs = {offset: sum(offset + i + 1 for i in range(count)) for offset, count in calls}
    assert sorted(pairs) == list(range(0, s * context, s // 2))
    work = [pairs[i * s] + pairs[(context - 1 - i) * s + s // 2] for i in range(context)]
    assert len(set(work)) == 1


def test_one_device_needs_no_wrapper():
    assert partitioned(mesh_of()) is kernels.attention


@pytest.mark.parametrize(
    ("sizes", "more", "message"),
    [
        ({"tensor": 8}, {}, r"cannot cut 4 query heads over 8 devices \(mesh axes tensor\)"),
        ({"context": 8}, {}, r"cannot cut 12 tokens of a row over 8 devices \(mesh axes context\)"),
        ({"fsdp": 4, "replica": 2}, {}, r"cannot cut 2 rows over 8 devices \(mesh axes replica x data x fsdp\)"),
        ({"context": 4}, {"q_offset": 2}, r"whole rows, not 12 queries at offset 2 of 12 keys: set mesh.context = 1"),
        ({"context": 4}, {"prev_kv": (np.zeros((2, 2, 4)),) * 2}, r"of 12 keys with prev_kv"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_the_numbers(sizes, more, message):
    segments, positions = packed(2, 12, ())
    with pytest.raises(UserError, match=message):
        partitioned(mesh_of(**sizes))(*call(drawn(2, 12, 4, 2), segments, positions, 3, **more))
