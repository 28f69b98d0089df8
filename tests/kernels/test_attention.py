import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax import kernels
from m1jax.errors import UserError
from m1jax.kernels import reference
from tests.kernels import oracle
from tests.kernels.rows import arguments
from tests.model import programs

INV_FREQ = np.array([1.0, 0.3, 0.05], np.float32)


def drawn(seed, B, S, H, K, D=6):
    rng = np.random.default_rng(seed)
    shapes = {"q": (B, S, H, D), "k": (B, S, K, D), "v": (B, S, K, D), "conv_k": (K, 2), "conv_v": (K, 2)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def rows(seed, B, S):
    """Segment ids of packed rows with padding at the end, and positions that restart in each."""
    rng = np.random.default_rng(seed)
    segments = np.cumsum(rng.random((B, S)) < 0.2, axis=1).astype(np.int32) + 1
    segments[np.arange(S) >= rng.integers(S // 2, S + 1, (B, 1))] = 0
    positions = np.zeros((B, S), np.int32)
    for t in range(1, S):
        positions[:, t] = np.where(segments[:, t] == segments[:, t - 1], positions[:, t - 1] + 1, 0)
    return segments, positions


def attend(x, segments, positions, window, *, return_lse=False, **more):
    def program(x, segments, positions):
        call = arguments(x, segments, positions, window, inv_freq=INV_FREQ, scale=0.4, **more)
        return kernels.attention(*call, return_lse=return_lse)

    return jax.jit(program)(x, segments, positions)


def loop(x, segments, positions, window):
    return oracle.attention(*arguments(x, segments, positions, window, inv_freq=INV_FREQ, scale=0.4))


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 99),
    S=st.integers(6, 20),
    K=st.integers(1, 2),
    group=st.sampled_from([1, 2, 5]),
    window=st.none() | st.integers(1, 5) | st.integers(6, 24),
    block=st.sampled_from([3, 8, 128]),
)
def test_equals_a_loop_over_tokens(seed, S, K, group, window, block):
    x = drawn(seed, 2, S, K * group, K)
    segments, positions = rows(seed, 2, S)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "_BLOCK", block)
        out, lse = attend(x, segments, positions, window, return_lse=True)
    want, want_lse = loop(x, segments, positions, window)
    np.testing.assert_allclose(out, want, atol=2e-5)
    real = segments > 0
    np.testing.assert_allclose(np.asarray(lse)[real], want_lse[real], atol=2e-5)
    assert np.all(np.asarray(lse)[~real] == -1e30)


@pytest.mark.parametrize("window", [1, 2, 5])
def test_window_holds_exactly_that_many_keys(window, monkeypatch):
    monkeypatch.setattr(reference, "_BLOCK", 4)
    S = 12
    x = drawn(0, 1, S, 1, 1)
    x["conv_k"] = x["conv_v"] = np.array([[0.0, 1.0]], np.float32)
    ones, positions = np.ones((1, S), np.int32), np.arange(S, dtype=np.int32)[None]
    moved = jax.jacobian(lambda v: attend({**x, "v": v}, ones, positions, window)[0, :, 0, 0])(x["v"])[:, 0, :, 0, 0]
    sees = np.asarray(moved) != 0
    assert np.array_equal(sees, [[s <= t and t - s < window for s in range(S)] for t in range(S)])


def test_queries_at_an_offset_and_a_previous_token_continue_a_row():
    S, cut = 11, 4
    x = drawn(1, 2, S, 4, 2)
    ones, positions = np.ones((2, S), np.int32), np.tile(np.arange(S, dtype=np.int32), (2, 1))
    whole = attend(x, ones, positions, 5)
    tail = attend({**x, "q": x["q"][:, cut:]}, ones, positions, 5, q_offset=cut)
    np.testing.assert_allclose(tail, whole[:, cut:], atol=1e-6)
    # The keys from `cut` on, given the raw pair before them: tokens whose window lies inside see the same.
    late = {name: value if name.startswith("conv") else value[:, cut:] for name, value in x.items()}
    pair = x["k"][:, cut - 1], x["v"][:, cut - 1]
    tail = attend(late, ones[:, cut:], positions[:, cut:], 3, prev_kv=pair)
    np.testing.assert_allclose(tail[:, 2:], attend(x, ones, positions, 3)[:, cut + 2 :], atol=1e-6)


