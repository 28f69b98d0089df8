"""The TPU kernels in Pallas's interpreters, against the reference and a loop over tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from m1jax import kernels
from m1jax.errors import UserError
from m1jax.kernels import reference
from m1jax.kernels.tpu import attention as tpu
from m1jax.kernels.tpu.schedule import Blocks, Tiling
from tests.kernels import oracle
from tests.kernels.compare import bfloat16_stays_near_float32, close, gradients_close
from tests.kernels.rows import NAMES, arguments, drawn, rows_of


def tiling(keys, cores=1, chunks=1, height=128, tile=128, heads=1):
    panels = -(-keys // (height * cores * chunks)) * chunks
    return Tiling(Blocks(height, tile, heads), Blocks(height, tile), cores, panels * height * cores, chunks, 2**26)


@functools.partial(jax.jit, static_argnames=("window", "blocks", "interpret"))
def both(x, before, ids, positions, window, blocks, interpret=True):
    """(output, log-sum, gradients of a random weighing of both) by the kernels and by the reference."""
    rng = np.random.default_rng(0)
    weigh = jnp.asarray(rng.normal(size=x["q"].shape), jnp.float32)
    weigh_sum = jnp.asarray(rng.normal(size=x["q"].shape[:3]), jnp.float32) * (ids > 0)[:, :, None]

    def run(attention, **more):
        def loss(x, before):
            out, lse = attention(*arguments(x, ids, positions, window, prev_kv=before), return_lse=True, **more)
            return jnp.sum(out * weigh) + jnp.sum(jnp.where(weigh_sum == 0, 0, lse) * weigh_sum), (out, lse)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(x, before)

    return run(tpu.attention, tiling=blocks, chip="v5p", interpret=interpret), run(reference.attention)


def check(x, before, ids, positions, window, blocks, interpret=True):
    ((_, ours), d_ours), ((_, want), d_want) = both(x, before, ids, positions, window, blocks, interpret)
    close(ours[0], want[0], "out")
    close(ours[1], want[1], "lse")
    assert np.all(np.asarray(ours[0])[np.asarray(ids) == 0] == 0)
    assert np.all(np.asarray(ours[1])[np.asarray(ids) == 0] == np.float32(-1e30))
    gradients_close(d_ours, d_want, x)


# Shapes that need a compilation are few; lengths, borders and windows of the same shapes are many.
SHAPES = (
    # B, S, H, K, D, tiling
    (1, 300, 2, 2, 64, tiling(300)),
    (2, 256, 3, 1, 128, tiling(256, cores=2, heads=2)),
    (1, 384, 10, 1, 128, tiling(384, chunks=3, heads=2)),
    (1, 500, 4, 2, 256, tiling(500, height=256, heads=2)),
    (1, 512, 5, 1, 128, tiling(512, cores=2, chunks=2)),
)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 99),
    shape=st.sampled_from(SHAPES),
    window=st.sampled_from([None, 1, 127, 129, 200, 1000]),
    borders=st.lists(st.sampled_from([1, 2, 127, 128, 129, 199, 200, 201, 255, 256, 257]), max_size=4),
    padded=st.booleans(),
)
def test_equals_the_reference_with_all_gradients(seed, shape, window, borders, padded):
    B, S, H, K, D, blocks = shape
    x = drawn(seed, B, S, H, K, D)
    lengths = [*borders] if padded else [*borders, S]
    ids, positions = rows_of(lengths, *[[S]] * (B - 1), S=S)
    rng = np.random.default_rng(seed)
    before = tuple(jnp.asarray(rng.normal(size=(B, K, D)), jnp.float32) for _ in range(2))
    check(x, before, ids, positions, window, blocks)


@pytest.mark.parametrize(
    ("shape", "window", "lengths"),
    [
        (SHAPES[0], None, [127, 2, 100]),
        (SHAPES[1], 129, [256]),
        (SHAPES[2], None, [384]),
        (SHAPES[4], 130, [1, 255, 129]),
    ],
)
def test_equals_the_reference_on_chosen_rows(shape, window, lengths):
    B, S, H, K, D, blocks = shape
    ids, positions = rows_of(lengths, *[[]] * (B - 1), S=S)
    check(drawn(1, B, S, H, K, D), (jnp.ones((B, K, D)),) * 2, ids, positions, window, blocks)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("window", [None, 300])
def test_scores_far_above_a_token_s_own(heads, window):
    """The weights relative to a token's own score overflow in some blocks of queries, and in others do not."""
    S = 500
    x = drawn(11, 1, S, 2, 1, 64)
    x["conv_k"] = jnp.asarray([[0.0, 1.0]])
    # Key 150 scores high with the queries from 260 on, by a component that no other key has.
    x["q"] = x["q"].at[:, 260:, :, 0].set(60.0)
    x["k"] = x["k"].at[:, :, :, 0].set(0.0).at[:, 150, :, 0].set(60.0)
    ids, positions = rows_of([450], S=S)

    def call(x):
        return arguments(x, ids, positions, window, inv_freq=jnp.zeros(32))

    want, want_sum = reference.attention(*call(x), return_lse=True)
    real = np.asarray(ids)[0] > 0
    high = np.asarray(want_sum)[0, real].max(1)
    assert (high > 400).sum() > 100 and (high < 20).sum() > 100
    ours, ours_sum = jax.jit(
        lambda x: tpu.attention(
            *call(x), return_lse=True, interpret=True, chip="v6e", tiling=tiling(S, height=256, heads=heads)
        )
    )(x)
    np.testing.assert_allclose(ours[0, real], want[0, real], atol=1e-4)
    np.testing.assert_allclose(ours_sum[0, real], want_sum[0, real], rtol=1e-5)
    assert np.all(np.asarray(ours)[0, ~real] == 0)


