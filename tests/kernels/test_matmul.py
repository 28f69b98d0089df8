"""Products with weights, by every path of `kernels.matmul.einsum`, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1jax.kernels.matmul import einsum

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
