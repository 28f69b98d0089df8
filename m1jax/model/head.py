"""The normalised output head and the losses over it, in chunks: the logits of all tokens never exist at once.

Legend: B batch, S sequence, C sequence positions of a chunk, E hidden, V vocabulary.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from m1jax.kernels.matmul import einsum, matmul_precision

Array = jax.Array
Sums = tuple[Array, Array, Array]

_LEAST_SQUARES = 1e-24
"""Below this sum of squares a row counts as one of zeros."""


class Loss(NamedTuple):
    """Weighted sums over targets, float32 scalars: negative log-likelihood, weights, top-1 hits, log Z (nats)."""

    loss: Array
    weight: Array
    correct: Array
    log_z: Array
    """Of the log-sum-exp of the logits."""


class Compared(NamedTuple):
    """Of every token, each (B, S) float32, in nats."""

    log_p: Array
    """Log p(target) of the model."""
    reference_log_p: Array
    """Log p(target) of the reference."""
    divergence: Array
    """KL(reference || model) of the whole next-token distribution."""


class Described(NamedTuple):
    """Of every token, each (B, S) float32, in nats."""

    log_p: Array
    """Log p(target)."""
    entropy: Array
    """Of the whole next-token distribution."""


def normalize_rows(weight_VE: Array) -> Array:
    """NormHead: rows divided by their Euclidean norm, in float32; differentiable (reference code).

    A row of zeros has no direction, so it has no gradient and stays as it is: padding of an imported vocabulary. In
    PyTorch its gradient is multiplied by 1e12 and swamps the norm of all others.
    """
    wide = weight_VE.astype(jnp.float32)
    squares = jnp.sum(wide * wide, axis=-1, keepdims=True)
    wide = jnp.where(squares > _LEAST_SQUARES, wide, jax.lax.stop_gradient(wide))
    return wide * jax.lax.rsqrt(jnp.maximum(squares, _LEAST_SQUARES))


def logits(hidden_BSE: Array, weight_VE: Array, *, normalize: bool = True) -> Array:
    """Logits (B, S, V) float32: hidden times the row-normalised weight (or the plain one), in hidden's dtype."""
    return _logits(hidden_BSE, _factor(weight_VE, normalize).astype(hidden_BSE.dtype))


def log_likelihood(
    hidden_BSE: Array, weight_VE: Array, targets_BS: Array, *, chunk: int, normalize: bool = True
) -> Array:
    """Log p(target) of every token in nats, (B, S) float32, differentiable.

    `chunk` bounds the tokens (over the whole batch) whose logits exist at once, but never below one position of each
    row; the sequence is what is cut, so that a sharded batch stays sharded.
    """
    normed = _factor(weight_VE, normalize).astype(hidden_BSE.dtype)

    @jax.checkpoint
    def one(hidden_BCE: Array, targets_BC: Array) -> Array:
        return _log_likelihood(hidden_BCE, normed, targets_BC)[0]

    parts, join = _cut(chunk, hidden_BSE, targets_BS)
    return join(jax.lax.map(lambda part: one(*part), parts))


def describe(
    hidden_BSE: Array,
    weight_VE: Array,
    targets_BS: Array,
    *,
    chunk: int,
    temperature: float = 1.0,
    normalize: bool = True,
) -> Described:
    """Log p(target) and the entropy of softmax(logits / temperature), differentiable; `chunk`: see `log_likelihood`."""
    factor = _factor(weight_VE, normalize).astype(hidden_BSE.dtype)

    @jax.checkpoint
    def one(hidden_BCE: Array, targets_BC: Array) -> Described:
        logits_BCV = _logits(hidden_BCE, factor) / temperature
        log_p_BCV = jax.nn.log_softmax(logits_BCV, axis=-1)
        log_p_BC = jnp.take_along_axis(log_p_BCV, targets_BC[..., None], axis=-1)[..., 0]
        return Described(log_p_BC, -jnp.sum(jnp.exp(log_p_BCV) * log_p_BCV, axis=-1))

    parts, join = _cut(chunk, hidden_BSE, targets_BS)
    return Described(*map(join, jax.lax.map(lambda part: one(*part), parts)))


def compare(
    hidden_BSE: Array,
    weight_VE: Array,
    reference_BSE: Array,
    reference_VE: Array,
    targets_BS: Array,
    *,
    chunk: int,
    normalize: bool = True,
) -> Compared:
    """The log-likelihoods of a model and a reference, and the divergence between them: sum_v q (log q - log p).

    Differentiable with respect to the model's hidden states and weight. `chunk` as in `log_likelihood`: the logits of a
    chunk exist for both at once, and are formed again for the gradient.
    """
    factor, other = (
        _factor(weight, normalize).astype(hidden_BSE.dtype)
        for weight in (weight_VE, jax.lax.stop_gradient(reference_VE))
    )

    @jax.checkpoint
    def one(hidden_BCE: Array, reference_BCE: Array, targets_BC: Array) -> Compared:
        log_p_BC, _, logits_BCV, total_BC = _log_likelihood(hidden_BCE, factor, targets_BC)
        log_q_BC, _, reference_BCV, reference_total_BC = _log_likelihood(reference_BCE, other, targets_BC)
        log_q_BCV = reference_BCV - reference_total_BC[..., None]
        log_p_BCV = logits_BCV - total_BC[..., None]
        divergence_BC = jnp.sum(jnp.exp(log_q_BCV) * (log_q_BCV - log_p_BCV), axis=-1)
        return Compared(log_p_BC, log_q_BC, divergence_BC)

    parts, join = _cut(chunk, hidden_BSE, jax.lax.stop_gradient(reference_BSE), targets_BS)
    return Compared(*map(join, jax.lax.map(lambda part: one(*part), parts)))


