"""What is float32 whatever the compute dtype: norms, rotary positions, softmax, the head's norm and the loss.

Bounds are such that the same sums or angles in bfloat16 miss them, which the tests show beside.
"""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from m1jax import kernels, model
from m1jax.config import file as config_file
from m1jax.kernels import LayerCache, reference
from m1jax.model import head, layers
from tests.model import programs, small

BF16 = ml_dtypes.bfloat16
# Half a unit in the last of eight bits: what rounding an exact result to bfloat16 costs.
HALF = 2.0**-8


def narrow(seed, *shape, scale=1.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(BF16)


def wide(x):
    return np.asarray(x).astype(np.float64)


def test_rmsnorm_is_right_to_the_last_bit_of_bfloat16():
    hidden = 4096
    x = narrow(0, 2, 3, hidden, scale=3.0)
    with nnx.use_eager_sharding(False):
        norm = layers.RMSNorm("norm", hidden, 1e-6, layers.Initializer(jax.random.key(0), jnp.float32))
    exact = wide(x) / np.sqrt((wide(x) ** 2).mean(-1, keepdims=True) + 1e-6)
    assert np.abs(wide(norm(jnp.asarray(x))) / exact - 1).max() < 1.001 * HALF
    squares = (x * x).astype(BF16)
    in_bfloat16 = wide((x * (1 / np.sqrt(wide(squares).mean(-1, keepdims=True))).astype(BF16)).astype(BF16))
    assert np.abs(in_bfloat16 / exact - 1).max() > 1.3 * HALF


@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_rope_turns_by_float32_angles_beyond_32k(dtype):
    """Positions that bfloat16 cannot tell apart; angles as the facts say: float32 position times float32 frequency."""
    D, positions = 64, np.array([[32_761, 32_767, 40_001, 131_071]], np.int32)
    x = np.random.default_rng(0).normal(size=(1, 4, 1, D)).astype(dtype)
    inv_freq = layers.rope_frequencies(D, 1e6)
    np.testing.assert_allclose(inv_freq, 1e6 ** (-np.arange(0, D, 2) / D), rtol=1e-6)
    pairs = wide(x)[..., : D // 2] + 1j * wide(x)[..., D // 2 :]

    def error(angles):
        exact = pairs * np.exp(1j * angles)
        got = wide(reference.rotate(jnp.asarray(x), positions, inv_freq))
        return np.abs(got[..., : D // 2] + 1j * got[..., D // 2 :] - exact).max() / np.abs(pairs).max()

    angles = (positions[..., None, None].astype(np.float32) * np.asarray(inv_freq)).astype(np.float64)
    rounding = 1e-6 if dtype == np.float32 else 1.5 * HALF
    assert error(angles) < rounding
    # The float32 angle itself is off by half a unit in its last place, 2^17 radians at most here.
    assert error(positions[..., None, None] * 1e6 ** (-np.arange(0, D, 2) / D)) < rounding + 2.0**-7
    in_bfloat16 = wide(positions.astype(BF16))[..., None, None] * wide(np.asarray(inv_freq).astype(BF16))
    assert error(in_bfloat16) > 1


def scores_far_apart(S=256, D=32):
    """Queries and keys in bfloat16 whose scores, near 100, differ by less than bfloat16 holds, and values."""
    q, k = narrow(1, 1, S, 1, D, scale=0.25), narrow(2, 1, S, 1, D, scale=0.25)
    q[..., 0] = k[..., 0] = 10.0
    v = narrow(3, 1, S, 1, D)
    scores = wide(q)[0, :, 0] @ wide(k)[0, :, 0].T
    assert scores.min() > 95 and 0.1 < scores.std() < 1
    return q, k, v, np.where(np.tri(S, dtype=bool), scores, -np.inf)


# No rotation and no convolution: what enters the softmax is then known to the last bit.
PLAIN = {
    "window": None, "scale": 1.0,
    "conv_k": np.array([[0.0, 1.0]], np.float32), "conv_v": np.array([[0.0, 1.0]], np.float32),
    "inv_freq": np.zeros(16, np.float32),
}  # fmt: skip


def one_document(S):
    ones = np.ones((1, S), np.int32)
    return kernels.Rows(positions=ones, segment_ids=ones)


def attended(scores, v):
    raised = np.exp(scores - scores.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True) @ wide(v)[0, :, 0]


def test_softmax_and_its_sums_are_float32():
    q, k, v, scores = scores_far_apart()
    layer, rows = kernels.AttentionLayer(**PLAIN), one_document(256)
    out, lse = jax.jit(lambda q, k, v: kernels.attention(q, k, v, layer, rows, return_lse=True))(q, k, v)
    top = scores.max(-1)
    exact = top + np.log(np.exp(scores - top[:, None]).sum(-1))
    np.testing.assert_allclose(np.asarray(lse)[0, :, 0], exact, atol=3e-5)
    check_attended(out, scores, v)


def test_softmax_on_a_cache_is_float32():
    """Half of the keys in the cache, half new."""
    q, k, v, scores = scores_far_apart()
    old, late = slice(0, 128), slice(128, 256)
    room = ((0, 0), (0, 0), (0, 128), (0, 0))  # a global layer's cache has it for the new tokens too
    slots = [jnp.pad(x[:, old].transpose(0, 2, 1, 3), room) for x in (k, v)]
    cache = LayerCache(*slots, *(jnp.asarray(x[:, 127]) for x in (k, v)))
    fresh = [jnp.asarray(x[:, late]) for x in (q, k, v)]
    new = kernels.NewTokens(lengths=jnp.array([128]), real=np.ones((1, 128), bool))
    out, _ = jax.jit(kernels.decode_attention)(*fresh, cache, kernels.AttentionLayer(**PLAIN), new)
    check_attended(out, scores[late], v)


def check_attended(out, scores, v):
    """Rounding the weights for the product averages out; scores rounded before the softmax move every output."""
    exact = attended(scores, v)

    def error(found):
        return np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2))

    assert error(wide(out)[0, :, 0]) < HALF
    rounded = np.where(np.isfinite(scores), scores.astype(BF16).astype(np.float64), -np.inf)
    assert error(attended(rounded, v)) > 10 * HALF


def test_gradient_of_a_query_that_sees_one_key_is_no_noise():
    """Its softmax is constant, so Q's and K's gradient is 0; rounded sums that do not cancel would leave some."""
    S = 12
    q, k, v = (jnp.asarray(narrow(i, 1, S, 2, 32)) for i in range(3))
    plain = np.array([[0.0, 1.0]] * 2, np.float32)
    layer = kernels.AttentionLayer(**{**PLAIN, "window": 1, "conv_k": plain, "conv_v": plain})

    def loss(q, k, v):
        return jnp.sum(kernels.attention(q, k, v, layer, one_document(S)).astype(jnp.float32) ** 2)

    d_q, d_k, d_v = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v)
    assert np.abs(wide(d_v)).max() > 1
    assert max(np.abs(wide(d_q)).max(), np.abs(wide(d_k)).max()) < 1e-5


def test_norm_head_divides_by_a_float32_norm():
    weight = narrow(0, 7, 8192, scale=5.0)
    exact = wide(weight) / np.linalg.norm(wide(weight), axis=1, keepdims=True)
    np.testing.assert_allclose(head.normalize_rows(jnp.asarray(weight)), exact, rtol=2e-6)
    hidden = narrow(1, 1, 3, 8192)
    # The rows are rounded to the compute dtype; the products' sums are not.
    logits = head.logits(jnp.asarray(hidden), jnp.asarray(weight))
    rounded = wide(np.asarray(head.normalize_rows(jnp.asarray(weight))).astype(BF16))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits[0], wide(hidden)[0] @ rounded.T, atol=2e-5)


