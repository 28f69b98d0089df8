"""The GPU kernels in Pallas's interpreter, against the reference and a loop over tokens, and lowered for CUDA."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax import kernels
from m1jax.errors import UserError
from m1jax.kernels import reference
from m1jax.kernels.gpu import attention as gpu
from m1jax.kernels.gpu import blocks
from m1jax.kernels.gpu.blocks import Tile, Tiles
from tests.kernels import oracle
from tests.kernels.compare import bfloat16_stays_near_float32, close, gradients_close
from tests.kernels.rows import arguments, drawn, rows_of

SMALL = Tiles(Tile(16, 32, 4, 1), Tile(32, 16, 4, 1), Tile(16, 32, 4, 1))
INTERPRETED = {"chip": "9.0", "tiles": SMALL, "interpret": True}
GLOBAL, WINDOW = (20, 2, 256, None), (40, 8, 128, 8192)
"""The 14B's layers: query heads, KV heads, head_dim, window."""


@jax.jit
def both(x, before, ids, positions, window, offset, q):
    """(output, logarithm, gradients of a random weighing of both) by the kernels and by the reference."""
    rng = np.random.default_rng(0)
    S = q.shape[1]
    real = jax.lax.dynamic_slice_in_dim(ids, offset, S, axis=1) > 0
    weigh = jnp.asarray(rng.normal(size=q.shape), jnp.float32)
    weigh_sum = jnp.asarray(rng.normal(size=q.shape[:3]), jnp.float32)

    def run(attention, **more):
        def loss(x, before):
            call = arguments(x, ids, positions, window, prev_kv=before, q_offset=offset)
            out, lse = attention(*call, return_lse=True, **more)
            return jnp.sum(out * weigh) + jnp.sum(jnp.where(real[:, :, None], lse, 0) * weigh_sum), (out, lse)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)({**x, "q": q}, before)

    return run(gpu.attention, **INTERPRETED), run(reference.attention)


# Each shape is compiled once: window and offset are given as numbers on the device.
SHAPES = ((1, 100, 10, 1, 64), (2, 72, 4, 2, 48), (1, 96, 3, 3, 128))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 99),
    shape=st.sampled_from(SHAPES),
    window=st.sampled_from([1, 2, 15, 16, 17, 33, 47, 48, 1000]),
    borders=st.lists(st.sampled_from([1, 2, 15, 16, 17, 31, 32, 33]), max_size=5),
    padded=st.booleans(),
)
def test_equals_the_reference_with_all_gradients(seed, shape, window, borders, padded):
    B, S, H, K, D = shape
    x = drawn(seed, B, S, H, K, D)
    ids, positions = rows_of([*borders] if padded else [*borders, S], *[[S - 5, 5]] * (B - 1), S=S)
    rng = np.random.default_rng(seed)
    before = tuple(jnp.asarray(rng.normal(size=(B, K, D)), jnp.float32) for _ in range(2))
    check(x, before, ids, positions, window, 0, x.pop("q"))


def check(x, before, ids, positions, window, offset, q):
    ((_, ours), d_ours), ((_, want), d_want) = both(x, before, ids, positions, window, jnp.int32(offset), q)
    close(ours[0], want[0], "out")
    close(ours[1], want[1], "lse")
    empty = np.asarray(ids)[:, offset : offset + q.shape[1]] == 0
    assert np.all(np.asarray(ours[0])[empty] == 0)
    assert np.all(np.asarray(ours[1])[empty] == np.float32(-1e30))
    gradients_close(d_ours, d_want, {**x, "q": q})
    assert np.all(np.asarray(d_ours[0]["q"])[empty] == 0)


def test_queries_at_an_offset_see_the_keys_before_them():
    B, T, H, K, D = SHAPES[0]
    x = drawn(4, B, T, H, K, D)
    ids, positions = rows_of([33, 50], S=T)
    q = x.pop("q")
    for offset in (0, 1, 17, 60, 70):
        check(x, (jnp.ones((B, K, D)),) * 2, ids, positions, 40, offset, q[:, :30])


@pytest.mark.parametrize("window", [None, 1, 5])
def test_equals_a_loop_over_tokens_in_float64(window):
    S = 40
    x = drawn(2, 1, S, 4, 2, 64)
    ids, positions = rows_of([7, 20], S=S)
    call = functools.partial(arguments, ids=ids, positions=positions, window=window)
    ours = jax.jit(lambda x: gpu.attention(*call(x), return_lse=True, **INTERPRETED))(x)
    want = oracle.attention(*call(x))
    np.testing.assert_allclose(ours[0], want[0], atol=2e-5)
    real = np.asarray(ids)[0] > 0
    np.testing.assert_allclose(np.asarray(ours[1])[0, real], want[1][0, real], atol=2e-5)


def test_a_query_whose_first_tiles_are_masked_whole_is_no_exception():
    """With the tiles of the table: where no key of a tile is seen, the softmax meets masked scores alone."""
    x = drawn(6, 1, 256, 4, 2, 64)
    ids, positions = rows_of([41, 61, 2, 1, 33, 97, 21], S=256)
    call = functools.partial(arguments, ids=ids, positions=positions, window=None)
    ours = jax.jit(lambda x: gpu.attention(*call(x), chip="9.0", interpret=True))(x)
    np.testing.assert_allclose(ours, reference.attention(*call(x)), atol=2e-5)