def cross_entropy(
    hidden_BSE: Array, weight_VE: Array, targets_BS: Array, weights_BS: Array, *, chunk: int, normalize: bool = True
) -> Loss:
    """Sum over tokens of weight x -log p(target), with the sums of weights, top-1 hits and log Z beside it.

    Never a mean: the caller divides by the global sum of weights. Under differentiation the gradient of each chunk is
    formed while its logits are there, so they are computed once. Only `loss` is differentiable, with respect to hidden
    and weight. `chunk` as in `log_likelihood`.
    """
    weights_BS = weights_BS.astype(jnp.float32)
    loss, correct, log_z = _summed(hidden_BSE, _factor(weight_VE, normalize), targets_BS, weights_BS, chunk)
    return Loss(loss, jnp.sum(weights_BS), jax.lax.stop_gradient(correct), jax.lax.stop_gradient(log_z))


def _factor(weight_VE: Array, normalize: bool) -> Array:
    """What hidden states are multiplied by, float32."""
    return normalize_rows(weight_VE) if normalize else weight_VE.astype(jnp.float32)


def _logits(hidden: Array, normed_VE: Array) -> Array:
    return einsum("bse,ve->bsv", hidden, normed_VE, dtype=jnp.float32)


def _log_likelihood(hidden_BCE: Array, normed_VE: Array, targets_BC: Array) -> tuple[Array, Array, Array, Array]:
    """Log p(target), whether the target is the most likely token, the logits and their log-sum."""
    logits_BCV = _logits(hidden_BCE, normed_VE)
    top = jax.lax.stop_gradient(jnp.max(logits_BCV, axis=-1))
    total = jnp.log(jnp.sum(jnp.exp(logits_BCV - top[..., None]), axis=-1)) + top
    chosen = jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1)[..., 0]
    return chosen - total, chosen >= top, logits_BCV, total


def _cut(chunk: int, *arrays: Array) -> tuple[tuple[Array, ...], Callable[[Array], Array]]:
    """Arrays (B, S, ...) as (parts, B, C, ...), padded with zeros, and the way back."""
    B, S = arrays[0].shape[:2]
    size = min(S, max(1, chunk // B))
    parts = -(-S // size)

    def split(x: Array) -> Array:
        padded = jnp.pad(x, [(0, 0), (0, parts * size - S)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(padded.reshape(B, parts, size, *x.shape[2:]), 1, 0)

    def join(x: Array) -> Array:
        return jnp.moveaxis(x, 0, 1).reshape(B, parts * size, *x.shape[3:])[:, :S]

    return tuple(split(x) for x in arrays), join


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _summed(hidden_BSE: Array, normed_VE: Array, targets_BS: Array, weights_BS: Array, chunk: int) -> Sums:
    normed = normed_VE.astype(hidden_BSE.dtype)

    def one(sums: Sums, part: tuple[Array, ...]) -> tuple[Sums, None]:
        hidden, targets, weights = part
        log_p, hit, _, total = _log_likelihood(hidden, normed, targets)
        return _added(sums, log_p, hit, total, weights), None

    parts, _ = _cut(chunk, hidden_BSE, targets_BS, weights_BS)
    return jax.lax.scan(one, (jnp.float32(0), jnp.float32(0), jnp.float32(0)), parts)[0]


def _added(sums: Sums, log_p: Array, hit: Array, total: Array, weights: Array) -> Sums:
    loss, correct, log_z = sums
    return loss - jnp.sum(log_p * weights), correct + jnp.sum(hit * weights), log_z + jnp.sum(total * weights)


def _summed_forward(
    hidden_BSE: Array, normed_VE: Array, targets_BS: Array, weights_BS: Array, chunk: int
) -> tuple[Sums, tuple[Array, Array]]:
    """`_summed` and the gradients of its loss: softmax minus the one-hot target, through both factors."""
    dtype = hidden_BSE.dtype
    normed, precision = normed_VE.astype(dtype), matmul_precision(dtype)

    def one(carry: tuple[Sums, Array], part: tuple[Array, ...]) -> tuple[tuple[Sums, Array], Array]:
        sums, d_normed = carry
        hidden, targets, weights = part
        log_p, hit, logits, total = _log_likelihood(hidden, normed, targets)
        is_target = jnp.arange(normed.shape[0]) == targets[..., None]
        d_logits = ((jnp.exp(logits - total[..., None]) - is_target) * weights[..., None]).astype(dtype)
        d_hidden = einsum("bsv,ve->bse", d_logits, normed, dtype=dtype)
        d_normed += jnp.einsum("bsv,bse->ve", d_logits, hidden, precision=precision, preferred_element_type=jnp.float32)
        return (_added(sums, log_p, hit, total, weights), d_normed), d_hidden

    parts, join = _cut(chunk, hidden_BSE, targets_BS, weights_BS)
    start = (jnp.float32(0), jnp.float32(0), jnp.float32(0)), jnp.zeros(normed_VE.shape, jnp.float32)
    (sums, d_normed), d_hidden = jax.lax.scan(one, start, parts)
    return sums, (join(d_hidden), d_normed)


def _summed_backward(chunk: int, gradients: tuple[Array, Array], cotangents: Sums) -> tuple[Array, Array, None, None]:
    d_hidden, d_normed = gradients
    return (cotangents[0] * d_hidden).astype(d_hidden.dtype), cotangents[0] * d_normed, None, None


_summed.defvjp(_summed_forward, _summed_backward)
