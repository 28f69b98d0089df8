"""Products with weights and their gradients, by every path of `kernels.matmul`, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.kernels.matmul import einsum, linear

# Every form that the model uses, forward and backward, and what it sums over.
FORMS = ("bse,ehd->bshd", "bshd,hde->bse", "bshd,ehd->bse", "bse,ef->bsf", "bsf,ef->bse", "bse,ve->bsv", "bsv,ve->bse")
HALF = 2.0**-8


@settings(max_examples=40, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    sizes=st.fixed_dictionaries({axis: st.integers(1, 4) for axis in "bsehdfv"}),
    lone=st.booleans(),  # a single row, as in a decoding step
    dtype=st.sampled_from(["float32", "bfloat16"]),
    narrow=st.booleans(),
    seed=st.integers(0, 99),
)
def test_products_equal_float64_ones(form, sizes, lone, dtype, narrow, seed):
    sizes |= {"b": 1, "s": 1} if lone else {}
    of_x, of_weight = form.split("->")[0].split(",")
    rng = np.random.default_rng(seed)
    x, weight = (jnp.asarray(rng.normal(size=[sizes[axis] for axis in axes]), dtype) for axes in (of_x, of_weight))
    wanted = jnp.bfloat16 if narrow and dtype == "bfloat16" else jnp.float32
    got = jax.jit(lambda x, weight: einsum(form, x, weight, dtype=wanted))(x, weight)
    exact = np.einsum(form, np.float64(x), np.float64(weight))
    assert got.dtype == wanted and got.shape == exact.shape
    summed = np.einsum(form, np.abs(np.float64(x)), np.abs(np.float64(weight)))
    bound = 1e-6 * summed + (HALF * np.abs(exact) if wanted == jnp.bfloat16 else 0) + 1e-12
    assert np.all(np.abs(np.float64(got) - exact) <= bound)


@pytest.mark.parametrize("form", ["bse,ev->vbs", "ebs,ev->bsv"])
def test_a_form_that_would_be_computed_wrong_is_refused(form):
    with pytest.raises(AssertionError, match=form):
        einsum(form, jnp.ones((2, 2, 2)), jnp.ones((2, 2)), dtype=jnp.float32)


@pytest.mark.parametrize("form", ["bse,ehd->bshd", "bshd,hde->bse", "bse,ef->bsf"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_equal_float64_ones_and_the_weight_s_is_not_rounded(form, dtype):
    """Of a float32 weight under bfloat16 activations: its gradient is a float32 sum of exact products."""
    sizes = dict(zip("bsehdf", (2, 3, 4, 2, 5, 6), strict=True))
    of_x, of_weight, of_out = (axes for side in form.split("->") for axes in side.split(","))
    rng = np.random.default_rng(0)

    def drawn(axes, dtype):
        return jnp.asarray(rng.normal(size=[sizes[axis] for axis in axes]), dtype)

    x, weight, d_out = drawn(of_x, dtype), drawn(of_weight, jnp.float32), drawn(of_out, dtype)
    out, pull = jax.vjp(lambda x, weight: linear(form, x, weight), x, weight)
    d_x, d_weight = pull(d_out)
    assert (out.dtype, d_x.dtype, d_weight.dtype) == (dtype, dtype, jnp.float32)
    wide = [np.float64(each) for each in (x, weight.astype(dtype), d_out)]
    rounding = 4 * HALF if dtype == "bfloat16" else 1e-6
    want = np.einsum(f"{of_out},{of_weight}->{of_x}", wide[2], wide[1])
    np.testing.assert_allclose(np.float64(d_x), want, atol=rounding * np.abs(want).max())
    want = np.einsum(f"{of_x},{of_out}->{of_weight}", wide[0], wide[2])
    np.testing.assert_allclose(np.float64(d_weight), want, atol=1e-6 * np.abs(want).max())