@pytest.mark.parametrize("window", [None, 1, 5])
def test_equals_a_loop_over_tokens_in_float64(window):
    S = 40
    x = drawn(2, 1, S, 2, 1, 64)
    ids, positions = rows_of([7, 20], S=S)
    settings_ = {"return_lse": True, "interpret": True, "chip": "v6e", "tiling": tiling(S)}
    ours = jax.jit(lambda x: tpu.attention(*arguments(x, ids, positions, window), **settings_))(x)
    want = oracle.attention(*arguments(x, ids, positions, window))
    np.testing.assert_allclose(ours[0], want[0], atol=2e-5)
    real = np.asarray(ids)[0] > 0
    np.testing.assert_allclose(np.asarray(ours[1])[0, real], want[1][0, real], atol=2e-5)


def test_no_gradient_crosses_a_document():
    S, cut = 300, 129
    x = drawn(3, 1, S, 2, 1, 64)
    ids, positions = rows_of([cut, 100], S=S)

    def loss_of(part):
        def loss(x):
            call = arguments(x, ids, positions, None)
            return jnp.sum(tpu.attention(*call, interpret=True, chip="v5e", tiling=tiling(S))[:, part] ** 2)

        return loss

    for part, others in ((slice(0, cut), slice(cut, S)), (slice(cut, cut + 100), slice(0, cut))):
        gradients = jax.jit(jax.grad(loss_of(part)))(x)
        for name in ("q", "k", "v"):
            assert np.all(np.asarray(gradients[name])[:, others] == 0), name
            assert np.any(np.asarray(gradients[name])[:, part] != 0), name


@pytest.mark.parametrize(("cores", "chunks"), [(1, 1), (2, 2)])
def test_queries_at_a_traced_offset_see_the_keys_before_them(cores, chunks):
    T, S = 500, 100
    x = drawn(4, 1, T, 2, 1, 64)
    ids, positions = rows_of([130, 300], S=T)

    def run(attention, offset, **more):
        def loss(x):
            late = {**x, "q": jax.lax.dynamic_slice_in_dim(x["q"], offset, S, axis=1)}
            out = attention(*arguments(late, ids, positions, 150, q_offset=offset), **more)
            return jnp.sum(out**2), out

        return jax.value_and_grad(loss, has_aux=True)(x)

    program = jax.jit(
        lambda offset: run(tpu.attention, offset, interpret=True, chip="v5p", tiling=tiling(T, cores, chunks))
    )
    for offset in (0, 1, 128, 257, 400):
        (_, out), gradients = program(jnp.int32(offset))
        (_, want), wanted = run(reference.attention, offset)
        close(out, want, f"out at {offset}")
        for name in NAMES:
            close(gradients[name], wanted[name], f"{name} at {offset}")