def test_rows_of_padding_alone_have_zero_output_and_zero_finite_gradients():
    x = drawn(2, 2, 6, 2, 1)
    segments = np.array([[0] * 6, [1, 1, 1, 0, 0, 0]], np.int32)
    positions = np.tile(np.arange(6, dtype=np.int32), (2, 1))
    assert np.all(np.asarray(attend(x, segments, positions, None))[segments == 0] == 0)
    gradients = jax.grad(lambda x: jnp.sum(attend(x, segments, positions, 3) ** 2))(x)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradients))
    assert np.all(np.asarray(gradients["q"])[segments == 0] == 0)
    assert np.all(np.asarray(gradients["k"])[0] == 0)


def test_gradient_equals_finite_differences(monkeypatch):
    monkeypatch.setattr(reference, "_BLOCK", 4)
    x = drawn(3, 1, 10, 4, 2)
    segments, positions = rows(5, 1, 10)
    weights = np.random.default_rng(0).normal(size=(1, 10, 4, 6))

    def loss(**x):
        return float((loop(x, segments, positions, 4)[0] * weights).sum())

    gradients = jax.grad(lambda x: jnp.sum(attend(x, segments, positions, 4) * weights))(x)
    rng = np.random.default_rng(1)
    for name in x:
        direction = rng.normal(size=x[name].shape)
        slope = (
            loss(**{**x, name: x[name] + 1e-4 * direction}) - loss(**{**x, name: x[name] - 1e-4 * direction})
        ) / 2e-4
        np.testing.assert_allclose((np.asarray(gradients[name]) * direction).sum(), slope, rtol=2e-4, atol=2e-4)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), window=st.sampled_from([None, 1, 3, 40]), offset=st.sampled_from([0, 5]))
def test_the_rule_for_gradients_equals_the_automatic_one(seed, window, offset):
    S, rule = 21, reference._attended
    x = drawn(seed, 2, S, 4, 2)
    x["q"] = x["q"][:, : S - offset]
    segments, positions = rows(seed, 2, S)
    weights = np.random.default_rng(seed).normal(size=x["q"].shape)

    def gradients():
        def loss(x):
            out, lse = attend(x, segments, positions, window, q_offset=offset, return_lse=True)
            return jnp.sum(out * weights) + jnp.sum(jnp.where(lse > -1e29, lse, 0) * weights[..., 0])

        return jax.grad(loss)(x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "_BLOCK", 8)
        ours = gradients()
        patch.setattr(reference, "_attended", rule.fun)
        for name, want in gradients().items():
            np.testing.assert_allclose(ours[name], want, atol=1e-5 * max(1, np.abs(want).max()), err_msg=name)


def test_bfloat16_stays_near_float32_and_keeps_its_dtype():
    x = drawn(4, 2, 16, 4, 2)
    segments, positions = rows(4, 2, 16)
    narrow = attend({name: jnp.asarray(value, jnp.bfloat16) for name, value in x.items()}, segments, positions, 7)
    assert narrow.dtype == jnp.bfloat16
    # Eight bits of mantissa in q, k, v and the softmax's weights, values of a few units.
    np.testing.assert_allclose(narrow.astype(np.float32), attend(x, segments, positions, 7), atol=0.1)


def test_scores_of_a_window_layer_never_span_the_row():
    S = 2048
    x = {name: jax.ShapeDtypeStruct(v.shape, v.dtype) for name, v in drawn(0, 1, S, 2, 1).items()}
    row = jax.ShapeDtypeStruct((1, S), jnp.int32)
    jaxpr = jax.make_jaxpr(lambda x, s, p: jax.grad(lambda x: attend(x, s, p, 256).sum())(x))(x, row, row)
    assert str(S) in str(jaxpr)
    assert max(np.prod(shape) for shape in programs.shapes(jaxpr)) <= 2 * 128 * (128 + 256)


def test_unknown_implementation_names_the_known_ones():
    x = drawn(0, 1, 4, 2, 1)
    segments, positions = rows(0, 1, 4)
    with pytest.raises(UserError, match=r"'flash' is unknown.*reference"):
        attend(x, segments, positions, None, impl="flash")