def test_norm_head_is_differentiated_through_its_norm():
    rng = np.random.default_rng(0)
    hidden, weight = rng.normal(size=(1, 5, 12)), rng.normal(size=(9, 12)) * rng.uniform(0.1, 4, (9, 1))
    targets = rng.integers(0, 9, (1, 5))

    def exact(weight):
        logits = hidden @ (weight / np.linalg.norm(weight, axis=1, keepdims=True)).T
        return -sum(logits[0, t, targets[0, t]] - np.log(np.exp(logits[0, t]).sum()) for t in range(5))

    def ours(weight):
        return head.cross_entropy(jnp.float32(hidden), weight, targets, jnp.ones((1, 5)), chunk=2).loss

    gradient = wide(jax.jit(jax.grad(ours))(jnp.float32(weight)))
    slopes = np.zeros_like(weight)
    for at in np.ndindex(weight.shape):
        step = np.zeros_like(weight)
        step[at] = 1e-6
        slopes[at] = (exact(weight + step) - exact(weight - step)) / 2e-6
    np.testing.assert_allclose(gradient, slopes, atol=1e-5 * np.abs(slopes).max())
    along = (gradient * weight).sum(1) / np.linalg.norm(weight, axis=1)
    assert np.abs(along).max() < 1e-6 * np.abs(gradient).max(), "the loss does not see a row's length"


