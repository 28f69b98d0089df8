"""What the kernels of both families are held to: outputs, gradients, and how near bfloat16 stays to float32."""

import jax
import jax.numpy as jnp
import numpy as np

from m1jax.kernels import reference
from tests.kernels.rows import NAMES, arguments, drawn, rows_of

ERROR = 2e-5


def close(ours, want, at, scale=0.0):
    """Within ERROR of the largest number wanted, of 1 and of `scale`."""
    scale = max(1.0, scale, float(jnp.abs(want).max()))
    np.testing.assert_allclose(ours / scale, want / scale, atol=ERROR, err_msg=at)


def gradients_close(ours, want, x):
    """The gradients of the arguments `x`, and those of the row before.

    A convolution's gradient is the inner product of the keys with the shifted gradient of theirs, over all tokens and
    channels. Its terms cancel, so errors are judged by the length of the keys (Cauchy-Schwarz), up to five times what
    is left.
    """
    for name in NAMES:
        scale = 0.0
        if name in ("conv_k", "conv_v"):
            left = max(1.0, float(jnp.abs(want[0][name]).max()))
            scale = min(float(jnp.linalg.norm(x[name[-1]])), 5 * left)
        close(ours[0][name], want[0][name], name, scale)
    for a, b in zip(ours[1], want[1], strict=True):
        close(a, b, "prev_kv")


def bfloat16_stays_near_float32(attention, lengths):
    """The gradients of `attention` on one row of documents, against the reference's in float32."""
    S = sum(lengths)
    x = drawn(7, 1, S, 2, 1, 128)
    ids, positions = rows_of(lengths, S=S)
    narrow = {n: v.astype(jnp.bfloat16) if n in "qkv" else v for n, v in x.items()}

    def loss(attention, x):
        return jnp.sum(attention(*arguments(x, ids, positions, None)).astype(jnp.float32) ** 2)

    ours = jax.jit(jax.grad(lambda x: loss(attention, x)))(narrow)
    want = jax.jit(jax.grad(lambda x: loss(reference.attention, x)))(x)
    for name in NAMES:
        assert ours[name].dtype == narrow[name].dtype
        difference = np.linalg.norm(np.asarray(ours[name], np.float32) - np.asarray(want[name]))
        # Eight bits of mantissa in operands, weights and their gradients.
        assert difference < 0.02 * np.linalg.norm(np.asarray(want[name])), name
