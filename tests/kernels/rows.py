"""Random rows of documents, as arguments of `kernels.attention`."""

import jax.numpy as jnp
import numpy as np

from m1jax.kernels import AttentionLayer, Rows

NAMES = ("q", "k", "v", "conv_k", "conv_v")


def drawn(seed, B, S, H, K, D):
    rng = np.random.default_rng(seed)
    shapes = {"q": (B, S, H, D), "k": (B, S, K, D), "v": (B, S, K, D), "conv_k": (K, 2), "conv_v": (K, 2)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def row_of(lengths, S):
    """Segment ids and positions of documents of these lengths, padded to S."""
    ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)[:S]
    positions = np.concatenate([np.arange(n) for n in lengths])[:S] if len(lengths) else ids
    return [np.pad(x, (0, S - len(x))).astype(np.int32) for x in (ids, positions)]


def rows_of(*rows, S):
    ids, positions = zip(*(row_of(lengths, S) for lengths in rows), strict=True)
    return jnp.asarray(np.stack(ids)), jnp.asarray(np.stack(positions))


def frequencies(D):
    return jnp.asarray(100.0 ** (-np.arange(D // 2) / (D // 2)), jnp.float32)


def arguments(x, ids, positions, window, *, inv_freq=None, scale=None, impl="reference", **rows):
    """q, k, v, the layer and the rows; `rows` may say prev_kv and q_offset."""
    D = x["q"].shape[-1]
    layer = AttentionLayer(
        conv_k=x["conv_k"],
        conv_v=x["conv_v"],
        inv_freq=frequencies(D) if inv_freq is None else inv_freq,
        window=window,
        scale=D**-0.5 if scale is None else scale,
        impl=impl,
    )
    return x["q"], x["k"], x["v"], layer, Rows(positions=positions, segment_ids=ids, **rows)