@pytest.mark.parametrize("window", [None, 300])
def test_packed_rows_visit_no_more_blocks_than_they_must(window):
    """Counted by the kernels; a block must be visited where a token of it is seen by one of the queries'."""
    S, height = 2048, 128
    rng = np.random.default_rng(0)
    lengths = [list(rng.geometric(1 / 200, size=30)), [S]]
    ids, positions = rows_of(*lengths, S=S)
    x = drawn(5, 2, S, 1, 1, 64)
    static, arrays = tpu.operands(
        *arguments(x, ids, positions, window),
        interpret=True,
        chip="v6e",
        tiling=tiling(S),
        counted=True,
    )
    out, lse, keys, values, forward = tpu.run_forward(static, arrays, save=True)
    backward = tpu.run_backward(static, arrays, out, lse, keys, values, (out, lse))[-1][0]
    t = np.arange(S)
    for b in range(2):
        row = np.asarray(ids[b])
        seen = (t[None] <= t[:, None]) & (row[None] == row[:, None]) & (row > 0)
        if window is not None:
            seen &= t[:, None] - t[None] < window
        least = seen.reshape(S // height, height, S // height, height).any((1, 3)).sum()
        assert forward[b] == backward[b] == least


def test_the_unpacked_schedule_equals_the_packed_one_on_whole_rows():
    S = 700
    x = drawn(6, 1, S, 2, 1, 64)
    ids, positions = rows_of([S], S=S)
    for window in (None, 1, 128, 129, 300, 640):
        runs = [
            jax.jit(
                lambda x, packed=packed, window=window: tpu.attention(
                    *arguments(x, ids, positions, window),
                    packed=packed,
                    interpret=True,
                    chip="v5e",
                    tiling=tiling(S),
                )
            )(x)
            for packed in (True, False)
        ]
        np.testing.assert_allclose(runs[0], runs[1], atol=1e-6)


def test_bfloat16_stays_near_float32():
    attention = functools.partial(tpu.attention, interpret=True, chip="v5e", tiling=tiling(256))
    bfloat16_stays_near_float32(attention, [100, 156])


def test_the_race_detector_finds_none_and_every_read_is_of_written_memory():
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter

    S = 256
    ids, positions = rows_of([100, 120], S=S)
    x = drawn(8, 1, S, 2, 1, 64)
    before = (jnp.zeros((1, 1, 64)),) * 2
    check(x, before, ids, positions, 150, tiling(S, cores=2), pltpu.InterpretParams(detect_races=True))
    assert not interpreter.races.races_found


@pytest.mark.parametrize("field", ["q", "k"])
def test_what_is_not_supported_is_said(field):
    ids, positions = rows_of([8], S=8)
    x = drawn(9, 1, 8, 2, 1, 64)
    with pytest.raises(UserError, match=r"no kernel for cpu: v5e, v5p, v6e, tpu7x are supported"):
        kernels.attention(*arguments(x, ids, positions, None, impl="pallas_tpu"))
    wide = drawn(9, 1, 8, 2, 1, 288)
    with pytest.raises(UserError, match=r"head_dim 288: even sizes up to 256"):
        tpu.attention(*arguments(wide, ids, positions, None), chip="v5e")
    mixed = {**x, field: x[field].astype(jnp.bfloat16)}
    with pytest.raises(UserError, match=r"all float32 or all bfloat16"):
        tpu.attention(*arguments(mixed, ids, positions, None), chip="v5e")