def test_gradient_equals_differences_of_the_loop():
    x = drawn(3, 1, 20, 4, 2, 64)
    ids, positions = rows_of([5, 12], S=20)
    call = functools.partial(arguments, ids=ids, positions=positions, window=4)
    weights = np.random.default_rng(0).normal(size=(1, 20, 4, 64))
    program = jax.jit(jax.grad(lambda x: jnp.sum(gpu.attention(*call(x), **INTERPRETED) * weights)))
    gradients = program(x)
    rng = np.random.default_rng(1)
    for name in x:
        direction = rng.normal(size=x[name].shape)
        ends = [
            oracle.attention(*call({**x, name: np.float64(x[name]) + step * direction}))[0] for step in (1e-4, -1e-4)
        ]
        slope = ((ends[0] - ends[1]) * weights).sum() / 2e-4
        np.testing.assert_allclose((np.asarray(gradients[name]) * direction).sum(), slope, rtol=2e-4, atol=2e-4)


def test_no_gradient_crosses_a_document():
    S, cut, end = 72, 33, 60
    x = drawn(3, 1, S, 2, 1, 64)
    ids, positions = rows_of([cut, end - cut], S=S)
    call = functools.partial(arguments, ids=ids, positions=positions, window=None)

    @jax.jit
    def gradient(x, part):
        return jax.grad(lambda x: jnp.sum(jnp.square(gpu.attention(*call(x), **INTERPRETED)) * part))(x)

    token = np.arange(S)
    for part in (token < cut, (token >= cut) & (token < end)):
        gradients = gradient(x, part[None, :, None, None])
        for name in ("q", "k", "v"):
            assert np.all(np.asarray(gradients[name])[:, ~part] == 0), name
            assert np.any(np.asarray(gradients[name])[:, part] != 0), name