def test_the_loss_sums_in_float32():
    """A uniform distribution over V tokens: ln V a token, 16 thousand times; bfloat16 stands still at 2048."""
    V, S = 5000, 16_384
    weight = jnp.ones((V, 4), jnp.bfloat16)
    hidden, targets = jnp.ones((1, S, 4), jnp.bfloat16), jnp.zeros((1, S), jnp.int32)
    found = head.cross_entropy(hidden, weight, targets, jnp.ones((1, S)), chunk=64)
    np.testing.assert_allclose([found.loss, found.weight], [S * np.log(V), S], rtol=2e-6)
    np.testing.assert_allclose(
        head.log_likelihood(hidden[:, :9], weight, targets[:, :9], chunk=4), -np.log(V), rtol=1e-6
    )


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_every_pair_of_dtypes_runs(param_dtype, compute_dtype):
    """Parameters and gradients keep the param dtype, hidden states the compute dtype; logits and loss are float32."""
    config = small.config(num_layers=2, param_dtype=param_dtype, compute_dtype=compute_dtype)
    graphdef, params = model.create(config, 0)
    tokens = small.tokens(0, 1, 12)

    def run(params):
        decoder = nnx.merge(graphdef, params)
        states = decoder.hidden(tokens, rope_base=small.BASE)
        return decoder.cross_entropy(states, tokens, jnp.ones((1, 12)), chunk=5).loss, (states, decoder.logits(states))

    (loss, (states, logits)), gradient = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    assert (loss.dtype, states.dtype, logits.dtype) == (jnp.float32, compute_dtype, jnp.float32)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(gradient)} == {param_dtype}
    assert all(np.all(np.isfinite(wide(leaf))) for leaf in jax.tree.leaves((loss, logits, gradient)))


def traced_step(config, B, S):
    """The program of loss and gradient, traced with shapes alone."""
    graphdef, shapes, _ = model.abstract(config)
    row = jax.ShapeDtypeStruct((B, S), jnp.int32)

    def loss(params, tokens, segments, targets):
        decoder = nnx.merge(graphdef, params)
        hidden = decoder.hidden(tokens, segments, rope_base=1e6, remat="block")
        return decoder.cross_entropy(hidden, targets, (segments > 0).astype(jnp.float32), chunk=512).loss

    return jax.make_jaxpr(jax.value_and_grad(loss))(shapes, row, row, row)


def test_logits_of_the_14b_never_exist_at_once():
    """Forward and backward, eight rows of 1024: but for the head itself nothing has more than a chunk of logits."""
    # With the reference: a TPU's kernel cannot be traced here, and the head is the same.
    config = config_file.load("configs/m1_14b.py", ["model.attention=reference"]).model
    B, S, V = 8, 1024, config.vocab_size
    made = programs.shapes(traced_step(config, B, S))
    logits = [shape for shape in made if V in shape and shape != (V, config.hidden)]
    assert (B, 64, V) in logits, "the walk reaches the chunks"
    assert max(np.prod(shape) for shape in logits) == 512 * V
    assert B * S * V not in [np.prod(shape) for shape in made]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_float32_product_is_computed_in_fewer_bits(dtype):
    """TPUs and GPUs round float32 operands of a product unless HIGHEST is asked for: training, cache and head ask."""
    config = small.config(compute_dtype=dtype)
    graphdef, params = model.unrolled(config, model.create(config, 0)[1])

    def extend(params, tokens):
        decoder = nnx.merge(graphdef, params)
        return decoder.logits(decoder.extend(tokens, model.empty_cache(config, 1, 16), rope_base=1e4)[0])

    found = programs.products(traced_step(config, 1, 12))
    found += programs.products(jax.make_jaxpr(extend)(params, np.zeros((1, 3), np.int32)))
    exact = [product for product in found if {str(v.aval.dtype) for v in product.invars} == {"float32"}]
    assert len(found) > 60 and (len(exact) == len(found)) == (dtype == "float32")
    for product in exact:
        assert product.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2, product


def test_rope_frequencies_are_the_same_bits_eagerly_and_compiled():
    """Computed naively they differ in the last place, and angles at position 32,767 by 4e-4."""
    eager = np.asarray(layers.rope_frequencies(128, 1e6))
    compiled = np.asarray(jax.jit(lambda: layers.rope_frequencies(128, 1e6))())
    np.testing.assert_array_equal(eager, compiled)
    traced = np.asarray(jax.jit(lambda base: layers.rope_frequencies(128, base))(np.float32(1e6)))
    np.testing.assert_allclose(traced, 1e6 ** (-np.arange(0, 128, 2) / 128), rtol=2e-6)