def test_bfloat16_stays_near_float32():
    bfloat16_stays_near_float32(functools.partial(gpu.attention, **INTERPRETED), [30, 34])


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), max_size=6),
    window=st.none() | st.integers(1, 90),
    offset=st.sampled_from([0, 1, 16, 30]),
    tile=st.sampled_from([(16, 32), (32, 16), (8, 8)]),
)
def test_tiles_are_visited_where_they_must_be_and_masked_where_needed(lengths, window, offset, tile):
    T, S, (M, N) = 96, 64, tile
    ids = np.asarray(rows_of(lengths, S=T)[0])[0]
    key, at = np.arange(T), offset + np.arange(S)
    seen = (key[None] <= at[:, None]) & (ids[at][:, None] == ids[None]) & (ids > 0)
    if window is not None:
        seen &= at[:, None] - key[None] < window
    first = np.where(seen.any(1), seen.argmax(1), T).astype(np.int32)
    # The last query that sees a key may stand after the queries of this call.
    whole = (key[None] <= key[:, None]) & (ids[:, None] == ids[None]) & (ids > 0)
    if window is not None:
        whole &= key[:, None] - key[None] < window
    last = np.where(ids > 0, T - 1 - whole[::-1].argmax(0), -1).astype(np.int32)
    np.testing.assert_array_equal(gpu._last_queries(jnp.asarray(ids[None]), window)[0], last)
    parts = seen.reshape(S // M, M, T // N, N)

    def note(j, state, *, edge):
        return state.at[j].add(jnp.array([1, 0]) if edge else jnp.array([0, 1]))

    for i in range(S // M):
        visits = by_keys(jnp.asarray(first[i * M : (i + 1) * M]), offset + i * M, M, N, T, note)
        expect(visits, parts[i].any((0, 2)), parts[i].all((0, 2)))
    for j in range(T // N):
        visits = by_queries(jnp.asarray(last[j * N : (j + 1) * N]), j * N, offset, M, N, S, note)
        expect(visits, parts[:, :, j].any((1, 2)), parts[:, :, j].all((1, 2)))


def expect(visits, must, whole):
    masked, plain = np.asarray(visits).T
    np.testing.assert_array_equal(masked + plain, must)
    np.testing.assert_array_equal(plain, whole)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def by_keys(first, start, M, N, T, note):
    return blocks.over_keys(first, start, Tile(M, N, 4, 1), T, note, jnp.zeros((T // N, 2), jnp.int32))


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def by_queries(last, start, offset, M, N, S, note):
    return blocks.over_queries(last, start, offset, Tile(M, N, 4, 1), S, note, jnp.zeros((S // M, 2), jnp.int32))


@pytest.mark.parametrize("kind", [GLOBAL, WINDOW], ids=["global", "window"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_lowers_for_cuda_without_a_gpu(kind, backward):
    """As far as jax itself goes: Triton's own dialect, which XLA compiles where the program runs."""
    with known_device():
        traced = jax.jit(program_of(kind, backward)).trace(*shapes_of(kind, 4096))
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("__gpu$xla.gpu.triton") == (3 if backward else 1)
    for name in ("forward", *(("dq", "dkv") if backward else ())):
        assert f"m1_attention_{name}" in text


def known_device():
    """jax wants to know the device that it lowers for."""
    device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


def program_of(kind, backward, chip="9.0", packed=True):
    D, window = kind[2:]

    def run(q, k, v, conv, inv_freq, positions, ids):
        layer = kernels.AttentionLayer(conv_k=conv, conv_v=conv, inv_freq=inv_freq, window=window, scale=D**-0.5)
        rows = kernels.Rows(positions=positions, segment_ids=ids if packed else None)

        def attend(q, k, v):
            return gpu.attention(q, k, v, layer, rows, chip=chip)

        if not backward:
            return attend(q, k, v)
        out, pull = jax.vjp(attend, q, k, v)
        return pull(out)

    return run


def shapes_of(kind, S, sharding=None):
    H, K, D, _ = kind
    given_ = [((1, S, heads, D), jnp.bfloat16) for heads in (H, K, K)]
    given_ += [((K, 2), jnp.float32), ((D // 2,), jnp.float32), ((1, S), jnp.int32), ((1, S), jnp.int32)]
    return [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in given_]


def test_cudnn_lowers_for_cuda_without_a_gpu():
    """The window layer; of head_dim 256 jax asks the attached GPU whether it takes it."""
    try:
        traced = jax.jit(program_of(WINDOW, backward=True, packed=False)).trace(*shapes_of(WINDOW, 16384))
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    except RuntimeError as error:
        assert "cuDNN" in str(error)
        pytest.skip("jax asks cuDNN for its version, and it is not installed: pip install 'm1jax[gpu]'")
    assert set(re.findall(r"@(__cudnn\$\w+)", text)) == {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"}
    assert set(re.findall(r"sliding_window_length\W+(\d+)", text.replace("\\22", ""))) == {"8192"}


@pytest.mark.parametrize("window", [None, 1, 9, 64, 100])
def test_what_cudnn_is_asked_for_is_the_reference_on_whole_rows(window):
    """By the other implementation of the function that hands it to cuDNN, which has the same arguments."""
    x = drawn(5, 2, 64, 4, 2, 64)
    ids, positions = rows_of([64], [64], S=64)
    call = arguments(x, ids, positions, window)
    found = gpu.cudnn(*reference.prepared(*call), window=window, scale=call[3].scale, implementation="xla")
    np.testing.assert_allclose(found, reference.attention(*call), atol=2e-5)


def test_cudnn_is_asked_where_it_computes_exactly_this():
    assert gpu.cudnn_computes(jnp.bfloat16, 256, "9.0")
    assert gpu.cudnn_computes(jnp.bfloat16, 128, "8.0")
    assert not gpu.cudnn_computes(jnp.bfloat16, 256, "8.0")
    assert not gpu.cudnn_computes(jnp.float32, 64, "9.0")
    assert not gpu.cudnn_computes(jnp.bfloat16, 68, "9.0")


@pytest.mark.parametrize("chip", blocks.SHARED_MEMORY)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_tiles_fit_the_shared_memory_of_every_chip(chip, head_dim):
    for name, tile in vars(blocks.tiles(chip, head_dim)).items():
        assert blocks.shared_bytes(name, tile, head_dim) <= blocks.SHARED_MEMORY[chip], name


def test_what_computes_is_logged_once(caplog):
    gpu._log_once.cache_clear()
    x = drawn(1, 1, 32, 2, 1, 64)
    ids, positions = rows_of([32], S=32)
    with caplog.at_level("INFO"):
        for _ in range(2):
            jax.eval_shape(lambda x: gpu.attention(*arguments(x, ids, positions, 7), **INTERPRETED), x)
    assert caplog.messages == ["attention gpu: Pallas kernels for window 7 layers of head_dim 64 in float32."]


def test_what_is_not_supported_is_said():
    ids, positions = rows_of([8], S=8)
    x = drawn(9, 1, 8, 2, 1, 64)
    with pytest.raises(UserError, match=r"no kernel for cpu: compute capabilities 8.0, 9.0 are supported"):
        kernels.attention(*arguments(x, ids, positions, None, impl="gpu"))
    wide = drawn(9, 1, 8, 2, 1, 288)
    with pytest.raises(UserError, match=r"head_dim 288: even sizes up to 256"):
        gpu.attention(*arguments(wide, ids, positions, None), **INTERPRETED)
    mixed = {**x, "k": x["k"].astype(jnp.bfloat16)}
    with pytest.raises(UserError, match=r"float32, bfloat16, float32: all bfloat16 is supported"):
        gpu.attention(*arguments(mixed, ids, positions, None), **INTERPRETED)
    with pytest.raises(UserError, match=r"set model.compute_dtype to bfloat16"):
        gpu.attention(*arguments(x, ids, positions, None), chip="9.0")
    odd = drawn(9, 1, 8, 3, 2, 64)
    with pytest.raises(UserError, match=r"3 query heads for 2 KV heads"):
        gpu.attention(*arguments(odd, ids, positions, None), **INTERPRETED)
